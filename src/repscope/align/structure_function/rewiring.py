"""Controls by other wirings: synapses rewired with both degree sequences kept, and pairs matched on exposure or distance.

1. `rewired`: two connections i→j and k→l become i→l and k→j (Maslov & Sneppen 2002), many times, only onto pairs that count and
   have no synapse yet. With an exposure e a swap is accepted with probability min(1, e_il e_kj / (e_ij e_kl)) (Metropolis), so that
   connections fall in proportion to exposure, as the regression assumes without an effect of similarity; blind swaps would put them
   onto small contacts, and the slope would be below 0. Every cell keeps its numbers of presynaptic and of postsynaptic partners;
   this is checked at the end. Counts of synapses stay with the presynaptic cell.
2. `matched_pairs`: each connected pair is matched with an unconnected pair of the same presynaptic cell whose exposure is nearest,
   no pair twice, by the assignment with the smallest sum of differences of log exposure. What has no partner within `caliper` is
   counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope.align.structure_function.pairs import Dyads
from repscope.data.connectomes.named_matrices import named_matrix
from repscope.errors import UserError
from repscope.stats import Estimate
from repscope.stats.dyads import jackknife

SWAPS = 5  #: per connection
ATTEMPTS = 20  #: per swap, at most
_BLOCK = 100_000
CALIPER = 0.5  #: largest difference of log exposure of matched pairs, in nats


@dataclass(frozen=True)
class Matched:
    """The functional measure of connected pairs minus that of matched unconnected pairs.

    difference: mean over matched pairs, with its interval over cells. connected, unconnected: the two means. matched: number.
    unmatched: connected pairs without a partner. gap: mean difference of log exposure, connected minus unconnected.
    """

    difference: Estimate
    connected: float
    unconnected: float
    matched: int
    unmatched: int
    gap: float


def rewired(d: Dyads, *, seed: int = 0, swaps: int = SWAPS) -> Dyads:
    """The same pairs with their synapses rewired at random, both degree sequences kept.

    Raises
    ------
    UserError
        If fewer than half as many swaps as there are connections are possible: the wiring is determined by its degrees.
    """
    rng = np.random.default_rng(seed)
    allowed, taken, e = d.pairs.tolist(), (d.synapses > 0).tolist(), d.exposure.tolist()
    edges = np.argwhere(d.synapses > 0)
    pre, post = edges[:, 0].tolist(), edges[:, 1].tolist()
    made, wanted = 0, swaps * len(edges)
    for (a, b), chance in _draws(rng, len(edges), ATTEMPTS * wanted):
        i, j, k, m = pre[a], post[a], pre[b], post[b]
        if i == k or j == m or taken[i][m] or taken[k][j] or not (allowed[i][m] and allowed[k][j]):
            continue
        if e[i][m] * e[k][j] < chance * e[i][j] * e[k][m]:
            continue
        taken[i][m] = taken[k][j] = True
        taken[i][j] = taken[k][m] = False
        post[a], post[b] = m, j
        made += 1
        if made == wanted:
            break
    if made < len(edges) / 2:
        raise UserError(
            f"Only {made} swaps of {len(edges)} connections are possible with all degrees kept; this wiring has no rewired control."
        )
    n = np.zeros_like(d.synapses)
    n[pre, post] = d.synapses[edges[:, 0], edges[:, 1]]
    for axis in (0, 1):
        assert ((n > 0).sum(axis) == (d.synapses > 0).sum(axis)).all(), "a degree changed"
    return d.with_synapses(np.where(d.pairs, n, d.given[0]))


def matched_pairs(d: Dyads, on: Any | None = None, *, caliper: float = CALIPER, unit: str = "cell") -> Matched:
    """Connected pairs compared with unconnected pairs of the same presynaptic cell and of nearly equal exposure.

    Parameters
    ----------
    on
        What to match, a frame [pre, post] of numbers above 0, such as distances; by default the exposure.

    Raises
    ------
    UserError
        Without anything to match, or if fewer than three pairs have a partner.
    """
    from scipy.optimize import linear_sum_assignment

    if on is None and not d.has_exposure:
        raise UserError("Pairs can be matched on exposure or distance; give one of them.")
    size = (
        d.exposure
        if on is None
        else named_matrix(on, what="matrix to match on", signed=False).reindex(index=d.names, columns=d.names).to_numpy(np.float64)
    )
    usable = d.pairs & np.isfinite(size) & (size > 0)
    log = np.log(np.where(usable, size, 1.0))
    found: list[tuple[int, int, int]] = []
    for i in range(len(d.names)):
        joined, apart = (np.flatnonzero(usable[i] & (d.synapses[i] > 0) == kind) for kind in (True, False))
        apart = apart[usable[i, apart]]
        if len(joined) and len(apart):
            cost = np.abs(log[i, joined][:, None] - log[i, apart])
            rows, columns = linear_sum_assignment(np.minimum(cost, 10 * caliper))
            found += [(i, int(joined[r]), int(apart[c])) for r, c in zip(rows, columns) if cost[r, c] <= caliper]
    if len(found) < 3:
        raise UserError(
            f"{len(found)} of {int(d.connected.sum())} connected pairs have an unconnected pair of nearly equal exposure; "
            f"widen the caliper."
        )
    pre, post, other = np.asarray(found).T
    a, b = d.function[pre, post], d.function[pre, other]
    without = _means_without(a - b, np.asarray(found), len(d.names))
    return Matched(
        jackknife(float((a - b).mean()), without, unit=unit, freedom=len(np.unique(pre))),
        float(a.mean()),
        float(b.mean()),
        len(found),
        int(d.connected.sum()) - len(found),
        float((log[pre, post] - log[pre, other]).mean()),
    )


def _draws(rng: np.random.Generator, edges: int, number: int) -> Iterator[tuple[list[int], float]]:
    """Pairs of connections and numbers between 0 and 1, a block at a time."""
    for start in range(0, number, _BLOCK):
        size = min(_BLOCK, number - start)
        yield from zip(rng.integers(edges, size=(size, 2)).tolist(), rng.random(size).tolist())


def _means_without(values: Float[np.ndarray, "pair"], cells: np.ndarray, n: int) -> Float[np.ndarray, "cell"]:
    """The mean of values without those that each cell takes part in; cells that take part in none are left out."""
    takes_part = np.zeros((n, len(values)), dtype=bool)
    for column in cells.T:
        takes_part[column, np.arange(len(values))] = True
    held = takes_part[takes_part.any(1)]
    left = (~held).sum(1)
    return np.asarray(((~held) @ values)[left > 0] / left[left > 0])
