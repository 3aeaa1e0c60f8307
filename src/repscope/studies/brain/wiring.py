"""Steps of `brain` on simulated connectomes: would the tests find like-to-like and signals, and only where they were planted?

1. Like-to-like is planted or absent; permuting cells, the interval over cells and Wald are compared (`bench.wiring`). One
   connectome of each kind is shown with all its numbers.
2. Synapses carry signals, or nothing.
3. Common input: two cells are correlated because a third reaches both, and a synapse between them carries nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from repscope.align.structure_function import Dyads, compare_wiring, dyads
from repscope.align.structure_function.rows import Kind
from repscope.bench import wiring as bench
from repscope.results import Result, concat
from repscope.studies.brain import parts
from repscope.studies.brain.options import BrainOptions
from repscope.studies.run.study import Context, Cost, Step
from repscope.worlds.wired_cells import wired_cells

TESTED = 199  #: permutations of each of many connectomes


@dataclass(frozen=True)
class WiringTask:
    """The options of a run and what the steps on simulated connectomes make of them."""

    options: BrainOptions

    @property
    def tested(self) -> int:
        """Permutations of each simulated connectome."""
        return min(TESTED, self.options.permutations)

    def steps(self) -> list[Step]:
        """The three steps."""
        return [
            Step(parts.LIKE_TO_LIKE, self._like_to_like, partial(self._cost, 2e3)),
            Step(parts.SIGNALS, self._signals, partial(self._cost, 2e2)),
            Step(parts.COMMON_INPUT, self._common_input, partial(self._cost, 6e2)),
        ]

    def _like_to_like(self, context: Context) -> Result:
        o = self.options
        rows = bench.like_to_like_bench(o.draws, cells=o.cells, permutations=self.tested, seed=o.seed)
        found = [Result.of(rows)]
        for item, slope in ((bench.PLANTED, bench.SLOPE), (bench.ABSENT, 0.0)):
            world = wired_cells(o.cells, slope=slope, seed=o.seed)
            d = dyads(world.synapses, world.similarity, world.contact)
            found.append(shown(d, "similarity", parts.simulated(item), o))
        return concat(found)

    def _signals(self, context: Context) -> Result:
        o = self.options
        rows = bench.signals_bench(o.draws, cells=o.cells, permutations=self.tested, seed=o.seed)
        found = [Result.of(rows)]
        for item, carried in ((bench.CARRIED, 3.0), (bench.SILENT, 1.0)):
            world = wired_cells(o.cells, carried=carried, seed=o.seed)
            d = dyads(world.synapses, world.signals, world.contact)
            found.append(shown(d, "signal", parts.simulated(item), o))
        return concat(found)

    def _common_input(self, context: Context) -> Result:
        o = self.options
        cells = max(24, o.cells * 3 // 2)  # a quarter of them are drivers
        return Result.of(bench.common_input_bench(o.draws, cells=cells, permutations=self.tested, seed=o.seed))

    def _cost(self, per: float) -> Cost:
        o = self.options
        return Cost(fit_flops=2.0 * o.draws * per * o.cells**3, memory_bytes=1e8)


def shown(d: Dyads, kind: Kind, item: str, o: BrainOptions, unit: str = "cell") -> Result:
    """All numbers of one connectome, and its matrices for the page; without its notes if it is simulated."""
    rewirings = 3 if o.tiny else 20
    found = compare_wiring(d, kind, item=item, permutations=o.permutations, rewirings=rewirings, seed=o.seed, unit=unit)
    notes = () if item.startswith(parts.SIMULATED) else found.notes
    return Result(found.table, matrices(d, f"{item}, {kind}"), notes=notes)


def matrices(d: Dyads, name: str) -> Mapping[str, np.ndarray]:
    """Synapses, functional measure and exposure of a connectome, as arrays of a result; NaN where not examined or measured."""
    synapses, function, exposure = (x.astype(np.float32) for x in d.given)
    found = {"synapses": synapses, "function": function} | ({"exposure": exposure} if d.has_exposure else {})
    return {f"{name}/{kind}": x for kind, x in found.items()}
