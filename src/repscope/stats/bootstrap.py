"""Bootstrap: resampling of units, percentile intervals, `Estimate`. Takes arrays of numbers, never a model or a table.

1. The caller names the *unit* over which the result should generalise (entities, prompts, seeds). There is one value per unit.
2. Units are drawn with replacement (the bootstrap of Efron, 1979; percentile interval). A draw is a vector of multinomial
   counts. So `draws` resamples of `m` columns are one matrix product, and columns that share a seed share the draws:
   differences between them are paired.
3. If all units agree, the bootstrap interval has zero width. For an effect that is the right answer. A proportion of units
   gets Wilson's score interval then (Wilson, 1927).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

DRAWS = 2000
LEVEL = 0.95
_HELD_COUNTS = 4_000_000  # numbers in one block of draws


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    value: the estimate. lo, hi: ends of the interval. level: its nominal coverage. method: of the interval. unit: what was
    resampled. n: number of units.
    """

    value: float
    lo: float
    hi: float
    level: float
    method: str
    unit: str
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.lo:.3g}, {self.hi:.3g}]"


def mean(values: Float[ArrayLike, "unit"], *, unit: str, seed: int = 0, level: float = LEVEL, draws: int = DRAWS) -> Estimate:
    """The mean over units with its bootstrap interval.

    >>> e = mean([0.0, 1.0, 1.0, 1.0], unit="entity")
    >>> (e.value, e.n, e.unit, e.lo < e.value < e.hi)
    (0.75, 4, 'entity', True)
    """
    x = _rows(values)
    sampled = _resampled(x[:, None], draws, seed)[:, 0] / x.size
    return _estimate(float(x.mean()), sampled, level, unit, x.size)


def proportion(hits: Float[ArrayLike, "unit"], *, unit: str, seed: int = 0) -> Estimate:
    """The share of units that are 1 (others are 0), with its bootstrap interval; Wilson's where all units agree.

    >>> e = proportion([1.0] * 10, unit="entity")
    >>> (e.value, round(e.lo, 3), e.method)
    (1.0, 0.722, 'wilson')
    """
    x = _rows(hits)
    if x.min() == x.max() and x[0] in (0.0, 1.0):
        lo, hi = wilson(int(x.sum()), x.size)
        return Estimate(float(x[0]), lo, hi, LEVEL, "wilson", unit, x.size)
    return mean(x, unit=unit, seed=seed)


def change_of_proportion(
    before: Float[ArrayLike, "unit"], after: Float[ArrayLike, "unit"], *, unit: str, seed: int = 0
) -> Estimate:
    """The mean of after − before, shares in [0, 1] of the same units, with its bootstrap interval.

    Where all units agree, the bootstrap has no width, and the interval is that of the most that the units which were not seen could
    change: with w the lower end of Wilson's interval of n of n units, from w d − (1 − w) to w d + (1 − w), within [−1, 1].

    >>> e = change_of_proportion([0.0] * 10, [0.0] * 10, unit="prompt")
    >>> (e.value, round(e.lo, 3), round(e.hi, 3), e.method)
    (0.0, -0.278, 0.278, 'wilson')
    """
    x = _rows(after) - _rows(before)
    if x.min() < x.max():
        return mean(x, unit=unit, seed=seed)
    known, _ = wilson(x.size, x.size)
    d = float(x[0])
    return Estimate(d, max(-1.0, known * d - (1 - known)), min(1.0, known * d + (1 - known)), LEVEL, "wilson", unit, x.size)


def ratio(top: Float[ArrayLike, "unit"], bottom: Float[ArrayLike, "unit"], *, unit: str, seed: int = 0) -> Estimate:
    """Sum of `top` over sum of `bottom`, with its bootstrap interval. NaN where bottom sums to 0."""
    a, b = _rows(top), _rows(bottom)
    sums = _resampled(np.stack([a, b], axis=1), DRAWS, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        sampled = sums[:, 0] / sums[:, 1]
        value = float(a.sum() / b.sum()) if b.sum() else float("nan")
    return _estimate(value, sampled, LEVEL, unit, a.size)


def functions_of_ratios(
    top: Float[ArrayLike, "unit column"],
    bottom: Float[ArrayLike, "unit column"],
    functions: Mapping[str, Callable[[Float[np.ndarray, "draw column"]], Float[np.ndarray, "draw"]]],
    *,
    unit: str,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Functions, by name, of several ratios. A ratio is the sum of a column of `top` over that of `bottom`; columns share draws.

    >>> e = functions_of_ratios([[1.0, 3.0], [2.0, 4.0]], np.ones((2, 2)), {"up": lambda r: r[:, 1] - r[:, 0]}, unit="example")
    >>> (e["up"].value, e["up"].lo, e["up"].hi)
    (2.0, 2.0, 2.0)
    """
    a, b = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    sums = _resampled(np.concatenate([a, b], axis=1), DRAWS, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = sums[:, : a.shape[1]] / sums[:, a.shape[1] :]
    drawn, whole = drawn[np.isfinite(drawn).all(1)], (a.sum(0) / b.sum(0))[None]
    return {
        name: _estimate(float(of(whole)[0]), of(drawn) if len(drawn) else drawn.ravel(), LEVEL, unit, len(a))
        for name, of in functions.items()
    }


def of_draws(
    value: float, draws: Float[ArrayLike, "draw"], *, unit: str, n: int, level: float = LEVEL, method: str = "bootstrap"
) -> Estimate:
    """A value and the percentile interval of its own resampled values, as the caller drew them; infinite draws count.

    >>> e = of_draws(2.0, [1.0, 2.0, 3.0, float("inf")], unit="rung", n=4, level=0.5)
    >>> (e.value, e.lo, e.hi)
    (2.0, 1.0, 3.0)
    """
    x = np.sort(_rows(draws)[~np.isnan(_rows(draws))])
    if not x.size:
        return Estimate(value, float("nan"), float("nan"), level, method, unit, n)
    lo, hi = np.quantile(x, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")  # between two draws lies no infinity
    return Estimate(value, float(lo), float(hi), level, method, unit, n)


def student(value: float, variance: float, *, unit: str, n: int, degrees: float | None = None, level: float = LEVEL) -> Estimate:
    """A value whose variance is known from resampling n units: its interval of Student's t; n - 1 degrees of freedom if not given.

    >>> e = student(1.0, 0.25, unit="subject", n=5)
    >>> (round(e.lo, 3), round(e.hi, 3), e.method)
    (-0.388, 2.388, 't')
    """
    from scipy.stats import t as student_t

    half = float(student_t.ppf(0.5 + level / 2, n - 1 if degrees is None else degrees)) * sqrt(variance)
    return Estimate(value, value - half, value + half, level, "t", unit, n)


def null(draws: Float[ArrayLike, "draw"], *, unit: str, level: float = LEVEL) -> Estimate:
    """A control with several random draws (shuffled labels, random directions): the mean and range of its draws."""
    x = _rows(draws)
    lo, hi = percentile_interval(x, level) if np.isfinite(x).all() else (float("nan"), float("nan"))
    return Estimate(float(x.mean()), lo, hi, level, "draws", unit, x.size)


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    >>> [round(x, 3) for x in wilson(10, 10)]
    [0.722, 1.0]
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    lo, hi = max(0.0, centre - half), min(1.0, centre + half)
    return lo if successes else 0.0, hi if successes < n else 1.0  # exactly, as rounding would leave the share outside


def _rows(values: ArrayLike) -> Float[np.ndarray, "unit"]:
    x = np.asarray(values, dtype=np.float64).ravel()
    if not x.size:
        raise ValueError("an interval needs at least one unit")
    return x


def percentile_interval(sampled: Float[np.ndarray, "draw"], level: float = LEVEL) -> tuple[float, float]:
    """Ends of the percentile interval of the finite draws; NaN where no draw is finite."""
    finite = sampled[np.isfinite(sampled)]
    if not finite.size:
        return float("nan"), float("nan")
    lo, hi = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(lo), float(hi)


def draw_weights(n: int, draws: int, rng: np.random.Generator) -> Int[np.ndarray, "draw unit"]:
    """How often each of n units is drawn: n times with replacement, per draw."""
    return rng.multinomial(n, np.full(n, 1 / n), size=draws)


def weights_within_groups(codes: Int[np.ndarray, "unit"], draws: int, seed: int) -> Float[np.ndarray, "draw unit"]:
    """How often each unit is drawn when units are drawn within groups, so that every group keeps its size."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((draws, len(codes)))
    for group in range(int(codes.max()) + 1):
        members = np.flatnonzero(codes == group)
        weights[:, members] = draw_weights(len(members), draws, rng)
    return weights


def _resampled(columns: Float[np.ndarray, "unit column"], draws: int, seed: int) -> Float[np.ndarray, "draw column"]:
    """Sums of each column over units drawn with replacement, per draw."""
    n = len(columns)
    if n * draws <= _HELD_COUNTS:
        sums: np.ndarray = _cached_weights(n, draws, seed) @ columns
        return sums
    rng = np.random.default_rng(seed)  # many units: a few draws at a time, so that memory does not grow with n × draws
    step = max(1, _HELD_COUNTS // n)
    return np.concatenate([draw_weights(n, min(step, draws - i), rng) @ columns for i in range(0, draws, step)])


@lru_cache(maxsize=4)
def _cached_weights(n: int, draws: int, seed: int) -> Float[np.ndarray, "draw unit"]:
    return draw_weights(n, draws, np.random.default_rng(seed)).astype(np.float64)


def _estimate(value: float, sampled: Float[np.ndarray, "draw"], level: float, unit: str, n: int) -> Estimate:
    return Estimate(value, *percentile_interval(sampled, level), level, "bootstrap", unit, n)
