"""Scores of two groups of runs, and rank correlations. Takes one number per run, never a model.

1. `separation`: AUC, the probability that a run with label 1 scores above one with label 0; ties count half (Mann & Whitney,
   1947: exact p for small samples without ties). Its interval is the percentile bootstrap over runs within groups, so that both
   groups keep their size. If that has zero width (no overlap at all), or a group is one run: the score interval of Newcombe
   (2006, Statistics in Medicine 25:559, method 5), which is to an AUC what Wilson's is to a proportion.
   `separation_given` is the AUC of the residual of a regression on another score; the regression is repeated in every draw. With
   one slope for all runs, a score that follows the groups removes part of their difference (errs low). With a slope from within
   the groups it removes what it explains among runs of one group (errs high if noise in that score pulls the slope to 0).
2. `rank_correlations`: Spearman's rho in every draw at once. A draw is a vector of weights (how often an item was drawn); its ranks
   are sums of weights, equal to the ranks of the drawn items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike

from repscope.errors import UserError
from repscope.stats.bootstrap import DRAWS, LEVEL, Estimate, percentile_interval, weights_within_groups

_HELD = 2_000_000  # numbers in one block of draws
TIE = 1e-12  #: statistics closer than this are equal: they are sums of the same numbers in another order


@dataclass(frozen=True)
class Separation:
    """How well a score separates two groups of runs.

    auc: P(a run labelled 1 scores above one labelled 0). lo, hi: its interval. p: Mann–Whitney, two-sided. mean_a, mean_b: of
    label 1 and of label 0. n, n_a: number of runs, and of those with label 1. method: of the interval.
    """

    auc: float
    lo: float
    hi: float
    p: float
    mean_a: float
    mean_b: float
    n: int
    n_a: int
    method: str

    @property
    def estimate(self) -> Estimate:
        """The AUC with its interval."""
        return Estimate(self.auc, self.lo, self.hi, LEVEL, self.method, "run", self.n)


def separation(
    values: Float[ArrayLike, "run"], labels: Shaped[ArrayLike, "run"], *, oriented: bool = False, seed: int = 0, draws: int = DRAWS
) -> Separation:
    """AUC of a score for two groups of runs: high if label 1 (the second label in sorted order) scores higher.

    `oriented` replaces an AUC below .5 by 1 - AUC, which biases it upwards; the means do not change.

    Raises
    ------
    UserError
        For scores that are not finite, or labels of other than two groups.

    >>> s = separation([0.1, 0.2, 0.7, 0.9], [0, 0, 1, 1])
    >>> (s.auc, round(s.lo, 2), s.hi, s.method)
    (1.0, 0.39, 1.0, 'score (Newcombe)')
    """
    from scipy.stats import mannwhitneyu

    x = scores(values)
    codes, a, b = _two(labels, x.size)
    wins = (x[a][:, None] > x[b]) + 0.5 * (x[a][:, None] == x[b])
    weights = weights_within_groups(codes, draws, seed)
    sampled = ((weights[:, a] @ wins) * weights[:, b]).sum(axis=1) / wins.size
    auc = float(wins.mean())
    if oriented and auc < 0.5:
        auc, sampled = 1 - auc, 1 - sampled
    lo, hi, method = _area_interval(auc, sampled, len(a), len(b))
    p = float(mannwhitneyu(x[a], x[b]).pvalue)
    return Separation(auc, lo, hi, p, float(x[a].mean()), float(x[b].mean()), x.size, len(a), method)


def separation_given(
    values: Float[ArrayLike, "run"],
    labels: Shaped[ArrayLike, "run"],
    given: Float[ArrayLike, "run"],
    *,
    within: bool = False,
    seed: int = 0,
    draws: int = DRAWS,
) -> Estimate:
    """AUC of the residual of this score after linear regression on another one, for label 1.

    `within` takes the slope from differences inside the groups (an analysis of covariance), else from all runs.

    Raises
    ------
    UserError
        As `separation`, and if the other score is not of the same runs.
    """
    y, x = scores(values), scores(given)
    codes, a, b = _two(labels, y.size)
    if x.size != y.size:
        raise UserError(f"There are {y.size} values of one score and {x.size} of the other; give both for the same runs.")
    y, x = y - y.mean(), x - x.mean()
    weights = np.concatenate([np.ones((1, y.size)), weights_within_groups(codes, draws, seed)])
    product = square = np.zeros(len(weights))
    for members in (a, b) if within else (np.arange(y.size),):
        w, u, v = weights[:, members], x[members], y[members]
        product = product + w @ (u * v) - (w @ u) * (w @ v) / len(members)
        square = square + w @ u**2 - (w @ u) ** 2 / len(members)
    varies = square > TIE * (x @ x)
    left = y - np.divide(product, square, out=np.zeros_like(square), where=varies)[:, None] * x
    found, step = np.empty(len(weights)), max(1, _HELD // (len(a) * len(b)))
    for k in range(0, len(weights), step):
        w, top, bottom = weights[k : k + step], left[k : k + step, a, None], left[k : k + step, None, b]
        wins = (top > bottom) + 0.5 * (top == bottom)
        found[k : k + step] = np.einsum("dab,da,db->d", wins, w[:, a], w[:, b]) / (len(a) * len(b))
    auc = float(found[0])
    lo, hi, method = _area_interval(auc, found[1:], len(a), len(b))
    return Estimate(auc, lo, hi, LEVEL, method, "run", y.size)


def rank_correlations(
    columns: Sequence[Float[np.ndarray, "item"]], weights: Shaped[np.ndarray, "draw item"]
) -> Float[np.ndarray, "draw"]:
    """Spearman's rho of the first two columns in every draw; of their rank residuals on the third where there is one.

    NaN in draws where a column (or its residual) is constant.
    """
    found = np.empty(len(weights))
    step = max(1, _HELD // weights.shape[1])
    for i in range(0, len(weights), step):
        w = np.asarray(weights[i : i + step], dtype=np.float64)
        ranked = [ranks(column, w) for column in columns]
        r = _weighted_correlation(ranked[0], ranked[1], w)
        if len(ranked) == 3:
            ac, bc = (_weighted_correlation(v, ranked[2], w) for v in ranked[:2])
            left = (1 - ac**2) * (1 - bc**2)
            r = np.where(left > TIE, r - ac * bc, np.nan) / np.sqrt(np.where(left > TIE, left, 1.0))
        found[i : i + step] = r
    return found


def ranks(values: Float[np.ndarray, "item"], weights: Float[np.ndarray, "draw item"]) -> Float[np.ndarray, "draw item"]:
    """Mid-ranks of the items in each draw, up to a constant: the weight below, and half of the weight that is equal."""
    _, codes = np.unique(values, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(codes.max() + 1))
    held = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(held, axis=1) - held / 2
    return np.asarray(middle[:, codes])


def scores(values: Float[ArrayLike, "run"], least: int = 2) -> Float[np.ndarray, "run"]:
    """One finite number per run, of at least `least` runs; a UserError otherwise."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size < least:
        raise UserError(f"The scores have the shape {x.shape}; give one score per run, for at least {least} runs.")
    if not np.isfinite(x).all():
        run = int(np.flatnonzero(~np.isfinite(x))[0])
        raise UserError(f"The score of run {run} is {x[run]}; leave that run out or score it again.")
    return x


def grouped(labels: Shaped[ArrayLike, "run"], n: int) -> tuple[Shaped[np.ndarray, "group"], Int[np.ndarray, "run"]]:
    """The groups in sorted order, and the index of each run's group; a UserError unless there is one label per run."""
    held = np.asarray(labels)
    if held.shape != (n,):
        raise UserError(f"There are {n} runs, and labels of the shape {held.shape}; give one label per run.")
    groups, codes = np.unique(held, return_inverse=True)
    return groups, codes


def _two(labels: Shaped[ArrayLike, "run"], n: int) -> tuple[Int[np.ndarray, "run"], Int[np.ndarray, "a"], Int[np.ndarray, "b"]]:
    groups, codes = grouped(labels, n)
    if len(groups) != 2:
        raise UserError(f"The labels name {len(groups)} groups of runs; a separation needs two.")
    return codes, np.flatnonzero(codes == 1), np.flatnonzero(codes == 0)


def _area_interval(auc: float, sampled: Float[np.ndarray, "draw"], n_a: int, n_b: int) -> tuple[float, float, str]:
    lo, hi = percentile_interval(sampled)
    if min(n_a, n_b) == 1 or hi - lo < TIE:
        return *_score_interval(auc, n_a, n_b), "score (Newcombe)"
    return lo, hi, "bootstrap within groups"


def _weighted_correlation(
    a: Float[np.ndarray, "draw item"], b: Float[np.ndarray, "draw item"], w: Float[np.ndarray, "draw item"]
) -> Float[np.ndarray, "draw"]:
    total = np.maximum(w.sum(axis=1, keepdims=True), 1)
    a, b = (v - (w * v).sum(axis=1, keepdims=True) / total for v in (a, b))
    both, aa, bb = ((w * left * right).sum(axis=1) for left, right in ((a, b), (a, a), (b, b)))
    varies = (aa > TIE) & (bb > TIE)
    return np.asarray(np.where(varies, both, np.nan) / np.sqrt(np.where(varies, aa * bb, 1.0)))


def _score_interval(auc: float, n_a: int, n_b: int) -> tuple[float, float]:
    """Newcombe's method 5: all areas within z of their own standard errors from the observed area."""
    from scipy.optimize import brentq

    z, more, edge = NormalDist().inv_cdf(0.5 + LEVEL / 2), (n_a + n_b) / 2 - 1, 1e-9

    def beyond(area: float) -> float:
        variance = area * (1 - area) * (1 + more * ((1 - area) / (2 - area) + area / (1 + area))) / (n_a * n_b)
        return float(abs(area - auc) - z * np.sqrt(variance))

    lo = 0.0 if auc < edge else float(brentq(beyond, 0.0, min(auc, 1 - edge)))
    hi = 1.0 if auc > 1 - edge else float(brentq(beyond, max(auc, edge), 1.0))
    return lo, hi
