"""Stacked networks are the plain ones, run by run: logits, gradients, the path for texts that all share."""

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.models.loading.stacked_weights import select_runs, stack, unstack
from repscope.worlds.hans import classifier as small
from repscope.worlds.hans import stacked
from repscope.worlds.hans.examples import HansExamples

TASK = HansExamples()


def networks(shape, runs=3, wide=True):
    """Weights of several networks; `wide` moves gains, shifts and heads away from where they begin."""
    states = [small.random_weights(shape, seed) for seed in range(runs)]
    if wide:
        g = torch.Generator().manual_seed(9)
        states = [{k: v + 0.3 * torch.randn(v.shape, generator=g) for k, v in s.items()} for s in states]
    return states


def ids(n, seed=0):
    return torch.from_numpy(TASK.ambiguous(np.random.default_rng(seed), n)[0])


@pytest.mark.parametrize(("blocks", "heads", "width"), [(1, 4, 32), (2, 4, 32), (3, 2, 16)])
def test_logits_are_those_of_the_plain_module(blocks, heads, width):
    shape = small.Shape(TASK.vocabulary, TASK.tokens, width, blocks, heads)
    states = networks(shape)
    texts = [ids(5, seed) for seed in range(3)]
    plain = torch.stack([small.as_module(shape, s)(t) for s, t in zip(states, texts)])
    torch.testing.assert_close(stacked.logits(shape, stack(states), torch.stack(texts)), plain, atol=2e-5, rtol=1e-5)
    shared = torch.stack([small.as_module(shape, s)(texts[0]) for s in states])
    torch.testing.assert_close(stacked.logits(shape, stack(states), texts[0][None]), shared, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(stacked.classify(shape, stack(states), texts[0]), shared, atol=2e-5, rtol=1e-5)


def test_more_runs_and_texts_than_a_chunk_holds():
    shape = small.Shape(TASK.vocabulary, TASK.tokens)
    states, texts = networks(shape, 11), ids(150)
    plain = torch.stack([small.as_module(shape, s)(texts) for s in states])
    torch.testing.assert_close(stacked.classify(shape, stack(states), texts), plain.detach(), atol=3e-5, rtol=1e-5)


def test_attention_too_sharp_for_the_table_takes_the_plain_path():
    shape = small.Shape(TASK.vocabulary, TASK.tokens)
    states, texts = networks(shape, 2), ids(20)
    for state in states:
        for p in "qk":
            state[f"blocks.0.{p}.weight"] *= 30
    plain = torch.stack([small.as_module(shape, s)(texts) for s in states]).detach()
    torch.testing.assert_close(stacked.classify(shape, stack(states), texts), plain, atol=1e-4, rtol=1e-4)


def test_words_are_those_of_the_plain_module():
    shape = small.Shape(TASK.vocabulary, TASK.tokens, classes=0)
    states = networks(shape)
    rng = np.random.default_rng(0)
    texts, places = zip(*[[torch.from_numpy(a) for a in TASK.masked(rng, 6, 0.5)[:2]] for _ in states])
    plain = torch.stack([small.as_module(shape, s).words(t, p) for s, t, p in zip(states, texts, places)])
    found = stacked.words(shape, stack(states), torch.stack(texts), torch.stack(places))
    torch.testing.assert_close(found, plain, atol=2e-5, rtol=1e-5)


def test_gradients_are_those_of_the_plain_module():
    shape = small.Shape(TASK.vocabulary, TASK.tokens)
    states = networks(shape, 2)
    texts = torch.stack([ids(4, seed) for seed in range(2)])
    held = {k: v.requires_grad_() for k, v in stack(states).items()}
    stacked.logits(shape, held, texts).square().sum().backward()
    for run, state in enumerate(states):
        net = small.as_module(shape, state)
        net(texts[run]).square().sum().backward()
        for name, value in net.named_parameters():
            torch.testing.assert_close(held[name].grad[run], value.grad, atol=1e-3, rtol=1e-4)


def test_a_network_is_drawn_the_same_alone_and_among_others():
    shape = small.Shape(TASK.vocabulary, TASK.tokens)
    both = stack([small.random_weights(shape, 4), small.random_weights(shape, 5)])
    assert all(torch.equal(v, small.random_weights(shape, 5)[k]) for k, v in unstack(both, 1).items())
    assert all(torch.equal(v[0], both[k][1]) for k, v in select_runs(both, [1]).items())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: small.Shape(9, 9, width=30, heads=4), "4 heads do not divide"),
        (lambda: small.Shape(9, 9, blocks=0), "below one"),
        (lambda: small.as_module(small.Shape(9, 9), small.random_weights(small.Shape(8, 9), 0)), "are not those of"),
    ],
)
def test_sizes_that_do_not_fit_are_told(make, says):
    with pytest.raises(UserError, match=says):
        make()
