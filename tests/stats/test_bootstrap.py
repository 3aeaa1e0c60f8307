"""Intervals cover what they should, and the fast bootstrap is the slow one."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from repscope import stats


def test_the_mean_is_scipys_bootstrap():
    x = np.random.default_rng(0).exponential(size=80)
    ours = stats.mean(x, unit="prompt", draws=20_000)
    theirs = bootstrap((x,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert ours.lo == pytest.approx(theirs.low, abs=0.02)
    assert ours.hi == pytest.approx(theirs.high, abs=0.02)
    assert (ours.unit, ours.n, ours.method, ours.level) == ("prompt", 80, "bootstrap", 0.95)


def test_intervals_of_means_cover():
    rng = np.random.default_rng(1)
    hit = [(e := stats.mean(rng.random(60) < 0.7, unit="entity", seed=i)).lo <= 0.7 <= e.hi for i in range(300)]
    assert 0.90 <= np.mean(hit) <= 0.98


def test_a_proportion_on_which_all_agree_still_has_width():
    all_right = stats.proportion(np.ones(30), unit="entity")
    assert all_right.method == "wilson"
    assert all_right.lo == pytest.approx(0.886, abs=1e-3)
    none_right = stats.proportion(np.zeros(30), unit="entity")
    assert (none_right.value, none_right.lo) == (0.0, 0.0)
    assert none_right.hi > 0.1


def test_a_number_that_is_zero_in_every_unit_is_no_proportion():
    for value in (0.0, 1.0, 2.5):
        e = stats.mean(np.full(3, value), unit="prompt")
        assert (e.value, e.lo, e.hi, e.method) == (value, value, value, "bootstrap")
    x = np.random.default_rng(4).random(40) < 0.7
    assert stats.proportion(x, unit="entity") == stats.mean(x, unit="entity")


def test_a_change_of_shares_has_a_width_where_all_units_agree():
    rng = np.random.default_rng(0)
    before, after = rng.random(50) < 0.4, rng.random(50) < 0.6
    assert stats.change_of_proportion(before, after, unit="u") == stats.mean(after.astype(float) - before, unit="u")
    for d, lo, hi in ((0, -0.114, 0.114), (1, 0.773, 1.0), (-1, -1.0, -0.773)):
        found = stats.change_of_proportion(np.full(30, max(0, -d)), np.full(30, max(0, d)), unit="u")
        assert (found.value, found.method) == (d, "wilson")
        assert (found.lo, found.hi) == pytest.approx((lo, hi), abs=1e-3)


def test_the_ratio_is_that_of_sums_and_resamples_pairs():
    rng = np.random.default_rng(2)
    bottom = rng.uniform(1, 3, 50)
    e = stats.ratio(0.5 * bottom, bottom, unit="entity")
    assert (e.value, e.lo, e.hi) == (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))
    assert np.isnan(stats.ratio(np.ones(3), np.zeros(3), unit="entity").value)


def test_many_units_are_resampled_in_parts_with_the_same_spread():
    x = np.random.default_rng(3).normal(size=4000)
    e = stats.mean(x, unit="entity")
    assert (e.hi - e.lo) / 2 == pytest.approx(1.96 / np.sqrt(4000), rel=0.1)


def test_the_null_reports_the_range_of_its_draws_and_p_counts_the_observed():
    e = stats.null(np.arange(101.0), unit="shuffle")
    assert (e.lo, e.hi, e.method) == (pytest.approx(2.5), pytest.approx(97.5), "draws")
    assert stats.p_value(5.0, [1.0, 2.0, 9.0]) == 0.5
    with pytest.raises(ValueError, match="at least one"):
        stats.mean([], unit="entity")
