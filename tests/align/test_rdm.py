"""RDMs, their comparison and their bootstrap, beside the definitions written out pair by pair and draw by draw."""

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, spearmanr

from repscope.align import (
    as_pairs,
    compare_rdms,
    crossvalidated_rdm,
    evaluate_rdms,
    noise_ceiling,
    noise_precision,
    rdm,
    unbiased_cka,
)
from repscope.align.dissimilarities import square
from repscope.align.rdm_comparison import MEASURES
from repscope.align.rsa_bootstrap import similarities_of_draws
from repscope.errors import UserError
from repscope.stats.bootstrap import draw_weights


def rows(n, p, seed=0):
    return np.random.default_rng(seed).normal(size=(n, p))


def precision(p):
    a = rows(3 * p, p, 9)
    return np.linalg.inv(a.T @ a / len(a))


def pairs(n):
    return zip(*np.triu_indices(n, 1))


# ------------------------------------------------------------------------------------------------------------ dissimilarities


def test_each_dissimilarity_is_its_definition():
    x, inverse = rows(7, 5), precision(5)
    counts = np.random.default_rng(1).poisson(4, (7, 5))
    rates = (counts + 0.1) / 1.1
    of = {
        "euclidean": (rdm(x), lambda i, j: ((x[i] - x[j]) ** 2).sum() / 5),
        "correlation": (rdm(x, "correlation"), lambda i, j: 1 - np.corrcoef(x[i], x[j])[0, 1]),
        "mahalanobis": (rdm(x, "mahalanobis", precision=inverse), lambda i, j: (x[i] - x[j]) @ inverse @ (x[i] - x[j]) / 5),
        "poisson": (rdm(counts, "poisson"), lambda i, j: ((rates[i] - rates[j]) * np.log(rates[i] / rates[j])).sum() / 5),
    }
    for found, definition in of.values():
        np.testing.assert_allclose(found, [definition(i, j) for i, j in pairs(7)], rtol=1e-9)


def test_crossnobis_is_the_mean_over_pairs_of_runs_and_the_mean_over_folds():
    x, inverse = np.stack([rows(6, 4, s) for s in range(3)]), precision(4)
    over_runs = [
        np.mean([(x[r, i] - x[r, j]) @ inverse @ (x[s, i] - x[s, j]) for r in range(3) for s in range(3) if r != s]) / 4
        for i, j in pairs(6)
    ]
    folds = []  # as rsatoolbox writes it: the mean of the other runs with the run left out
    for r in range(3):
        a, b = x[[s for s in range(3) if s != r]].mean(0), x[r]
        folds.append([(a[i] - a[j]) @ inverse @ (b[i] - b[j]) / 4 for i, j in pairs(6)])
    found = crossvalidated_rdm(x, precision=inverse)
    np.testing.assert_allclose(found, over_runs, rtol=1e-9)
    np.testing.assert_allclose(found, np.mean(folds, 0), rtol=1e-9)


def test_poisson_across_runs_is_the_mean_over_all_folds_and_not_the_last():
    x = np.random.default_rng(0).poisson(3, (4, 6, 8)).astype(float)
    folds = []
    for r in range(4):
        a, b = ((part + 0.1) / 1.1 for part in (x[[s for s in range(4) if s != r]].mean(0), x[r]))
        folds.append([((a[i] - a[j]) * np.log(b[i] / b[j])).sum() / 8 for i, j in pairs(6)])
    found = crossvalidated_rdm(x, "poisson")
    np.testing.assert_allclose(found, np.mean(folds, 0), rtol=1e-9)
    assert np.abs(found - folds[-1]).max() > 0.01


def test_crossnobis_has_no_bias_where_the_distance_within_a_run_has():
    rng, truth = np.random.default_rng(0), rows(5, 40)
    truth[1] = truth[0]  # the first two conditions are equal
    drawn = [truth + rng.normal(size=(4, 5, 40)) for _ in range(400)]
    means = np.mean([crossvalidated_rdm(x) for x in drawn], 0)
    sem = np.std([crossvalidated_rdm(x) for x in drawn], 0) / 20
    assert (np.abs(means - rdm(truth)) < 4 * sem).all()
    assert np.mean([rdm(x.mean(0))[0] for x in drawn]) > 0.4  # 2 σ² / runs = .5


def test_channels_in_blocks_and_on_another_device_change_nothing(monkeypatch):
    x = rows(9, 50) + 1e4
    whole = {kind: rdm(x, kind) for kind in ("euclidean", "correlation")}
    monkeypatch.setattr("repscope.align.dissimilarities._BLOCK", 7)
    for kind, expected in whole.items():
        np.testing.assert_allclose(rdm(x, kind), expected, rtol=1e-9)
        np.testing.assert_allclose(rdm(torch.from_numpy(x), kind), expected, rtol=1e-9)
    np.testing.assert_allclose(whole["correlation"], [1 - np.corrcoef(x[i], x[j])[0, 1] for i, j in pairs(9)], rtol=1e-7)


def test_noise_precision_is_near_the_inverse_of_the_covariance():
    mixing = rows(6, 6) + 3 * np.eye(6)
    found = noise_precision(rows(20_000, 6, 1) @ mixing)
    np.testing.assert_allclose(found, np.linalg.inv(mixing.T @ mixing), atol=0.02)


# ------------------------------------------------------------------------------------------------------------ comparisons


def _rho_a_by_random_ties(a, b, draws=4000):
    rng = np.random.default_rng(0)

    def ranks(v):
        return np.argsort(np.lexsort((rng.random(len(v)), v)))

    return np.mean([np.corrcoef(ranks(a), ranks(b))[0, 1] for _ in range(draws)])


def test_each_measure_is_its_definition():
    rng = np.random.default_rng(0)
    a, b = rng.random(45), rng.integers(0, 3, 45).astype(float)  # the second has ties, as models of categories do

    def found(measure):
        return compare_rdms(a, b, measure)[0, 0]

    assert found("cosine") == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert found("pearson") == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert found("spearman") == pytest.approx(spearmanr(a, b).statistic)
    assert found("rho-a") == pytest.approx(_rho_a_by_random_ties(a, b), abs=0.005)
    signs = [np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i, j in pairs(45)]
    assert found("tau-a") == pytest.approx(np.mean(signs))
    assert abs(found("tau-a")) < abs(kendalltau(a, b).statistic)  # ties do not flatter


def test_whitened_measures_are_cosines_under_the_covariance_of_noisy_distances():
    """The covariance of squared distances of i.i.d. rows: V = (A Aᵀ)², with A the contrasts of the pairs (Diedrichsen et al.)."""
    rng, n = np.random.default_rng(0), 6
    a, b = rng.random((2, 15)), rng.random((3, 15))
    contrasts = np.zeros((15, n))
    for k, (i, j) in enumerate(pairs(n)):
        contrasts[k, i], contrasts[k, j] = 1, -1
    inverse = np.linalg.inv((contrasts @ contrasts.T) ** 2)
    for measure, sides in (("whitened cosine", (a, b)), ("whitened pearson", (a - a.mean(1)[:, None], b - b.mean(1)[:, None]))):
        x, y = sides
        products = x @ inverse @ y.T
        expected = products / np.sqrt(np.diag(x @ inverse @ x.T)[:, None] * np.diag(y @ inverse @ y.T)[None])
        np.testing.assert_allclose(compare_rdms(a, b, measure), expected, rtol=1e-9)


def test_whitened_cosine_is_linear_cka():
    x, y = rows(12, 4), rows(12, 9, 1)
    x, y = x - x.mean(0), y - y.mean(0)
    cka = np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert compare_rdms(rdm(x), rdm(y), "whitened cosine")[0, 0] == pytest.approx(cka)
    assert unbiased_cka(x, y) < cka  # the biased one, which is above 0 for independent data


@pytest.mark.parametrize("measure", MEASURES)
def test_the_ceiling_is_one_for_equal_subjects_and_holds_the_true_model(measure):
    truth = rdm(rows(10, 6))
    if measure not in ("rho-a", "tau-a"):
        assert noise_ceiling(np.stack([truth, 2 * truth, truth]), measure) == pytest.approx((1, 1))
    subjects = np.stack([rdm(rows(10, 6) + 0.6 * rows(10, 6, 10 + s)) for s in range(30)])
    lower, upper = noise_ceiling(subjects, measure)
    assert lower < upper
    assert lower - 0.02 < compare_rdms(truth, subjects, measure).mean() < upper
    assert noise_ceiling(np.stack([rdm(rows(10, 6, 50 + s)) for s in range(12)]), "pearson")[0] < 0.25


# ------------------------------------------------------------------------------------------------------------ bootstrap


def _drawn_as_written(a, b, w, measure):
    """One draw: the RDMs of the drawn conditions, entries between copies of one condition left out, compared by the definition."""
    at = np.repeat(np.arange(len(w)), w)
    one, other = (square(v)[np.ix_(at, at)] for v in (a, b))
    apart = at[:, None] != at[None]
    if not measure.startswith("whitened"):
        upper = np.triu(apart)
        x, y = one[upper], other[upper]
        return {
            "cosine": lambda: x @ y / np.sqrt(x @ x * (y @ y)),
            "pearson": lambda: np.corrcoef(x, y)[0, 1],
            "spearman": lambda: spearmanr(x, y).statistic,
        }[measure]()
    if measure.endswith("pearson"):
        one, other = (np.where(apart, v - v[apart].mean(), 0) for v in (one, other))
    i, j = np.nonzero(apart | np.eye(len(at), dtype=bool))
    design = np.zeros((len(i), len(at)))
    np.add.at(design, (np.arange(len(i)), i), 1)
    np.add.at(design, (np.arange(len(i)), j), 1)
    left = [v[i, j] - design @ np.linalg.lstsq(design, v[i, j], rcond=None)[0] for v in (one, other)]
    return left[0] @ left[1] / np.sqrt(left[0] @ left[0] * (left[1] @ left[1]))


@pytest.mark.parametrize("measure", ["cosine", "pearson", "spearman", "whitened cosine", "whitened pearson"])
def test_a_draw_of_conditions_is_the_comparison_of_the_drawn_rdms(measure):
    rng = np.random.default_rng(0)
    a, b, w = rng.random((2, 45)), rng.random((3, 45)), draw_weights(10, 5, rng)
    expected = [[[_drawn_as_written(x, y, counts, measure) for y in b] for x in a] for counts in w]
    np.testing.assert_allclose(similarities_of_draws(a, b, measure, w), expected, rtol=1e-9, atol=1e-12)
    every = similarities_of_draws(a, b, measure, np.ones((1, 10), int))[0]
    np.testing.assert_allclose(every, compare_rdms(a, b, measure), rtol=1e-9)
    few = np.array([[5, 5, 0, 0, 0, 0, 0, 0, 0, 0]])
    assert np.isnan(similarities_of_draws(a, b, measure, few)).all()


def _simulated(rng, truth, subjects, conditions, noise):
    """Subjects see a random draw of conditions; each has an RDM of its own beside noise."""
    seen = rng.normal(size=(conditions, 3)) @ truth
    own = [seen + 0.7 * rng.normal(size=(conditions, 3)) @ truth for _ in range(subjects)]
    return rdm(seen), np.stack([rdm(x + noise * rng.normal(size=x.shape)) for x in own])


def test_intervals_over_subjects_and_conditions_cover_the_truth():
    rng, truth = np.random.default_rng(0), rows(3, 12)
    expected = np.mean([compare_rdms(*_simulated(rng, truth, 12, 20, 0.8), "pearson").mean() for _ in range(600)])
    hits = {"both": 0, "subjects": 0}
    for i in range(200):
        model, subjects = _simulated(rng, truth, 12, 20, 0.8)
        for over in hits:
            found = evaluate_rdms(model, subjects, "pearson", over=over, draws=200, seed=i).similarity[0]
            hits[over] += found.lo <= expected <= found.hi
    assert 0.90 <= hits["both"] / 200 <= 0.985
    assert hits["subjects"] / 200 < 0.85  # conditions vary too: an interval over subjects alone is too narrow


@pytest.mark.parametrize("measure", ["whitened cosine", "whitened pearson"])
def test_a_hundred_conditions_and_more_are_no_limit_of_whitened_measures(measure):
    subjects = np.stack([rdm(rows(110, 6) + 0.5 * rows(110, 6, s)) for s in (1, 2)])
    found = evaluate_rdms(rdm(rows(110, 6)), subjects, measure, draws=20).similarity[0]
    assert found.value == pytest.approx(compare_rdms(rdm(rows(110, 6)), subjects, measure).mean())
    assert found.lo < found.value < found.hi


def test_models_share_draws_so_a_difference_is_paired():
    rng = np.random.default_rng(0)
    model, subjects = _simulated(rng, rows(3, 12), 8, 16, 0.5)
    other = model + 0.02 * rng.normal(size=model.shape) * model.std()
    found = evaluate_rdms(np.stack([model, other]), subjects, "cosine", draws=300)
    difference, own = found.difference(0, 1), found.similarity[0]
    assert difference.value == pytest.approx(found.similarity[0].value - found.similarity[1].value)
    assert difference.hi - difference.lo < 0.3 * (own.hi - own.lo)
    assert found.lower < found.upper
    again = evaluate_rdms(np.stack([model, other]), subjects, "cosine", draws=300)
    assert again.similarity == found.similarity


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: rdm(rows(1, 4)), "at least 3 rows"),
        (lambda: rdm(np.vstack([rows(3, 4), np.ones((1, 4))]), "correlation"), "Row 3 is constant"),
        (lambda: rdm(np.array([[1, np.nan], [1, 2], [2, 3]])), "not finite"),
        (lambda: rdm(rows(4, 3), "mahalanobis"), "needs precision="),
        (lambda: rdm(rows(4, 3), "mahalanobis", precision=np.eye(2)), r"shape \(2, 2\) for 3 channels"),
        (lambda: rdm(rows(4, 3), "mahalanobis", precision=-np.eye(3)), "not positive definite"),
        (lambda: rdm(rows(4, 3), "mahalanobis", precision=np.triu(np.ones((3, 3)))), "not symmetric"),
        (lambda: rdm(rows(4, 3), "poisson"), "below 0"),
        (lambda: crossvalidated_rdm(rows(4, 3)), r"shape \(4, 3\); give \(run, condition, channel\)"),
        (lambda: crossvalidated_rdm(rows(4, 3)[None]), "at least two runs"),
        (lambda: crossvalidated_rdm(np.stack([rows(4, 3)] * 2), "poisson", precision=np.eye(3)), "leave it out"),
        (lambda: as_pairs(np.triu(np.ones((4, 4)), 1)), r"not symmetric: \(0, 1\) is 1"),
        (lambda: as_pairs(np.ones((4, 4))), "diagonal other than 0"),
        (lambda: as_pairs(np.ones((4, 3))), "square matrix"),
        (lambda: compare_rdms(np.ones(4), np.ones(4)), "belongs to no number of conditions"),
        (lambda: compare_rdms(np.ones(6), np.ones(10)), "6 and 10 pairs"),
        (lambda: compare_rdms(np.ones(6), np.full(6, np.nan)), "RDM 0 has 6 values that are not finite"),
        (lambda: compare_rdms(np.ones(6), np.ones(6), "cka"), "no measure 'cka'"),
        (lambda: noise_ceiling(np.ones(6)), "at least two subjects"),
        (lambda: evaluate_rdms(np.ones(6), np.ones(6), over="both"), "One subject cannot be drawn"),
        (lambda: evaluate_rdms(np.ones(3), np.ones((2, 3))), "too few to draw from"),
    ],
)
def test_mistakes_are_told_in_one_sentence(wrong, says):
    with pytest.raises(UserError, match=says):
        wrong()


def test_a_constant_rdm_has_no_correlation_and_a_square_becomes_pairs():
    assert np.isnan(compare_rdms(np.ones(6), np.arange(6.0), "pearson")).all()
    np.testing.assert_array_equal(as_pairs(square(np.arange(6.0))), np.arange(6.0))
