"""Statistics over seeds: rank correlation over methods, slope over levels, each with its permutation control.

1. `rank_correlation`: Spearman's rho of two measures over the methods of one seed, the mean over seeds with its interval; control:
   the methods of one measure permuted within each seed.
2. `slope`: least-squares slope of y on x over the levels of one seed, the mean over seeds with its interval; control: the levels
   of x permuted within each seed. Seeds with fewer than three levels, or one x, have no slope and are left out by the caller.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from repscope import stats
from repscope.stats import Estimate
from repscope.stats.groups import rank_correlations

_PERMUTATIONS = 400
Pair = Callable[[Float[np.ndarray, "item"], Float[np.ndarray, "item"]], float]


def rank_correlation(x: Float[np.ndarray, "item"], y: Float[np.ndarray, "item"]) -> float:
    """Spearman's rho; NaN where one is constant."""
    return float(rank_correlations([x, y], np.ones((1, len(x))))[0])


def slope(x: Float[np.ndarray, "item"], y: Float[np.ndarray, "item"]) -> float:
    """Least-squares slope of y on x; NaN where x is constant.

    >>> slope(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
    2.0
    """
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred)) if np.ptp(x) > 0 else float("nan")


def over_seeds(
    of: Pair, pairs: list[tuple[Float[np.ndarray, "item"], Float[np.ndarray, "item"]]], seed: int = 0
) -> tuple[Estimate | None, Estimate | None]:
    """The mean over seeds with its interval, and the same for permuted items within each seed; None without two finite seeds."""
    found = np.array([of(x, y) for x, y in pairs])
    usable = [pair for pair, value in zip(pairs, found) if np.isfinite(value)]
    found = found[np.isfinite(found)]
    if len(found) < 2:
        return None, None
    rng = np.random.default_rng(seed)
    draws = [np.mean([of(x[rng.permutation(len(x))], y) for x, y in usable]) for _ in range(_PERMUTATIONS)]
    return stats.mean(found, unit="seed", seed=seed), stats.null(draws, unit="permutation")
