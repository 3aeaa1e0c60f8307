"""Trials of an animal or a network: a pattern of activity per trial, whose outcome it was, and what the outcome was."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from repscope.align.rows import as_rows
from repscope.errors import UserError, unknown

LEAST = 8  #: trials of each outcome of each agent
SELF, OTHER = "self", "other"


@dataclass(frozen=True, eq=False)
class Trials:
    """Checked trials.

    patterns: (trial, unit), float64. own: whether the outcome was one's own. outcome: 0 or 1. outcomes: names of the two. stimulus,
    identity: codes, or None; identity is who acted or received the outcome, for instance one of several others.
    """

    patterns: Float[np.ndarray, "trial unit"]
    own: Bool[np.ndarray, "trial"]
    outcome: Int[np.ndarray, "trial"]
    outcomes: tuple[str, str]
    stimulus: Int[np.ndarray, "trial"] | None
    identity: Int[np.ndarray, "trial"] | None

    def of(self, kept: np.ndarray) -> "Trials":
        """Some of the trials: a mask or indices."""
        stimulus, identity = (None if x is None else x[kept] for x in (self.stimulus, self.identity))
        return replace(
            self, patterns=self.patterns[kept], own=self.own[kept], outcome=self.outcome[kept], stimulus=stimulus, identity=identity
        )

    @property
    def enough(self) -> bool:
        """Whether each agent has `LEAST` trials of each outcome."""
        return all(((self.own == a) & (self.outcome == o)).sum() >= LEAST for a in (True, False) for o in (0, 1))


def trials(
    patterns: Any,
    table: pd.DataFrame,
    *,
    agent: str = "agent",
    outcome: str = "outcome",
    stimulus: str | None = None,
    identity: str | None = None,
    labels: Sequence[str] = (SELF, OTHER),
) -> Trials:
    """Trials from patterns (trial, unit) and a table with one row per trial.

    Parameters
    ----------
    agent, outcome, stimulus, identity
        Columns: whose outcome it was; what it was (two values); optionally what was shown, and who acted.
    labels
        What the column `agent` says for one's own outcomes and for another's.

    Raises
    ------
    UserError
        For another number of trials, unknown columns or labels, other than two outcomes, values that are not finite, or fewer than
        eight trials of one outcome of one agent.
    """
    x = as_rows(patterns, "The array of patterns").astype(np.float64)
    for column in (agent, outcome, *(c for c in (stimulus, identity) if c)):
        if column not in table.columns:
            raise unknown("column of the table of trials", column, table.columns)
        if table[column].isna().any():
            raise UserError(
                f"Column {column!r} of the table of trials is empty in {int(table[column].isna().sum())} trials; fill it."
            )
    if len(table) != len(x):
        raise UserError(f"There are {len(x)} patterns and {len(table)} rows of the table of trials; give one row per trial.")
    if not np.isfinite(x).all():
        raise UserError(f"Patterns of {int((~np.isfinite(x)).any(1).sum())} trials are not finite; leave those trials out.")
    who = table[agent].astype(str)
    if other := sorted(set(who) - set(labels)):
        raise unknown(
            f"label of column {agent!r}",
            other[0],
            labels,
            "Rename them, or in Python give labels=, the word for self and that for other.",
        )
    kinds = sorted(set(table[outcome].astype(str)))
    if len(kinds) != 2:
        raise UserError(f"Column {outcome!r} has {len(kinds)} values ({', '.join(kinds[:4])} …); an outcome has two.")
    codes = (table[outcome].astype(str) == kinds[1]).to_numpy().astype(np.int64)
    own = (who == labels[0]).to_numpy()
    for a in (True, False):
        for o in (0, 1):
            if (n := int(((own == a) & (codes == o)).sum())) < LEAST:
                raise UserError(
                    f"There are {n} trials with outcome {kinds[o]!r} of {labels[0] if a else labels[1]!r}; at least {LEAST} "
                    f"are needed."
                )
    coded = [None if c is None else pd.factorize(table[c].astype(str))[0].astype(np.int64) for c in (stimulus, identity)]
    return Trials(x, own, codes, (kinds[0], kinds[1]), coded[0], coded[1])
