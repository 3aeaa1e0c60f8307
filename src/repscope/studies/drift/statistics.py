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
from repscope.stats.groups import ranks
from repscope.stats.permutation import orders

_PERMUTATIONS = 400
#: A statistic as a product a·b, the items of a in the order of those of x: (x, y) → (a, b), or None where one is constant.
Parts = Callable[
    [Float[np.ndarray, "item"], Float[np.ndarray, "item"]], tuple[Float[np.ndarray, "item"], Float[np.ndarray, "item"]] | None
]


def rank_correlation(
    x: Float[np.ndarray, "item"], y: Float[np.ndarray, "item"]
) -> tuple[Float[np.ndarray, "item"], Float[np.ndarray, "item"]] | None:
    """Spearman's rho as a product: ranks, centred and of norm 1."""
    both = [(r := ranks(v, np.ones((1, len(v))))[0]) - r.mean() for v in (x, y)]
    sizes = [np.linalg.norm(v) for v in both]
    return None if min(sizes) == 0 else (both[0] / sizes[0], both[1] / sizes[1])


def slope(
    x: Float[np.ndarray, "item"], y: Float[np.ndarray, "item"]
) -> tuple[Float[np.ndarray, "item"], Float[np.ndarray, "item"]] | None:
    """The least-squares slope of y on x as a product.

    >>> a, b = slope(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
    >>> float(a @ b)
    2.0
    """
    centred = x - x.mean()
    return None if np.ptp(x) == 0 else (centred / (centred @ centred), y)


def over_seeds(
    of: Parts, pairs: list[tuple[Float[np.ndarray, "item"], Float[np.ndarray, "item"]]], seed: int = 0
) -> tuple[Estimate | None, Estimate | None]:
    """The mean over seeds with its interval, and the same for permuted items within each seed; None without two usable seeds."""
    parts = [p for x, y in pairs if (p := of(x, y)) is not None]
    if len(parts) < 2:
        return None, None
    rng = np.random.default_rng(seed)
    draws = np.mean([a[orders(len(a), _PERMUTATIONS, rng)] @ b for a, b in parts], 0)
    return stats.mean([float(a @ b) for a, b in parts], unit="seed", seed=seed), stats.null(draws, unit="permutation")
