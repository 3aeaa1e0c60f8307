"""Shares of variance in a crossed design: how much of a number's variance is due to each factor. Arrays in, estimates out.

values[a, b, …]: one value per cell of a full, balanced cross of factors, such as initialisation × head × order of data. Model:
sum of one effect per factor, plus the rest (interactions and noise, which one value per cell cannot separate).

1. Mean squares of each factor and of the rest. With N cells and k levels of a factor, n = N / k cells per level:
   E[MS_factor] = σ²_rest + n σ²_factor, so σ²_factor = (MS_factor − MS_rest) / n, and 0 where that is negative.
2. A factor is *random* (seeds: levels stand for others like them) or *fixed* (conditions that the experimenter chose: the
   variance of exactly these levels). Its share is its variance over the sum of all, the rest included.
3. Intervals: generalised pivotal quantities (Weerahandi 1993). In every draw, the mean squares are divided by χ² / df variates,
   fixed effects get normal noise, and the shares are computed again; percentiles of 4,000 draws. Effects are taken to be normal.
   Few levels give wide intervals: with 3 levels of a random factor a share is hardly known.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from repscope.errors import UserError
from repscope.stats.bootstrap import LEVEL, Estimate, percentile_interval

REST = "interactions and noise"
_DRAWS = 4000


def variance_shares(
    values: Float[ArrayLike, "*level"], factors: Sequence[str], *, fixed: Collection[str] = (), unit: str = "run", seed: int = 0
) -> dict[str, Estimate]:
    """Share of the variance due to each factor, and to the rest.

    Parameters
    ----------
    values
        One value per cell, an axis per factor.
    factors
        Their names, in the order of the axes.
    fixed
        Factors whose levels are conditions and not a sample.
    unit
        Of the values.

    Returns
    -------
    dict
        Factor, or `REST`, to the estimate of its share.

    Raises
    ------
    UserError
        When names and axes differ, a factor has one level (one seed per cell), a value is not finite, or all values are equal.

    >>> shares = variance_shares([[0.0, 0.1, 0.0], [1.0, 0.9, 1.0], [0.5, 0.5, 0.6]], ["init", "head"])
    >>> shares["init"].value > 0.9, shares["head"].value < 0.1
    (True, True)
    """
    x = np.asarray(values, dtype=np.float64)
    _check(x, factors, fixed)
    effects = {name: _effects(x, axis) for axis, name in enumerate(factors)}
    rest = x - x.mean() - sum(e.reshape([-1 if i == a else 1 for i in range(x.ndim)]) for a, e in enumerate(effects.values()))
    df = x.size - 1 - sum(k - 1 for k in x.shape)
    noise = float((rest**2).sum() / df)
    rng = np.random.default_rng(seed)
    drawn_noise = noise * df / rng.chisquare(df, _DRAWS)
    own: dict[str, float] = {}
    drawn: dict[str, np.ndarray] = {}
    for name, effect in effects.items():
        cells = x.size // len(effect)
        between = float(cells * (effect**2).sum() / (len(effect) - 1))
        own[name] = max(0.0, (between - noise) / cells)
        if name in fixed:
            own[name] *= (len(effect) - 1) / len(effect)  # the variance of these levels, not that of a population
            moved = effect + rng.standard_normal((_DRAWS, len(effect))) * np.sqrt(drawn_noise / cells)[:, None]
            spread = moved.var(axis=1) - drawn_noise / cells * (len(effect) - 1) / len(effect)
        else:
            spread = (between * (len(effect) - 1) / rng.chisquare(len(effect) - 1, _DRAWS) - drawn_noise) / cells
        drawn[name] = np.maximum(spread, 0.0)
    own[REST], drawn[REST] = noise, drawn_noise
    total, totals = sum(own.values()), np.sum(list(drawn.values()), axis=0)
    return {
        name: Estimate(own[name] / total, *percentile_interval(drawn[name] / totals), LEVEL, "generalised pivotal", unit, x.size)
        for name in own
    }


def crossed(rows: Sequence[Mapping[str, object]], factors: Sequence[str], value: str) -> Float[np.ndarray, "*level"]:
    """The array of a full cross from one row per cell, levels in the order of their first occurrence.

    Raises
    ------
    UserError
        When a cell has no row, or two.
    """
    levels = [list(dict.fromkeys(row[name] for row in rows)) for name in factors]
    found = np.full([len(each) for each in levels], np.nan)
    for row in rows:
        at = tuple(each.index(row[name]) for name, each in zip(factors, levels))
        named = ", ".join(f"{name} {row[name]}" for name in factors)
        if np.isfinite(found[at]):
            raise UserError(f"The cell {named} has two values; give one per cell, or make the replicate a factor.")
        found[at] = float(str(row[value]))
    if np.isnan(found).any():
        at = tuple(int(i) for i in np.argwhere(np.isnan(found))[0])
        named = ", ".join(f"{name} {each[i]}" for name, each, i in zip(factors, levels, at))
        raise UserError(f"The cell {named} has no value; shares of variance need every combination of the factors.")
    return found


def _effects(x: Float[np.ndarray, "*level"], axis: int) -> Float[np.ndarray, "level"]:
    found: np.ndarray = x.mean(axis=tuple(i for i in range(x.ndim) if i != axis)) - x.mean()
    return found


def _check(x: Float[np.ndarray, "*level"], factors: Sequence[str], fixed: Collection[str]) -> None:
    if x.ndim != len(factors) or x.ndim < 2:
        raise UserError(f"Values have {x.ndim} axes and {len(factors)} factors are named; give an axis per factor, at least two.")
    for name, levels in zip(factors, x.shape):
        if levels < 2:
            raise UserError(f"The factor {name} has one level (one seed per cell), so its share is unknown; give at least 2.")
    if unnamed := set(fixed) - set(factors):
        raise UserError(f"The fixed factor {min(unnamed)!r} is not one of {', '.join(factors)}.")
    if x.size - 1 - sum(k - 1 for k in x.shape) < 1:
        raise UserError("The design leaves nothing to estimate the noise from; give more levels.")
    if not np.isfinite(x).all():
        raise UserError("A cell's value is not a number; leave no cell without a run.")
    if np.ptp(x) == 0:
        raise UserError("All runs have one value, so there is no variance to attribute.")
