"""Ridge regressions of several small training sets at once, with a penalty by leave-one-out, without eigenvectors.

Takes Gram matrices of standardised features and centred targets, never features. For few columns; for many, eigenvectors
(`ridge.Ridge`) take less time.

1. K = Q T Qᵀ with T tridiagonal: the first third of an eigendecomposition, and all that penalties need, as
   (K + λI)⁻¹ = Q (T + λI)⁻¹ Qᵀ, and T + λI = L D Lᵀ with L of two diagonals.
2. The fit of targets y is α = (K + λI)⁻¹ y. With C = I - 11ᵀ/n and m_i the i-th diagonal entry of C (K + λI)⁻¹ C, the leave-one-out
   error of row i is α_i / m_i. (That is (y - ŷ)_i / (1 - h_ii): y - ŷ = λα, and 1 - h_ii = λ m_i.)
3. m_i is the squared norm of D^(-1/2) L⁻¹ Qᵀ C e_i: one forward substitution for all rows, penalties and training sets. It is made
   in single precision; penalties whose errors are close are compared again in double precision.
4. Each group of columns takes the penalty of its least error.
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
_IN_CACHE = 250_000  #: numbers of a recurrence that are kept before their squares are summed
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

    turned: (set, row of T, training row), Qᵀ. pivots, below: (set, penalty, row), D and what stands below the diagonal of L.
    """

    def __init__(self, grams: Sequence[Float[np.ndarray, "train train"]], penalties: Float[np.ndarray, "penalty"]) -> None:
        self.sizes = [len(gram) for gram in grams]
        most = max(self.sizes)
        self.turned = np.zeros((len(grams), most, most))
        self.pivots, self.below = np.ones((len(grams), len(penalties), most)), np.zeros((len(grams), len(penalties), most))
        for i, gram in enumerate(grams):
            n = len(gram)
            diagonal, off = _tridiagonal(gram, self.turned[i, :n, :n])
            for p, penalty in enumerate(penalties):
                self.pivots[i, p, :n], self.below[i, p, : n - 1], failed = lapack.dpttrf(diagonal + penalty, off)
                if failed:
                    raise ValueError(f"a Gram matrix plus {penalty} is not positive definite")

    def fit(self, targets: Sequence[Float[np.ndarray, "train column"]], widths: Int[np.ndarray, "group"]) -> list[np.ndarray]:
        """α of each training set."""
        alphas = [self._alphas(i, y) for i, y in enumerate(targets)]
        norms = self._norms(range(len(targets)), np.float32)
        errors = np.stack([np.square(alpha / norms[i, :, : alpha.shape[1], None]).sum(1) for i, alpha in enumerate(alphas)])
        best, close = _chosen(errors, widths)
        for i in map(int, np.flatnonzero(close.any(1))):
            n, columns = self.sizes[i], np.repeat(close[i], widths)
            exact = np.square(alphas[i][:, :, columns] / self._norms([i], np.float64)[0, :, :n, None]).sum(1)
            best[i, close[i]] = _chosen(exact[None], widths[close[i]])[0][0]
        which, columns = np.repeat(best, widths, axis=1), np.arange(targets[0].shape[1])
        return [np.ascontiguousarray(alpha[which[i], :, columns].T) for i, alpha in enumerate(alphas)]

    def _alphas(self, i: int, y: Float[np.ndarray, "train column"]) -> Float[np.ndarray, "penalty train column"]:
        """α for each penalty."""
        n, penalties = self.sizes[i], self.pivots.shape[1]
        turned = self.turned[i, :n, :n]
        projected = np.asfortranarray(turned @ y)
        solved = np.empty((penalties, y.shape[1], n))
        for p in range(penalties):
            solved[p] = lapack.dpttrs(self.pivots[i, p, :n], self.below[i, p, : n - 1], projected)[0].T
        found: np.ndarray = (solved.reshape(-1, n) @ turned).reshape(penalties, -1, n).transpose(0, 2, 1)
        return found

    def _norms(self, sets: Sequence[int], kind: Single) -> Float[np.ndarray, "set penalty train"]:
        """m_i of each training row: the squared norms of step 3, 1 for rows that are filled up."""
        rows, penalties = self.turned.shape[1], self.pivots.shape[1]
        right = np.empty((rows, len(sets), 1, rows), dtype=kind)
        for place, i in enumerate(sets):
            n = self.sizes[i]
            right[:, place, 0] = self.turned[i]
            right[:, place, 0, :n] -= (self.turned[i].sum(1) / n)[:, None].astype(kind)
        below = np.ascontiguousarray(self.below[sets].transpose(2, 0, 1)[..., None], dtype=kind)
        inverse: np.ndarray = np.ascontiguousarray(1 / self.pivots[sets].transpose(2, 0, 1)[..., None], dtype=kind)
        sums, last = np.zeros((len(sets), penalties, rows), dtype=kind), np.zeros((len(sets), penalties, rows), dtype=kind)
        term = np.empty_like(last)
        step = max(1, _IN_CACHE // last.size)
        held = np.empty((step, *last.shape), dtype=kind)
        before = [np.zeros_like(below[0]), *below[:-1]]
        for begin in range(0, rows, step):
            some = held[: min(step, rows - begin)]
            for own, factor, found in zip(right[begin:], before[begin:], some):
                np.multiply(last, factor, out=term)
                last = np.subtract(own, term, out=found)
            last = last.copy()
            np.multiply(some, some, out=some)
            squares: np.ndarray = some
            sums += np.einsum("rspt,rspo->spt", squares, inverse[begin : begin + len(some)])
        for place, i in enumerate(sets):
            sums[place, :, self.sizes[i] :] = 1
        return sums


def _chosen(
    errors: Float[np.ndarray, "set penalty column"], widths: Int[np.ndarray, "group"]
) -> tuple[Int[np.ndarray, "set group"], Bool[np.ndarray, "set group"]]:
    """The penalty of the least error of each group, and whether another one is so close that single precision does not tell."""
    summed = np.add.reduceat(errors, np.cumsum(widths) - widths, axis=2)
    best = np.argmin(summed, axis=1)
    if summed.shape[1] == 1:
        return best, np.zeros(best.shape, dtype=bool)
    least, next_least = np.moveaxis(np.partition(summed, 1, axis=1)[:, :2], 1, 0)
    return best, ~(next_least > least * (1 + _CLOSE)) | ~np.isfinite(summed).all(1)


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
