"""Ridge regressions of many small training sets at once, without eigenvectors.

Takes Gram matrices of standardised features and centred targets, never features.

1. K = Q T Qᵀ with T tridiagonal: the first third of an eigendecomposition, and all that a penalty needs, as
   (K + λI)⁻¹ = Q (T + λI)⁻¹ Qᵀ, and T + λI = L D Lᵀ with L of two diagonals.
2. The fit of targets y is α = (K + λI)⁻¹ y. With C = I - 11ᵀ/n and m_i the i-th diagonal entry of C (K + λI)⁻¹ C, the leave-one-out
   error of row i is α_i / m_i. (That is (y - ŷ)_i / (1 - h_ii): y - ŷ = λα, and 1 - h_ii = λ m_i.)
3. m_i is the squared norm of D^(-1/2) L⁻¹ Qᵀ C e_i: one forward substitution, for all rows, penalties and training sets at once.
   It is made in single precision; penalties whose errors are close are compared again in double precision.
4. The penalty of the least error is chosen for each group of columns. α is in double precision.

Cost of a training set of n rows: O(n³) for step 1, as one third of an eigendecomposition, O(n²) per penalty.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.linalg import lapack

_CLOSE = 1e-4  #: leave-one-out errors nearer to each other are computed again in double precision; single precision errs by 1e-5
_PANEL = 8  #: columns that LAPACK reduces at once: at these sizes more cost more than they save
_MOST = 4_000_000  #: numbers of the matrices Q that are in memory at once
_FASTEST, _IN_CACHE = 2_000, 200_000  #: numbers of a step of a recurrence, and of steps whose squares are summed at once
Single = type[np.float32] | type[np.float64]


def dual_coefficients(
    grams: Sequence[Float[np.ndarray, "train train"]],
    targets: Sequence[Float[np.ndarray, "train column"]],
    widths: Int[np.ndarray, "group"],
    penalties: Float[np.ndarray, "penalty"],
) -> list[Float[np.ndarray, "train column"]]:
    """α of each training set, every group of columns with the penalty of its least leave-one-out error.

    Parameters
    ----------
    grams
        X Xᵀ of each training set of two rows or more, X standardised. They are overwritten.
    targets
        Its targets, with mean 0 over its rows; the columns are the same for all training sets.
    widths
        The number of columns of each group.
    """
    step = max(1, _MOST // max(len(gram) for gram in grams) ** 2)
    found: list[np.ndarray] = []
    for begin in range(0, len(grams), step):
        some = slice(begin, begin + step)
        found += _Stack(grams[some], penalties).fit(targets[some], widths)
    return found


class _Stack:
    """Training sets, each smaller one filled up with rows that are zero: they stay zero in every step.

    turned: (set, row of T, training row), Qᵀ. below: (row, set, penalty, 1), the lower diagonal of L. inverse: the same, of D⁻¹.
    """

    def __init__(self, grams: Sequence[Float[np.ndarray, "train train"]], penalties: Float[np.ndarray, "penalty"]) -> None:
        self.sizes = [len(gram) for gram in grams]
        sets, most = len(grams), max(self.sizes)
        self.turned = np.zeros((sets, most, most))
        self.below, self.inverse = np.zeros((most, sets, len(penalties), 1)), np.ones((most, sets, len(penalties), 1))
        for i, gram in enumerate(grams):
            n = len(gram)
            diagonal, off = _tridiagonal(gram, self.turned[i, :n, :n])
            for p, penalty in enumerate(penalties):
                d, self.below[: n - 1, i, p, 0], failed = lapack.dpttrf(diagonal + penalty, off)
                if failed:
                    raise ValueError(f"a Gram matrix plus {penalty} is not positive definite")
                self.inverse[:n, i, p, 0] = 1 / d

    def fit(self, targets: Sequence[Float[np.ndarray, "train column"]], widths: Int[np.ndarray, "group"]) -> list[np.ndarray]:
        """α of each training set."""
        columns = np.arange(targets[0].shape[1])
        solved = self._solved([self.turned[i, :n, :n] @ y for i, (n, y) in enumerate(zip(self.sizes, targets))])
        norms = self._norms(range(len(targets)), np.float32)
        each = [self._errors(i, solved[:, i], norms[i], np.float32) for i in range(len(targets))]
        best, close = _chosen(np.stack(each), widths)
        for i in np.flatnonzero(close.any(1)):
            some = solved[:, i][:, :, np.repeat(close[i], widths)]
            exact = self._errors(i, some, self._norms([i], np.float64)[0], np.float64)
            best[i, close[i]] = _chosen(exact[None], widths[close[i]])[0][0]
        of_column = np.repeat(best, widths, axis=1)
        return [self.turned[i, :n, :n].T @ solved[:n, i, of_column[i], columns] for i, n in enumerate(self.sizes)]

    def _solved(self, projected: Sequence[Float[np.ndarray, "train column"]]) -> Float[np.ndarray, "row set penalty column"]:
        """(T + λI)⁻¹ Qᵀ y for each penalty; a few training sets at a time, so that a row of them stays in the fastest cache."""
        rows, sets, penalties, _ = self.below.shape
        found = np.zeros((rows, sets, penalties, projected[0].shape[1]))
        step = max(1, _FASTEST // found[0, 0].size)
        for begin in range(0, sets, step):
            some = slice(begin, begin + step)
            part, below = found[:, some], self.below[:, some]
            for i, y in enumerate(projected[some]):
                part[: len(y), i] = y[:, None]
            term = np.empty(part.shape[1:])
            for row in range(1, rows):
                np.multiply(part[row - 1], below[row - 1], out=term)
                np.subtract(part[row], term, out=part[row])
            part *= self.inverse[:, some]
            for row in range(rows - 2, -1, -1):
                np.multiply(part[row + 1], below[row], out=term)
                np.subtract(part[row], term, out=part[row])
        return found

    def _norms(self, sets: Sequence[int], kind: Single) -> Float[np.ndarray, "set penalty train"]:
        """m_i of each training row: the squared norms of step 3, 1 for rows that are filled up."""
        rows, penalties = len(self.below), self.below.shape[2]
        below, inverse = self.below[:, sets].astype(kind), self.inverse[:, sets].astype(kind)
        right = np.empty((rows, len(sets), 1, rows), dtype=kind)
        for place, i in enumerate(sets):
            n = self.sizes[i]
            right[:, place, 0] = self.turned[i]
            right[:, place, 0, :n] -= (self.turned[i].sum(1) / n)[:, None].astype(kind)
        found = np.ones((len(sets), penalties, rows), dtype=kind)
        step = max(1, _IN_CACHE // max(1, found.size))
        last, sums, term = np.empty_like(found), np.zeros_like(found), np.empty_like(found)
        held = np.empty((min(step, rows), *found.shape), dtype=kind)
        for begin in range(0, rows, step):
            stop = min(begin + step, rows)
            for row in range(begin, stop):
                if row:
                    np.multiply(last, below[row - 1], out=term)
                    np.subtract(right[row], term, out=held[row - begin])
                else:
                    held[0] = right[0]
                last = held[row - begin]
            last = last.copy()
            some = held[: stop - begin]
            np.multiply(some, some, out=some)
            sums += np.einsum("rspt,rspo->spt", some, inverse[begin:stop])
        for place, i in enumerate(sets):
            found[place, :, : self.sizes[i]] = sums[place, :, : self.sizes[i]]
        return found

    def _errors(
        self, i: int, solved: Float[np.ndarray, "row penalty column"], norms: Float[np.ndarray, "penalty train"], kind: Single
    ) -> Float[np.ndarray, "penalty column"]:
        """Squared leave-one-out errors of each column, summed over the rows of a training set."""
        n, shape = self.sizes[i], solved.shape[1:]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what is not finite is computed in double precision
            left = self.turned[i, :n, :n].T.astype(kind) @ solved[:n].astype(kind).reshape(n, -1)
            scaled = left.reshape(n, *shape)
            scaled *= np.ascontiguousarray(1 / norms[:, :n].T)[:, :, None]
            left *= left
            errors: np.ndarray = np.ones(n, dtype=kind) @ left
        return errors.reshape(shape).astype(np.float64)


def _chosen(
    errors: Float[np.ndarray, "set penalty column"], widths: Int[np.ndarray, "group"]
) -> tuple[Int[np.ndarray, "set group"], Bool[np.ndarray, "set group"]]:
    """The penalty of the least error of each group, and whether another one is so close that single precision does not tell."""
    summed = np.add.reduceat(errors, np.cumsum(widths) - widths, axis=2)
    if summed.shape[1] == 1:
        return np.zeros(summed[:, 0].shape, dtype=np.int64), np.zeros(summed[:, 0].shape, dtype=bool)
    least, next_least = np.moveaxis(np.partition(summed, 1, axis=1)[:, :2], 1, 0)
    return np.argmin(summed, axis=1), ~(next_least > least * (1 + _CLOSE)) | ~np.isfinite(summed).all(1)


def _tridiagonal(
    gram: Float[np.ndarray, "n n"], turned: Float[np.ndarray, "n n"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n_minus_1"]]:
    """Diagonal and off-diagonal of T; Qᵀ is written into `turned`, which is zero."""
    reflectors, diagonal, off, scales, failed = lapack.dsytrd(gram.T, lower=1, lwork=_PANEL * len(gram), overwrite_a=1)
    if failed:
        raise ValueError(f"LAPACK's dsytrd refused its argument {-failed}")
    turned[0, 0] = 1.0
    held: Any = torch.from_numpy(reflectors[1:, :-1])
    turned[1:, 1:] = torch.linalg.householder_product(held, torch.from_numpy(scales)).numpy().T
    return diagonal, off
