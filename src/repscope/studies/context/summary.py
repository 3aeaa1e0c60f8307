"""Rows over all tasks: the share of the few-shot gain that a vector gives, and the match of shifts at a chosen block."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope import stats
from repscope.conditions import (
    ESTIMATE,
    FEW_SHOT,
    OTHER_SHOTS,
    OTHER_TASK,
    RANDOM_HEADS,
    SHUFFLED_SHOTS,
    TASK_VECTOR,
    TUNED_PERMUTED,
    ZERO_SHOT,
    over,
)
from repscope.models.sites import Site
from repscope.results import CHOSEN, Result, Row
from repscope.studies.context import names
from repscope.trace.task_shift import FewShotTuning, task_match
from repscope.trace.task_shift.matching import directed, match_rows
from repscope.trace.task_shift.outcomes import ALONE

_CONTROLS = (ZERO_SHOT, RANDOM_HEADS, OTHER_TASK, SHUFFLED_SHOTS)
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
    """For each way of fine-tuning, the match at one block of the residual stream, with its controls and paired gains over them.

    The block has the largest match of examples on one half of the queries with fine-tuning on the other half. Numbers are of the
    halves exchanged.
    """
    means = {key.removeprefix(_MEANS): x for key, x in found.arrays.items() if key.startswith(_MEANS)}
    sites = [Site.parse(name) for name in found.side["sites"]["site"]]
    rows = list[Row]()
    for how in tunings:
        way = how.condition
        pairs = [(way, ESTIMATE, FEW_SHOT, way), (way, TUNED_PERMUTED, FEW_SHOT, how.control)]
        pairs += [(way, c, c, way) for c in (SHUFFLED_SHOTS, OTHER_SHOTS)]
        used = {w for pair in pairs for w in pair[2:]}
        moved = np.logical_and.reduce([directed(means[w]) for w in used])
        stream = [i for i, site in enumerate(sites) if site.kind == "resid_post" and moved[i]]
        if not stream:
            continue
        choosing = task_match(means[FEW_SHOT][:, 0, stream], means[way][:, 1, stream], permutations=1, seed=seed)
        best = stream[int(np.argmax((choosing.same - choosing.others).mean(0)))]
        exchanged = {w: means[w][:, ::-1, [best]] for w in used}
        where: dict[str, Any] = {"split": names.REPORTED, "token": "last"}
        matched, _ = match_rows(exchanged, pairs, [sites[best]], seed=seed, **where)
        rows += [replace(row, site=CHOSEN) for row in matched if row.metric not in (names.P_ALL, names.COMMON)]
        each = dict[str, Float[np.ndarray, "task"]]()
        for _, condition, first, second in pairs:
            one = task_match(exchanged[first][:, 0], exchanged[second][:, 1], permutations=1, seed=seed)
            each[condition] = (one.same - one.others)[:, 0]
        where |= {"item": way, "site": CHOSEN, "layer": sites[best].layer, "seed": seed, "definition": names.MATCH}
        for condition in (c for c in each if c != ESTIMATE):
            rows.append(Row.over(each[ESTIMATE] - each[condition], "task", metric=names.GAIN, condition=over(condition), **where))
    return rows


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
