"""Ridge by tridiagonal matrices against eigenvectors, and against inverses in which each row was left out."""

import numpy as np
import pytest

from repscope.read import ridge as module
from repscope.read.ridge import PENALTIES, Ridge, Standardised, predictions
from repscope.read.tridiagonal import _Stack, dual_coefficients

WIDTHS = np.array([3, 1, 1])


def made(sizes=(40, 37, 41, 6), d=90, seed=0):
    """Gram matrices of standardised features, and centred targets that some features explain."""
    rng = np.random.default_rng(seed)
    rows, targets = [], []
    for n in sizes:
        x = rng.normal(size=(n, d)) * rng.uniform(0.2, 3, d)
        y = np.concatenate([x[:, :3] + rng.normal(size=(n, 3)), x[:, 3:4] @ [[5.0]], rng.normal(size=(n, 1))], axis=1)
        x = (x - x.mean(0)) / x.std(0)
        rows.append(x)
        targets.append(y - y.mean(0))
    return rows, targets


def left_out(x, y, penalty):
    """Squared errors of rows that were left out one by one: the intercept and the fit without each."""
    errors = np.zeros(y.shape[1])
    for i in range(len(x)):
        others = np.delete(np.arange(len(x)), i)
        mean, centre = y[others].mean(0), x[others].mean(0)
        z = x[others] - centre
        alpha = np.linalg.solve(z @ z.T + penalty * np.eye(len(others)), y[others] - mean)
        errors += np.square(y[i] - mean - (x[i] - centre) @ z.T @ alpha)
    return errors


def test_coefficients_are_those_of_the_penalty_with_the_least_error_of_rows_left_out():
    rows, targets = made()
    found = dual_coefficients([x @ x.T for x in rows], targets, WIDTHS, PENALTIES)
    several = set()
    for x, y, alpha in zip(rows, targets, found):
        errors = np.stack([left_out(x, y, penalty) for penalty in PENALTIES])
        best = np.repeat(np.add.reduceat(errors, np.cumsum(WIDTHS) - WIDTHS, axis=1).argmin(0), WIDTHS)
        several |= set(best)
        for c, p in enumerate(best):
            expected = np.linalg.solve(x @ x.T + PENALTIES[p] * np.eye(len(x)), y[:, c])
            np.testing.assert_allclose(alpha[:, c], expected, rtol=1e-9, atol=1e-12)
    assert len(several) > 2


def test_norms_in_single_precision_are_those_in_double_and_of_the_inverse():
    rows, _ = made()
    stack = _Stack([x @ x.T for x in rows], PENALTIES)
    single, double = (stack._norms(range(len(rows)), kind) for kind in (np.float32, np.float64))
    np.testing.assert_allclose(single, double, rtol=2e-5)
    for x, found in zip(rows, double):
        n = len(x)
        centre = np.eye(n) - 1 / n
        for penalty, norms in zip(PENALTIES, found):
            inverse = np.linalg.inv(x @ x.T + penalty * np.eye(n))
            np.testing.assert_allclose(norms[:n], np.diag(centre @ inverse @ centre), rtol=1e-8)
            assert (norms[n:] == 1).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_targets_of_any_size_and_where_all_penalties_do_equally_well(scale):
    rows, targets = made()
    found = dual_coefficients([x @ x.T for x in rows], [scale * y for y in targets], WIDTHS, PENALTIES)
    plain = dual_coefficients([x @ x.T for x in rows], targets, WIDTHS, PENALTIES)
    for ours, theirs in zip(found, plain):
        np.testing.assert_allclose(ours / scale, theirs, rtol=1e-9, atol=1e-12)
    zero = dual_coefficients([x @ x.T for x in rows], [0 * y for y in targets], WIDTHS, PENALTIES)
    assert all((alpha == 0).all() for alpha in zero)


def test_a_few_sets_at_a_time_and_one_penalty(monkeypatch):
    rows, targets = made()
    together = dual_coefficients([x @ x.T for x in rows], targets, WIDTHS, PENALTIES)
    monkeypatch.setattr("repscope.read.tridiagonal._MOST", 2 * 41**2)
    monkeypatch.setattr("repscope.read.tridiagonal._IN_CACHE", 1000)
    for ours, theirs in zip(dual_coefficients([x @ x.T for x in rows], targets, WIDTHS, PENALTIES), together):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    only = dual_coefficients([rows[0] @ rows[0].T], targets[:1], WIDTHS, PENALTIES[2:3])[0]
    np.testing.assert_allclose(only, np.linalg.solve(rows[0] @ rows[0].T + 100 * np.eye(40), targets[0]), rtol=1e-9)


@pytest.mark.parametrize("tested", [False, True])
def test_predictions_are_those_by_eigenvectors(tested, monkeypatch):
    """Folds of different sizes; features that are constant, rare, or far from zero; other features when tested."""
    rng = np.random.default_rng(1)
    n, d = 60, 100
    x = rng.normal(size=(n, d)) * rng.uniform(0.1, 50, d) + rng.normal(size=d) * 100
    x[:, 0], x[:, 1], x[:10, 1] = 7.0, 0.0, 3.0
    y = np.concatenate([x[:, 2:4] + rng.normal(size=(n, 2)), rng.normal(size=(n, 3))], axis=1)
    fold = np.r_[np.zeros(10, int), 1 + rng.permutation(50) % 4]
    folds = [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(5)]
    other = x + rng.normal(size=x.shape) if tested else None
    ours = predictions(x, folds, y, WIDTHS, tested=other)
    monkeypatch.setattr(module, "_FEW", 0)
    theirs = predictions(x, folds, y, WIDTHS, tested=other)
    rows = Standardised(x, folds, other)
    for i, (train, _) in enumerate(folds):
        np.testing.assert_allclose(ours[i], theirs[i], rtol=1e-8, atol=1e-8)
        np.testing.assert_array_equal(theirs[i], Ridge(*rows.of(i)).predict(y[train], WIDTHS))
