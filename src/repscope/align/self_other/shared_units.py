"""Units that code own and others' outcomes alike, and whether wiring predicts them.

1. The selectivity of a unit for outcomes of one agent is Student's t of its activity between the two outcomes.
2. Its shared coding is √(t_self · t_other) if both have the same sign, else 0: a unit that codes one of the two does not share.
3. Of a pair, shared coding is the product of the two cells' standardised values. `structure_function.like_to_like` asks whether
   pairs with more of it have more synapses; with effects of both cells only the product counts, not that either cell has many
   synapses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from repscope.align.self_other.trial_table import Trials
from repscope.errors import UserError


@dataclass(frozen=True, eq=False)
class SharedUnits:
    """Selectivity of units: own, other: t values. shared: shared coding, at least 0."""

    own: Float[np.ndarray, "unit"]
    other: Float[np.ndarray, "unit"]
    shared: Float[np.ndarray, "unit"]

    def of_pairs(self, names: Sequence[str]) -> pd.DataFrame:
        """Shared coding of pairs, a frame for `structure_function.dyads`.

        Raises
        ------
        UserError
            For another number of names, or if no unit shares.
        """
        if len(names) != len(self.shared):
            raise UserError(f"There are {len(self.shared)} units and {len(names)} names; give one name per unit.")
        if not self.shared.std() > 0:
            raise UserError("No unit codes own and others' outcomes alike, so that wiring has nothing to predict.")
        z = (self.shared - self.shared.mean()) / self.shared.std()
        return pd.DataFrame(np.outer(z, z), index=list(names), columns=list(names))


def shared_units(held: Trials) -> SharedUnits:
    """Selectivity and shared coding of each unit."""
    own, other = (_t(held.patterns[held.own == own], held.outcome[held.own == own]) for own in (True, False))
    return SharedUnits(own, other, np.sqrt(np.maximum(own * other, 0.0)))


def _t(x: Float[np.ndarray, "trial unit"], outcome: np.ndarray) -> Float[np.ndarray, "unit"]:
    a, b = x[outcome == 1], x[outcome == 0]
    variance = a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b)
    difference = a.mean(0) - b.mean(0)
    return np.asarray(np.divide(difference, np.sqrt(variance), out=np.zeros_like(difference), where=variance > 0))
