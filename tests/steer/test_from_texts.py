"""Directions from two sets of texts: each method against an independent statement of it, and held-out reading against sklearn."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

from repscope.conditions import ESTIMATE, SWAPPED
from repscope.data.contrasts import Contrast, contrast
from repscope.errors import UserError
from repscope.steer.from_texts import METHODS, _arranged, _swapped, fit, placed
from repscope.worlds.tiny import tiny


@pytest.fixture(scope="module")
def lm():
    return tiny()


@pytest.fixture(scope="module")
def texts():
    words = ["soup", "film", "walk", "hotel", "book", "talk", "road", "song", "town", "game", "lake", "meal"]
    yes = tuple(f"The {w} was good {i}!" for i, w in enumerate(words))
    no = tuple(f"The {w} was bad {i}." for i, w in enumerate(words))
    groups = tuple(f"g{i % 6}" for i in range(len(words)))
    return Contrast("toy", "good", "bad", yes, no, groups, groups)


def clouds(n=40, d=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2 * n, d)) @ rng.standard_normal((d, d))
    x[:n] += np.linspace(0, 2, d)
    return x, np.arange(2 * n) < n


def same_line(a, b):
    assert abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) == pytest.approx(1, abs=1e-6)


def test_each_method_is_its_definition():
    x, positive = clouds()
    n = len(x) // 2
    same_line(METHODS["difference of means"](x, positive, True), x[:n].mean(0) - x[n:].mean(0))
    differences = x[:n] - x[n:]
    both = np.concatenate([differences, -differences])
    same_line(METHODS["PCA of differences"](x, positive, True), np.linalg.eigh(both.T @ both)[1][:, -1])
    within = sum((len(c) / len(x)) * _shrunk(c) for c in (x[:n], x[n:]))
    slow = np.linalg.solve(within, x[:n].mean(0) - x[n:].mean(0))
    same_line(METHODS["linear discriminant"](x, positive, True), slow)
    w = METHODS["logistic regression"](x, positive, True)
    z, spread = (x - x.mean(0)) / x.std(0), x.std(0)
    _stationary(z, positive, w * spread)


def _shrunk(c):
    """sklearn shrinks the covariance of standardised features and scales it back."""
    spread = c.std(0)
    return spread[:, None] * ledoit_wolf((c - c.mean(0)) / spread)[0] * spread


def _stationary(z, positive, w):
    """The gradient of the penalised likelihood is zero there, with the best intercept."""
    label = positive.astype(float)
    b = 0.0
    for _ in range(200):
        p = 1 / (1 + np.exp(-(z @ w + b)))
        b += (label - p).sum() / (p * (1 - p)).sum()
    np.testing.assert_allclose(0.1 * z.T @ (p - label) + w, 0, atol=2e-3)


def test_placed_is_the_auc():
    rng = np.random.default_rng(0)
    positive = rng.random(50) < 0.4
    scores = np.round(rng.standard_normal(50) + positive, 1)  # with ties
    assert placed(scores, positive).mean() == pytest.approx(roc_auc_score(positive, scores))


def test_directions_point_from_negative_to_positive_and_reach_from_mean_to_mean(lm, texts):
    found = fit(lm, texts)
    assert len(found.directions) == 4 * 4
    acts = lm.capture([*texts.yes, *texts.no], "resid_post")
    for direction in found.directions:
        rows = acts[direction.site].astype(np.float64)
        along = (rows[:12].mean(0) - rows[12:].mean(0)) @ direction.vector
        assert along == pytest.approx(direction.scale, rel=1e-6)
        assert direction.norm > 0
    assert found.result.table.empty
    means = found.at("difference of means", "resid_post.2")
    slow = acts["resid_post.2"][:12].astype(np.float64).mean(0) - acts["resid_post.2"][12:].astype(np.float64).mean(0)
    np.testing.assert_allclose(means.weights, slow, rtol=1e-5, atol=1e-7)


def test_reading_is_held_out_and_has_its_control(lm, texts):
    first, second = texts.halves(0)
    found = fit(lm, first, held_out=second, swaps=3)
    table = found.result.table
    assert set(table["condition"]) == {ESTIMATE, SWAPPED}
    for name in METHODS:
        at = table[(table["item"] == name) & (table["condition"] == ESTIMATE)]
        assert list(at["layer"]) == [0, 1, 2, 3]
        assert (at["n"] == len(second.yes)).all()
    row = table[(table["item"] == "difference of means") & (table["layer"] == 3) & (table["condition"] == ESTIMATE)].iloc[0]
    rows = lm.capture([*second.yes, *second.no], "resid_post.3").numpy() @ found.at("difference of means", "resid_post.3").vector
    assert row["value"] == pytest.approx(roc_auc_score(np.arange(len(rows)) < len(second.yes), rows))


@pytest.mark.parametrize("paired", [True, False])
def test_exactly_half_of_the_labels_are_swapped(paired):
    positive = np.arange(40) < 20
    for seed in range(5):
        labels = _swapped(positive, paired, np.random.default_rng(seed))
        assert labels.sum() == 20
        assert (labels & positive).sum() == 10
        x = np.arange(40.0)[:, None]
        rows, arranged = _arranged(x, labels, paired)
        assert set(rows[arranged][:, 0].astype(int)) == set(np.flatnonzero(labels))
        if paired:
            assert all(abs(a - b) == 20 for a, b in zip(rows[:20, 0], rows[20:, 0]))


def test_mistakes(lm, texts):
    with pytest.raises(UserError, match="did you mean 'difference of means'"):
        fit(lm, texts, methods=["differences of mean"])
    loose = Contrast("loose", "good", "bad", texts.yes, texts.no[:9], paired=False)
    assert len(fit(lm, loose, at="resid_post.1").directions) == 3
    with pytest.raises(UserError, match="needs pairs"):
        fit(lm, loose, at="resid_post.1", methods=["PCA of differences"])
    same = Contrast("same", "a", "b", ("x one", "x two"), ("y one", "y two"))
    with pytest.raises(UserError, match="has zero norm"):
        fit(lm, same, at="embed", methods=["difference of means"])


def test_differences_of_several_contrasts_are_those_of_fits():
    from repscope.steer.from_texts import mean_differences

    lm = tiny()
    held = [contrast(name).sample(4) for name in ("sentiment", "formality")]
    found = mean_differences(lm, held, "resid_post.1")
    for one, texts in zip(found, held):
        wanted = fit(lm, texts, at="resid_post.1", methods=["difference of means"]).directions[0].vector
        assert np.allclose(one, wanted, atol=1e-5)
    same = Contrast("same", "a", "b", ("A map", "The sea"), ("The sea", "A map"))
    with pytest.raises(UserError, match="zero norm"):
        mean_differences(lm, [same], "resid_post.1")
