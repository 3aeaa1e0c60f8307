"""Distances between runs: what clusters they have, and whether they predict behaviour. Takes a matrix of numbers, never a model.

In comes a symmetric matrix over runs (barrier heights, convexity gaps, Euclidean distances) and, for its meaning, something the
distances were not made of: labels from how the runs were trained, differences in how they behave.

1. `spectral`: S = exp(-D²/2δ²), two clusters by scikit-learn's SpectralClustering (Juneja et al., 2205.12411). The published code
   fixes δ = 1, with which every S of barriers below .1 is above .995: the limit of a large δ. Here δ is the median distance
   unless it is given, and `sensitivity` clusters again at δ = ¼, ½, 1, 2, 4 medians and at 1.
2. `double_centred`: what is left of D when every run's own effect is taken off. The least-squares fit of D_ij = r_i + r_j + e_ij
   over i ≠ j is r_i = (row sum_i - R)/(n-2) with R = Σr = (sum of D)/(2(n-1)); out comes e, rows of which sum to 0. (Leaving R
   out, as the pilot did, adds a constant to every e and changes no rank and no tree.) `average_linkage` clusters either. A
   cluster of one run is a run's own effect: this cannot see it. Two blocks of two runs and more keep their order in e.
3. `mantel`: Spearman's rho over pairs of runs between two matrices. Pairs share runs, so the p comes of permuting runs (Mantel,
   1967), and the interval of drawing runs with replacement, pairs of a run with itself left out. With `given`, rho is of what a
   third matrix leaves of the two in ranks (Smouse, Long & Sokal, 1986); permuted are the first one's residuals.
   One-sided: p is how often rho comes out at least as large. It supposes runs that may be exchanged, as seeds of one recipe may.
   Measured: the interval of rho over 24 runs holds the truth in 96 % of draws, in 99 % where there is nothing to find.
   Where both follow the third closely, ranks leave some of it: of 600 nulls with r = .7 to it, 8 % had p ≤ .05 (plain: 5 %).
4. `across_within`: mean distance across groups over that within; interval by drawing runs within groups. For labels that clusters
   of the same distances gave, it is above 1 by construction.
5. `agreement`: adjusted Rand index of two labellings (Hubert & Arabie, 1985), p by permuting runs.
6. `triangle`: how often D_ik > D_ij + D_jk. Barriers are no metric, and methods that suppose one may mislead.

Clusters are numbered by size, 0 the largest. Where all distances are equal every run is in cluster 0: that is an answer.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import ArrayLike

from repscope.errors import UserError
from repscope.stats import DRAWS, LEVEL, Estimate, p_value
from repscope.stats.groups import (
    PERMUTATIONS,
    bimodality,
    grouped,
    percentile_interval,
    rank_correlations,
    ranks,
    separation,
    weights_within_groups,
)

__all__ = [
    "Agreement",
    "AtScale",
    "Mantel",
    "Triangle",
    "across_within",
    "agreement",
    "average_linkage",
    "bimodality",
    "checked",
    "double_centred",
    "mantel",
    "sensitivity",
    "separation",
    "spectral",
    "triangle",
    "upper",
]

LEAST = 4  #: runs
FACTORS = {"¼ median": 0.25, "½ median": 0.5, "median": 1.0, "2 medians": 2.0, "4 medians": 4.0}  #: names of scales
PUBLISHED = 1.0  #: δ in Juneja et al.'s code
_CLOSE = 1e-6  # of the largest entry: distances of float32 weights differ by less in the two orders
_TIE = 1e-12
_HELD = 2_000_000  # numbers in one block of permutations

Matrix = Float[np.ndarray, "run run"]
Labels = Int[np.ndarray, "run"]


@dataclass(frozen=True)
class Agreement:
    """Adjusted Rand index: 1 for the same clusters, 0 on average for clusters by chance. p: by permuting runs. n: runs."""

    ari: float
    p: float
    n: int
    permutations: int


@dataclass(frozen=True, eq=False)
class AtScale:
    """Spectral clusters at one scale, and how they agree with those at the median and with the truth, where one was given."""

    name: str  #: of `FACTORS`, or "published"
    scale: float
    labels: Labels
    with_median: Agreement
    with_truth: Agreement | None


@dataclass(frozen=True)
class Mantel:
    """Spearman's rho over pairs of runs. p: one-sided, runs permuted. lo, hi: runs drawn with replacement. n: runs, not pairs.

    NaN with p = 1 where a matrix, or what the third leaves of it, never varies.
    """

    rho: float
    p: float
    n: int
    permutations: int
    lo: float
    hi: float

    @property
    def estimate(self) -> Estimate:
        """The rho with its interval."""
        return Estimate(self.rho, self.lo, self.hi, LEVEL, "bootstrap over runs", "run", self.n)


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
        Unless it is square, of at least four runs, finite, symmetric and zero on its diagonal; and not negative unless `signed`.
    """
    d = np.array(distances, dtype=np.float64)
    if d.ndim != 2 or d.shape[0] != d.shape[1]:
        raise UserError(f"The {what} have the shape {d.shape}; give one row and one column a run.")
    if len(d) < LEAST:
        raise UserError(f"The {what} are of {len(d)} runs; {LEAST} are the least that can be told apart.")
    finite = np.where(np.isfinite(d), d, 0.0)
    largest = np.abs(finite).max()
    for bad, why, then in (
        (~np.isfinite(d), "not a finite number", "leave out that run or measure the pair again"),
        (np.diag(np.abs(np.diag(finite)) > _CLOSE * largest), "not 0", "a run is at no distance from itself"),
        (np.abs(finite - finite.T) > _CLOSE * largest, "not the same in both orders", "average the two or say which is meant"),
        ((d < -_CLOSE * largest) & (not signed), "negative", "use a definition that is at least 0, such as the convexity gap"),
    ):
        if bad.any():
            i, j = np.argwhere(bad)[0]
            raise UserError(f"The {what} of runs {i} and {j} are {why} ({d[i, j]:.4g}); {then}.")
    d = (d + d.T) / 2 if signed else np.maximum((d + d.T) / 2, 0)
    np.fill_diagonal(d, 0)
    return d


def upper(matrix: Shaped[np.ndarray, "run run"]) -> Shaped[np.ndarray, "pair"]:
    """The entries above the diagonal, row after row: one a pair of runs."""
    return np.asarray(matrix[np.triu_indices(len(matrix), 1)])


def spectral(distances: Float[ArrayLike, "run run"], clusters: int = 2, scale: float | None = None, seed: int = 0) -> Labels:
    """Spectral clusters of S = exp(-D²/2δ²); δ is `scale`, or the median distance (of those above 0 where the median is 0).

    Raises
    ------
    UserError
        For a matrix that `checked` refuses, a scale that is not above 0, or a number of clusters that the runs do not make.
    """
    from sklearn.cluster import SpectralClustering

    d = checked(distances)
    _check_clusters(clusters, len(d))
    if _equal(d):
        return np.zeros(len(d), dtype=np.int64)
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        raise UserError(f"A scale of {scale} divides the distances; give one above 0, or None for their median.")
    similar = np.exp(-((d / (scale or _median(d))) ** 2) / 2)
    with warnings.catch_warnings():  # similarities that are 0 in floating point part the graph: an answer, no fault
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        found = SpectralClustering(clusters, affinity="precomputed", random_state=seed).fit_predict(similar)
    return _by_size(found)


def sensitivity(
    distances: Float[ArrayLike, "run run"],
    truth: Shaped[ArrayLike, "run"] | None = None,
    clusters: int = 2,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> tuple[AtScale, ...]:
    """Spectral clusters at ¼, ½, 1, 2 and 4 medians of the distances and at the published scale of 1.

    Raises
    ------
    UserError
        As `spectral`, and for a truth of another number of runs.
    """
    d = checked(distances)
    median = _median(d)
    scales = {name: factor * median for name, factor in FACTORS.items()} | {"published": PUBLISHED}
    labels = {name: spectral(d, clusters, scale, seed) for name, scale in scales.items()}
    return tuple(
        AtScale(
            name,
            scale,
            labels[name],
            agreement(labels[name], labels["median"], permutations, seed),
            None if truth is None else agreement(labels[name], truth, permutations, seed),
        )
        for name, scale in scales.items()
    )


def double_centred(distances: Float[ArrayLike, "run run"]) -> Matrix:
    """Distances less each run's own additive effect (step 2). Signed, its rows sum to 0: an ordering of pairs, no distance.

    >>> quality = np.array([0.1, 0.2, 0.3, 0.4])
    >>> d = quality[:, None] + quality - np.diag(2 * quality)
    >>> bool(np.allclose(double_centred(d), 0))
    True
    """
    d = checked(distances, signed=True)
    n, rows = len(d), d.sum(axis=1)
    own = (rows - rows.sum() / (2 * (n - 1))) / (n - 2)
    left = d - own[:, None] - own
    np.fill_diagonal(left, 0)
    left[np.abs(left) <= _TIE * np.abs(d).max()] = 0  # rounding has no clusters
    return np.asarray(left)


def average_linkage(distances: Float[ArrayLike, "run run"], clusters: int = 2) -> Labels:
    """Clusters of average linkage (UPGMA), also of a signed matrix. Fewer than asked for where ties leave no order to cut at.

    Raises
    ------
    UserError
        For a matrix that `checked` refuses, or a number of clusters that the runs do not make.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    d = checked(distances, signed=True)
    _check_clusters(clusters, len(d))
    if _equal(d):
        return np.zeros(len(d), dtype=np.int64)
    pairs = upper(d)  # a constant on every pair moves all merges alike
    return _by_size(fcluster(linkage(pairs - pairs.min(), "average"), clusters, "maxclust"))


def mantel(
    a: Float[ArrayLike, "run run"],
    b: Float[ArrayLike, "run run"],
    given: Float[ArrayLike, "run run"] | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    draws: int = DRAWS,
) -> Mantel:
    """Do pairs that are far apart in `a` also lie far apart in `b` (beyond what `given` says of both)?

    Raises
    ------
    UserError
        For a matrix that `checked` refuses (signed ones are taken), or matrices of different numbers of runs.
    """
    held = [checked(m, f"values of matrix {i + 1}", signed=True) for i, m in enumerate((a, b, given)) if m is not None]
    n = len(held[0])
    if any(len(m) != n for m in held):
        raise UserError(f"The matrices are of {' and '.join(str(len(m)) for m in held)} runs; give all of the same runs.")
    i, j = np.triu_indices(n, 1)
    pairs = [m[i, j] for m in held]
    rho = float(rank_correlations(pairs, np.ones((1, i.size)))[0])
    if np.isnan(rho):
        return Mantel(rho, 1.0, n, permutations, rho, rho)
    rng = np.random.default_rng(seed)
    orders = rng.permuted(np.tile(np.arange(n), (permutations, 1)), axis=1)
    null = _permuted(pairs, orders)
    step = max(1, _HELD // i.size)
    runs = rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    blocks = [runs[k : k + step] for k in range(0, draws, step)]
    drawn = np.concatenate([rank_correlations(pairs, w[:, i] * w[:, j]) for w in blocks])
    return Mantel(rho, p_value(rho - _TIE, null), n, permutations, *percentile_interval(drawn))


def across_within(
    distances: Float[ArrayLike, "run run"], labels: Shaped[ArrayLike, "run"], seed: int = 0, draws: int = DRAWS
) -> Estimate:
    """Mean distance of runs of different groups over that of runs of one group. NaN where the latter is 0.

    Raises
    ------
    UserError
        For a matrix that `checked` refuses, and labels without two groups, or without two runs in any group.
    """
    d = checked(distances)
    groups, codes = grouped(labels, len(d))
    if len(groups) < 2 or len(groups) == len(d):
        raise UserError(f"{len(d)} runs in {len(groups)} groups leave no pairs to compare; give at least two groups of runs.")
    same = codes[:, None] == codes
    weights = np.concatenate([np.ones((1, len(d))), weights_within_groups(codes, draws, seed)])
    within = _mean_of_pairs(d, same & ~np.eye(len(d), dtype=bool), weights)
    across = _mean_of_pairs(d, ~same, weights)
    found = np.divide(across, within, out=np.full_like(across, np.nan), where=within > 0)
    return Estimate(float(found[0]), *percentile_interval(found[1:]), LEVEL, "bootstrap within groups", "run", len(d))


def agreement(
    labels_a: Shaped[ArrayLike, "run"], labels_b: Shaped[ArrayLike, "run"], permutations: int = PERMUTATIONS, seed: int = 0
) -> Agreement:
    """Adjusted Rand index of two labellings, and how often runs in another order agree as well.

    Raises
    ------
    UserError
        Where the two are not of the same runs.
    """
    from sklearn.metrics import adjusted_rand_score

    first = np.asarray(labels_a)
    groups_a, a = grouped(first, first.size)
    groups_b, b = grouped(labels_b, first.size)
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(a.size), (permutations, 1)), axis=1)
    cells = len(groups_a) * len(groups_b)

    def together(order: Int[np.ndarray, "order run"]) -> Int[np.ndarray, "order"]:
        """Pairs that both labellings put together, of which the index is an increasing function while sizes stay."""
        cell = a * len(groups_b) + b[order] + cells * np.arange(len(order))[:, None]
        return np.asarray((np.bincount(cell.ravel(), minlength=cells * len(order)).reshape(-1, cells) ** 2).sum(axis=1))

    step = max(1, _HELD // max(cells, a.size))
    null = np.concatenate([together(orders[k : k + step]) for k in range(0, permutations, step)])
    p = p_value(float(together(np.arange(a.size)[None])[0]), null)
    return Agreement(float(adjusted_rand_score(a, b)), p, a.size, permutations)


def triangle(distances: Float[ArrayLike, "run run"]) -> Triangle:
    """How many ordered triples of three different runs break the triangle inequality, and by how much at most."""
    d = checked(distances)
    n, over, largest = len(d), 0, 0.0
    for j in range(n):  # one run in the middle at a time, so that memory stays at n²
        excess = d - d[:, j, None] - d[j]
        over += int(np.count_nonzero(excess > 1e-10 * d.max()))  # with i, j, k not all different it is at most 0
        largest = max(largest, float(excess.max()))
    triples = n * (n - 1) * (n - 2)
    return Triangle(over / triples, triples, largest)


def _permuted(pairs: list[Float[np.ndarray, "pair"]], orders: Int[np.ndarray, "order run"]) -> Float[np.ndarray, "order"]:
    """Rho with the runs of the first matrix (of its residuals, where there is a third) in other orders."""
    n, one = orders.shape[1], np.ones((1, pairs[0].size))
    i, j = np.triu_indices(n, 1)
    a, b, *third = ((r := ranks(v, one)[0]) - r.mean() for v in pairs)
    if third:
        c = third[0] / np.linalg.norm(third[0])
        a, b = a - (a @ c) * c, b - (b @ c) * c
    square = np.zeros((n, n))
    square[i, j] = square[j, i] = a
    found = np.empty(len(orders))
    step = max(1, _HELD // i.size)
    for k in range(0, len(orders), step):
        block = orders[k : k + step]
        moved = square[block[:, i], block[:, j]]
        length = np.full(len(block), a @ a)
        if third:  # in another order the residuals go with the third again: only what it leaves of them counts
            length -= (moved @ c) ** 2
        found[k : k + step] = moved @ b / (np.sqrt(np.maximum(length, _TIE)) * np.linalg.norm(b))
    return found


def _mean_of_pairs(
    d: Matrix, counted: Bool[np.ndarray, "run run"], weights: Float[np.ndarray, "draw run"]
) -> Float[np.ndarray, "draw"]:
    total, number = ((weights @ m * weights).sum(axis=1) for m in (d * counted, counted.astype(np.float64)))
    return np.asarray(np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0))


def _median(d: Matrix) -> float:
    pairs = upper(d)
    middle = float(np.median(pairs))
    return middle if middle > 0 or not pairs.any() else float(np.median(pairs[pairs > 0]))


def _equal(d: Matrix) -> bool:
    return bool(np.ptp(upper(d)) <= _TIE * np.abs(d).max())


def _by_size(found: Int[np.ndarray, "run"]) -> Labels:
    _, first, codes, counts = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    place = np.empty(len(counts), dtype=np.int64)
    place[np.lexsort((first, -counts))] = np.arange(len(counts))
    return np.asarray(place[codes])


def _check_clusters(clusters: int, n: int) -> None:
    if not 2 <= clusters < n:
        raise UserError(f"{clusters} clusters of {n} runs were asked for; ask for 2 to {n - 1}.")
