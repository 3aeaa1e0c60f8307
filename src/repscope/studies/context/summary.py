"""Rows over all tasks: the share of the few-shot gain that a vector gives, and the match of shifts at a chosen block."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope import stats
from repscope.conditions import (
    ESTIMATE,
    FEW_SHOT,
    OTHER_SHOTS,
    OTHER_TASK,
    PERMUTED_TASKS,
    RANDOM_HEADS,
    SHUFFLED_SHOTS,
    TASK_VECTOR,
    TUNED_PERMUTED,
    ZERO_SHOT,
    over,
)
from repscope.models.sites import Site
from repscope.results import Result, Row
from repscope.studies.context import names
from repscope.studies.context.choice import Chosen
from repscope.trace.task_shift import FewShotTuning, task_match
from repscope.trace.task_shift.matching import DEFINITIONS, directed
from repscope.trace.task_shift.outcomes import ALONE

_CONTROLS = (ZERO_SHOT, RANDOM_HEADS, OTHER_TASK, SHUFFLED_SHOTS)
_P = "tasks of one side permuted, one-sided, the choice of blocks repeated"
_MEANS = "means "  #: arrays of `over_tasks`: this and the way


def vector_rows(results: Sequence[Result], tasks: Sequence[str], seed: int) -> tuple[list[Row], list[str]]:
    """Shares and paired gains per task and over tasks, and accuracies over tasks; notes on tasks without a few-shot gain."""
    hits = dict[str, dict[str, Float[np.ndarray, "query"]]]()
    for result in results:
        for name, outcomes in result.arrays.items():
            own = result.table[(result.table["item"] == name)]
            hits[name] = {c: outcomes[i, 0] for i, c in enumerate(dict.fromkeys(own["condition"]))}
    rows, notes, learned = list[Row](), list[str](), list[str]()
    for name in tasks:
        at = hits[name]
        gain = at[FEW_SHOT] - at[ZERO_SHOT]
        if gain.sum() > 0:
            learned.append(name)
            rows += [
                _share(stats.ratio(x - at[ZERO_SHOT], gain, unit="query", seed=seed), name, c, seed)
                for c, x in at.items()
                if c not in (ZERO_SHOT, FEW_SHOT)
            ]
        else:
            notes.append(f"{name}: examples do not raise accuracy, so there is no gain of which a vector could give a share.")
        for side, estimate in (("", ESTIMATE), (names.SIDE, TASK_VECTOR)):
            rows += [_gain(at[estimate] - at[c], names.sided(name, side), c, "query", seed) for c in _CONTROLS if c in at]
    mean = {c: np.array([hits[name][c].mean() for name in tasks]) for c in hits[tasks[0]]}
    definition = "the most likely next token is the answer's first; mean over tasks"
    for c, values in mean.items():
        where: dict[str, Any] = {"item": names.ALL, "condition": c, "seed": seed, "token": "last"}
        rows.append(Row.over(values, "task", metric=names.ACCURACY, definition=definition, split="test items", **where))
    for side, estimate in (("", ESTIMATE), (names.SIDE, TASK_VECTOR)):
        rows += [_gain(mean[estimate] - mean[c], names.sided(names.ALL, side), c, "task", seed) for c in _CONTROLS if c in mean]
    if len(learned) > 1:
        kept = [i for i, name in enumerate(tasks) if name in learned]
        few = (mean[FEW_SHOT] - mean[ZERO_SHOT])[kept]
        for c in mean:
            if c not in (ZERO_SHOT, FEW_SHOT):
                share = stats.ratio((mean[c] - mean[ZERO_SHOT])[kept], few, unit="task", seed=seed)
                rows.append(_share(share, names.ALL, c, seed))
    return rows, notes


def chosen_rows(found: Result, tunings: Sequence[FewShotTuning], seed: int) -> list[Row]:
    """For each way of fine-tuning, the match of the residual stream at a block that the other tasks choose (`choice`).

    Examples on one half of the queries, fine-tuning on the other half. Each control has its own choice; gains are paired by task.
    """
    means = {key.removeprefix(_MEANS): x for key, x in found.arrays.items() if key.startswith(_MEANS)}
    sites = [Site.parse(name) for name in found.side["sites"]["site"]]
    rows = list[Row]()
    for how in tunings:
        way = how.condition
        pairs = {ESTIMATE: (FEW_SHOT, way), TUNED_PERMUTED: (FEW_SHOT, how.control)}
        pairs |= {c: (c, way) for c in (SHUFFLED_SHOTS, OTHER_SHOTS)}
        moved = np.logical_and.reduce([directed(means[w]) for pair in pairs.values() for w in pair])
        stream = [i for i, site in enumerate(sites) if site.kind == "resid_post" and moved[i]]
        if not stream:
            continue
        place: dict[str, Any] = {"item": way, "site": names.CHOSEN, "token": "last", "seed": seed, "split": names.REPORTED}
        held = dict[str, Chosen]()
        for condition, (first, second) in pairs.items():
            found_match = task_match(means[first][:, 0, stream], means[second][:, 1, stream], permutations=1, seed=seed)
            one = held[condition] = Chosen(found_match.centred, seed)
            where = place | {"condition": condition, "layer": _most_common([sites[stream[int(s)]].layer for s in one.sites])}
            raw = found_match.raw[np.arange(len(one.sites)), one.sites]
            for metric, values in ((names.MATCH, one.match), (names.SAME, one.same), (names.RAW, raw)):
                rows.append(Row.over(values, "task", metric=metric, definition=DEFINITIONS[metric], **where))
            rows.append(Row(metric=names.P, definition=_P, value=one.p, n=len(one.match), unit="task", **where))
            if condition == ESTIMATE:
                where |= {"metric": names.MATCH, "definition": DEFINITIONS[names.MATCH], "condition": PERMUTED_TASKS}
                rows.append(Row.of(stats.null(one.drawn, unit="order of tasks"), **where))
        for condition, one in held.items():
            if condition != ESTIMATE:
                gain = held[ESTIMATE].match - one.match
                where = place | {"condition": over(condition), "definition": names.MATCH}
                rows.append(Row.over(gain, "task", metric=names.GAIN, **where))
    return rows


def _most_common(blocks: Sequence[int | None]) -> int | None:
    return Counter(blocks).most_common(1)[0][0]


def accuracy_gains(measured: Sequence[Result], tunings: Sequence[FewShotTuning], seed: int) -> list[Row]:
    """Accuracy with the examples in the prompt minus that after fine-tuning on them, queries alone, paired over tasks."""
    rows = []
    for how in tunings:
        gains = []
        for one in measured:
            held = one.select(metric=names.ACCURACY)
            few = held[held["condition"] == FEW_SHOT]["value"].iloc[0]
            tuned = held[(held["condition"] == how.condition) & held["split"].str.startswith(ALONE)]["value"].iloc[0]
            gains.append(few - tuned)
        rows.append(_gain(np.array(gains), FEW_SHOT, how.condition, "task", seed))
    return rows


def _share(estimate: stats.Estimate, item: str, condition: str, seed: int) -> Row:
    where: dict[str, Any] = {"item": item, "condition": condition, "token": "last", "split": "test items", "seed": seed}
    return Row.of(estimate, metric=names.SHARE, definition=names.SHARE_DEFINITION, **where)


def _gain(values: Float[np.ndarray, "unit"], item: str, control: str, unit: str, seed: int) -> Row:
    where: dict[str, Any] = {"item": item, "condition": over(control), "token": "last", "split": "test items", "seed": seed}
    return Row.over(values, unit, metric=names.GAIN, definition=names.ACCURACY, **where)
