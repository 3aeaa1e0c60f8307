"""Intervals: every estimate of repscope gets its interval here. Takes arrays of numbers, never a model or a table.

1. The caller names the *unit* over which the result should generalise (entities, prompts, seeds); values come one row a unit.
2. Units are drawn with replacement (the bootstrap of Efron, 1979; percentile interval). A draw is a vector of multinomial
   counts, so that `draws` resamples of `m` columns are one matrix product, and columns that share a seed share the draws:
   differences between them are paired.
3. Where every unit agrees the bootstrap has no width. That is what there is to say of a number such as an effect, which may be
   zero because nothing reaches it; a proportion of units gets Wilson's score interval then (Wilson, 1927).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import NormalDist

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

DRAWS = 2000
LEVEL = 0.95
_HELD_COUNTS = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    value: the estimate. lo, hi: ends of the interval. level: its nominal coverage. method: how it was made.
    unit: what was resampled. n: how many units.
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
    return _percentile(float(x.mean()), sampled, level, unit, x.size)


def proportion(hits: Float[ArrayLike, "unit"], *, unit: str, seed: int = 0, level: float = LEVEL, draws: int = DRAWS) -> Estimate:
    """The share of units that are 1 and not 0: its bootstrap interval, Wilson's where all units agree.

    >>> e = proportion([1.0] * 10, unit="entity")
    >>> (e.value, round(e.lo, 3), e.method)
    (1.0, 0.722, 'wilson')
    """
    x = _rows(hits)
    if x.min() == x.max() and x[0] in (0.0, 1.0):
        lo, hi = wilson(int(x.sum()), x.size, level)
        return Estimate(float(x[0]), lo, hi, level, "wilson", unit, x.size)
    return mean(x, unit=unit, seed=seed, level=level, draws=draws)


def ratio(
    top: Float[ArrayLike, "unit"],
    bottom: Float[ArrayLike, "unit"],
    *,
    unit: str,
    seed: int = 0,
    level: float = LEVEL,
    draws: int = DRAWS,
) -> Estimate:
    """Sum over units of `top` over the sum of `bottom`, with its bootstrap interval. A value is NaN where bottom sums to 0."""
    a, b = _rows(top), _rows(bottom)
    sums = _resampled(np.stack([a, b], axis=1), draws, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        sampled = sums[:, 0] / sums[:, 1]
        value = float(a.sum() / b.sum()) if b.sum() else float("nan")
    return _percentile(value, sampled[np.isfinite(sampled)], level, unit, a.size)


def functions_of_ratios(
    top: Float[ArrayLike, "unit column"],
    bottom: Float[ArrayLike, "unit column"],
    functions: Mapping[str, Callable[[Float[np.ndarray, "draw column"]], Float[np.ndarray, "draw"]]],
    *,
    unit: str,
    seed: int = 0,
    level: float = LEVEL,
    draws: int = DRAWS,
) -> dict[str, Estimate]:
    """Functions, by name, of several ratios: each the sum of a column of `top` over that of `bottom`, units drawn for all together.

    >>> e = of_ratios([[1.0, 3.0], [2.0, 4.0]], np.ones((2, 2)), {"rise": lambda r: r[:, 1] - r[:, 0]}, unit="example")
    >>> (e["rise"].value, e["rise"].lo, e["rise"].hi)
    (2.0, 2.0, 2.0)
    """
    a, b = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    sums = _resampled(np.concatenate([a, b], axis=1), draws, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = sums[:, : a.shape[1]] / sums[:, a.shape[1] :]
    drawn, whole = drawn[np.isfinite(drawn).all(1)], (a.sum(0) / b.sum(0))[None]
    return {
        name: _percentile(float(of(whole)[0]), of(drawn) if len(drawn) else drawn.ravel(), level, unit, len(a))
        for name, of in functions.items()
    }


def null(draws: Float[ArrayLike, "draw"], *, unit: str, level: float = LEVEL) -> Estimate:
    """A control that was run several times (shuffled labels, random directions): its mean and the range of its draws."""
    x = _rows(draws)
    return _percentile(float(x.mean()), x, level, unit, x.size, "draws")


def p_value(observed: float, null_draws: Float[ArrayLike, "draw"]) -> float:
    """One-sided permutation p: how often the control does at least as well, counting the observed run itself.

    >>> p_value(0.9, [0.1, 0.2, 0.3])
    0.25
    """
    x = _rows(null_draws)
    return float((1 + np.count_nonzero(x >= observed)) / (1 + x.size))


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    >>> [round(x, 3) for x in wilson(10, 10)]
    [0.722, 1.0]
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _rows(values: ArrayLike) -> Float[np.ndarray, "unit"]:
    x = np.asarray(values, dtype=np.float64).ravel()
    if not x.size:
        raise ValueError("an interval needs at least one unit")
    return x


def _resampled(columns: Float[np.ndarray, "unit column"], draws: int, seed: int) -> Float[np.ndarray, "draw column"]:
    """Sums of each column over units drawn with replacement, once a draw."""
    n = len(columns)
    if n * draws <= _HELD_COUNTS:
        held: np.ndarray = _counts(n, draws, seed) @ columns
        return held
    rng = np.random.default_rng(seed)  # many units: a few draws at a time, so that memory does not grow with n × draws
    step = max(1, _HELD_COUNTS // n)
    parts = [rng.multinomial(n, np.full(n, 1 / n), size=min(step, draws - i)) @ columns for i in range(0, draws, step)]
    return np.concatenate(parts)


@lru_cache(maxsize=4)
def _counts(n: int, draws: int, seed: int) -> Float[np.ndarray, "draw unit"]:
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)


def _percentile(
    value: float, sampled: Float[np.ndarray, "draw"], level: float, unit: str, n: int, method: str = "bootstrap"
) -> Estimate:
    if not sampled.size:
        return Estimate(value, float("nan"), float("nan"), level, method, unit, n)
    lo, hi = np.quantile(sampled, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(lo), float(hi), level, method, unit, n)
