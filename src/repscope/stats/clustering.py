"""Clusters of runs: from distances between runs, or as modes of one score. Takes numbers, never a model.

1. `spectral`: S = exp(-D²/2δ²), two clusters by scikit-learn's SpectralClustering (Juneja et al., 2205.12411). The published code
   fixes δ = 1. Then every S of barriers below .1 is above .995: the limit of a large δ. Here the default δ is the median
   distance, and `sensitivity` repeats the clustering at δ = ¼, ½, 1, 2, 4 medians and at 1.
2. `double_centred`: the residual of D after removing every run's own effect. The least-squares fit of D_ij = r_i + r_j + e_ij
   over i ≠ j is r_i = (row sum_i - R)/(n-2) with R = Σr = (sum of D)/(2(n-1)). The result is e; its rows sum to 0. (Without R,
   every e has an added constant, which changes no rank and no tree.) `average_linkage` clusters either matrix. A cluster of one
   run is that run's own effect, which e does not contain. Two blocks of at least two runs keep their order in e.
3. `agreement`: adjusted Rand index of two labellings (Hubert & Arabie, 1985), p by permuting runs.
4. `bimodality`: BIC of a Gaussian mixture with one and with two components, and Sarle's coefficient with its small-sample
   correction, (g² + 1) / (k + 3(n-1)²/((n-2)(n-3))): 5/9 = 0.555 for a uniform distribution, more for two modes of similar size.
   a. Scores are standardised before the fit, and the BIC is converted to the scores as given: scikit-learn adds a constant to
      every variance, which for accuracies that differ by .002 would be a fifth of the spread.
   b. BIC counts components. A skewed unimodal score needs two of them; `peaks` counts the modes of the fitted curve.

Clusters are numbered by size, 0 the largest. If all distances are equal, every run is in cluster 0.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike

from repscope.errors import UserError
from repscope.stats.distances import Matrix, checked, upper
from repscope.stats.groups import TIE, grouped, scores
from repscope.stats.permutation import PERMUTATIONS, orders, p_value

UNIFORM = 5 / 9  #: Sarle's coefficient of a uniform distribution
FACTORS = {"¼ median": 0.25, "½ median": 0.5, "median": 1.0, "2 medians": 2.0, "4 medians": 4.0}  #: names of scales
PUBLISHED = 1.0  #: δ in Juneja et al.'s code
_NARROWEST = 1e-4  # added to the variance of a component; scores have variance 1
_HELD = 2_000_000  # numbers in one block of permutations

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
    """Spectral clusters at one scale."""

    name: str  #: of `FACTORS`, or "published"
    scale: float
    labels: Labels


@dataclass(frozen=True)
class Bimodality:
    """Is a score unimodal or bimodal?

    bic_1, bic_2: of one and of two Gaussian components, lower is better. modes: the number of components with the lower BIC.
    peaks: modes of the fitted curve of that many components. sarle: above `UNIFORM` suggests two modes. n: runs.
    If all scores are equal, there is one mode, and BIC and Sarle's coefficient are NaN.
    """

    bic_1: float
    bic_2: float
    modes: int
    peaks: int
    sarle: float
    n: int


def spectral(distances: Float[ArrayLike, "run run"], clusters: int = 2, scale: float | None = None, seed: int = 0) -> Labels:
    """Spectral clusters of S = exp(-D²/2δ²); δ is `scale`, or the median distance (of those above 0 where the median is 0).

    Raises
    ------
    UserError
        For a matrix that `checked` refuses, a scale that is not above 0, or a number of clusters outside 2 to n - 1.
    """
    from sklearn.cluster import SpectralClustering

    d = checked(distances)
    _check_clusters(clusters, len(d))
    if _equal(d):
        return np.zeros(len(d), dtype=np.int64)
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        raise UserError(f"The scale {scale} is not above 0; give a positive one, or None for the median distance.")
    similar = np.exp(-((d / (scale or _median(d))) ** 2) / 2)
    with warnings.catch_warnings():  # similarities that underflow to 0 disconnect the graph, which is a valid answer
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        found = SpectralClustering(clusters, affinity="precomputed", random_state=seed).fit_predict(similar)
    return _by_size(found)


def sensitivity(distances: Float[ArrayLike, "run run"], clusters: int = 2, seed: int = 0) -> tuple[AtScale, ...]:
    """Spectral clusters at ¼, ½, 1, 2 and 4 medians of the distances and at the published scale of 1. Errors as `spectral`."""
    d = checked(distances)
    median = _median(d)
    scales = {name: factor * median for name, factor in FACTORS.items()} | {"published": PUBLISHED}
    return tuple(AtScale(name, scale, spectral(d, clusters, scale, seed)) for name, scale in scales.items())


def double_centred(distances: Float[ArrayLike, "run run"]) -> Matrix:
    """Distances minus each run's own additive effect (step 2). Signed, rows sum to 0: it orders pairs and is no distance.

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
    left[np.abs(left) <= TIE * np.abs(d).max()] = 0  # rounding has no clusters
    return np.asarray(left)


def average_linkage(distances: Float[ArrayLike, "run run"], clusters: int = 2) -> Labels:
    """Clusters of average linkage (UPGMA), also of a signed matrix. Fewer than requested if ties allow no cut.

    Raises
    ------
    UserError
        For a matrix that `checked` refuses, or a number of clusters outside 2 to n - 1.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    d = checked(distances, signed=True)
    _check_clusters(clusters, len(d))
    if _equal(d):
        return np.zeros(len(d), dtype=np.int64)
    pairs = upper(d)  # a constant on every pair moves all merges alike
    return _by_size(fcluster(linkage(pairs - pairs.min(), "average"), clusters, "maxclust"))


def agreement(
    labels_a: Shaped[ArrayLike, "run"], labels_b: Shaped[ArrayLike, "run"], permutations: int = PERMUTATIONS, seed: int = 0
) -> Agreement:
    """Adjusted Rand index of two labellings, with its permutation p.

    Raises
    ------
    UserError
        If the two do not label the same runs.
    """
    from sklearn.metrics import adjusted_rand_score

    first = np.asarray(labels_a)
    groups_a, a = grouped(first, first.size)
    groups_b, b = grouped(labels_b, first.size)
    order = orders(a.size, permutations, np.random.default_rng(seed))
    cells = len(groups_a) * len(groups_b)

    def together(order: Int[np.ndarray, "order run"]) -> Int[np.ndarray, "order"]:
        """Number of pairs together in both labellings; for fixed sizes the index increases with it."""
        cell = a * len(groups_b) + b[order] + cells * np.arange(len(order))[:, None]
        return np.asarray((np.bincount(cell.ravel(), minlength=cells * len(order)).reshape(-1, cells) ** 2).sum(axis=1))

    step = max(1, _HELD // max(cells, a.size))
    null = np.concatenate([together(order[k : k + step]) for k in range(0, permutations, step)])
    p = p_value(float(together(np.arange(a.size)[None])[0]), null)
    return Agreement(float(adjusted_rand_score(a, b)), p, a.size, permutations)


def bimodality(values: Float[ArrayLike, "run"], *, seed: int = 0) -> Bimodality:
    """BIC of one and two Gaussians (five starts each), and Sarle's coefficient.

    Raises
    ------
    UserError
        For fewer than four runs or scores that are not finite.
    """
    from scipy.stats import kurtosis, skew
    from sklearn.mixture import GaussianMixture

    x = scores(values, least=4)
    n, spread = x.size, float(x.std())
    if spread <= TIE * np.abs(x).max():
        return Bimodality(float("nan"), float("nan"), 1, 1, float("nan"), n)
    z = ((x - x.mean()) / spread)[:, None]
    fits = [GaussianMixture(k, n_init=5, reg_covar=_NARROWEST, random_state=seed).fit(z) for k in (1, 2)]
    bic_1, bic_2 = (float(fit.bic(z) + 2 * n * np.log(spread)) for fit in fits)
    grid = np.linspace(z.min() - 1, z.max() + 1, 4001)[:, None]  # steps well under the narrowest component
    slope = np.sign(np.diff(fits[int(bic_2 < bic_1)].score_samples(grid)))
    peaks = int(np.count_nonzero(np.diff(slope[slope != 0]) < 0))
    top, tail = skew(x, bias=False) ** 2 + 1, kurtosis(x, bias=False) + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3))
    return Bimodality(bic_1, bic_2, 2 if bic_2 < bic_1 else 1, peaks, float(top / tail), n)


def _median(d: Matrix) -> float:
    pairs = upper(d)
    middle = float(np.median(pairs))
    return middle if middle > 0 or not pairs.any() else float(np.median(pairs[pairs > 0]))


def _equal(d: Matrix) -> bool:
    return bool(np.ptp(upper(d)) <= TIE * np.abs(d).max())


def _by_size(found: Int[np.ndarray, "run"]) -> Labels:
    _, first, codes, counts = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    place = np.empty(len(counts), dtype=np.int64)
    place[np.lexsort((first, -counts))] = np.arange(len(counts))
    return np.asarray(place[codes])


def _check_clusters(clusters: int, n: int) -> None:
    if not 2 <= clusters < n:
        raise UserError(f"There cannot be {clusters} clusters of {n} runs; ask for 2 to {n - 1}.")
