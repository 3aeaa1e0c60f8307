"""Blocks called alone from any block on, with the caller's hidden states, against whole passes in every family."""

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.variants.block_calls import BlockCalls, block_calls, block_calls_after

WHOLE = {"bloom"}  #: whose blocks cannot be called for several rows
IDS = np.array([[11, 45, 20, 81, 7, 99], [5, 45, 33, 81, 9, 12], [70, 21, 20, 64, 7, 30]])


@pytest.mark.parametrize("first", [0, 1])
def test_a_run_is_a_whole_pass_with_an_edit(family, first):
    name, lm = family
    last = lm.blocks - 1
    calls = block_calls(lm, IDS.shape[1])
    assert bool(calls.why) == (name in WHOLE), calls.why
    hidden = lm.capture(list(IDS), f"resid_pre.{first}", "all")
    states = torch.from_numpy(hidden[f"resid_pre.{first}"]).reshape(3, 6, -1)
    step = torch.randn(states.shape[-1], generator=torch.Generator().manual_seed(1)) * states.norm(dim=-1).mean() / 4
    moved = states.clone()
    moved[:, 2] += step
    with torch.no_grad():
        found = calls.run(torch.from_numpy(IDS), moved, first, last).numpy()
    with lm.edit(Edit.add(f"resid_pre.{first}", step, tokens=2)):
        edited = lm.capture(list(IDS), f"resid_post.{last}", "all")[f"resid_post.{last}"].reshape(found.shape)
    assert np.allclose(found, edited, atol=2e-5 * np.abs(edited).max())
    assert not np.allclose(edited, lm.capture(list(IDS), f"resid_post.{last}", "all")[f"resid_post.{last}"].reshape(found.shape))


def test_tokens_behind_a_prefix_run_alone(family):
    """Rows that share two tokens: only the other four run, and their hidden states are changed there."""
    _, lm = family
    ids = IDS.copy()
    ids[:, :2] = ids[0, :2]
    calls = block_calls_after(lm, ids[0, :2], 4)
    if calls is None:
        assert not lm.shares_prefix(6) or block_calls(lm, 6).why
        return
    last = lm.blocks - 1
    states = torch.from_numpy(lm.capture(list(ids), "resid_pre.1", "all")["resid_pre.1"]).reshape(3, 6, -1)
    step = torch.randn(states.shape[-1], generator=torch.Generator().manual_seed(1)) * states.norm(dim=-1).mean() / 4
    moved = states[:, 2:].clone()
    moved[:, 1] += step
    with torch.no_grad():
        found = calls.run(torch.from_numpy(ids[:, 2:]), moved, 1, last).numpy()
        again = calls.run(torch.from_numpy(ids[:, 2:]), moved, 1, last).numpy()
    with lm.edit(Edit.add("resid_pre.1", step, tokens=3)):
        edited = lm.capture(list(ids), f"resid_post.{last}", "all")[f"resid_post.{last}"].reshape(3, 6, -1)[:, 2:]
    assert np.allclose(found, edited, atol=2e-5 * np.abs(edited).max())
    assert np.array_equal(found, again), "a run leaves the prefix as it was"


def test_a_llama_shares_prefixes(llama):
    assert block_calls_after(llama, IDS[0, :2], 4) is not None


def test_gradients_are_those_of_whole_passes_and_weights_get_none(llama):
    calls = block_calls(llama, IDS.shape[1])
    slow = BlockCalls(llama, (), "to compare")
    states = torch.from_numpy(llama.capture(list(IDS), "resid_pre.1", "all")["resid_pre.1"]).reshape(3, 6, -1)
    grads = []
    for way in (calls, slow):
        x = states.clone().requires_grad_()
        with torch.enable_grad():
            loss = way.run(torch.from_numpy(IDS), x, 1, llama.blocks - 1)[:, -1].square().sum()
        grads.append(torch.autograd.grad(loss, x)[0])
    assert torch.allclose(*grads, rtol=1e-3, atol=1e-5 * float(grads[1].abs().max()))
    assert all(p.grad is None for p in llama.module.parameters())


def test_edits_are_refused(llama):
    with llama.edit(Edit.replace("mlp_out.0", 0.0)):
        llama.capture(["Paris"], "resid_post.1", "last")
        with pytest.raises(UserError, match="leave the `edit` context"):
            block_calls(llama, 4)
