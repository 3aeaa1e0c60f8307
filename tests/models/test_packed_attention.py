"""Packed prompts and trees of them: whatever is shared and wherever packs are cut, each prompt comes out as it does alone."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from families import UNPACKED, WINDOWED, build
from repscope.models.edits import Edit
from repscope.models.engine.packed_attention import _attended
from repscope.models.language import LanguageModel
from repscope.models.prompts import Ragged


def apart(lm, prompts, at, tokens, budget=64):
    """The slow twin: each prompt in a call of its own."""
    each = [lm.capture([p], at, tokens) for p in prompts]
    return {site: np.concatenate([a[site] for a in each]) for site in each[0].sites}


def near(ours, theirs, tolerance=3e-5):
    for site in theirs:
        assert np.linalg.norm(ours[site] - theirs[site]) <= tolerance * np.linalg.norm(theirs[site]), site


def test_every_family_is_packed_or_says_why(family):
    name, lm = family
    why = lm.unpackable(Ragged.of([np.arange(40), np.arange(7)]), [])
    # transformers runs Gemma 2 by torch's product in 5.0, and GPT-J from 5.24 on
    by_torch = name in ("gemma2", "gptj") and lm.model.config._attn_implementation == "sdpa"
    if name in UNPACKED and not by_torch:
        assert UNPACKED[name] in why
    else:
        assert not why
    if name in set(WINDOWED) - set(UNPACKED):  # of fewer than 128 tokens
        assert "128 tokens come out otherwise" in lm.unpackable(Ragged.of([np.arange(100)]), [])


@pytest.mark.parametrize("tokens", ["last", "mean", "all"])
def test_ragged_prompts_of_every_family_are_as_alone(family, tokens):
    _, lm = family
    rng = np.random.default_rng(1)
    prompts = [rng.integers(2, 250, n).tolist() for n in 4 * (3, 30, 9, 21, 14, 2, 40)]
    at = ["resid_post.1", "resid_pre.2"]
    near(lm.capture(prompts, at, tokens, batch_tokens=64), apart(lm, prompts, at, tokens))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_tree_in_any_packs_is_as_alone(llama, data):
    parts = [data.draw(st.lists(st.integers(0, 319), min_size=0, max_size=24)) for _ in range(4)]
    count = data.draw(st.integers(2, 12))
    prompts = []
    for _ in range(count):
        chosen = data.draw(st.lists(st.sampled_from(parts), min_size=0, max_size=3))
        tail = data.draw(st.lists(st.integers(0, 319), min_size=1, max_size=6))
        prompts.append([t for part in chosen for t in part] + tail)
    tokens = data.draw(st.sampled_from(["last", "mean", "all", "first", "-1"]))
    at = ["z.1", "resid_post.2", "mlp_out.0"]
    held = llama.capture(prompts, at, tokens, batch_tokens=data.draw(st.integers(1, 90)))
    near(held, apart(llama, prompts, at, tokens))


def few_shot():
    rng = np.random.default_rng(0)
    task, shots = rng.integers(0, 320, 30).tolist(), [rng.integers(0, 320, 35).tolist() for _ in range(3)]
    return [task + shot + rng.integers(0, 320, 4).tolist() for shot in shots for _ in range(6)]


def test_what_prompts_share_runs_once(llama, monkeypatch):
    prompts, seen = few_shot(), []
    llama.capture(prompts, "resid_post.2")  # with the passes that prove the packing
    attend = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, *rest: (seen.append(x.shape[1]), attend(x, *rest))[1])
    llama.capture(prompts, "mlp_act.0", batch_tokens=50)
    per_pass = 6  # q, k, v and the output of attention, gate and up of the MLP
    assert sum(seen) == per_pass * (30 + 3 * 35 + 18 * 4) == per_pass * llama.plan(prompts, batch_tokens=50).tokens
    assert len(seen) > 3 * per_pass
    assert max(seen) <= 50


def test_a_network_that_others_have_hooked_is_not_packed(llama):
    hook = llama.model.model.layers[0].register_forward_hook(lambda m, args, out: None)
    assert "hooks hang on it" in llama.plan(few_shot()).plan.why
    hook.remove()
    assert llama.plan(few_shot()).plan.tree is not None
    with torch.no_grad():
        llama.model(torch.tensor([[5, 6, 7]]), output_hidden_states=True)  # transformers leaves hooks of its own
    assert llama.plan(few_shot()).plan.tree is not None


def test_only_a_chain_of_segments_is_kept(llama, monkeypatch):
    from repscope.models.engine import packed_attention

    most = []
    begin = packed_attention.PackedAttention.begin

    def counted(self, pack, keep):
        begin(self, pack, keep)
        most.append(max([sum(k.shape[0] for k, _ in shelf.values()) for shelf in self._shelf.values()], default=0))

    monkeypatch.setattr(packed_attention.PackedAttention, "begin", counted)
    llama.capture(few_shot(), "resid_post.2", batch_tokens=40)
    assert 0 < max(most) <= 30 + 35


def test_float64_packs_to_its_own_precision(tokenizer):
    lm = LanguageModel(build("llama").double(), tokenizer)
    prompts = few_shot()
    held = lm.capture(prompts, "resid_post.2", dtype="float64")
    near(held, dict(zip(held.sites, [_plain(lm, prompts)])), 1e-12)


def _plain(lm, prompts):
    with torch.no_grad():
        return np.stack([lm.model.model(torch.tensor([p]), output_hidden_states=True).hidden_states[3][0, -1] for p in prompts])


def test_bfloat16_packs_within_its_rounding(tokenizer):
    lm = LanguageModel(build("llama").to(torch.bfloat16), tokenizer)
    prompts = few_shot()
    assert lm.plan(prompts).plan.tree is not None
    near(lm.capture(prompts, "resid_post.2"), apart(lm, prompts, "resid_post.2", "last"), 3e-2)


def test_eager_attention_is_padded_with_its_reason(tokenizer):
    model = build("llama")
    model.set_attn_implementation("eager")
    lm = LanguageModel(model, tokenizer)
    plan = lm.plan(few_shot()).plan
    assert plan.tree is None
    assert "scaled_dot_product_attention" in plan.why


@pytest.mark.parametrize("site", ["q.1", "pattern.0", "module:layers.1.mlp"])
def test_what_is_read_row_by_row_is_padded(llama, site):
    prompts = few_shot()
    near(llama.capture(prompts, site), apart(llama, prompts, site, "last")) if site != "pattern.0" else None
    assert "row by row" in llama.unpackable(Ragged.of(prompts), llama.resolve(site))


def test_edited_prompts_share_nothing(llama):
    with llama.edit(Edit.add("resid_post.0", np.ones(32))):
        plan = llama.plan(few_shot()).plan
        assert plan.tree is None or plan.tokens == sum(map(len, few_shot()))
        near(llama.capture(few_shot(), "resid_post.2"), apart(llama, few_shot(), "resid_post.2", "last"))


@pytest.mark.parametrize(("causal", "heads", "grouped"), [(True, 6, 2), (False, 6, 2), (False, 4, 4), (True, 3, 1)])
def test_both_ways_to_attend_agree_and_give_the_denominator(causal, heads, grouped, monkeypatch):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 7, h, 8, dtype=torch.float64) for h in (heads, grouped, grouped))
    if not causal:
        k, v = k[:, :5], v[:, :5]
    out, lse = _attended(q, k, v, 0.3, causal=causal)
    repeated = k.repeat_interleave(heads // grouped, 2)
    scores = 0.3 * torch.einsum("bqhf,bkhf->bqhk", q, repeated)
    if causal:
        scores = scores.masked_fill(~torch.ones(7, 7, dtype=torch.bool).tril()[:, None], -torch.inf)
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    torch.testing.assert_close(out, torch.einsum("bqhk,bkhf->bqhf", scores.softmax(-1), v.repeat_interleave(heads // grouped, 2)))
    half = _attended(*(x.bfloat16() for x in (q, k, v)), 0.3, causal=causal)  # the way without the kernel
    torch.testing.assert_close(half[0].double(), out, atol=0.05, rtol=0.05)
    torch.testing.assert_close(half[1].double(), lse, atol=0.05, rtol=0.05)


class Shifted(torch.nn.Module):
    """An MLP that adds a part of each token to the next, as in RWKV: in a pack the last token of a prompt reaches another."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        return self.mlp(x + 0.5 * torch.nn.functional.pad(x, (0, 0, 1, 0))[..., :-1, :])


class Placed(torch.nn.Module):
    """An MLP that knows the index in the row, not the position in the prompt."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        return self.mlp(x * (1 + torch.arange(x.shape[-2])[:, None] / 20))


@pytest.mark.parametrize("changed", [Shifted, Placed])
@pytest.mark.parametrize("layer", [0, 2])
def test_prompts_that_reach_each_other_in_a_pack_are_found_out(tokenizer, changed, layer):
    model = build("llama")
    model.model.layers[layer].mlp = changed(model.model.layers[layer].mlp)
    lm, draw = LanguageModel(model, tokenizer), np.random.default_rng(0)
    prompts = [draw.integers(2, 250, n).tolist() for n in draw.integers(1, 6, 60)]
    near(lm.capture(prompts, "resid_post", "last"), apart(lm, prompts, "resid_post", "last"))
    assert "packed, prompts of 32 tokens come out otherwise" in lm.fast_paths()["packed prompts"]
