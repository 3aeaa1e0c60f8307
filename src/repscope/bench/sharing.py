"""Benchmark of cross-decoding between self and other on networks in which sharing was planted, or was not.

Per kind of `worlds.watching_agents`: in what share of draws is sharing called present, by cross-decoding alone and when it must
also hold on matched stimuli; and in what share of draws wiring predicts shared coding.
`of_kind` also has the mean AUCs within and across agents, and those of the controls.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from repscope import stats
from repscope.align.self_other.cross_decoding import MATCHED, SHUFFLED, WITHIN, SelfOther, cross_decode
from repscope.align.self_other.shared_units import shared_units
from repscope.align.self_other.trial_table import trials
from repscope.align.structure_function.node_permutation import permute_nodes
from repscope.align.structure_function.pairs import dyads
from repscope.conditions import ESTIMATE
from repscope.data.connectomes.named_matrices import named_matrix
from repscope.results import Row
from repscope.worlds.watching_agents import Kind, two_agents

KINDS: tuple[Kind, ...] = ("shared", "separate", "stimulus")
FOUND, WIRED, AUC = "sharing found", "wiring predicts shared coding", "AUC across agents"
_DRAWS = 100  #: of the bootstrap of each interval, which decide here by one end alone
PLANTED, UNPLANTED, OTHERS = "wired", "not wired", "another network's synapses"  #: items of `WIRED`
ALL_TRIALS, ALSO_MATCHED = "all trials", "and on matched stimuli"


def of_kind(kind: Kind, draws: int = 40, *, permutations: int = 100, seed: int = 0, trials_per_draw: int = 200) -> list[Row]:
    """Shares of draws in which sharing is found, and mean AUCs by direction and condition (`AUC`; the direction is `split`)."""
    plain, matched = [], []
    areas: dict[tuple[str, str], list[float]] = {}
    for k in range(draws):
        world = two_agents(kind, trials=trials_per_draw, seed=seed + k)
        held = trials(world.patterns[0], world.tables[0], stimulus="stimulus")
        found = cross_decode(held, permutations=permutations, seed=k, draws=_DRAWS)
        plain.append(found.shared)
        also = found.controls.get(MATCHED, {})
        matched.append(found.shared and bool(also) and all(e.lo > 0.5 for e in also.values()))
        for name, value in _areas(found).items():
            areas.setdefault(name, []).append(value)
    rows = []
    for split, hits in ((ALL_TRIALS, plain), (ALSO_MATCHED, matched)):
        share = stats.proportion(np.asarray(hits, dtype=np.float64), unit="draw", seed=seed)
        rows.append(Row.of(share, metric=FOUND, item=kind, split=split, seed=seed))
    for (condition, split), values in areas.items():
        at: dict[str, Any] = {"metric": AUC, "item": kind, "condition": condition, "split": split}
        rows.append(Row.over(np.asarray(values), "draw", seed=seed, **at))
    return rows


def wiring_of_sharing(draws: int = 40, *, permutations: int = 100, seed: int = 0) -> list[Row]:
    """Shares of draws in which wiring predicts shared coding: planted in the synapses, not planted, and by another draw's synapses.

    Without planting there is still something to find, as synapses pass the shared code on; another draw's synapses are the null.
    """
    rows = []
    for item, wired, apart in ((PLANTED, True, 0), (UNPLANTED, False, 0), (OTHERS, False, draws)):
        hits = [_wired(wired, seed + k, seed + k + apart, permutations) for k in range(draws)]
        rows.append(Row.of(stats.proportion(hits, unit="draw", seed=seed), metric=WIRED, item=item, seed=seed))
    return rows


def _areas(found: SelfOther) -> Mapping[tuple[str, str], float]:
    by = {ESTIMATE: found.across, WITHIN: found.within, SHUFFLED: found.null, **found.controls}
    return {(condition, split): e.value for condition, held in by.items() for split, e in held.items()}


def _wired(wired: bool, seed: int, of_synapses: int, permutations: int) -> float:
    world = two_agents("shared", wired=wired, seed=seed)
    synapses = (world if seed == of_synapses else two_agents("shared", wired=wired, seed=of_synapses)).synapses[0]
    names = [f"unit {i}" for i in range(len(synapses))]
    units = shared_units(trials(world.patterns[0], world.tables[0]))
    found = permute_nodes(dyads(named_matrix(synapses, names), units.of_pairs(names)), permutations=permutations, seed=seed)
    return float(found.p <= 0.05 and found.z > 0)
