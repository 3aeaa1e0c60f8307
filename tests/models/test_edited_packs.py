"""Packed prompts under edits: each comes out as it does alone, and what cannot find its prompts in a pack is padded."""

import numpy as np
import pytest
import torch

from families import CAUSAL, UNPACKED, build
from repscope.models.edits import Edit, Installed
from repscope.models.engine import planner
from repscope.models.engine.packed_attention import PackedAttention
from repscope.models.language import LanguageModel

LENGTHS = (3, 30, 9, 21, 14, 2, 40, 5, 33, 12, 27, 18)
WIDTH = 32
UP = np.linspace(-1, 2, WIDTH)


@pytest.fixture(autouse=True)
def packs_of_few_prompts(monkeypatch):
    """So few prompts are otherwise padded, as a trial costs more than is saved."""
    monkeypatch.setattr(planner, "_PROOF", 0.0)


def rows(lengths=LENGTHS, seed=1):
    """Prompts that share beginnings, which edits keep apart."""
    rng = np.random.default_rng(seed)
    stem = rng.integers(2, 250, 60)
    return [np.concatenate([stem[: n // 2], rng.integers(2, 250, n - n // 2)]).tolist() for n in lengths]


def mixed(refused=()):
    """Edits at several sites, of all tokens and of some, one vector and one per prompt."""
    vectors = np.random.default_rng(2).normal(size=(len(LENGTHS), WIDTH))
    edits = [
        Edit.add("resid_post.0", UP, tokens="last"),
        Edit.project_out("resid_pre.1", UP),
        Edit.add("resid_post.1", vectors, tokens=-2, per_prompt=True),
        Edit.clamp("resid_post.1", UP, low=3.0, tokens="first"),
    ]
    return edits + ([] if "mlp_out" in refused else [Edit.replace("mlp_out.1", 0.3, tokens=1)])


def one_by_one(lm, prompts, at):
    """The slow twin: the same edits, one prompt in a pass."""
    held = lm.capture(prompts, at, "all", batch_tokens=1)
    return {site: held[site] for site in held.sites}


def near(ours, theirs, tolerance=3e-5):
    for site in theirs:
        assert np.linalg.norm(ours[site] - theirs[site]) <= tolerance * np.linalg.norm(theirs[site]), site


def test_edited_prompts_of_every_family_are_packed_as_alone(family):
    name, lm = family
    if name not in CAUSAL or name in UNPACKED:
        return
    prompts, at = rows(), ["resid_post.1", "resid_post.2"]
    plain = lm.capture(prompts, at, "all")
    with lm.edit(*mixed(lm.anatomy.refused)):
        assert lm.plan(prompts, at, batch_tokens=64).plan.tree is not None, lm.plan(prompts, at, batch_tokens=64).plan.why
        ours, theirs = lm.capture(prompts, at, "all", batch_tokens=64), one_by_one(lm, prompts, at)
    near(ours, theirs)
    assert np.linalg.norm(ours[at[1]] - plain[at[1]]) > 1e-2 * np.linalg.norm(plain[at[1]])


@pytest.mark.parametrize("tokens", ["all", "prompt", "last", "generated"])
def test_generated_texts_under_edits_are_those_of_transformers(llama, tokens, monkeypatch):
    from repscope.models.engine.generating_network import WAYS

    prompts, packs = rows(), []
    begin = PackedAttention.begin
    monkeypatch.setattr(PackedAttention, "begin", lambda self, pack, keep: (packs.append(pack), begin(self, pack, keep))[1])
    with llama.edit(Edit.add("resid_post.1", UP, tokens=tokens)):
        llama.generate(prompts, 5)  # what is tried once
        packs.clear()
        ours = [c.ids.tolist() for c in llama.generate(prompts, 5)]
        assert packs
        monkeypatch.setattr("repscope.models.engine.generating_network.WAYS", WAYS[2:])
        assert ours == [c.ids.tolist() for c in llama.generate(prompts, 5)]


@pytest.mark.parametrize(
    "edit",
    [
        Edit.add("q.1", 0.5),
        Edit.replace("module:layers.1.mlp.up_proj", 0.0),
        Edit.map("resid_post.0", lambda x: x * 2.0),
        Edit.observe("resid_post.0", lambda x: None),
    ],
    ids=["q", "module", "map", "observe"],
)
def test_edits_that_do_not_find_their_prompts_in_a_pack_are_padded(llama, edit):
    prompts = rows()
    with llama.edit(edit, Edit.add("resid_post.1", UP)):
        assert "finds its positions in rows" in llama.plan(prompts, "resid_post.2").plan.why
        near(llama.capture(prompts, "resid_post.2", "all"), one_by_one(llama, prompts, "resid_post.2"))


def test_a_hook_of_others_in_the_context_keeps_prompts_in_rows(llama):
    with llama.edit(Edit.add("resid_post.0", UP)):
        assert llama.plan(rows()).plan.tree is not None
        hook = llama.module.layers[0].register_forward_hook(lambda m, args, out: None)
        assert "hooks hang on it" in llama.plan(rows()).plan.why
        hook.remove()
    assert llama.taps.placed == []


def test_edits_that_miss_their_tokens_in_packs_are_found_out(tokenizer, monkeypatch):
    """The trial sees an edit that acts one token too late in a pack, and prompts are padded."""
    lm, right = LanguageModel(build("llama"), tokenizer), Installed._in_pack
    monkeypatch.setattr(Installed, "_in_pack", lambda self, value, cells: right(self, value, (cells[0], cells[1] - 1)))
    prompts = rows()
    with lm.edit(Edit.add("resid_post.0", UP, tokens="last")):
        assert "packed under edits, prompts come out otherwise" in lm.plan(prompts).plan.why
        near(lm.capture(prompts, "resid_post.2", "all"), one_by_one(lm, prompts, "resid_post.2"))


def test_a_tensor_of_another_shape_in_a_pack_is_refused(llama):
    with llama.edit(Edit.add("resid_post.0", UP)):
        (installed,) = llama.installed
        llama.capture(rows(), "resid_post.2")
        with pytest.raises(ValueError, match="in a pack of 5 tokens"):
            installed._in_pack(torch.zeros(5, 1, WIDTH), (np.zeros(5, dtype=np.int64), np.arange(5)))


def test_a_trial_leaves_no_trace_in_the_edits(tokenizer):
    lm = LanguageModel(build("llama"), tokenizer)
    with lm.edit(Edit.add("resid_post.0", UP, tokens="last")):
        lm.plan(rows())
        (installed,) = lm.installed
        assert not installed.hit
        assert not installed.moved
        assert installed.stop[:-1].tolist() == list(LENGTHS)
        lm.capture(rows(), "resid_post.2")
