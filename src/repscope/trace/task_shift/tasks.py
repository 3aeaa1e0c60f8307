"""In-context learning and fine-tuning on the same k examples in one space: several tasks, and what they have in common.

`measure_task` measures each task. Over tasks: the mean of every number, and matching after centring (`matching`). Controls:
examples with permuted outputs, examples of another task, and fine-tuning on permuted outputs in place of the estimate's. Ceiling:
in-context learning matched with itself on the other half of the queries.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from repscope.conditions import (
    ESTIMATE,
    FEW_SHOT,
    FULL_TUNING,
    FULL_TUNING_PERMUTED,
    LORA,
    LORA_PERMUTED,
    OTHER_SHOTS,
    SHUFFLED_SHOTS,
    TUNED_PERMUTED,
)
from repscope.errors import UserError
from repscope.models.sites import Site
from repscope.results import Result, Row
from repscope.stats.permutation import PERMUTATIONS
from repscope.trace.task_shift.matching import LEAST, match_rows
from repscope.trace.task_shift.measurement import MEANS

ALL_TASKS = "all tasks"
MATCH = "match "  #: arrays of centred cosines: this and the item
_CONTROLS = {LORA: LORA_PERMUTED, FULL_TUNING: FULL_TUNING_PERMUTED}


def over_tasks(names: Sequence[str], measured: Sequence[Result], *, permutations: int = PERMUTATIONS, seed: int = 0) -> Result:
    """Means over tasks, and whether the shifts of two ways match task by task.

    Parameters
    ----------
    names, measured
        The tasks and their measurements by `measure_task`, alike but for the task.

    Returns
    -------
    Result
        Rows of `item` "all tasks" and "all tasks, METHOD": means. Of `item` METHOD: match of few-shot and METHOD by condition;
        `few-shot` is the ceiling, and "LoRA" with the condition "full fine-tuning" the match of both. Arrays "means WAY": (task,
        half, site, feature); "match METHOD": (site, task, task), centred cosines, NaN where a way has no shift. Side tables "tasks"
        and "sites": names of these axes.

    Raises
    ------
    UserError
        For fewer than three tasks, and measurements at other sites or in other ways.
    """
    if len(measured) < LEAST or len(names) != len(measured):
        raise UserError(f"There are {len(measured)} measurements of {len(names)} tasks; matching needs {LEAST} or more.")
    first = measured[0]
    keys = {(tuple(one.arrays), tuple(one.side["sites"]["site"]), *one.table["model"].unique()) for one in measured}
    splits = {tuple(one.table.loc[one.table["metric"] == "relative norm", "split"].unique()) for one in measured}
    if len(keys) > 1 or len(splits) > 1:
        raise UserError("The measurements differ in network, sites, ways of fine-tuning or number of examples; measure all alike.")
    sites = [Site.parse(name) for name in first.side["sites"]["site"]]
    means = {
        key.removeprefix(MEANS): np.stack([np.asarray(one.arrays[key], dtype=np.float64) for one in measured])
        for key in sorted(first.arrays)
        if key.startswith(MEANS)
    }
    pairs = [(FEW_SHOT, ESTIMATE, FEW_SHOT, FEW_SHOT)]
    tuned = [way for way in _CONTROLS if way in means]
    for way in tuned:
        pairs += [(way, ESTIMATE, FEW_SHOT, way), (way, TUNED_PERMUTED, FEW_SHOT, _CONTROLS[way])]
        pairs += [(way, c, c, way) for c in (SHUFFLED_SHOTS, OTHER_SHOTS)]
    pairs += [(FEW_SHOT, c, FEW_SHOT, c) for c in (SHUFFLED_SHOTS, OTHER_SHOTS)]
    if len(tuned) > 1:
        pairs.append((LORA, FULL_TUNING, LORA, FULL_TUNING))
    where = {"model": str(first.table["model"].iloc[0]), "split": next(iter(splits))[0], "token": "last"}
    rows, cosines = match_rows(means, pairs, sites, permutations=permutations, seed=seed, **where)
    rows += _means(names, measured, seed)
    arrays = {f"{MEANS}{way}": values.astype(np.float32) for way, values in means.items()}
    arrays |= {f"{MATCH}{item}": values for item, values in cosines.items()}
    side = {"tasks": pd.DataFrame({"task": list(names)}), "sites": first.side["sites"]}
    return Result.of(rows, arrays=arrays, side=side, notes=tuple(dict.fromkeys(note for one in measured for note in one.notes)))


def _means(names: Sequence[str], measured: Sequence[Result], seed: int) -> list[Row]:
    """The mean over tasks of every number that tasks have, with its interval over tasks; n says in how many tasks it is defined."""
    columns = ("metric", "definition", "model", "site", "layer", "token", "item", "condition", "split")
    held: dict[tuple[Any, ...], list[float]] = {}
    for name, one in zip(names, measured):
        frame = one.table.assign(item=[ALL_TASKS + item.removeprefix(name) for item in one.table["item"]])
        for *key, value in frame[[*columns, "value"]].itertuples(index=False):
            if np.isfinite(value):
                held.setdefault(tuple(None if k is pd.NA else k for k in key), []).append(value)
    return [Row.over(np.array(values), "task", seed=seed, **dict(zip(columns, key))) for key, values in held.items()]
