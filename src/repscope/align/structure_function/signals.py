"""Do synapses predict signals? How often stimulating one cell has an effect on another, with a synapse between them and without.

1. Shares (or means) of the functional measure in three groups of pairs: with a synapse, with exposure but no synapse, and without
   exposure. The second is the control: cells in contact have more synapses and more signals of every other kind.
2. Intervals by the jackknife over cells. Wilson's interval, which takes pairs as independent, is kept for comparison.
3. The difference with and without a synapse, among pairs with exposure, with its p by permuting the cells of the functional
   measure.
4. `ratio`: how many times as often, with an effect of every stimulated and every responding cell (`conditional_poisson`, log link,
   on the functional measure; its interval is by the jackknife, so that it need not be Poisson): some cells are easily driven.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from repscope import stats
from repscope.align.structure_function.conditional_poisson import Effects
from repscope.align.structure_function.node_permutation import PERMUTATIONS
from repscope.align.structure_function.pairs import Dyads
from repscope.align.structure_function.slopes import LikeToLike, like_to_like
from repscope.errors import UserError
from repscope.stats import Estimate, wilson
from repscope.stats.dyads import NAIVE, jackknife
from repscope.stats.groups import TIE
from repscope.stats.permutation import orders

SYNAPSE, APART, NO_EXPOSURE = "synapse", "exposure, no synapse", "no exposure"
Pairs = Bool[np.ndarray, "cell cell"]


@dataclass(frozen=True, eq=False)
class Signals:
    """How the functional measure depends on synapses.

    groups: mean per group of pairs, with its interval over cells; `sizes`: their pairs. naive: the same with Wilson's interval, if
    the measure is 0 or 1. difference: with minus without a synapse, among pairs with exposure. p: two-sided, cells permuted.
    null_sd: of the difference over permutations. ratio: log of how many times as often; None for a measure with negative values.
    share_connected: of all that the measure sums to, the share in pairs with a synapse.
    """

    groups: dict[str, Estimate]
    sizes: dict[str, int]
    naive: dict[str, Estimate]
    difference: Estimate
    p: float
    null_sd: float
    ratio: LikeToLike | None
    share_connected: float


def signal_given_synapse(
    d: Dyads, *, effects: Effects = "both", permutations: int = PERMUTATIONS, seed: int = 0, unit: str = "cell", ratio: bool = True
) -> Signals:
    """Compare the functional measure of pairs with and without a synapse.

    Parameters
    ----------
    ratio
        False skips the regression, which takes most of the time.

    Raises
    ------
    UserError
        If all or none of the pairs with exposure have a synapse, or there are fewer than 20 permutations.
    """
    if permutations < 20:
        raise UserError(f"{permutations} permutations cannot show a p of .05; give at least 20.")
    parts = groups(d)
    if not (parts[SYNAPSE].any() and parts[APART].any()):
        raise UserError("All or none of the pairs with exposure have a synapse; there is nothing to compare.")
    f = np.nan_to_num(d.given[1])
    means: dict[str, Estimate] = {}
    naive: dict[str, Estimate] = {}
    without: dict[str, Float[np.ndarray, cell]] = {}
    sizes: dict[str, int] = {}
    binary = bool(np.isin(f[np.isfinite(d.given[1])], (0.0, 1.0)).all())
    for name, pairs in parts.items():
        if not pairs.any():
            continue
        total, count = (f * pairs).sum(), int(pairs.sum())
        left = _without(pairs)
        value = float(total / count)
        without[name] = np.divide(_without(f * pairs), left, out=np.full(len(f), value), where=left > 0)
        single = _pair_variance(f, pairs, value)
        means[name] = jackknife(value, without[name], unit=unit, pair_variance=single)
        sizes[name] = count
        if binary:
            naive[name] = Estimate(value, *wilson(int(total), count), stats.LEVEL, NAIVE, "pair", count)
    observed = means[SYNAPSE].value - means[APART].value
    single = sum(_pair_variance(f, parts[name], means[name].value) for name in (SYNAPSE, APART))
    difference = jackknife(observed, without[SYNAPSE] - without[APART], unit=unit, pair_variance=single)
    drawn = permuted_differences(d.given[1], parts[SYNAPSE], parts[APART], permutations, seed)
    everywhere = d.given[0] > 0
    return Signals(
        means,
        sizes,
        naive,
        difference,
        stats.p_value(abs(observed) - TIE, np.abs(drawn)),
        float(drawn.std(ddof=1)),
        like_to_like(as_outcome(d), effects=effects, permutations=permutations, seed=seed, unit=unit)
        if ratio and f.min() >= 0
        else None,
        float((f * everywhere * _measured(d)).sum() / (f * _measured(d)).sum()) if f.min() >= 0 else float("nan"),
    )


def groups(d: Dyads) -> dict[str, Pairs]:
    """Measured pairs by what is between their cells."""
    measured = _measured(d)
    exposed = measured & (d.given[2] > 0)
    found = {SYNAPSE: exposed & (d.given[0] > 0), APART: exposed & (d.given[0] == 0)}
    return {**found, NO_EXPOSURE: measured & (d.given[2] == 0)} if d.has_exposure else found


def as_outcome(d: Dyads) -> Dyads:
    """The same pairs with the functional measure as the count and "has a synapse" as the measure."""
    linked = np.where(np.isfinite(d.given[0]), (d.given[0] > 0).astype(np.float64), np.nan)
    function = np.where(d.pairs, d.given[1], np.nan)
    return replace(
        d,
        synapses=np.where(d.pairs, d.given[1], 0.0),
        function=np.where(d.pairs, linked, 0.0),
        exposure=d.pairs.astype(np.float64),
        has_exposure=True,  # pairs without one stay out
        given=(function, linked, d.pairs.astype(np.float64)),
    )


def permuted_differences(
    function: Float[np.ndarray, "cell cell"], joined: Pairs, apart: Pairs, permutations: int, seed: int
) -> Float[np.ndarray, "order"]:
    """Mean of the measure in one group of pairs minus that in another, with the cells of the measure permuted."""
    n = len(function)
    held = np.isfinite(function) & ~np.eye(n, dtype=bool)
    flat, known = np.where(held, function, 0.0).ravel(), held.ravel().astype(np.float64)
    places = [np.nonzero(pairs) for pairs in (joined, apart)]
    found = np.empty(permutations)
    for k, one in enumerate(orders(n, permutations, np.random.default_rng(seed))):
        means = []
        for i, j in places:
            at = one[i] * n + one[j]
            means.append(flat[at].sum() / max(known[at].sum(), 1.0))
        found[k] = means[0] - means[1]
    return found


def _measured(d: Dyads) -> Pairs:
    off = ~np.eye(len(d.names), dtype=bool)
    return np.asarray(off & np.isfinite(d.given[0]) & np.isfinite(d.given[1]) & np.isfinite(d.given[2]))


def _without(x: Float[np.ndarray, "cell cell"] | Pairs) -> Float[np.ndarray, "cell"]:
    """The sum without each cell's row and column (the diagonal is 0)."""
    return np.asarray(x.sum() - x.sum(0) - x.sum(1), dtype=np.float64)


def _pair_variance(f: Float[np.ndarray, "cell cell"], pairs: Pairs, value: float) -> float:
    """Variance of a mean over pairs if pairs of cells, both directions together, were independent."""
    u = np.where(pairs, f - value, 0.0)
    return float(((u + u.T) ** 2).sum() / 2 / pairs.sum() ** 2)
