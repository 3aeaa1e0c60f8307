"""Judgements on sets whose worth is known."""

import numpy as np
import pytest
import torch

from repscope.discovery import metrics
from repscope.errors import UserError

RNG = np.random.default_rng(0)


def _orthonormal(k, d=16, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0][:k]


def test_recovery_of_the_truth_of_repeats_and_of_nothing():
    truth = _orthonormal(6)
    perfect = metrics.recovery(-3 * truth, truth)
    assert (perfect.recovered, perfect.distinct, perfect.duplicates, perfect.false) == (1, 1, 0, 0)
    assert perfect.mmcs == pytest.approx(1)
    repeated = metrics.recovery(np.concatenate([truth[:2], truth[:2], _orthonormal(8)[6:]]), truth)
    assert repeated.recovered == pytest.approx(2 / 6)
    assert (repeated.distinct, repeated.duplicates, repeated.false) == pytest.approx((2 / 6, 2 / 6, 2 / 6))


@pytest.mark.parametrize("seed", range(5))
def test_shares_of_directions_add_up_to_one(seed):
    rng = np.random.default_rng(seed)
    fit = metrics.recovery(rng.normal(size=(9, 3)), rng.normal(size=(5, 3)))
    assert fit.distinct + fit.duplicates + fit.false == pytest.approx(1)


def test_diversity_counts_different_effects():
    means = np.concatenate([_orthonormal(4), _orthonormal(4)])[:, None]
    found = metrics.diversity(np.repeat(means, 3, 1))
    assert found.clusters == 4
    assert found.rank == pytest.approx(4)
    assert found.overlap == pytest.approx(8 / 56)
    assert metrics.diversity(_orthonormal(5)[:, None]).overlap == pytest.approx(0)


def test_consistency_is_the_mean_over_pairs_and_the_skip_path_is_taken_off():
    effects, vectors = RNG.normal(size=(3, 4, 8)), RNG.normal(size=(3, 8))
    hat = metrics.unit(effects)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    same = [hat[k, i] @ hat[k, j] for k in range(3) for i, j in pairs]
    other = [hat[k, i] @ hat[m, j] for k in range(3) for m in range(3) if m != k for i, j in pairs]
    found = metrics.consistency(effects)
    assert found.same == pytest.approx(np.mean(same))
    assert found.other == pytest.approx(np.mean(other))
    carried = metrics.consistency(effects + vectors[:, None], vectors)
    assert np.allclose(carried.each, found.each)
    with pytest.raises(UserError, match="several prompts"):
        metrics.consistency(effects[:, :1])


def test_a_linear_map_has_a_linear_dose():
    effects = RNG.normal(size=(3, 4, 8))
    straight = metrics.dose_curve(0.5 * effects, effects, -effects)
    assert (straight.half_cos, straight.half_ratio, straight.minus_cos) == pytest.approx((1, 1, -1))
    even = metrics.dose_curve(0.25 * effects, effects, effects)
    assert (even.half_ratio, even.minus_cos) == pytest.approx((0.5, 1))


def test_stability_does_not_mind_order_or_sign():
    rows = _orthonormal(5)
    assert metrics.stability(rows, -rows[::-1]) == pytest.approx(1)
    assert metrics.stability(rows, _orthonormal(10)[5:]) == pytest.approx(0, abs=1e-6)


def test_one_massive_coordinate_is_one_standard_deviation():
    effects = np.ones((2, 3, 4))
    effects[..., 0] = 1000
    length, per_spread = metrics.effect_norm(effects, np.array([1000.0, 1.0, 1.0, 1.0]))
    assert length == pytest.approx(np.sqrt(1e6 + 3))
    assert per_spread == pytest.approx(1)


def test_tensors_and_lists_are_as_good_as_arrays_and_what_is_none_is_refused():
    effects, vectors, spread = RNG.normal(size=(3, 4, 8)), RNG.normal(size=(3, 8)), np.ones(8)
    tensor = torch.from_numpy(effects)
    assert metrics.diversity(tensor) == metrics.diversity(effects)
    assert metrics.consistency(tensor, vectors.tolist()).same == metrics.consistency(effects, vectors).same
    assert metrics.effect_norm(tensor, spread.tolist()) == metrics.effect_norm(effects, spread)
    assert metrics.dose_curve(tensor, tensor, tensor) == metrics.dose_curve(effects, effects, effects)
    assert metrics.stability(torch.from_numpy(vectors), vectors.tolist()) == pytest.approx(1)
    assert metrics.recovery(vectors.tolist(), torch.from_numpy(vectors)) == metrics.recovery(vectors, vectors)
    bad = effects.copy()
    bad[0, 0, 0] = np.nan
    for ask, says in (
        (lambda: metrics.diversity(effects[0]), "direction, prompt, feature"),
        (lambda: metrics.diversity(bad), "finite"),
        (lambda: metrics.consistency(bad), "finite"),
        (lambda: metrics.dose_curve(effects, bad, effects), "finite"),
        (lambda: metrics.stability(vectors, vectors[:, :3]), "two sets of one width"),
        (lambda: metrics.stability(bad[0], bad[0]), "not finite"),
        (lambda: metrics.recovery([["a"]], vectors), "directions are of"),
    ):
        with pytest.raises(UserError, match=says):
            ask()
