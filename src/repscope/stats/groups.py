"""Scores of runs: do two groups differ, do two scores go together, is a score in two heaps? One number a run, never a model.

1. `separation`: AUC, the probability that a run labelled 1 scores above one labelled 0, ties counting half (Mann & Whitney,
   1947: exact p without ties in small samples). Its interval is the percentile bootstrap over runs within groups, so that both
   groups keep their size. Where that has no width (no overlap at all) or a group is one run: the score interval of Newcombe
   (2006, Statistics in Medicine 25:559, method 5), which is to an AUC what Wilson's is to a proportion.
   `separation_given` is the AUC of what a regression on another score leaves; the regression is made anew in every draw. With one
   slope for all runs, a score that follows the groups takes their difference with it (errs low); with a slope from within the
   groups it takes what it explains among runs of one group (errs high where that slope is pulled to 0 by noise in the score).
2. `spearman`: rank correlation of two scores; interval by bootstrap over runs, p two-sided by permutation.
3. `bimodality`: BIC of a Gaussian mixture with one and with two components, and Sarle's coefficient with its small-sample
   correction, (g² + 1) / (k + 3(n-1)²/((n-2)(n-3))), which is 5/9 = 0.555 for a uniform and more for two heaps of like size.
   a. Scores are standardised before the fit and the BIC is told for the scores as they were given: scikit-learn adds a
      constant to every variance, which on accuracies that differ by .002 would be a fifth of what there is to see.
   b. BIC counts components. A skewed score takes two of them and has one heap; `peaks` counts the heaps of the fitted curve.
4. `rank_correlations` is what 2 and the Mantel test stand on: Spearman's rho in every draw at once. A draw is a vector of
   weights (how often an item was drawn); its ranks are sums of weights, the same that ranking the drawn items anew would give.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike

from repscope.errors import UserError
from repscope.stats import DRAWS, LEVEL, Estimate, p_value

UNIFORM = 5 / 9  #: Sarle's coefficient of a uniform distribution
PERMUTATIONS = 2000
_HELD = 2_000_000  # numbers in one block of draws
_NARROWEST = 1e-4  # variance added to a component's, of scores with variance 1: no narrower than a hundredth of their spread
_TIE = 1e-12  # two statistics closer than that are one: they are sums of the same numbers in another order


@dataclass(frozen=True)
class Separation:
    """How well a score tells two groups of runs apart.

    auc: P(a run labelled 1 scores above one labelled 0). lo, hi: its interval. p: Mann–Whitney, two-sided. mean_a, mean_b: of
    label 1 and of label 0. n, n_a: runs in all, and labelled 1. method: of the interval.
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


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho with its bootstrap interval over runs and its permutation p (two-sided). n: runs."""

    rho: float
    lo: float
    hi: float
    p: float
    n: int

    @property
    def estimate(self) -> Estimate:
        """The rho with its interval."""
        return Estimate(self.rho, self.lo, self.hi, LEVEL, "bootstrap", "run", self.n)


@dataclass(frozen=True)
class Bimodality:
    """Is a score in one heap or two?

    bic_1, bic_2: of one and of two Gaussian components, less is better. modes: the number of components with less BIC.
    peaks: heaps of the curve of that many components. sarle: above `UNIFORM` speaks for two heaps. n: runs.
    Where all scores are equal there is one heap, and BIC and Sarle's coefficient are NaN.
    """

    bic_1: float
    bic_2: float
    modes: int
    peaks: int
    sarle: float
    n: int


def separation(
    values: Float[ArrayLike, "run"], labels: Shaped[ArrayLike, "run"], *, oriented: bool = False, seed: int = 0, draws: int = DRAWS
) -> Separation:
    """AUC of a score for two groups of runs, as it is for label 1 (the second label in sorted order).

    `oriented` turns it so that it is at least .5, which makes it larger than it should be on average; means stay where they were.

    Raises
    ------
    UserError
        For scores that are not finite, or labels that do not name two groups.

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
    """AUC of what a linear regression on another score leaves of this one, for label 1.

    `within` takes the slope from differences inside the groups (an analysis of covariance), else from all runs.

    Raises
    ------
    UserError
        As `separation`, and for another score of other runs.
    """
    y, x = scores(values), scores(given)
    codes, a, b = _two(labels, y.size)
    if x.size != y.size:
        raise UserError(f"There are {y.size} scores and {x.size} of the other; give both of the same runs.")
    y, x = y - y.mean(), x - x.mean()
    weights = np.concatenate([np.ones((1, y.size)), weights_within_groups(codes, draws, seed)])
    product = square = np.zeros(len(weights))
    for members in (a, b) if within else (np.arange(y.size),):
        w, u, v = weights[:, members], x[members], y[members]
        product = product + w @ (u * v) - (w @ u) * (w @ v) / len(members)
        square = square + w @ u**2 - (w @ u) ** 2 / len(members)
    varies = square > _TIE * (x @ x)
    left = y - np.divide(product, square, out=np.zeros_like(square), where=varies)[:, None] * x
    found, step = np.empty(len(weights)), max(1, _HELD // (len(a) * len(b)))
    for k in range(0, len(weights), step):
        w, top, bottom = weights[k : k + step], left[k : k + step, a, None], left[k : k + step, None, b]
        wins = (top > bottom) + 0.5 * (top == bottom)
        found[k : k + step] = np.einsum("dab,da,db->d", wins, w[:, a], w[:, b]) / (len(a) * len(b))
    auc = float(found[0])
    lo, hi, method = _area_interval(auc, found[1:], len(a), len(b))
    return Estimate(auc, lo, hi, LEVEL, method, "run", y.size)


def spearman(
    x: Float[ArrayLike, "run"], y: Float[ArrayLike, "run"], *, seed: int = 0, draws: int = DRAWS, permutations: int = PERMUTATIONS
) -> Correlation:
    """Spearman's rho of two scores over runs. NaN with p = 1 where one of them never varies.

    Raises
    ------
    UserError
        For fewer than four runs, scores that are not finite, or not as many of one as of the other.
    """
    a, b = scores(x, least=4), scores(y, least=4)
    if a.size != b.size:
        raise UserError(f"A correlation is over the same runs; there are {a.size} scores of one and {b.size} of the other.")
    rho = float(rank_correlations([a, b], np.ones((1, a.size)))[0])
    if np.isnan(rho):
        return Correlation(rho, rho, rho, 1.0, a.size)
    rng = np.random.default_rng(seed)
    lo, hi = percentile_interval(rank_correlations([a, b], rng.multinomial(a.size, np.full(a.size, 1 / a.size), size=draws)))
    unit_a, unit_b = (_unit(ranks(v, np.ones((1, v.size)))[0]) for v in (a, b))
    null = unit_a[rng.permuted(np.tile(np.arange(a.size), (permutations, 1)), axis=1)] @ unit_b
    return Correlation(rho, lo, hi, p_value(abs(rho) - _TIE, np.abs(null)), a.size)


def bimodality(values: Float[ArrayLike, "run"], *, seed: int = 0) -> Bimodality:
    """One heap or two: BIC of one and two Gaussians (five starts each), and Sarle's coefficient.

    Raises
    ------
    UserError
        For fewer than four runs or scores that are not finite.
    """
    from scipy.stats import kurtosis, skew
    from sklearn.mixture import GaussianMixture

    x = scores(values, least=4)
    n, spread = x.size, float(x.std())
    if spread <= _TIE * np.abs(x).max():
        return Bimodality(float("nan"), float("nan"), 1, 1, float("nan"), n)
    z = ((x - x.mean()) / spread)[:, None]
    fits = [GaussianMixture(k, n_init=5, reg_covar=_NARROWEST, random_state=seed).fit(z) for k in (1, 2)]
    bic_1, bic_2 = (float(fit.bic(z) + 2 * n * np.log(spread)) for fit in fits)
    grid = np.linspace(z.min() - 1, z.max() + 1, 4001)[:, None]  # steps well under the narrowest component
    slope = np.sign(np.diff(fits[int(bic_2 < bic_1)].score_samples(grid)))
    peaks = int(np.count_nonzero(np.diff(slope[slope != 0]) < 0))
    top, tail = skew(x, bias=False) ** 2 + 1, kurtosis(x, bias=False) + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3))
    return Bimodality(bic_1, bic_2, 2 if bic_2 < bic_1 else 1, peaks, float(top / tail), n)


def rank_correlations(
    columns: Sequence[Float[np.ndarray, "item"]], weights: Shaped[np.ndarray, "draw item"]
) -> Float[np.ndarray, "draw"]:
    """Spearman's rho of the first two columns in every draw; of their rank residuals on the third where there is one.

    A draw in which a column (or what the third leaves of it) never varies is NaN.
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
            r = np.where(left > _TIE, r - ac * bc, np.nan) / np.sqrt(np.where(left > _TIE, left, 1.0))
        found[i : i + step] = r
    return found


def ranks(values: Float[np.ndarray, "item"], weights: Float[np.ndarray, "draw item"]) -> Float[np.ndarray, "draw item"]:
    """Mid-ranks of the items in each draw, up to a constant: what lies below, and half of what is equal."""
    _, codes = np.unique(values, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(codes.max() + 1))
    held = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(held, axis=1) - held / 2
    return np.asarray(middle[:, codes])


def weights_within_groups(codes: Int[np.ndarray, "run"], draws: int, seed: int) -> Float[np.ndarray, "draw run"]:
    """How often each run is drawn: with replacement, as many of each group as it has."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((draws, len(codes)))
    for group in range(int(codes.max()) + 1):
        members = np.flatnonzero(codes == group)
        weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    return weights


def scores(values: Float[ArrayLike, "run"], least: int = 2) -> Float[np.ndarray, "run"]:
    """One finite number a run, of at least so many runs; a UserError otherwise."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size < least:
        raise UserError(f"One score a run, and at least {least} runs, are needed; the scores have the shape {x.shape}.")
    if not np.isfinite(x).all():
        run = int(np.flatnonzero(~np.isfinite(x))[0])
        raise UserError(f"The score of run {run} is {x[run]}; leave that run out or score it again.")
    return x


def grouped(labels: Shaped[ArrayLike, "run"], n: int) -> tuple[Shaped[np.ndarray, "group"], Int[np.ndarray, "run"]]:
    """The groups in sorted order and the number of each run's; a UserError where there is not one label a run."""
    held = np.asarray(labels)
    if held.shape != (n,):
        raise UserError(f"There are {n} runs, and labels of the shape {held.shape}; give one label a run.")
    groups, codes = np.unique(held, return_inverse=True)
    return groups, codes


def _two(labels: Shaped[ArrayLike, "run"], n: int) -> tuple[Int[np.ndarray, "run"], Int[np.ndarray, "a"], Int[np.ndarray, "b"]]:
    groups, codes = grouped(labels, n)
    if len(groups) != 2:
        raise UserError(f"A separation is of two groups of runs; the labels name {len(groups)}.")
    return codes, np.flatnonzero(codes == 1), np.flatnonzero(codes == 0)


def _area_interval(auc: float, sampled: Float[np.ndarray, "draw"], n_a: int, n_b: int) -> tuple[float, float, str]:
    lo, hi = percentile_interval(sampled)
    if min(n_a, n_b) == 1 or hi - lo < _TIE:
        return *_score_interval(auc, n_a, n_b), "score (Newcombe)"
    return lo, hi, "bootstrap within groups"


def _weighted_correlation(
    a: Float[np.ndarray, "draw item"], b: Float[np.ndarray, "draw item"], w: Float[np.ndarray, "draw item"]
) -> Float[np.ndarray, "draw"]:
    total = np.maximum(w.sum(axis=1, keepdims=True), 1)
    a, b = (v - (w * v).sum(axis=1, keepdims=True) / total for v in (a, b))
    both, aa, bb = ((w * left * right).sum(axis=1) for left, right in ((a, b), (a, a), (b, b)))
    varies = (aa > _TIE) & (bb > _TIE)
    return np.asarray(np.where(varies, both, np.nan) / np.sqrt(np.where(varies, aa * bb, 1.0)))


def _unit(x: Float[np.ndarray, "item"]) -> Float[np.ndarray, "item"]:
    centred = x - x.mean()
    return np.asarray(centred / np.linalg.norm(centred))


def percentile_interval(sampled: Float[np.ndarray, "draw"], level: float = LEVEL) -> tuple[float, float]:
    """Ends of the percentile interval of the draws that are finite; NaN where none is."""
    held = sampled[np.isfinite(sampled)]
    if not held.size:
        return float("nan"), float("nan")
    lo, hi = np.quantile(held, [(1 - level) / 2, (1 + level) / 2])
    return float(lo), float(hi)


def _score_interval(auc: float, n_a: int, n_b: int, level: float = LEVEL) -> tuple[float, float]:
    """All areas that lie within z of their own standard errors from the one observed."""
    from scipy.optimize import brentq

    z, more, edge = NormalDist().inv_cdf(0.5 + level / 2), (n_a + n_b) / 2 - 1, 1e-9

    def beyond(area: float) -> float:
        variance = area * (1 - area) * (1 + more * ((1 - area) / (2 - area) + area / (1 + area))) / (n_a * n_b)
        return float(abs(area - auc) - z * np.sqrt(variance))

    lo = 0.0 if auc < edge else float(brentq(beyond, 0.0, min(auc, 1 - edge)))
    hi = 1.0 if auc > 1 - edge else float(brentq(beyond, max(auc, edge), 1.0))
    return lo, hi
