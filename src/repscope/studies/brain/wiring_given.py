"""The user's connectome: like-to-like, synapses and signals, and common input, with all controls that the data allow.

Sources: files of a connectome, a similarity, signals and an exposure (`data.connectomes.pair_files`); the worm C. elegans, whose
data files are those of two packages; tables of MICrONS in a local folder. What does not match is counted in the notes.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd

from repscope import align
from repscope.align.structure_function import Dyads, dyads
from repscope.align.structure_function.rows import Kind
from repscope.conditions import ESTIMATE
from repscope.data.connectomes import celegans, microns_folder, read_pairs, symmetric
from repscope.errors import UserError
from repscope.results import Result, Row
from repscope.studies.brain import parts
from repscope.studies.brain.options import BrainOptions
from repscope.studies.brain.wiring import shown
from repscope.studies.run.study import Context, Cost, Step

_PERMUTED = 300  #: most permutations of a measure that is not complete, for which every one is fitted again


@dataclass(frozen=True)
class Wired:
    """Pairs of the user's cells. name: of the data. similarity, signals: None if there is none. notes: of the source."""

    name: str
    similarity: Dyads | None
    signals: Dyads | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class GivenWiring:
    """The options of a run and the user's connectome."""

    options: BrainOptions

    @cached_property
    def data(self) -> Wired | None:
        """The connectome with its functional measures; None if none was given.

        Raises
        ------
        UserError
            For files that cannot be read or do not match, a missing package, or no functional measure.
        """
        o = self.options
        if o.connectome is None and o.microns is None:
            return None
        similarity = None if o.functional is None else symmetric(read_pairs(o.functional, what="similarity", absent=np.nan))
        signals = None if o.signals is None else read_pairs(o.signals, what="signals", absent=np.nan)
        contact = None if o.exposure is None else read_pairs(o.exposure, what="exposure")
        if o.microns is not None:
            return self._microns(similarity, signals)
        if o.connectome == parts.WORM:
            return _worm(similarity, signals, contact)
        assert o.connectome is not None
        if similarity is None and signals is None:
            raise UserError(
                "A connectome alone says nothing about function; give --functional (similarity of cells) or --signals (effects of "
                "one cell on another) as well."
            )
        wiring = read_pairs(o.connectome)
        found = [None if f is None else dyads(wiring, f, contact) for f in (similarity, signals)]
        return Wired("your connectome", found[0], found[1])

    def steps(self) -> list[Step]:
        """One step per functional measure, and one on common input."""
        if self.data is None:
            return []
        made = []
        for name, d in ((parts.SIMILARITY_OF, self.data.similarity), (parts.SIGNALS_OF, self.data.signals)):
            if d is not None:
                made.append(Step(name, partial(self._compared, name, d), partial(self._cost, d)))
        if (d := self.data.similarity) is not None and d.complete:
            made.append(Step(parts.INPUT_OF, self._common_input, partial(self._cost, d)))
        return made

    def _microns(self, similarity: pd.DataFrame | None, signals: pd.DataFrame | None) -> Wired:
        o = self.options
        assert o.microns is not None
        held = microns_folder(o.microns)
        if similarity is None:
            if not o.properties:
                numeric = [str(c) for c in held.properties.columns if pd.api.types.is_numeric_dtype(held.properties[c])]
                raise UserError(
                    f"Name the columns of the table of nodes that say how a neuron responds, with --properties; it has "
                    f"{', '.join(numeric[:8])}{' …' if len(numeric) > 8 else ''}."
                )
            similarity = held.signal_correlation(o.properties)
        found = [None if f is None else dyads(held.synapses, f, held.exposure) for f in (similarity, signals)]
        return Wired("MICrONS", found[0], found[1], held.notes)

    def _compared(self, step: str, d: Dyads, context: Context) -> Result:
        assert self.data is not None
        kind: Kind = "similarity" if step == parts.SIMILARITY_OF else "signal"
        o = self.options
        few = o if d.complete else o.model_copy(update={"permutations": min(o.permutations, _PERMUTED)})
        found = shown(d, kind, self.data.name, few, unit="neuron")
        told = () if d.has_exposure else ("No exposure was given: cells that touch or lie close may seem to be wired by function.",)
        return Result(found.table, found.arrays, notes=(*self.data.notes, *found.notes, *told))

    def _common_input(self, context: Context) -> Result:
        assert self.data is not None
        assert self.data.similarity is not None
        o = self.options
        found = align.common_input(self.data.similarity, permutations=o.permutations, seed=o.seed, unit="neuron")
        where: dict[str, Any] = {"item": self.data.name, "condition": ESTIMATE, "seed": o.seed}
        return Result.of(
            [
                Row.of(found.similarity, metric=parts.INPUT, **where),
                Row.of(found.beyond, metric=parts.BEYOND, **where),
                Row(
                    metric="node permutation p",
                    definition=parts.INPUT,
                    value=found.p,
                    unit="permutation",
                    n=o.permutations,
                    **where,
                ),
            ]
        )

    def _cost(self, d: Dyads) -> Cost:
        again = 1.0 if d.complete else 30.0
        return Cost(
            fit_flops=again * len(d.names) ** 2 * (300.0 * len(d.names) + 10.0 * self.options.permutations), memory_bytes=5e8
        )


def _worm(similarity: pd.DataFrame | None, signals: pd.DataFrame | None, contact: pd.DataFrame | None) -> Wired:
    worm = celegans()
    touching = worm.contact if contact is None else contact
    alike = worm.signals.profile_similarity() if similarity is None else similarity
    effects = worm.signals.functional() if signals is None else signals
    linked = worm.synapses.add(worm.gap_junctions, fill_value=0.0)
    return Wired(parts.ELEGANS, dyads(worm.synapses, alike, touching), dyads(linked, effects, touching), worm.notes)
