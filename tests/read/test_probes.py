"""The fast probes against scikit-learn in float64, and what their controls say where the answer is known."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from repscope.errors import UserError
from repscope.read import probe_sweep
from repscope.read.probe_sweep import Panel, sweep_probes
from repscope.read.probes import (
    ProbeTask,
    average,
    chosen_elsewhere,
    logistic,
    majority,
    probe,
    probe_directions,
    ridge_classes,
    within_halves,
)
from repscope.read.ridge import PENALTIES, Ridge, Standardised


def folds_of(n, k=4, seed=0):
    fold = np.random.default_rng(seed).permutation(n) % k
    return [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(k)]


def made(n=90, d=30, classes=3, signal=1.0, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, classes, n)
    X = rng.normal(size=(n, d)) + signal * np.eye(classes, d)[codes] * 3
    number = X[:, :2] @ [1.0, -2.0] + rng.normal(size=n) * (0.3 if signal else 9)
    X = X * rng.uniform(0.1, 50, d) + rng.normal(size=d) * 100
    names = tuple(f"c{i}" for i in range(classes))
    return X, [ProbeTask("kind", "class", codes, names), ProbeTask("size", "number", number)]


@pytest.mark.parametrize(("n", "d"), [(90, 30), (40, 120)])
def test_equal_to_scikit_learn_in_float64(n, d):
    X, (kind, size) = made(n, d)
    folds = folds_of(n)
    scores = probe(X, [kind, size], folds, shuffles=2)
    for train, test in folds:
        reference = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=PENALTIES)).fit(X[train], kind.values[train])
        np.testing.assert_array_equal(scores[0].predicted[test], reference.predict(X[test]))
        reference = make_pipeline(StandardScaler(), RidgeCV(alphas=PENALTIES)).fit(X[train], size.values[train])
        np.testing.assert_allclose(scores[1].predicted[test], reference.predict(X[test]), rtol=1e-7, atol=1e-8)


def test_decision_values_and_penalties_equal_scikit_learns():
    X, (kind, _) = made(60, 20, signal=0.4)
    train, test = folds_of(60)[0]
    reference = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=PENALTIES)).fit(X[train], kind.values[train])
    ours = Ridge.of(X[train], X[test]).predict(kind.columns(kind.values)[train], np.array([3]))
    np.testing.assert_allclose(2 * ours - 1, reference.decision_function(X[test]), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(90, 30), (40, 120)])
def test_penalties_chosen_in_single_precision_are_those_of_double(n, d):
    """Of values of any size; and where all penalties do equally well, the first one, as in double precision."""
    X, (kind, _) = made(n, d, signal=0.3)
    train = np.arange(n - 10)
    ridge = Ridge.of(X[train], X[:0])
    drawn = np.random.default_rng(0).normal(size=(len(train), 40)) + kind.columns(kind.values)[train, :1]
    single, double = (
        ridge._errors(drawn - drawn.mean(0), ridge.q.T @ (drawn - drawn.mean(0)), t) for t in (np.float32, np.float64)
    )
    np.testing.assert_allclose(single, double, rtol=1e-5)
    fitted = drawn - drawn.mean(0) - (ridge.q * ridge.shrink[2]) @ (ridge.q.T @ (drawn - drawn.mean(0)))
    np.testing.assert_allclose(double[2], np.square(fitted / (1 - ridge.leverage[2])[:, None]).sum(0), rtol=1e-8)
    for scale in (1e-30, 1.0, 1e30):
        chosen = ridge._fit(scale * drawn, np.ones(40, dtype=int))[2]
        assert chosen.tolist() == double.argmin(0).tolist()
    assert len(set(chosen.tolist())) > 1
    assert (ridge._fit(np.ones((len(train), 4)), np.array([3, 1]))[2] == 0).all()


@pytest.mark.parametrize(("n", "d"), [(90, 30), (40, 120)])
def test_folds_together_are_each_alone_in_two_passes(n, d):
    """Standardised by mean and deviation of their own rows, also features that are constant, rare or far from zero in a fold."""
    X, (kind, _) = made(n, d)
    folds = folds_of(n)
    X[:, 0] = 7.0
    X[:, 1] = 0.0
    X[folds[1][1], 1] = 5.0  # constant in the training rows of fold 1, not in its test rows
    X[:, 2] = 0.0
    X[folds[2][0][0], 2] = 1e-3  # one training row of fold 2
    X[:, 3] += 1e7
    X[folds[0][1], 4] += 1e5  # the training rows of fold 0 vary little beside the mean of the others
    together = probe(X, [kind], folds, shuffles=1)[0]
    rows = Standardised(X, folds)
    for fold, (train, test) in enumerate(folds):
        ours = Ridge(*rows.of(fold))
        mean, spread = X[train].mean(0), X[train].std(0)
        spread = np.where(spread > 1e-12, spread, 1.0)
        x, held = (X[train] - mean) / spread, (X[test] - mean) / spread
        np.testing.assert_allclose(ours.mean, mean, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(ours.spread, spread, rtol=1e-9)
        np.testing.assert_allclose(ours.x, x, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(ours.test @ ours.q.T, held @ x.T, rtol=1e-8, atol=1e-7 * np.abs(held).max())
        alone = probe(X, [kind], [(train, test)], shuffles=1)[0]
        np.testing.assert_array_equal(alone.top[:, test], together.top[:, test])


def test_rows_of_no_fold_are_not_read():
    X, tasks = made(80)
    folds = [(np.arange(40, 80), np.arange(0, 20))]
    expected = [s.top[0, :20] for s in probe(X, tasks, folds, shuffles=0)]
    X[20:40] = np.nan
    for found, before in zip(probe(X, tasks, folds, shuffles=0), expected):
        np.testing.assert_allclose(found.top[0, :20], before, rtol=1e-9)
    X[50, 1] = np.inf
    with pytest.raises(UserError, match="not finite"):
        probe(X, tasks, folds, shuffles=0)


@pytest.mark.parametrize("d", [30, 120])
def test_classes_by_ridge_are_scikit_learns(d):
    X, (kind, _) = made(80, d, signal=0.4)
    names = np.array(kind.classes)[kind.values]
    penalties = np.logspace(0, 5, 11)
    reference = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=penalties)).fit(X[:60], names[:60])
    assert ridge_classes(X[:60], names[:60], X[60:], penalties) == reference.predict(X[60:]).tolist()


def test_each_shuffle_is_what_a_probe_of_shuffled_labels_gives():
    X, (kind, _) = made()
    folds = folds_of(90)
    together = probe(X, [kind], folds, shuffles=3, seed=5)[0]
    rng = np.random.default_rng(5)
    for r in range(3):
        shuffled = ProbeTask("kind", "class", rng.permutation(kind.values), kind.classes)
        alone = probe(X, [shuffled], folds, shuffles=0)[0]
        np.testing.assert_array_equal(together.top[1 + r], alone.top[0])


def test_signal_is_found_and_noise_is_not():
    for signal in (1.0, 0.0):
        X, tasks = made(200, 40, signal=signal, seed=3)
        for scores in probe(X, tasks, folds_of(200), shuffles=30):
            found = scores.estimate()
            chance = 1 / 3 if scores.task.kind == "class" else 0.0
            if signal:
                assert found.lo > scores.shuffled().hi
            else:
                assert found.lo <= chance + 0.08
            assert abs(scores.shuffled().value - chance) < 0.08


def test_a_layer_chosen_on_one_half_is_reported_on_the_other():
    """On pure noise the best of many sites looks better than chance; the score of a site chosen elsewhere does not."""
    rng = np.random.default_rng(0)
    best, honest = [], []
    for seed in range(30):
        codes = rng.integers(0, 2, 60)
        task = ProbeTask("coin", "class", codes, ("heads", "tails"))
        half = rng.permutation(60) < 30
        features = [rng.normal(size=(60, 3)) for _ in range(20)]
        folds = folds_of(60, seed=seed)
        sites = [probe(x, [task], folds, shuffles=0)[0] for x in features]
        choosing = [probe(x, [task], within_halves(folds, half), shuffles=0)[0] for x in features]
        top, bottom, _ = chosen_elsewhere(sites, choosing, half)
        assert bottom.sum() == 60
        honest.append(top.mean())
        best.append(max(s.estimate().value for s in sites))
    assert np.mean(best) > 0.57
    assert abs(np.mean(honest) - 0.5) < 0.03  # three standard errors of 30 × 60 coins are 0.035


def test_directions_score_as_the_probe_does():
    X, tasks = made(120, 25)
    for task in tasks:
        directions = probe_directions(X, task, "resid_post.3")
        scores = np.stack([d.score(X) for d in directions], axis=1)
        fitted = Ridge.of(X, X).predict(task.columns(task.values), np.array([len(directions)]))
        np.testing.assert_allclose(scores, fitted, rtol=1e-4, atol=1e-3)
        assert all(abs(np.linalg.norm(d.vector) - 1) < 1e-5 for d in directions)


def test_entities_that_are_never_tested_do_not_count():
    X, tasks = made(80)
    folds = [(np.arange(40, 80), np.arange(0, 20))]
    scores = probe(X, tasks, folds, shuffles=2)[0]
    assert scores.estimate().n == 20
    assert scores.tested.tolist() == list(range(20))


def test_features_that_are_not_finite_are_refused():
    X, tasks = made(60)
    X[3, 2] = np.nan
    with pytest.raises(UserError, match="not finite"):
        probe(X, tasks, folds_of(60), shuffles=0)


def test_logistic_and_majority():
    X, (kind, _) = made(120, signal=1.5)
    rows = np.arange(120)
    assert logistic(X, kind, rows[:80], rows[80:]).mean() > 0.8
    skewed = ProbeTask("kind", "class", np.array([0] * 70 + [1] * 10 + [0] * 20 + [1] * 20), ("a", "b"))
    assert np.mean(majority(skewed, folds_of(120))) == pytest.approx(0.75)


def test_logistic_is_scikit_learns_search():
    for seed, signal in ((0, 0.3), (1, 0.15), (2, 0.6)):
        X, (kind, _) = made(150, 60, classes=4, signal=signal, seed=seed)
        train, test = np.arange(100), np.arange(100, 150)
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, tol=1e-3))
        search = GridSearchCV(pipeline, {"logisticregression__C": [1e-4, 1e-3, 1e-2, 1e-1]}, cv=3).fit(X[train], kind.values[train])
        expected = search.predict(X[test]) == kind.values[test]
        np.testing.assert_array_equal(logistic(X, kind, train, test), expected)


@pytest.mark.parametrize(("d", "shuffles"), [(30, 0), (120, 0), (120, 40)])
def test_features_that_are_all_constant_predict_the_mean(d, shuffles):
    _, tasks = made(60)
    scores = probe(np.full((60, d), 3.0), tasks, folds_of(60), shuffles=shuffles)
    np.testing.assert_allclose(scores[1].top, 0, atol=1e-9)
    np.testing.assert_array_equal(scores[0].top[0, scores[0].tested], majority(tasks[0], folds_of(60)))


def test_constant_features_and_averages():
    X, tasks = made(60)
    X[:, 0] = 7.0
    scores = probe(X, tasks, folds_of(60), shuffles=1)
    both = average([scores[1], scores[1]])
    np.testing.assert_allclose(both.top, scores[1].top)
    assert np.isfinite(both.estimate().value)


def test_templates_with_the_same_features_are_probed_once(monkeypatch):
    X, tasks = made(60)
    X = X.astype(np.float32)
    panel = Panel(np.arange(60), tuple(tasks), tuple(folds_of(60)), np.arange(60) % 2 == 0)
    calls = []
    monkeypatch.setattr(probe_sweep, "probe", lambda *a, **k: calls.append(a) or probe(*a, **k))
    same = sweep_probes({"embed": [X, X.copy(), X]}, panel)
    assert len(calls) == 1
    several = sweep_probes({"embed": [X, X[::-1].copy(), X]}, panel)
    assert len(calls) == 4
    np.testing.assert_array_equal(same.scores["embed"][1].top, probe(X, tasks, folds_of(60), shuffles=0)[1].top)
    assert not np.array_equal(same.scores["embed"][1].top, several.scores["embed"][1].top)


def test_without_folds_nobody_is_tested():
    task = ProbeTask("size", "number", np.arange(6.0))
    (scores,) = probe(np.random.default_rng(0).normal(size=(6, 3)), [task], [], shuffles=2)
    assert scores.top.shape == scores.bottom.shape == (3, 6)
    assert np.isnan(scores.top).all()
    assert not len(scores.tested)
