"""Shares of variance: planted designs are recovered, and designs that say nothing are refused."""

import numpy as np
import pytest

from repscope.errors import UserError
from repscope.stats.variance import REST, crossed, variance_shares

FACTORS = ("init", "head", "order", "early")
LEVELS = (6, 5, 4, 2)
PLANTED = {"init": 0.4, "head": 0.05, "order": 0.15, "early": 0.3, REST: 0.1}


def design(rng, shares=PLANTED, levels=LEVELS):
    x = np.sqrt(shares[REST]) * rng.standard_normal(levels)
    for axis, (name, k) in enumerate(zip(FACTORS, levels)):
        effect = np.sqrt(shares[name]) * (np.array([-1.0, 1.0]) if name == "early" else rng.standard_normal(k))
        x = x + effect.reshape([-1 if i == axis else 1 for i in range(len(levels))])
    return x


def test_planted_shares_are_within_their_intervals_in_18_of_20():
    rng = np.random.default_rng(0)
    held = dict.fromkeys(PLANTED, 0)
    widths = []
    for seed in range(20):
        found = variance_shares(design(rng), FACTORS, fixed=("early",), seed=seed)
        assert sum(e.value for e in found.values()) == pytest.approx(1)
        for name, share in PLANTED.items():
            held[name] += found[name].lo <= share <= found[name].hi
        widths.append(found["init"].hi - found["init"].lo)
    assert min(held.values()) >= 18, held
    assert np.median(widths) < 0.75  # an interval of everything would hold any truth


def test_a_factor_without_effect_has_a_share_near_zero():
    none = {"init": 0.0, "head": 0.0, "order": 0.0, "early": 0.0, REST: 1.0}
    rng = np.random.default_rng(1)
    found = [variance_shares(design(rng, none), FACTORS, fixed=("early",)) for _ in range(20)]
    assert np.mean([f[REST].value for f in found]) > 0.9
    assert sum(f["init"].lo == 0 for f in found) >= 18


def test_components_are_those_of_the_expected_mean_squares():
    x = np.random.default_rng(2).standard_normal((3, 4, 5))
    ours = variance_shares(x, ["a", "b", "c"])
    n, components = x.size, {}
    left = x - x.mean()
    for axis, name in enumerate("abc"):
        means = x.mean(axis=tuple(i for i in range(3) if i != axis), keepdims=True) - x.mean()
        left = left - means
        components[name] = (n / x.shape[axis] * (means**2).sum() / (x.shape[axis] - 1), x.shape[axis])
    noise = (left**2).sum() / (n - 1 - 2 - 3 - 4)
    expected = {name: max(0.0, (ms - noise) / (n / k)) for name, (ms, k) in components.items()} | {REST: noise}
    for name, value in expected.items():
        assert ours[name].value == pytest.approx(value / sum(expected.values()))


def test_rows_become_an_array_and_gaps_are_named():
    rows = [{"init": i, "head": h, "v": 10 * i + j} for i in (3, 1) for j, h in enumerate("ab")]
    np.testing.assert_array_equal(crossed(rows, ("init", "head"), "v"), [[30, 31], [10, 11]])
    with pytest.raises(UserError, match="cell init 1, head b has no value"):
        crossed(rows[:-1], ("init", "head"), "v")
    with pytest.raises(UserError, match="has two values"):
        crossed([*rows, rows[0]], ("init", "head"), "v")


@pytest.mark.parametrize(
    ("values", "factors", "says"),
    [
        (np.ones((3, 1)), ("a", "b"), "b has one level"),
        (np.ones((3, 3)), ("a", "b"), "All runs have one value"),
        (np.ones((3, 3)), ("a",), "2 axes and 1 factors"),
        (np.array([[1.0, np.nan], [1.0, 2.0]]), ("a", "b"), "not a number"),
    ],
)
def test_designs_that_say_nothing_are_refused(values, factors, says):
    with pytest.raises(UserError, match=says):
        variance_shares(values, factors)
    with pytest.raises(UserError, match="fixed factor 'c'"):
        variance_shares(np.eye(3), ("a", "b"), fixed=("c",))
