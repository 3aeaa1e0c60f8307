"""Transitions: planted steps are found, an even rise is not sharp, and curves that say nothing are refused."""

import numpy as np
import pytest

from repscope.errors import UserError
from repscope.trace.emergence.transitions import Curve, lag, transition

STEPS = np.unique(np.geomspace(10, 2000, 16).round().astype(int))


def planted(at, runs=3, examples=200, width=0.2, seed=0, top=1.0):
    """Examples learned around a step: normal on the log axis."""
    rng = np.random.default_rng(seed)
    when = np.log2(at) + width * rng.standard_normal((runs, examples))
    learned = rng.random((runs, examples)) < top
    return Curve(STEPS, ((np.log2(STEPS)[None, :, None] >= when[:, None]) & learned[:, None]).astype(float))


def test_planted_transitions_are_found_with_their_lag():
    late, early = planted(400), planted(100, seed=1)
    found = transition(late, draws=200)
    assert found.step.value == pytest.approx(400, rel=0.12)
    assert found.steepest.value == pytest.approx(400, rel=0.25)
    assert found.step.lo < found.step.value < found.step.hi
    assert found.step.unit == "run"
    assert found.reached == 1
    assert lag(late, early, draws=200).value == pytest.approx(4, rel=0.15)


def test_a_sharp_transition_is_outside_the_null_and_an_even_rise_inside():
    sharp = transition(planted(300, width=0.15), draws=200)
    assert sharp.sharpness.lo > sharp.sharpness_null.hi
    rng = np.random.default_rng(3)
    when = rng.uniform(np.log2(11), np.log2(2001), (3, 1, 200))
    even = transition(Curve(STEPS, (np.log2(STEPS + 1.0)[None, :, None] >= when).astype(float)), draws=200)
    assert even.sharpness_null.lo <= even.sharpness.value <= even.sharpness_null.hi


def test_a_skill_that_never_comes_has_no_step():
    never = transition(planted(300, top=0.05), draws=100)
    assert np.isinf(never.step.value)
    assert never.reached == 0
    assert np.isnan(never.sharpness.value)
    there = transition(Curve(STEPS, np.ones((1, len(STEPS), 20))), draws=50)
    assert there.step.value == pytest.approx(STEPS[0])
    assert there.step.unit == "example", "one run: the interval is over examples"


def test_the_step_of_a_single_crossing_by_hand():
    hits = np.zeros((1, 3, 4))
    hits[0, 1, :1] = 1  # accuracy 0, 1/4, 3/4 at log2(step + 1) = 2, 4, 6
    hits[0, 2, :3] = 1
    found = transition(Curve(np.array([3, 15, 63]), hits), draws=20)
    assert found.step.value == pytest.approx(2**5 - 1, rel=1e-6)


@pytest.mark.parametrize(
    ("steps", "hits", "said"),
    [
        ([10], np.ones((1, 1, 3)), "at least two checkpoints"),
        ([10, 5], np.ones((1, 2, 3)), "do not ascend"),
        ([5, 5], np.ones((1, 2, 3)), "do not ascend"),
        ([5, 6], np.full((1, 2, 3), np.nan), "diverged"),
        ([5, 6], np.ones((1, 3, 3)), "2 checkpoints"),
    ],
)
def test_mistakes_are_one_sentence(steps, hits, said):
    with pytest.raises(UserError, match=said):
        Curve(np.asarray(steps), hits)


def test_a_lag_needs_the_same_runs():
    with pytest.raises(UserError, match="both of every run"):
        lag(planted(100), planted(100, runs=2))
