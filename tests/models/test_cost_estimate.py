"""Forecasts against what is counted while a capture runs, and passes that come from disk."""

import numpy as np
import pytest
import torch

import repscope as rs
from families import build
from repscope.models.engine import memory
from repscope.models.engine.cost_estimate import attention_pairs
from repscope.models.engine.memory import free_memory, token_budget, token_flops
from repscope.models.engine.planner import plan
from repscope.models.language import LanguageModel
from repscope.models.prompts import Ragged


def ragged(count=12, longest=40):
    rng = np.random.default_rng(0)
    return [rng.integers(1, 320, n).tolist() for n in rng.integers(3, longest, count)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "bloom", "gemma2"])
def test_the_flops_foreseen_are_those_that_torch_counts(tokenizer, name):
    from torch.utils.flop_counter import FlopCounterMode

    lm = LanguageModel(build(name), tokenizer)
    prompts = ragged()
    foreseen = lm.plan(prompts, "resid_post.1")
    with FlopCounterMode(display=False) as counter:
        acts = lm.capture(prompts, "resid_post.1")
    assert foreseen.blocks == 2
    assert foreseen.plan.tokens == foreseen.tokens
    assert acts.seconds > 0 < foreseen.seconds
    linear = foreseen.tokens * token_flops(list(lm.block_list)[:2])
    # Torch counts no product inside its fused kernel on a CPU, and masked pairs outside of it.
    assert linear <= counter.get_total_flops() <= 1.15 * foreseen.flops
    assert linear < foreseen.flops < 1.4 * linear


def test_blocks_and_bytes_are_those_of_the_request(llama):
    prompts = ragged()
    few, many = llama.plan(prompts, "resid_post.0"), llama.plan(prompts, "resid_post", "all")
    assert (few.blocks, many.blocks) == (1, 4)
    assert many.flops > 3.9 * few.flops
    for at, tokens in [
        ("resid_post", "all"),
        ("z.1", "last"),
        ("z.1.2", "last"),
        ("mlp_act.2", "mean"),
        ("head_out.0", "last"),
        ("pattern.1", "last"),
        ("k.1", "last"),
        ("embed", "all"),
    ]:
        acts = llama.capture(prompts, at, tokens)
        assert llama.plan(prompts, at, tokens).rows == sum(acts[site].nbytes for site in acts.sites), at
    assert llama.plan(prompts, "embed").flops == 0


def test_pairs_are_counted_one_by_one():
    ids = Ragged.of([[1, 2, 3, 4], [1, 2, 3], [7]])
    assert attention_pairs(plan(ids, 100, share=False, pack="no")) == 3 * 4 * 4, "one batch, padded"
    packed = plan(Ragged.of([*range(60), *range(100 + i, 101 + i + i % 9)] for i in range(60)), 512, share=True)
    assert packed.tree is not None
    own = [n for i in range(60) for n in range(61, 62 + i % 9)]  # keys of each token behind the shared ones
    assert attention_pairs(packed) == 60 * 61 // 2 + sum(own)


def test_it_reads_as_a_few_lines(llama):
    said = str(llama.plan(["A map of Paris", "A map of Rome", "A map of Rome"], "resid_post.1"))
    for part in ("blocks   2 of 4", "prompts  3, 2 distinct", "FLOP", "time     about a second", "resid_post.1"):
        assert part in said
    with llama.edit(rs.Edit.add("resid_post.0", np.ones(32))):
        assert "padded (there is one prompt)" in str(llama.plan(["A map"], "resid_post.1"))
        llama.capture(["A map"], "resid_post.1")  # an edit that nothing reaches is an error


def test_the_budget_is_a_share_of_what_is_free(monkeypatch):
    assert token_budget("cpu", 1.0) == 1024
    assert token_budget("cpu", 1.0, offloaded=True) > 1024
    monkeypatch.setattr(memory, "free_memory", lambda device: 4e6)
    assert token_budget("cpu", 5_000.0) == 200
    assert token_budget("cpu", 5e6) == 64


def test_a_container_s_limit_counts(monkeypatch, tmp_path):
    assert 0 < free_memory("cpu") < 1e13
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert free_memory("cpu") == 2e6
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory("cpu") > 2e6


def test_weights_on_disk_give_the_same_in_few_passes(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path / "cache"))
    model = build("llama")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    there, here = rs.load(tmp_path / "model", device="disk"), rs.load(tmp_path / "model")
    assert there.offloaded
    assert not here.offloaded
    assert all(p.is_meta for p in there.model.parameters())
    prompts = ragged(60)
    foreseen = there.plan(prompts, "resid_post.2")
    assert foreseen.plan.passes < here.plan(prompts, "resid_post.2", batch_tokens=64).plan.passes
    block = sum(p.numel() for p in model.model.layers[0].parameters() if p.dim() == 2)
    assert foreseen.read == 3 * 4 * block * foreseen.plan.passes
    assert "read from disk" in str(foreseen)
    ours, theirs = (lm.capture(prompts, "resid_post.2").numpy() for lm in (there, here))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    jac = [lm.jacobian(prompts[:2], "resid_post.0", "resid_post.2").matrix() for lm in (there, here)]
    np.testing.assert_allclose(*jac, atol=1e-5)
    assert torch.is_grad_enabled()
