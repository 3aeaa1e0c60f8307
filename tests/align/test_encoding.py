"""Encoding models, ceilings and variance partition, beside plain loops of scikit-learn and beside the formulas written out."""

import himalaya
import himalaya.backend
import numpy as np
import pytest
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import Ridge

from repscope.align import cc_max, encode, encode_banded, over_ceiling, split_half, variance_partition
from repscope.align.ridge import RidgeSettings, inner_folds
from repscope.errors import UserError


def linear(n=60, p=20, channels=4, noise=1.0, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) + shift
    return x, x @ rng.normal(size=(p, channels)) / np.sqrt(p) + noise * rng.normal(size=(n, channels)) + 3


def by_hand(x, y, found, settings, code=None):
    """Ridge with intercept, penalty per channel from inner folds, by loops over scikit-learn's Ridge."""
    code = np.random.default_rng(0).permutation(len(y)) if code is None else code
    predicted, chosen = np.empty_like(y), []
    for f in range(int(found.fold.max()) + 1):
        train, test = found.fold != f, found.fold == f
        a, b, inner = x[train], y[train], inner_folds(code[train], settings.inner)
        unit = ((a - a.mean(0)) ** 2).sum() / len(a)
        losses = np.zeros((len(settings.alphas), y.shape[1]))
        for g in range(settings.inner):
            for i, alpha in enumerate(settings.alphas):
                fit = Ridge(alpha * unit).fit(a[inner != g], b[inner != g])
                losses[i] += ((fit.predict(a[inner == g]) - b[inner == g]) ** 2).mean(0)
        best = losses.argmin(0)
        for channel, i in enumerate(best):
            predicted[test, channel] = Ridge(settings.alphas[i] * unit).fit(a, b[:, channel]).predict(x[test])
        chosen.append(np.asarray(settings.alphas)[best])
    return predicted, np.stack(chosen)


@pytest.mark.parametrize("features", [12, 90], ids=["primal", "kernel"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_both_forms_are_a_plain_loop_over_ridge_regressions(features, backend):
    x, y = linear(50, features, shift=5.0)
    settings = RidgeSettings(alphas=(0.01, 0.1, 1.0, 10.0), backend=backend)
    before = himalaya.backend.get_backend().name
    found = encode(x, y, settings=settings)
    assert himalaya.backend.get_backend().name == before, "the backend is a global variable of somebody else's"
    predicted, penalties = by_hand(x, y, found, settings)
    np.testing.assert_allclose(found.penalties, penalties, rtol=1e-9)
    np.testing.assert_allclose(found.predicted, predicted, rtol=1e-9, atol=1e-9)


def test_a_shift_of_features_or_responses_changes_no_score():
    x, y = linear()
    base, moved = encode(x, y), encode(x + 1000, y - 50)
    np.testing.assert_allclose(moved.r(), base.r(), atol=1e-7)
    np.testing.assert_allclose(moved.r2(), base.r2(), atol=1e-7)


def test_groups_stay_together_in_outer_and_inner_folds():
    x, y = linear(60)
    group = np.repeat(np.arange(12), 5)
    found = encode(x, y, groups=group)
    assert all(len(set(found.fold[group == g])) == 1 for g in range(12))
    copies = np.repeat(np.arange(20), 3)
    apart = np.random.default_rng(1).normal(size=(20, 200))[copies]
    noise = np.random.default_rng(2).normal(size=(20, 6))[copies]
    assert encode(apart, noise).r().mean() > 0.5, "copies on both sides of a fold give the answer away"
    assert abs(encode(apart, noise, groups=copies).r().mean()) < 0.3


def test_pls_has_25_components_and_no_scaling():
    x, y = linear(120, 40)
    found = encode(x, y, "PLS")
    train = found.fold != 0
    fit = PLSRegression(n_components=25, scale=False).fit(x[train], y[train])
    np.testing.assert_allclose(found.predicted[~train], fit.predict(x[~train]), rtol=1e-9)


def test_scores_are_their_formulas_and_noise_scores_nothing():
    x, y = linear(200, noise=0.5)
    found = encode(x, y)
    within = [[np.corrcoef(p, q)[0, 1] for p, q in zip(y[found.fold == f].T, found.predicted[found.fold == f].T)] for f in range(5)]
    np.testing.assert_allclose(found.r(), np.mean(within, 0))
    estimate = found.estimate("R²")
    assert estimate.value == pytest.approx(found.r2().mean())
    assert estimate.lo < estimate.value < estimate.hi
    rng = np.random.default_rng(3)
    nothing = [encode(x[:60], rng.normal(size=(60, 5))).r().mean() for _ in range(30)]
    assert abs(np.mean(nothing)) < 0.06, "no bias on noise"


def test_banded_ridge_finds_the_space_that_matters_and_is_ridge_for_one_space():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(100, 30)), 10 * rng.normal(size=(100, 200))
    y = a @ rng.normal(size=(30, 4)) / 5 + 0.5 * rng.normal(size=(100, 4))
    both = encode_banded({"a": a, "b": b}, y)
    plain = encode(np.hstack([a, b]), y)
    assert both.r().mean() > plain.r().mean() + 0.3
    settings = RidgeSettings(alphas=(0.1, 1.0, 10.0), draws=1)
    np.testing.assert_allclose(
        encode_banded({"b": b}, y, settings=settings).predicted, encode(b, y, settings=settings).predicted, rtol=1e-6, atol=1e-8
    )


def test_variance_is_taken_apart_where_its_parts_are_known():
    rng = np.random.default_rng(0)
    n = 150
    common, own, other = (rng.normal(size=(n, 4)) for _ in range(3))
    y = common @ rng.normal(size=(4, 6)) + own @ rng.normal(size=(4, 6)) + 0.5 * rng.normal(size=(n, 6))
    found = variance_partition(
        {"first": np.hstack([common, own]), "second": np.hstack([common, other])}, y, settings=RidgeSettings(draws=4)
    )
    assert found.unique["second"].value == pytest.approx(0, abs=0.03)
    assert found.unique["first"].lo > 0.2
    assert found.shared.lo > 0.2
    for parts in (found.unique["first"].value + found.unique["second"].value + found.shared.value,):
        assert parts == pytest.approx(found.total.value)
    assert found.shared.value == pytest.approx(found.alone["first"].value + found.alone["second"].value - found.total.value)


def test_ceilings_recover_the_share_of_signal():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(400, 300))
    y = signal + rng.normal(size=(4, 400, 300))  # share of signal in the mean of 4: 1 / (1 + 1/4) = .8
    assert split_half(y).mean() == pytest.approx(0.8, abs=0.01)
    assert (cc_max(y) ** 2).mean() == pytest.approx(0.8, abs=0.01)
    r = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(signal.T, y.mean(0).T)])
    assert over_ceiling(r, split_half(y)).mean() == pytest.approx(1, abs=0.02), "the truth explains all of the signal"
    noise = rng.normal(size=(4, 400, 300))
    assert abs(np.mean(split_half(noise))) < 0.05
    assert 0.3 < np.isnan(cc_max(noise)).mean() < 0.7, "half of the channels of noise have no signal power"


def test_scores_over_the_ceiling_leave_out_channels_without_one():
    x, y = linear(200, noise=0.5)
    found = encode(x, y)
    ceiling = np.array([0.8, 0.8, -0.1, 0.8])
    kept = [0, 1, 3]
    expected = (found.r()[kept] ** 2 / 0.8).mean()
    assert found.estimate("r²/ceiling", ceiling=ceiling).value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda x, y: encode(x[:1], y[:1]), "1 conditions; an encoding model needs at least 10"),
        (lambda x, y: encode(x, np.where(np.arange(4) == 2, 1.0, y)), "Channel 2 has the same response to every condition"),
        (lambda x, y: encode(np.where(x > 2, np.nan, x), y), "features are not finite"),
        (lambda x, y: encode(x, np.where(y > 4, np.inf, y)), "responses are not finite"),
        (lambda x, y: encode(x[:50], y), "50 rows and the other 60"),
        (lambda x, y: encode(np.ones_like(x), y), "features are the same for every condition"),
        (lambda x, y: encode(x, y, groups=["a"] * 60), "60 conditions in 1 groups cannot be cut into 5"),
        (lambda x, y: encode(x, y, groups=["a"] * 3), "3 groups for 60 conditions"),
        (lambda x, y: encode(x, y, "lasso"), "no encoding method 'lasso'"),
        (lambda x, y: RidgeSettings(alphas=(0.0,)), "must be a number above 0"),
        (lambda x, y: encode(x, y).estimate("r²/ceiling"), "needs ceiling="),
        (lambda x, y: encode(x, y).estimate("r²/ceiling", ceiling=np.full(4, -0.1)), "ceiling of all 4 channels is below zero"),
        (lambda x, y: encode_banded({}, y), "No feature space"),
        (lambda x, y: variance_partition({"a": x}, y), "at least two feature spaces"),
        (lambda x, y: split_half(y), r"shape \(60, 4\)"),
        (lambda x, y: split_half(np.stack([y, np.where(y > 3, np.nan, y)])), "not finite"),
        (lambda x, y: cc_max(np.ones((2, 9, 3))), "Channel 0 has the same response"),
    ],
)
def test_mistakes_are_told_in_one_sentence(wrong, says):
    with pytest.raises(UserError, match=says):
        wrong(*linear())


def test_without_himalaya_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "himalaya.backend", None)
    with pytest.raises(UserError, match=r"repscope\[brain\]"):
        encode(*linear())
