"""Jacobians of low rank: all sources of one target from few products, with an estimate of what is missing.

A whole matrix takes d_target products uᵀJ. Here A = [c₁J₁, …, c_L J_L] stands for the Jacobians of all sources side by side
(c: the sources' scales), given by products that serve all of them: Σ c Jv for one vector per source, and uᵀJ.

1. Block Krylov (Musco & Musco 2015, arXiv 1504.05477): V begins as random columns; Q takes the directions of AV, V those of AᵀQ,
   and so on, each orthogonalised against all of itself. A column of Q costs two products, and QᵀJ of every source comes with it.
2. J ≈ Q QᵀJ for every source. The leading directions of all sources together make Q, so one Q serves them all. Only Q depends on
   the products Jv, whatever they are, so that those of a mean over prompts may be taken over a part of them.
3. Certificate: rows uᵀJ of random probes u that made no part of Q. E|uᵀ(J - QQᵀJ)|² is the squared Frobenius norm of what is
   missing, so its ratio to E|uᵀJ|² estimates the relative error (Halko, Martinsson & Tropp 2011, section 4.3), of A and of each
   source, with an interval over probes.
4. The rank: the first block at which the error of A is within the tolerance, or the limit (`most_rank`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope import stats
from repscope.errors import UserError
from repscope.models.linear.svd import Side

PART = 0.4  #: of the prompts whose products Jv make one block of Q; the parts take turns
BLOCK = 8  #: least vectors per product; wider blocks take less time each and need more of them for the same error
PROBES = 8  #: held-out random rows of the certificate


class LowRank:
    """A matrix as left @ right, used like an array: `@`, `.T`, `.shape`; `np.asarray` gives the whole matrix.

    left: (row, rank). right: (rank, column).
    """

    __array_ufunc__ = None  # array @ LowRank is ours

    def __init__(self, left: Float[np.ndarray, "row rank"], right: Float[np.ndarray, "rank column"]) -> None:
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
            raise UserError(f"Factors of {left.shape} and {right.shape} are no product; give (row, rank) and (rank, column).")
        self.left, self.right = left, right

    def __repr__(self) -> str:
        return f"LowRank({self.shape[0]} × {self.shape[1]}, rank {self.rank})"

    @property
    def shape(self) -> tuple[int, int]:
        """(row, column)."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """Columns of the left factor."""
        return int(self.left.shape[1])

    @property
    def size(self) -> int:
        """Numbers that both factors hold."""
        return int(self.left.size + self.right.size)

    @property
    def T(self) -> "LowRank":  # noqa: N802
        """The transpose."""
        return LowRank(self.right.T, self.left.T)

    def __matmul__(self, x: Any) -> np.ndarray:
        out: np.ndarray = self.left @ (self.right @ x)
        return out

    def __rmatmul__(self, x: Any) -> np.ndarray:
        out: np.ndarray = (x @ self.left) @ self.right
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("The whole matrix of a LowRank is always a new array.")
        whole: np.ndarray = self.left @ self.right
        return whole if dtype is None else whole.astype(dtype)

    def svd(self) -> tuple[Float[np.ndarray, "row rank"], Float[np.ndarray, "rank"], Float[np.ndarray, "rank column"]]:
        """Singular triplets, without the whole matrix: of the small matrix between the orthonormal parts of both factors."""
        q, r = np.linalg.qr(self.left)
        p, t = np.linalg.qr(self.right.T)
        u, s, v = np.linalg.svd(r @ t.T)
        return q @ u, s, v @ p.T

    def astype(self, dtype: Any) -> "LowRank":
        """With both factors in another type."""
        return LowRank(self.left.astype(dtype), self.right.astype(dtype))


@dataclass(frozen=True, eq=False)
class Certificate:
    """How far matrices of low rank are from the whole ones.

    rank: columns of Q. products: vectors multiplied, probes included; one over a part of the prompts counts as that part. error:
    relative error of all sources side by side, each in units of its own vectors, in the Frobenius norm, as estimated from `probes`
    held-out random rows, with its 95 % interval. errors: that of each source. within: whether the end of the interval of `error` is
    within the tolerance.
    """

    rank: int
    products: int
    probes: int
    error: stats.Estimate
    errors: tuple[stats.Estimate, ...]
    within: bool

    def __repr__(self) -> str:
        return f"Certificate(rank {self.rank}, {self.products} products, relative error {self.error})"


def most_rank(height: int, widths: Sequence[int], probes: int = PROBES, part: float = 1.0) -> int:
    """The largest rank of which products are at most a third of `height` and each matrix holds less than a quarter of its numbers.

    The factor that all matrices share counts in equal parts. part: what a product Jv costs of one uᵀJ.
    """
    by_products = int((height // 3 - probes) / (1 + part))
    by_memory = min((height * w - 1) // (4 * (w + height / len(widths))) for w in widths)
    return max(1, min(by_products, int(by_memory)))


def joint(
    forth: Callable[[list[Float[np.ndarray, "vector d_source"]]], Float[np.ndarray, "vector d_target"]],
    back: Callable[[Float[np.ndarray, "vector d_target"]], Sequence[Float[np.ndarray, "vector d_source"]]],
    height: int,
    widths: Sequence[int],
    scales: Sequence[float],
    rank: int,
    *,
    tolerance: float = 0.0,
    seed: int = 0,
    block: int = BLOCK,
    probes: int = PROBES,
    advance: Callable[[int], object] = lambda count: None,
) -> tuple[list[LowRank], Certificate]:
    """Matrices J (height, widths[i]) of up to `rank`, all with one left factor Q.

    forth: Σ Jv over the matrices, with vectors for each; an estimate of it will do. back: uᵀJ for each; called first with the
    probes, then with the columns of Q in order. scales: of each matrix in the joint one. tolerance: relative error of A at which a
    smaller rank is enough.

    Raises a `UserError` for a rank, tolerance, block or number of probes that is not possible; as `Side.widened` for products.
    """
    for name, value, most in (("rank", rank, height), ("block", block, height), ("number of probes", probes, 10**6)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= most:
            raise UserError(f"The {name} is {value!r}; it must be a whole number from 1 to {most}.")
    if not 0 <= tolerance < 1:
        raise UserError(f"A relative error of {tolerance} is none; choose a tolerance from 0 to below 1.")
    random = np.random.default_rng(seed)
    edges = np.cumsum([0, *widths])
    c = np.repeat(np.asarray(scales, dtype=np.float64), widths)

    def wide(v: Float[np.ndarray, "vector joint"]) -> Float[np.ndarray, "vector d_target"]:
        return forth(np.split(v * c, edges[1:-1], axis=1))

    def narrow(u: Float[np.ndarray, "vector d_target"]) -> Float[np.ndarray, "vector joint"]:
        return np.concatenate(back(u), axis=1) * c

    held_out = random.standard_normal((probes, height))
    rows = np.asarray(narrow(held_out))
    advance(probes)
    source, target = Side(wide, int(edges[-1]), height), Side(narrow, height, int(edges[-1]))
    newest = random.standard_normal((source.basis.shape[0], min(block, rank)))
    while True:
        newest = target.widened(source.widened(newest[:, : rank - target.basis.shape[1]], random), random)
        advance(2 * newest.shape[1])
        missing = rows - (held_out @ target.basis) @ target.image.T
        within = bool(np.linalg.norm(missing) <= tolerance * np.linalg.norm(rows)) and _error(missing, rows).hi <= tolerance
        if within or target.basis.shape[1] >= rank:
            break
    q = target.basis
    factors = [LowRank(q, target.image[a:b].T / scale) for (a, b), scale in zip(pairwise(edges), scales)]
    errors = tuple(_error(missing[:, a:b], rows[:, a:b]) for a, b in pairwise(edges))
    return factors, Certificate(q.shape[1], probes + 2 * q.shape[1], probes, _error(missing, rows), errors, within)


def _error(missing: Float[np.ndarray, "probe joint"], rows: Float[np.ndarray, "probe joint"]) -> stats.Estimate:
    """Relative error (Frobenius) from rows that made no part of Q."""
    e = stats.ratio(np.square(missing).sum(1), np.square(rows).sum(1), unit="probe")
    value, lo, hi = (float(np.sqrt(max(x, 0.0))) for x in (e.value, e.lo, e.hi))
    return replace(e, value=value, lo=lo, hi=hi)
