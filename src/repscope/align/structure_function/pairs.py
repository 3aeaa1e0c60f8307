"""Dyads: pairs of cells with their synapses, their exposure (contact, co-travel or distance) and a functional measure of the pair.

1. All matrices are [pre, post] with names (`data.connectomes.named_matrix`) and are aligned by name.
2. A pair counts if its two cells differ, its synapses and its function were measured (not NaN), and its exposure, if there is one,
   is above 0. Where there is no contact, no synapse can be, and such pairs would only show that contact matters.
3. What falls out at each of these steps is counted, and printed as `notes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from repscope.data.connectomes.named_matrices import SelfLoops, named_matrix
from repscope.errors import UserError

LEAST_CELLS = 8
Square = Float[np.ndarray, "cell cell"]


@dataclass(frozen=True, eq=False)
class Dyads:
    """Pairs of cells, aligned. All matrices are [pre, post].

    names: cells. synapses: counts, 0 outside of `pairs`. function: measure of the pair, 0 outside of `pairs`. exposure: 0 outside
    of `pairs`; 1 for all pairs if none was given. pairs: which pairs count. counts: what was left out, by reason. has_exposure:
    whether one was given. given: the three matrices before anything was set to 0, for the controls.
    """

    names: tuple[str, ...]
    synapses: Square
    function: Square
    exposure: Square
    pairs: Bool[np.ndarray, "cell cell"]
    counts: Mapping[str, int]
    has_exposure: bool
    given: tuple[Square, Square, Square]

    @property
    def connected(self) -> Bool[np.ndarray, "cell cell"]:
        """Pairs with a synapse."""
        return np.asarray(self.pairs & (self.synapses > 0))

    @property
    def complete(self) -> bool:
        """Whether the function was measured for all pairs of different cells, so that permuted cells have the same pairs."""
        return bool(np.isfinite(self.given[1][~np.eye(len(self.names), dtype=bool)]).all())

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence per reason why something was left out."""
        return tuple(f"{what}: {n:,}." for what, n in self.counts.items() if n)

    def without_exposure(self) -> "Dyads":
        """The same pairs, with an exposure of 1."""
        return replace(self, exposure=self.pairs.astype(np.float64), has_exposure=False)

    def with_synapses(self, synapses: Square) -> "Dyads":
        """The same pairs with other synapses, [pre, post], for instance rewired ones."""
        given = (synapses, *self.given[1:])
        return replace(self, synapses=np.where(self.pairs, synapses, 0.0), given=given)


def dyads(
    synapses: Any, function: Any, exposure: Any | None = None, *, self_loops: SelfLoops = "refuse", least: int = LEAST_CELLS
) -> Dyads:
    """Align a connectome, a functional measure and an exposure by name.

    Parameters
    ----------
    synapses
        Counts of synapses, a frame [pre, post]. NaN, or no row at all: not examined. From a table of edges: `edges_to_matrix`.
    function
        A measure of pairs: similarity of responses, or the effect of stimulating the first on the second. NaN: not measured.
    exposure
        How much opportunity a pair has for a synapse: area of contact, length of co-travel. 0 or NaN: none.
    self_loops
        What to do with synapses of a cell with itself.
    least
        Fewest cells that all must have in common.

    Raises
    ------
    UserError
        For fewer common names, an empty connectome, self-loops, negative counts or exposures, a function that does not vary.
    """
    wiring = named_matrix(synapses, what="connectome", self_loops=self_loops, signed=False)
    measured = named_matrix(function, what="functional matrix")
    area = None if exposure is None else named_matrix(exposure, what="exposure", signed=False)
    frames = [wiring, measured] + ([] if area is None else [area])
    held = [[*dict.fromkeys([*frame.index, *frame.columns])] for frame in frames]
    common = [name for name in held[0] if all(name in set(other) for other in held[1:])]
    if len(common) < least:
        some, others = held[0][0] if held[0] else "none", held[1][0] if held[1] else "none"
        raise UserError(
            f"Only {len(common)} of {len(held[0])} cells of the connectome (such as {some!r}) have the same name in the other "
            f"matrices (such as {others!r}); rename them, at least {least} are needed."
        )
    s, f, *rest = (frame.reindex(index=common, columns=common).to_numpy(np.float64) for frame in frames)
    e = rest[0] if rest else np.ones_like(s)
    off = ~np.eye(len(common), dtype=bool)
    examined, known, exposed = off & np.isfinite(s), np.isfinite(f), np.isfinite(e) & (e > 0)
    pairs = examined & known & exposed
    counts = {
        "Cells of the connectome without a functional name": len(held[0]) - len(set(held[0]) & set(held[1])),
        "Cells with a functional name that the connectome does not have": len(held[1]) - len(set(held[0]) & set(held[1])),
        "Cells that are in both but have no exposure": len(set(held[0]) & set(held[1])) - len(common),
        "Pairs whose synapses were not examined": int((off & ~examined).sum()),
        "Pairs whose function was not measured": int((examined & ~known).sum()),
        "Pairs without exposure": int((examined & known & ~exposed).sum()),
        "Connected pairs among these": int((examined & known & ~exposed & (s > 0)).sum()),
    }
    inside = np.where(pairs, s, 0.0)
    if not pairs.any():
        raise UserError(
            "No pair has a count of synapses, a functional measure and an exposure above 0; check names, empty cells and exposure."
        )
    if not (inside > 0).any():
        raise UserError(
            f"The connectome is empty: none of the {int(pairs.sum()):,} pairs that were measured has a synapse; check names "
            f"and exposure."
        )
    values = f[pairs]
    if values.min() == values.max():
        raise UserError(f"The functional matrix is {values[0]:g} for all {len(values):,} pairs; a measure that varies is needed.")
    return Dyads(
        tuple(common), inside, np.where(pairs, f, 0.0), np.where(pairs, e, 0.0), pairs, counts, area is not None, (s, f, e)
    )
