"""Blocks behind a source alone against the engine's own edits over whole passes, in every family."""

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.prompts import encode
from repscope.models.sites import Tokens
from repscope.models.variants.block_replay import block_replay

PROMPTS = ["The place called Lagos", "A map that shows Paris, Lagos and more", "The place called Lagos", "Zürich"]
SOURCE, TARGET = "resid_post.0", "resid_post.2"
WHOLE = {"bloom"}  #: whose blocks cannot be called for several rows


def _vectors(width=32, count=2):
    return 3 * torch.randn(count, width, generator=torch.Generator().manual_seed(0))


def _effects(kept, vectors):
    found = torch.zeros(len(vectors), len(kept.rows), kept.targets[0].shape[1])
    with torch.no_grad():
        for part in kept.parts:
            found[:, part.rows] = part.run(vectors)
    return found.numpy()


@pytest.mark.parametrize("share", [True, False])
def test_effects_are_those_of_edits(family, share):
    name, lm = family
    vectors = _vectors()
    kept = block_replay(lm, encode(lm.tokenizer, PROMPTS, Tokens("all")), SOURCE, TARGET, pooled=False, share=share)
    assert bool(kept.why) == (name in WHOLE)
    plain = lm.capture(PROMPTS, TARGET, "all")[lm.resolve(TARGET)[0]]
    for vector, found in zip(vectors, _effects(kept, vectors)):
        with lm.edit(Edit.add(SOURCE, vector, tokens="all")):
            steered = lm.capture(PROMPTS, TARGET, "all")[lm.resolve(TARGET)[0]]
        assert np.allclose(found, steered - plain, atol=2e-5 * np.abs(steered - plain).max())


def test_the_gradient_is_that_of_whole_passes(family):
    _, lm = family
    encoded = encode(lm.tokenizer, PROMPTS, Tokens("last"))
    grads = []
    for whole in (False, True):
        kept = block_replay(lm, encoded, SOURCE, TARGET, pooled=True, whole=whole)
        vectors = _vectors().requires_grad_()
        loss = sum(part.run(vectors).square().sum() for part in kept.parts)
        grads.append(torch.autograd.grad(loss, vectors)[0])
    assert torch.allclose(*grads, rtol=1e-3, atol=1e-4 * float(grads[1].abs().max()))


def test_nothing_added_moves_nothing_and_lengths_stay_apart(llama):
    encoded = encode(llama.tokenizer, PROMPTS, Tokens("mean"))
    kept = block_replay(llama, encoded, SOURCE, TARGET, pooled=True)
    assert not kept.why
    assert [part.prompts for part in kept.parts] == [4]
    rows = block_replay(llama, encoded, SOURCE, TARGET, pooled=True, share=False)
    assert sorted(part.prompts for part in rows.parts) == [1, 1, 2]
    alone = block_replay(llama, encode(llama.tokenizer, PROMPTS[1:2], Tokens("mean")), SOURCE, TARGET, pooled=True)
    for made in (kept, rows):
        assert sorted(int(i) for part in made.parts for i in part.rows) == [0, 1, 2, 3]
        assert np.abs(_effects(made, 0 * _vectors())).max() < 1e-5
        assert np.allclose(_effects(made, _vectors())[:, 1], _effects(alone, _vectors())[:, 0], atol=1e-5)


def test_what_prompts_begin_with_in_common_runs_once(llama):
    encoded = encode(llama.tokenizer, PROMPTS, Tokens("last"))
    shared, apart = (block_replay(llama, encoded, SOURCE, TARGET, pooled=True, share=share) for share in (True, False))
    beginnings = {tuple(row[: n + 1]) for row in encoded.ids for n in range(len(row))}
    assert sum(part.tokens for part in shared.parts) == len(beginnings)
    assert sum(part.tokens for part in apart.parts) == sum(encoded.ids.lengths) > len(beginnings)


def test_effects_at_a_later_block_come_from_the_same_run(family):
    _, lm = family
    encoded = encode(lm.tokenizer, PROMPTS, Tokens("mean"))
    vectors = _vectors()
    ends = block_replay(lm, encode(lm.tokenizer, PROMPTS, Tokens("last")), SOURCE, TARGET, pooled=True, whole=True)
    last = torch.from_numpy(_effects(ends, vectors))
    for how in ({}, {"share": False}, {"whole": True}):
        kept = block_replay(lm, encoded, SOURCE, "resid_post.1", pooled=True, end=TARGET, **how)
        assert sorted(i for part in kept.parts for i in part.numbers) == list(range(len(PROMPTS)))
        for part in kept.parts:
            with torch.no_grad():
                here, onward = part.run(vectors), part.onward(vectors)
            assert torch.allclose(onward[0], here, atol=1e-6 * float(here.abs().max()))
            there = last[:, list(part.numbers)]
            assert torch.allclose(onward[1], there, atol=2e-5 * float(there.abs().max()))
    with pytest.raises(UserError, match="below the target"):
        block_replay(lm, encoded, SOURCE, TARGET, pooled=True, end="resid_post.1")


@pytest.mark.parametrize("pooled", [True, False])
def test_gradients_at_zero_of_many_cotangents(family, pooled):
    """From one forward pass, as from whole passes of each cotangent."""
    name, lm = family
    encoded = encode(lm.tokenizer, PROMPTS, Tokens("mean"))
    slow = block_replay(lm, encoded, SOURCE, TARGET, pooled=pooled, whole=True)
    cotangent = torch.randn(5, len(slow.rows), 32, generator=torch.Generator().manual_seed(1))
    zero = torch.zeros(5, 32, requires_grad=True)
    (wanted,) = torch.autograd.grad(sum((part.run(zero) * cotangent[:, part.rows]).sum() for part in slow.parts), zero)
    for share in (True, False):
        parts = block_replay(lm, encoded, SOURCE, TARGET, pooled=pooled, share=share).parts
        pulls = [part.pull for part in parts]
        if name in WHOLE:
            assert pulls == [None] * len(parts)
            continue
        for _ in range(2):  # the second time from the graph that is kept
            with torch.no_grad():  # as solvers run
                found = sum(pull(cotangent[:, part.rows]) for part, pull in zip(parts, pulls))
            assert all(part.made._slope is not None and not part.made._slope.unbatched for part in parts)
            assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_recorded_calls_hold_no_states(llama):
    encoded = encode(llama.tokenizer, PROMPTS, Tokens("mean"))
    for share in (True, False):
        for part in block_replay(llama, encoded, SOURCE, TARGET, pooled=True, share=share).parts:
            group = part.run.__self__.group
            held = [x for call in group.calls for x in (*call.args, *call.kwargs.values()) if isinstance(x, torch.Tensor)]
            assert all(x.shape[-1] != 32 for x in held)


def test_the_network_is_left_as_it_was(llama):
    before = {n: (p.requires_grad, p.grad) for n, p in llama.model.named_parameters()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.model.modules()]
    kept = block_replay(llama, encode(llama.tokenizer, PROMPTS, Tokens("all")), SOURCE, TARGET, pooled=False)
    vectors = _vectors().requires_grad_()
    torch.autograd.grad(kept.parts[0].run(vectors).sum(), vectors)
    assert {n: (p.requires_grad, p.grad) for n, p in llama.model.named_parameters()} == before
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.model.modules()] == hooks


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("resid_post.2", "resid_post.2", "not below"),
        ("resid_post.3", "resid_post.1", "not below"),
        ("mlp_out.1", "resid_post.3", "output of one block"),
        ("resid_post", "resid_post.3", "output of one block"),
    ],
)
def test_ends_that_are_refused(llama, source, target, says):
    with pytest.raises(UserError, match=says):
        block_replay(llama, encode(llama.tokenizer, PROMPTS, Tokens("all")), source, target, pooled=False)


def test_an_edited_network_is_refused(llama):
    encoded = encode(llama.tokenizer, PROMPTS, Tokens("all"))
    kept = block_replay(llama, encoded, SOURCE, TARGET, pooled=False)
    with pytest.raises(UserError, match="leave the `edit` context"), llama.edit(Edit.add(SOURCE, np.ones(32), tokens="all")):
        kept.parts[0].run(_vectors())
