"""Benchmark of tests of wiring and function on connectomes in which the truth is known.

1. `like_to_like_bench`: in what share of connectomes of `worlds.wired_cells` does each test find like-to-like, planted or absent
   (synapses then follow features that nobody measured): permuting cells, the interval over cells, Wald. And how often do the two
   intervals contain the planted slope?
2. `signals_bench`: the same for effects of stimulation that synapses carry, or do not; Wald is here the test of two proportions.
3. `common_input_bench`: cells that get common input are correlated. Does a synapse seem to link them? By correlation and by
   stimulation; by permuting cells, matched on contact, and matched on common input.
"""

from typing import Any

import numpy as np

from repscope import stats
from repscope.align.structure_function.common_input import shared_inputs
from repscope.align.structure_function.pairs import Dyads, dyads
from repscope.align.structure_function.rewiring import matched_pairs
from repscope.align.structure_function.rows import MATCHED, NAIVE
from repscope.align.structure_function.signals import APART, SYNAPSE, signal_given_synapse
from repscope.align.structure_function.slopes import like_to_like
from repscope.conditions import ESTIMATE
from repscope.results import Row
from repscope.worlds.wired_cells import Carried, common_input, wired_cells

LIKE, HOLDS, SIGNALS, LINK = "like-to-like found", "interval contains the slope", "signals found", "link found"
PLANTED, ABSENT = "like-to-like", "no like-to-like"
CARRIED, SILENT = "synapses carry signals", "synapses carry nothing"
CORRELATION, STIMULATION = "correlation", "stimulation"
ON_INPUT, OVER_CELLS = "matched on common input", "interval over cells"
SLOPE = 1.0  #: planted
_WIDE = 1.959964
Hits = dict[str, list[float]]


def like_to_like_bench(draws: int = 40, *, cells: int = 40, permutations: int = 199, seed: int = 0) -> list[Row]:
    """Shares of connectomes in which each test finds like-to-like, and of intervals that contain the planted slope."""
    rows = []
    for item, slope in ((PLANTED, SLOPE), (ABSENT, 0.0)):
        found: Hits = {ESTIMATE: [], OVER_CELLS: [], NAIVE: []}
        holds: Hits = {ESTIMATE: [], NAIVE: []}
        for k in range(draws):
            world = wired_cells(cells, slope=slope, seed=seed + k)
            one = like_to_like(dyads(world.synapses, world.similarity, world.contact), permutations=permutations, seed=seed + k)
            found[ESTIMATE].append(float(one.permutation.p <= 0.05))
            for name, interval in ((OVER_CELLS, one.slope), (NAIVE, one.naive)):
                found[name].append(float(not interval.lo <= 0 <= interval.hi))
            for name, interval in ((ESTIMATE, one.slope), (NAIVE, one.naive)):
                holds[name].append(float(interval.lo <= slope <= interval.hi))
        rows += _rows(LIKE, item, found, seed) + _rows(HOLDS, item, holds, seed)
    return rows


def signals_bench(draws: int = 40, *, cells: int = 40, permutations: int = 199, seed: int = 0) -> list[Row]:
    """Shares of connectomes in which each test finds that synapses carry signals."""
    rows = []
    for item, carried in ((CARRIED, 3.0), (SILENT, 1.0)):
        found: Hits = {ESTIMATE: [], OVER_CELLS: [], NAIVE: []}
        for k in range(draws):
            world = wired_cells(cells, carried=carried, seed=seed + k)
            d = dyads(world.synapses, world.signals, world.contact)
            one = signal_given_synapse(d, permutations=permutations, seed=seed + k, ratio=False)
            found[ESTIMATE].append(float(one.p <= 0.05))
            found[OVER_CELLS].append(float(not one.difference.lo <= 0 <= one.difference.hi))
            sizes, means = ([one.sizes[g] for g in (SYNAPSE, APART)], [one.groups[g].value for g in (SYNAPSE, APART)])
            pooled = float(np.dot(sizes, means) / sum(sizes))
            error = np.sqrt(pooled * (1 - pooled) * (1 / sizes[0] + 1 / sizes[1]))
            found[NAIVE].append(float(abs(one.difference.value) > _WIDE * error))
        rows += _rows(SIGNALS, item, found, seed)
    return rows


def common_input_bench(draws: int = 40, *, cells: int = 60, permutations: int = 199, seed: int = 0) -> list[Row]:
    """Shares of networks in which a synapse seems to link two cells: by what synapses carry, measure and test."""
    kinds: tuple[Carried, ...] = ("synapses", "common input")
    rows = []
    for kind in kinds:
        found: dict[str, Hits] = {m: {ESTIMATE: [], MATCHED: [], ON_INPUT: []} for m in (CORRELATION, STIMULATION)}
        for k in range(draws):
            world = common_input(cells, kind, seed=seed + k)
            inputs = shared_inputs(world.synapses) + 1
            for measure, function in ((CORRELATION, world.correlation), (STIMULATION, world.effect)):
                d = dyads(_among(world.synapses, function), function, _among(world.contact, function))
                one = signal_given_synapse(d, permutations=permutations, seed=seed + k, ratio=False)
                found[measure][ESTIMATE].append(float(one.p <= 0.05 and one.difference.value > 0))
                for name, on in ((MATCHED, None), (ON_INPUT, _among(inputs, function))):
                    found[measure][name].append(_above(d, on))
        for measure, hits in found.items():
            rows += _rows(LINK, f"{kind}, by {measure}", hits, seed)
    return rows


def _rows(metric: str, item: str, hits: Hits, seed: int) -> list[Row]:
    where: dict[str, Any] = {"metric": metric, "item": item, "seed": seed}
    return [Row.of(stats.proportion(x, unit="connectome", seed=seed), condition=c, **where) for c, x in hits.items()]


def _above(d: Dyads, on: Any) -> float:
    """Whether the interval of connected minus matched unconnected pairs is above 0."""
    return float(matched_pairs(d, on).difference.lo > 0)


def _among(frame: Any, function: Any) -> Any:
    return frame.loc[function.index, function.columns]
