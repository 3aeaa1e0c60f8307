"""Steps of `brain` on self and other: would cross-decoding find a shared code, and only where there is one?

1. Pairs of recurrent networks act in turn and watch each other, with a shared population, with separate ones, or with a stimulus
   that predicts outcomes (`bench.sharing`).
2. Wiring predicts shared coding where it was planted in the synapses.
3. With `trials`, the user's trials: a decoder of own outcomes tested on observed ones, and back, with all controls that they allow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import pandas as pd

from repscope.align.self_other import Trials, cross_decode, trials
from repscope.bench import sharing as bench
from repscope.data.tables import read_table
from repscope.errors import UserError
from repscope.results import Result, Row
from repscope.studies.brain import parts
from repscope.studies.brain.options import BrainOptions
from repscope.studies.run.study import Context, Cost, Step

TESTED = 100  #: permutations of each simulated pair of networks
_AGENT, _OUTCOME, _OPTIONAL = "agent", "outcome", ("stimulus", "identity")


@dataclass(frozen=True)
class SharingTask:
    """The options of a run and what the steps on self and other make of them."""

    options: BrainOptions

    @cached_property
    def given(self) -> tuple[Trials, tuple[str, ...]] | None:
        """The user's trials, if they were given."""
        return None if self.options.trials is None else read_trials(self.options.trials)

    def steps(self) -> list[Step]:
        """Simulated pairs, wiring, and the user's trials."""
        o = self.options
        each = 2e8 * o.draws
        made = [
            Step(parts.DECODED, self._decoded, partial(Cost, fit_flops=3 * each, memory_bytes=1e8)),
            Step(parts.SHARED_WIRING, self._wiring, partial(Cost, fit_flops=each, memory_bytes=1e8)),
        ]
        if self.given is not None:
            made.append(Step(parts.TRIALS, self._trials, partial(Cost, fit_flops=1e9)))
        return made

    @property
    def _how(self) -> dict[str, int]:
        return {"permutations": min(TESTED, self.options.permutations), "seed": self.options.seed}

    def _decoded(self, context: Context) -> Result:
        o = self.options
        number = 100 if o.tiny else 200
        return Result.of([row for kind in bench.KINDS for row in bench.of_kind(kind, o.draws, trials_per_draw=number, **self._how)])

    def _wiring(self, context: Context) -> Result:
        return Result.of(bench.wiring_of_sharing(self.options.draws, **self._how))

    def _trials(self, context: Context) -> Result:
        assert self.given is not None
        held, notes = self.given
        found = cross_decode(held, permutations=min(self.options.permutations, 1000), seed=self.options.seed)
        return Result.of(_named(found.rows(parts.TRIALS)), notes=(*notes, *found.notes))


def read_trials(path: str) -> tuple[Trials, tuple[str, ...]]:
    """Trials from a table: columns agent (self, other), outcome, perhaps stimulus and identity; all other columns are units.

    Raises
    ------
    UserError
        For a missing column, a column of text among the units, no unit, and as `trials`.
    """
    table = read_table(path)
    frame = table.frame
    for column in (_AGENT, _OUTCOME):
        if column not in frame.columns:
            raise UserError(f"{path} has no column {column}; give agent (self or other), outcome, and one column per unit.")
    units = [name for name in frame.columns if name not in (_AGENT, _OUTCOME, *_OPTIONAL)]
    if not units:
        raise UserError(f"{path} has no columns of units; give one column of activity per unit besides agent and outcome.")
    patterns = np.stack([_activity(frame[name], name, path) for name in units], 1)
    for name, x in zip(units, patterns.T):
        each = [set(x[(frame[_OUTCOME] == o).to_numpy()]) for o in frame[_OUTCOME].unique()]
        if len(each) > 1 and all(len(values) == 1 for values in each) and len(set.union(*each)) == len(each):
            raise UserError(f"Column {name!r} of {path} has one value per outcome: it is the outcome again; remove it.")
    listed = f"{', '.join(units[:6])}{' …' if len(units) > 6 else ''}"
    some = {name: name for name in _OPTIONAL if name in frame.columns}
    labels = frame[[_AGENT, _OUTCOME, *some]].replace("", pd.NA)
    labels[_AGENT] = labels[_AGENT].str.strip().str.lower()
    return trials(patterns, labels, **some), (*table.notes, f"{len(units)} units: the columns {listed}.")


def _activity(cells: pd.Series, name: str, path: str) -> np.ndarray:
    values = pd.to_numeric(cells, errors="coerce")
    if bool(values.isna().any()):
        raise UserError(
            f"Column {name!r} of {path} is empty or text in {int(values.isna().sum())} trials; a unit needs a number in each trial."
        )
    return np.asarray(values.to_numpy(np.float64))


def _named(rows: Sequence[Row]) -> list[Row]:
    """With the metrics' names of this study."""
    return [replace(row, metric=bench.AUC if row.metric == "AUC" else parts.P_DECODED) for row in rows]
