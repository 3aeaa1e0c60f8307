"""Ridge regressions on the same features: one eigendecomposition per training set serves all penalties and targets.

1. Standardise the features on the training rows. Means and variances of all training sets are two products, of weights (set × row)
   with the features and with their squares, after the mean over all rows was subtracted. Where a variance is a small part of the
   mean square, it is computed again from its own rows: as a difference it would be rounding.
2. With X (n × d, standardised), X Xᵀ = Q Λ Qᵀ; if n > d it comes from XᵀX, which is smaller.
3. For a penalty λ the fit is Q Λ/(Λ+λ) Qᵀ y, so all penalties and targets are columns of one product.
4. The penalty is chosen inside the training rows by the exact leave-one-out error (Golub, Heath & Wahba, 1979):
   (y - ŷ)_i / (1 - h_ii), with h_ii = 1/n + Σ_k Q_ik² Λ_k/(Λ_k+λ). Each group of columns (the classes of an attribute) has its own.
Equal to scikit-learn's RidgeCV and RidgeClassifierCV in float64 (tests). Cost per fold: O(n² d + n³), or O(n d² + d³) if d < n.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int

from repscope.errors import UserError
from repscope.read.tridiagonal import dual_coefficients

PENALTIES = np.logspace(0, 5, 6)
_CLOSE = 1e-4  #: leave-one-out errors nearer to each other are computed again in double precision; single precision errs by 1e-6
_CANCELS = 1e-3  #: share of the mean square below which a variance is computed again, so that it errs by 1e-13 at most
_CONSTANT = 1e-12  #: standard deviation up to which a feature counts as constant
_FEW = 40  #: columns up to which a tridiagonal matrix takes less time than eigenvectors
_AT_ONCE = 2_000_000  #: numbers squared at once

Fold = tuple[Int[np.ndarray, "train"], Int[np.ndarray, "test"]]
Features = Float[np.ndarray, "entity feature"]


def predictions(
    features: Features,
    folds: Sequence[Fold],
    targets: Float[np.ndarray, "entity column"],
    widths: Int[np.ndarray, "group"],
    *,
    tested: Features | None = None,
    penalties: Float[np.ndarray, "penalty"] = PENALTIES,
    eigenvectors: bool = False,
) -> list[Float[np.ndarray, "test column"]]:
    """Predictions for the test rows of each fold.

    Parameters
    ----------
    features
        (entity, feature).
    folds
        Pairs of training and test rows.
    targets
        (entity, column), columns in groups that share a penalty.
    widths
        The number of columns of each group.
    tested
        Features of the rows when they are tested, where these differ from those that are fitted.
    eigenvectors
        Whether to take eigenvectors where tridiagonal matrices take less time: these do not run beside other Python threads.

    Raises
    ------
    UserError
        For features that are not finite, in rows that a fold fits.
    """
    rows = Standardised(features, folds, tested)
    if eigenvectors or targets.shape[1] > _FEW or any(not 1 < len(train) <= rows.x.shape[1] for train, _ in folds):
        return [Ridge(*rows.of(i), penalties).predict(targets[train], widths) for i, (train, _) in enumerate(folds)]
    means = [targets[train].mean(0) for train, _ in folds]
    centred = [targets[train] - mean for (train, _), mean in zip(folds, means)]
    alphas = dual_coefficients([rows.gram(i) for i in range(len(folds))], centred, widths, penalties)
    return [rows.scores(i, alpha) + mean for i, (alpha, mean) in enumerate(zip(alphas, means))]


class Standardised:
    """Features standardised on the training rows of each fold. Arguments and errors as for `predictions`."""

    def __init__(self, features: Features, folds: Sequence[Fold], tested: Features | None = None) -> None:
        self.folds = folds
        self.x = np.array(features, dtype=np.float64)  # a copy, that is shifted below
        used = np.zeros(len(self.x), dtype=bool)
        for train, test in folds:
            used[train] = True
            used[test] |= tested is None
        if not used.all():
            self.x[~used] = 0.0  # rows of no fold: whatever stands there must not reach a sum
        self.centre = self.x.sum(0) / max(int(used.sum()), 1)
        if not np.isfinite(self.centre).all():
            raise UserError("Features of a probe are not finite; look for NaN or infinity in the activations.")
        self.x -= self.centre
        self.tested = self.x if tested is None else tested.astype(np.float64) - self.centre
        self.means, self.spreads = _moments(self.x, [train for train, _ in folds])

    def gram(self, fold: int) -> Float[np.ndarray, "train train"]:
        """X Xᵀ of the training rows of a fold."""
        train = self.folds[fold][0]
        x = self._room[: len(train)]
        np.take(self.x, train, axis=0, out=x, mode="clip")
        x -= self.means[fold]
        x *= 1 / self.spreads[fold]
        found: np.ndarray = x @ x.T
        return found

    @cached_property
    def _room(self) -> Float[np.ndarray, "row feature"]:
        """Memory for the rows of one fold after the other: new memory would cost more than what is computed in it."""
        return np.empty((max(len(train) for train, _ in self.folds), self.x.shape[1]))

    def scores(self, fold: int, alpha: Float[np.ndarray, "train column"]) -> Float[np.ndarray, "test column"]:
        """The test rows of a fold times Xᵀα, for α with mean 0."""
        train, test = self.folds[fold]
        everywhere = np.zeros((len(self.x), alpha.shape[1]))
        everywhere[train] = alpha
        weights = (self.x.T @ everywhere) / np.square(self.spreads[fold])[:, None]
        result: np.ndarray = self.tested[test] @ weights - self.means[fold] @ weights
        return result

    def of(self, fold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Training rows, test rows, and the mean and deviation that they were standardised by."""
        held = self._standardised(self.tested, fold, self.folds[fold][1])
        return self._standardised(self.x, fold, self.folds[fold][0]), held, self.centre + self.means[fold], self.spreads[fold]

    def _standardised(
        self, x: Float[np.ndarray, "entity feature"], fold: int, rows: Int[np.ndarray, "row"]
    ) -> Float[np.ndarray, "row feature"]:
        own: np.ndarray = x[rows]
        own -= self.means[fold]
        own *= 1 / self.spreads[fold]
        return own


def _moments(
    x: Float[np.ndarray, "entity feature"], trains: Sequence[Int[np.ndarray, "train"]]
) -> tuple[Float[np.ndarray, "fold feature"], Float[np.ndarray, "fold feature"]]:
    """Mean and standard deviation of each feature over each training set; 1 for a feature that is constant there."""
    weights = np.zeros((len(trains), len(x)))
    for row, train in zip(weights, trains):
        row[train] = 1 / len(train)
    means, squares = weights @ x, np.empty((len(trains), x.shape[1]))
    step = max(1, _AT_ONCE // len(x))
    for begin in range(0, x.shape[1], step):
        some = slice(begin, begin + step)
        squares[:, some] = weights @ np.square(x[:, some])
    variances = squares - np.square(means)
    unsure = variances <= _CANCELS * squares
    for fold in map(int, np.flatnonzero(unsure.any(1))):
        columns = np.flatnonzero(unsure[fold])
        own = x[np.ix_(trains[fold], columns)]
        means[fold, columns] = mean = own.mean(0)
        variances[fold, columns] = np.square(own - mean).mean(0)
    spreads = np.sqrt(variances)
    return means, np.where(spreads > _CONSTANT, spreads, 1.0)  # a constant feature stays at zero


class Ridge:
    """Standardised training and test rows, and the eigendecomposition that serves all penalties and columns.

    mean, spread: what the features were standardised by. values, q: eigenvalues of X Xᵀ and its eigenvectors. shrink: (penalty,
    rank), Λ/(Λ+λ). leverage: (penalty, train), h_ii.
    """

    def __init__(
        self,
        x: Float[np.ndarray, "train feature"],
        held: Float[np.ndarray, "test feature"],
        mean: Float[np.ndarray, "feature"],
        spread: Float[np.ndarray, "feature"],
        penalties: Float[np.ndarray, "penalty"] = PENALTIES,
    ) -> None:
        self.x, self.mean, self.spread, self.penalties = x, mean, spread, penalties
        n, d = x.shape
        if n <= d:
            values, self.q = _eigen(x @ x.T)
            self.values = values.clip(min=0)
            self.test = (held @ x.T) @ self.q
        else:
            values, v = _eigen(x.T @ x)
            keep = values > 1e-10 * max(values[-1], 1e-300)
            self.values, v = values[keep], v[:, keep]
            root = np.sqrt(self.values)
            self.q = (x @ v) / root
            self.test = held @ (v * root)
        self.shrink = self.values / (self.values + penalties[:, None])
        self.leverage = 1 / n + self.shrink @ np.square(self.q).T

    @classmethod
    def of(cls, train: Features, test: Features, penalties: Float[np.ndarray, "penalty"] = PENALTIES) -> "Ridge":
        """The regression of one training set."""
        rows = np.arange(len(train) + len(test))
        both = Standardised(np.concatenate([train, test]), [(rows[: len(train)], rows[len(train) :])])
        return cls(*both.of(0), penalties)

    def predict(self, y: Float[np.ndarray, "train column"], widths: Int[np.ndarray, "group"]) -> Float[np.ndarray, "test column"]:
        """Predictions for the test rows, with the best penalty per group of columns. widths: columns of each group."""
        projected, mean, best = self._fit(y, widths)
        result: np.ndarray = self.test @ (projected / (self.values[:, None] + self.penalties[best])) + mean
        return result

    def weights(self, y: Float[np.ndarray, "train column"]) -> tuple[Float[np.ndarray, "feature column"], np.ndarray]:
        """Weights and offsets of one group on the features as they were given, before standardising."""
        projected, mean, best = self._fit(y, np.array([y.shape[1]]))
        back = self.x.T @ self.q
        w = (back / (self.values + self.penalties[best[0]])) @ projected / self.spread[:, None]
        return w, mean - self.mean @ w

    def _fit(
        self, y: Float[np.ndarray, "train column"], widths: Int[np.ndarray, "group"]
    ) -> tuple[Float[np.ndarray, "rank column"], Float[np.ndarray, "column"], Int[np.ndarray, "column"]]:
        """Qᵀ y, the mean of each column, and the index of its group's penalty."""
        mean = y.mean(0)
        centred = y - mean
        projected = self.q.T @ centred
        starts = np.concatenate([[0], np.cumsum(widths)[:-1]])
        errors = np.add.reduceat(self._errors(centred, projected, np.float32), starts, axis=1)
        best = np.argmin(errors, axis=0)
        least, next_least = np.partition(errors, 1, axis=0)[:2]
        close = ~(next_least > least * (1 + _CLOSE)) | ~np.isfinite(errors).all(0)
        if close.any():
            columns = np.repeat(close, widths)
            exact = self._errors(centred[:, columns], projected[:, columns], np.float64)
            starts = np.concatenate([[0], np.cumsum(widths[close])[:-1]])
            best[close] = np.argmin(np.add.reduceat(exact, starts, axis=1), axis=0)
        return projected, mean, np.repeat(best, widths)

    def _errors(
        self,
        centred: Float[np.ndarray, "train column"],
        projected: Float[np.ndarray, "rank column"],
        kind: type[np.float32] | type[np.float64],
    ) -> Float[np.ndarray, "penalty column"]:
        """Squared leave-one-out errors of each column, in this precision.

        y - ŷ = (y - QQᵀy) + Q λ/(Λ+λ) Qᵀy: no difference of nearly equal numbers, so that single precision is one.
        """
        n, shape = len(centred), (len(centred), len(self.penalties), centred.shape[1])
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what is not finite is computed in double precision
            shrunk = (1 - self.shrink).T.astype(kind)[:, :, None] * projected.astype(kind)[:, None]
            left = (self.q.astype(kind) @ shrunk.reshape(len(shrunk), shape[1] * shape[2])).reshape(shape)
            if n > self.q.shape[1]:
                left += (centred - self.q @ projected).astype(kind)[:, None]
            left *= (1 / (1 - self.leverage)).T.astype(kind)[:, :, None]
            left *= left
            errors: np.ndarray = np.ones(n, dtype=kind) @ left.reshape(n, -1)
        return errors.reshape(shape[1:]).astype(np.float64)


def _eigen(gram: Float[np.ndarray, "n n"]) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n n"]]:
    """Eigenvalues and eigenvectors, by torch: its LAPACK takes about half the time of scipy's at these sizes."""
    if not np.isfinite(gram).all():
        raise UserError("Features of a probe are not finite; look for NaN or infinity in the activations.")
    values, vectors = torch.linalg.eigh(torch.from_numpy(gram))
    return values.numpy(), vectors.numpy()
