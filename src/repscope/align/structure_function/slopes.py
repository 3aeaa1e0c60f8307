"""Like-to-like: do pairs of cells whose responses are more alike have more synapses, at equal opportunity?

The slope β of `conditional_poisson` (log rate of synapses per unit of similarity), with

1. its interval by the jackknife over cells (`stats.dyads`);
2. its p by permuting cells (`node_permutation`);
3. the naive interval, as if pairs were independent: shown because published slopes have it, and too narrow.

`scale`: where similarity acts (Ding et al. 2025, Nature 640:459). Synaptic: synapses given exposure, among pairs with exposure.
Axonal: exposure itself among pairs without a synapse, pairs with none included: do axons run where cells are alike?
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from repscope.align.structure_function.conditional_poisson import Effects, Square, balance, fit, margins, projected
from repscope.align.structure_function.node_permutation import PERMUTATIONS, NodePermutation, permute_nodes
from repscope.align.structure_function.pairs import Dyads
from repscope.errors import UserError
from repscope.stats import Estimate
from repscope.stats.dyads import jackknife, too_narrow

Scale = Literal["synaptic", "axonal"]


@dataclass(frozen=True, eq=False)
class LikeToLike:
    """A slope, log rate per unit of the functional measure.

    slope: with the interval over cells. naive: with the interval of independent pairs, too narrow. permutation: its test. pairs,
    connected: number of pairs, and of those with a synapse. pre, post: cells that have a pair.
    """

    slope: Estimate
    naive: Estimate
    permutation: NodePermutation
    pairs: int
    connected: int
    pre: int
    post: int
    scale: Scale
    effects: Effects


def like_to_like(
    d: Dyads,
    *,
    effects: Effects = "both",
    scale: Scale = "synaptic",
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    unit: str = "cell",
) -> LikeToLike:
    """The slope of synapses (or of exposure) on the functional measure.

    Raises
    ------
    UserError
        If the slope is not determined, the axonal scale is asked for without an exposure, or there are fewer than 20 permutations.
    """
    d = d if scale == "synaptic" else axonal(d)
    found = fit(d.synapses, d.function, d.exposure, effects)
    without, single = _without_each(d, effects, found.slope)
    pre, post = int(d.pairs.any(1).sum()), int(d.pairs.any(0).sum())
    return LikeToLike(
        jackknife(found.slope, without, unit=unit, pair_variance=single, freedom=min(pre, post)),
        too_narrow(found.slope, found.information**-0.5, pairs=int(d.pairs.sum())),
        permute_nodes(d, effects=effects, permutations=permutations, seed=seed),
        int(d.pairs.sum()),
        int(d.connected.sum()),
        pre,
        post,
        scale,
        effects,
    )


def axonal(d: Dyads) -> Dyads:
    """Pairs without a synapse, with their exposure in the place of synapses; pairs without exposure count, as 0.

    Raises
    ------
    UserError
        If no exposure was given.
    """
    if not d.has_exposure:
        raise UserError("The axonal scale is about exposure, such as the length of co-travel; give one.")
    synapses, function, exposure = d.given
    pairs = np.isfinite(function) & (synapses == 0) & ~np.eye(len(d.names), dtype=bool)
    known = np.nan_to_num(exposure)
    if not known[pairs].any():
        raise UserError("The axonal scale is about pairs without a synapse, and none of them has an exposure.")
    n = np.where(pairs, known / known[pairs].mean(), 0.0)  # in units of the mean: only ratios count
    given = (np.where(synapses == 0, known / known[pairs].mean(), np.nan), function, np.ones_like(exposure))
    return replace(
        d,
        synapses=n,
        function=np.where(pairs, function, 0.0),
        exposure=pairs.astype(np.float64),
        pairs=pairs,
        has_exposure=False,
        given=given,
    )


def _without_each(d: Dyads, effects: Effects, slope: float) -> tuple[Float[np.ndarray, "cell"], float]:
    """The slope without each cell that has pairs, and the variance of the slope if pairs of cells were independent."""
    n, s, e = d.synapses, d.function, d.exposure
    found = []
    for k in np.flatnonzero(d.pairs.any(1) | d.pairs.any(0)):
        keep = np.ones(len(n), dtype=bool)
        keep[k] = False
        inside = np.ix_(keep, keep)
        found.append(fit(n[inside], s[inside], e[inside], effects, start=slope).slope)
    return np.asarray(found), pair_variance(n, s, e, d.pairs, effects, slope)


def pair_variance(
    n: Square, s: Square, exposure: Square, pairs: Bool[np.ndarray, "pre post"], effects: Effects, slope: float
) -> float:
    """Variance of the slope from single pairs of cells, both directions together: Σ (s̃ (n - μ) + its transpose)² / I²."""
    mu = balance(n, exposure * np.exp(slope * s), effects)
    residual = np.where(pairs, projected(s, margins(mu, effects)), 0.0)
    u = residual * (n - mu)
    both = u + u.T
    return float((both**2).sum() / 2 / (mu * residual**2).sum() ** 2)
