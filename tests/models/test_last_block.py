"""The MLP of the last block of a pass runs on the tokens that are read, and their rows come out as ever."""

import numpy as np
import pytest
import torch
from torch import nn

from families import UNPACKED, build
from repscope.models.edits import Edit
from repscope.models.engine import planner, token_network
from repscope.models.engine.last_block import LastMLP, last_mlp
from repscope.models.engine.packed_pass import last_mlp_differs
from repscope.models.engine.proofs import _SHORT
from repscope.models.language import LanguageModel

LENGTHS = (31, 4, 40, 17, 25, 38, 9, 12, 36, 28, 20, 33)
NOT_ONE_MODULE = {"mixtral", "olmoe", "opt", "opt-post-norm"}  #: experts, and MLPs that are parts of the block itself
OF_TWO_ARGUMENTS = {"bert"}  #: the module around the projection takes the state before it too


@pytest.fixture
def narrowed(monkeypatch):
    """(tokens of the pass, tokens that the MLP ran on) for each pass in which it ran on some."""
    monkeypatch.setattr(planner, "_PROOF", 0.0)  # so few prompts are otherwise padded, as a trial costs more than is saved
    seen, widen = [], LastMLP._widen

    def spy(self, module, args, output):
        if self.rows is not None:
            seen.append((self._tokens, output.shape[-2]))
        return widen(self, module, args, output)

    monkeypatch.setattr(LastMLP, "_widen", spy)
    return seen


def rows(lengths=LENGTHS):
    draw = np.random.default_rng(1)
    return [draw.integers(2, 250, n).tolist() for n in lengths]


def near(ours, theirs):
    for site in theirs.sites:
        assert np.linalg.norm(ours[site] - theirs[site]) <= 3e-5 * np.linalg.norm(theirs[site]), site


def test_rows_of_every_family_are_those_of_whole_passes(family, narrowed):
    name, lm = family
    if name in UNPACKED:
        return
    for at in ("resid_post.1", ["resid_pre.1", "mlp_out.1"]):
        ours = lm.capture(rows(), at)
        trial = [seen for seen in narrowed if seen == (sum(_SHORT), len(_SHORT))]
        runs = np.sum([seen for seen in narrowed if seen not in trial], axis=0).tolist()
        assert runs == (0.0 if name in NOT_ONE_MODULE | OF_TWO_ARGUMENTS else [sum(LENGTHS), len(LENGTHS)])
        near(ours, lm.capture(rows(), at, batch_tokens=1))
        narrowed.clear()


@pytest.mark.parametrize(
    ("at", "tokens"),
    [
        ("resid_post.1", "all"),  # all tokens are read
        (["mlp_act.1", "resid_post.1"], "last"),  # read inside
        ("module:layers.1", "last"),
        ("final_norm", "last"),
    ],
)
def test_the_mlp_runs_on_all_tokens_where_they_are_needed(llama, narrowed, at, tokens):
    ours = llama.capture(rows(), at, tokens)
    assert narrowed == []
    near(ours, llama.capture(rows(), at, tokens, batch_tokens=1))


@pytest.mark.parametrize(
    ("site", "narrow"), [("resid_post.0", True), ("resid_mid.1", True), ("mlp_act.1", False), ("mlp_out.1", False)]
)
def test_edits(llama, narrowed, site, narrow):
    edit = Edit.add(site, 0.5)
    with llama.edit(edit):
        ours = llama.capture(rows(), "resid_post.1")
        assert bool(narrowed) == narrow
        near(ours, llama.capture(rows(), "resid_post.1", batch_tokens=1))


def test_several_packs_and_shared_beginnings(llama, narrowed):
    stem = rows((50,))[0]
    prompts = [*(stem + row for row in rows()), *rows(), stem]
    for size in (64, 256, 4096):
        near(llama.capture(prompts, "resid_post.2", batch_tokens=size), llama.capture(prompts, "resid_post.2", batch_tokens=1))
    assert narrowed
    near(
        llama.capture(prompts, "resid_post.2", tokens="mean"), llama.capture(prompts, "resid_post.2", tokens="mean", batch_tokens=1)
    )


class Mixing(nn.Module):
    """An MLP whose tokens see each other."""

    def __init__(self, mlp):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn

    def forward(self, x):
        x = x + torch.cumsum(x, dim=1) / 10
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def test_an_mlp_that_mixes_tokens_is_found_out(tokenizer, narrowed):
    model = build("llama")
    for layer in model.model.layers:
        layer.mlp = Mixing(layer.mlp)
    lm = LanguageModel(model, tokenizer)
    site = lm.resolve("resid_post.1")
    assert last_mlp_differs(lm, site[0], last_mlp(lm, site)) == "its MLP mixes tokens"
    near(lm.capture(rows(), site), lm.capture(rows(), site, batch_tokens=1))


def test_an_mlp_that_is_refused_runs_on_all_tokens(llama, narrowed, monkeypatch):
    monkeypatch.setattr(token_network, "last_mlp_differs", lambda *_: "its MLP mixes tokens")
    llama.proofs.found.clear()
    near(llama.capture(rows(), "resid_post.1"), llama.capture(rows(), "resid_post.1", batch_tokens=1))
    assert narrowed == []
    llama.proofs.found.clear()
