"""Nulls: a score counts as evidence only if it is above its own null.

A gain says that one score is higher than another, not that either is above chance: for an attribute that no method can read,
random weights can "beat" the model. So for a row that decides a claim:
1. The sides are the scores that the row compares: the estimate, and for "gain, over X" the score of X at the same site.
2. The null of a side is the largest of: the rows that `NULLS` names for its metric, and the floor of that metric (an R² of 0
   is the mean of the training values). Nulls that are not in the table are ignored.
3. A side is above its null if the lower end of its interval is above the null's value. If X is itself one of the nulls,
   the paired gain over it already tests this.
Takes rows of the schema, knows no claim and no study's code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from repscope.conditions import (
    ESTIMATE,
    IDENTITY_DECODER,
    OTHER_TASK,
    PERMUTED_CELLS,
    PERMUTED_GAPS,
    PERMUTED_TASKS,
    RANDOM,
    RANDOM_HEADS,
    RANDOM_RECORDING,
    RANDOM_WEIGHTS,
    REWIRED,
    SHUFFLED_GROUPS,
    SHUFFLED_LABELS,
    UNTRAINED,
    compared,
)

GAIN = "gain"


@dataclass(frozen=True)
class Null:
    """The value that a score must exceed. conditions: of the rows that measure it. floor: of the metric, as words and number."""

    conditions: tuple[str, ...]
    floor: tuple[str, float] | None = None


#: (study, metric) → its null
NULLS: dict[tuple[str, str], Null] = {
    ("entities", "accuracy"): Null((SHUFFLED_LABELS, "majority class")),
    ("entities", "r2"): Null((SHUFFLED_LABELS,), ("the mean of the training values", 0.0)),
    ("entities", "interaction at real names"): Null((), ("as at other combinations", 1.0)),
    ("relations", "faithfulness"): Null(("majority object", "map on another subject's vector")),
    ("relations", "concept accuracy"): Null(("majority object", "shuffled objects")),
    ("relations", "edit success"): Null((RANDOM,)),
    ("relations", "REMEDI efficacy"): Null((RANDOM,)),
    ("relations", "REMEDI generalisation"): Null((RANDOM,)),
    ("relations", "REMEDI AUC"): Null((RANDOM,), ("chance", 0.5)),
    ("features", "accuracy"): Null((SHUFFLED_LABELS,)),
    ("features", "r2"): Null((SHUFFLED_LABELS,), ("the mean of the training values", 0.0)),
    ("contrast", "effect"): Null((RANDOM,)),
    ("context", "share of few-shot gain"): Null((RANDOM_HEADS, OTHER_TASK), ("no gain", 0.0)),
    ("context", "match"): Null((PERMUTED_TASKS,), ("no match", 0.0)),
    ("bayes", "rise"): Null(("untrained network",), ("no rise", 0.0)),
    ("brain", "family found"): Null((RANDOM_RECORDING,)),
    ("brain", "similarity"): Null((UNTRAINED,), ("no similarity", 0.0)),
    ("brain", "like-to-like slope"): Null((PERMUTED_CELLS,), ("no slope", 0.0)),
    ("brain", "difference with a synapse"): Null((REWIRED,), ("no difference", 0.0)),
    ("brain", "AUC across agents"): Null((SHUFFLED_LABELS, IDENTITY_DECODER), ("chance", 0.5)),
    ("emergence", "accuracy"): Null(("untrained network",)),
    ("emergence", "induction score"): Null(("other tokens",)),
    ("emergence", "sharpness"): Null(("learned evenly",), ("an even rise", 1.0)),
    ("emergence", "lag"): Null((), ("no lag", 1.0)),
    ("emergence", "compute-equivalent gain"): Null((), ("no gain", 1.0)),
    ("paths", "ratio"): Null((SHUFFLED_GROUPS,), ("no difference", 1.0)),
    ("drift", "KL recovered"): Null((RANDOM,)),
    ("drift", "slope"): Null((PERMUTED_GAPS,), ("no slope", 0.0)),
    ("paths", "ARI"): Null((), ("clusters at random", 0.0)),
    ("paths", "mantel rho"): Null((), ("no correlation", 0.0)),
    ("paths", "order correlation"): Null((), ("no correlation", 0.0)),
    ("minimal-pairs", "pair accuracy"): Null((RANDOM_WEIGHTS,), ("chance", 0.5)),
}
_PLACE = ("study", "model", "site", "token", "split")


def below_null(row: Mapping[Any, Any], table: pd.DataFrame, favoured: str) -> str:
    """Why a row is no evidence, in words; "" if it is.

    Parameters
    ----------
    row
        A row that decides a claim.
    table
        All rows of the runs.
    favoured
        The side that the decision supports: "estimate" (it is better, or high) or "control" (it is as good, or better).
    """
    control = compared(str(row["condition"])) if row["metric"] == GAIN else None
    held, null = _scores(row, table)
    if null is None:
        return ""
    if control is None:
        return _below(str(row["condition"]), held, null) if favoured == "estimate" else ""
    ours = str(row["item"]).partition(": ")[2] or ESTIMATE  # the item of a gain may name its score after a colon
    if control in null.conditions:  # the null is the control itself
        return _below(ours, held, null, but=control) if favoured == "estimate" else ""
    sides = (control if favoured == "control" else ours, ours if row["value"] > 0 else control)
    return next((text for name in dict.fromkeys(sides) if (text := _below(name, held, null))), "")


def _scores(row: Mapping[Any, Any], table: pd.DataFrame) -> tuple[pd.DataFrame, Null | None]:
    """The scores of the same item, site and metric, and their null."""
    item, study = str(row["item"]), str(row["study"])
    equal: dict[str, set[Any]] = {column: {row[column]} for column in _PLACE} | {"item": {item}}
    if row["metric"] == GAIN:
        equal["item"] = {item, item.partition(": ")[0]}
    keep = np.logical_and.reduce([table[column].isin(list(values)).to_numpy(bool) for column, values in equal.items()])
    there = list(dict.fromkeys(table.loc[keep, "metric"]))
    named = [str(row["definition"]), *there] if row["metric"] == GAIN else [str(row["metric"])]
    metric = next((m for m in named if (study, m) in NULLS), "")
    found: pd.DataFrame = table[keep & (table["metric"] == metric).to_numpy(bool)]
    return found, NULLS.get((study, metric))


def _below(name: str, held: pd.DataFrame, null: Null, but: str = "") -> str:
    """Why a score is not above its null, in words; "" if it is, or if it is not in the table."""
    at = {str(row["condition"]): row for row in held.to_dict("records")}
    nulls = [(c, at[c]["value"]) for c in null.conditions if c in at and c != but]
    nulls += [null.floor] if null.floor is not None else []
    if name not in at or not nulls:
        return ""
    label, most = max(nulls, key=lambda pair: pair[1])
    side = at[name]
    if side["lo"] > most:
        return ""
    return f"{name} {_short(side['value'])} [{_short(side['lo'])}, {_short(side['hi'])}] is not above {label}, {_short(most)}"


def _short(value: float) -> str:
    return "not known" if pd.isna(value) else f"{value:.2f}".replace("-", "−")
