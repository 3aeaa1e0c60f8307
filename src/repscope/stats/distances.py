"""Distances between runs: a symmetric matrix with a zero diagonal (barrier heights, convexity gaps, Euclidean distances).

`checked` refuses any other matrix. `triangle` counts how often D_ik > D_ij + D_jk: barriers are no metric, and methods that assume
a metric may mislead.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike

from repscope.errors import UserError

LEAST = 4  #: runs
_CLOSE = 1e-6  # of the largest entry: distances of float32 weights differ by less in the two orders

Matrix = Float[np.ndarray, "run run"]


@dataclass(frozen=True)
class Triangle:
    """violations: share of ordered triples of runs i, j, k with D_ik > D_ij + D_jk. n: triples. largest: excess, in D's unit."""

    violations: float
    n: int
    largest: float


def checked(distances: Float[ArrayLike, "run run"], what: str = "distances", *, signed: bool = False) -> Matrix:
    """A copy of the matrix, made exactly symmetric.

    Raises
    ------
    UserError
        Unless it is square, of at least four runs, finite, symmetric, zero on its diagonal, and (unless `signed`) not negative.
    """
    d = np.array(distances, dtype=np.float64)
    if d.ndim != 2 or d.shape[0] != d.shape[1]:
        raise UserError(f"The {what} have the shape {d.shape}; give one row and one column per run.")
    if len(d) < LEAST:
        raise UserError(f"The {what} are of {len(d)} runs; at least {LEAST} are needed.")
    finite = np.where(np.isfinite(d), d, 0.0)
    largest = np.abs(finite).max()
    for bad, why, then in (
        (~np.isfinite(d), "not a finite number", "remove that run or measure the pair again"),
        (np.diag(np.abs(np.diag(finite)) > _CLOSE * largest), "not 0", "a run is at no distance from itself"),
        (np.abs(finite - finite.T) > _CLOSE * largest, "not the same in both orders", "average the two or decide which is right"),
        ((d < -_CLOSE * largest) & (not signed), "negative", "use a definition that is at least 0, such as the convexity gap"),
    ):
        if bad.any():
            i, j = np.argwhere(bad)[0]
            raise UserError(f"The {what} of runs {i} and {j} are {why} ({d[i, j]:.4g}); {then}.")
    d = (d + d.T) / 2 if signed else np.maximum((d + d.T) / 2, 0)
    np.fill_diagonal(d, 0)
    return d


def upper(matrix: Shaped[np.ndarray, "run run"]) -> Shaped[np.ndarray, "pair"]:
    """The entries above the diagonal, row after row: one per pair of runs."""
    return np.asarray(matrix[np.triu_indices(len(matrix), 1)])


def triangle(distances: Float[ArrayLike, "run run"]) -> Triangle:
    """The share of ordered triples of three different runs that break the triangle inequality, and the largest excess."""
    d = checked(distances)
    n, over, largest = len(d), 0, 0.0
    for j in range(n):  # one run in the middle at a time, so that memory stays at n²
        excess = d - d[:, j, None] - d[j]
        over += int(np.count_nonzero(excess > 1e-10 * d.max()))  # with i, j, k not all different it is at most 0
        largest = max(largest, float(excess.max()))
    triples = n * (n - 1) * (n - 2)
    return Triangle(over / triples, triples, largest)
