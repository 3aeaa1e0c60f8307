"""GINC worlds: construction, documents, prompts, the margin rule."""

import numpy as np
import pytest

from repscope.errors import UserError
from repscope.worlds.ginc import PUBLISHED, GincSizes, GincWorld, prompts, scan


@pytest.mark.parametrize("delimiter", ["uniform", "published"])
def test_the_construction(delimiter):
    world = GincWorld.drawn(GincSizes(delimiter=delimiter), 3)
    t = world.transitions
    np.testing.assert_allclose(t.sum(-1), 1)
    np.testing.assert_allclose(world.starts.sum(-1), 1)
    np.testing.assert_allclose(world.slot_transitions.sum(-2), 1)  # mixtures of permutations are doubly stochastic
    assert (world.table[:, 0] == 0).all()
    assert (world.table[:, 1:] > 0).all()
    assert np.diag(world.value_transition).min() >= 0.9
    after = t[:, :: world.sizes.slots]  # what follows a delimiter
    assert np.allclose(after, after[:1]) == (delimiter == "uniform")


@pytest.mark.parametrize("delimiter", ["uniform", "published"])
def test_steps_follow_the_transitions(delimiter):
    world = GincWorld.drawn(GincSizes(values=3, slots=3, symbols=9, delimiter=delimiter), 1)
    n = 40_000
    for state in (0, 4):
        moved = world.step(np.ones(n, int), np.full(n, state), np.random.default_rng(0))
        np.testing.assert_allclose(np.bincount(moved, minlength=9) / n, world.transitions[1, state], atol=0.012)


def test_documents_begin_at_the_start_distribution():
    world = GincWorld.drawn(GincSizes(start_temperature=0.05), 1)
    tokens, concept = world.documents(20_000, 1, np.random.default_rng(0), (2,))
    assert set(concept) == {2}
    expected = np.bincount(world.symbols, world.starts[2], 30)
    np.testing.assert_allclose(np.bincount(tokens[:, 0], minlength=30) / 20_000, expected, atol=0.012)


def test_prompts_hold_all_numbers_of_examples():
    world = GincWorld.drawn(GincSizes(), 2)
    held = prompts(world, 50, 4, 5, np.random.default_rng(0))
    assert held.tokens.shape == (50, 5 * 6)
    assert (held.tokens.reshape(50, 5, 6)[..., -1] == 0).all()
    assert list(held.positions) == [3, 9, 15, 21, 27]
    assert held.labels.shape == held.margins.shape == (50, 5)
    assert (held.slot >= 1).all()
    assert set(held.concept) <= set(world.seen)
    sampled = np.take_along_axis(held.oracle, held.tokens.reshape(50, 5, 6)[..., 4:5], -1)
    assert (sampled > 0).all(), "the label that was rolled out is possible"
    assert abs(sampled.mean() - (held.oracle**2).sum(-1).mean()) < 0.05, "and drawn from the oracle's distribution"


def test_other_orders_keep_each_example_with_its_label():
    world = GincWorld.drawn(GincSizes(), 2)
    held = prompts(world, 5, 3, 3, np.random.default_rng(0))
    turned = held.reordered(np.array([2, 0, 1, 3]))
    np.testing.assert_array_equal(turned.tokens[:, :4], held.tokens[:, 8:12])
    np.testing.assert_array_equal(turned.oracle[:, 0], held.oracle[:, 2])
    np.testing.assert_array_equal(turned.tokens[:, 12:], held.tokens[:, 12:])


def test_the_margin_rule_chooses_and_refuses():
    world, table = scan(GincSizes(), range(1, 5), count=300)
    passing = table[table["share of near-ties"] <= 0.2]
    assert world.seed == passing["seed"].iloc[0]
    assert table["chosen"].sum() == 1
    assert not table["passes"].all()
    with pytest.raises(UserError, match="None of 2 worlds"):
        scan(GincSizes(concepts=1, unseen=0, values=1, slots=2, symbols=2, temperature=1e9), (0, 1))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"slots": 1}, "slots=1"),
        ({"stay": 1.2}, "no probability"),
        ({"temperature": 0}, "positive"),
        ({"delimiter": "hmm"}, f"uniform or {PUBLISHED}"),
    ],
)
def test_sizes_that_make_no_world(given, said):
    with pytest.raises(UserError, match=said):
        GincSizes(**given)


def test_an_example_needs_an_input():
    with pytest.raises(UserError, match="an input symbol and a label"):
        prompts(GincWorld.drawn(GincSizes(), 0), 3, 2, 1, np.random.default_rng(0))
