"""Losses along the straight lines between networks: is there a barrier, and is it low compared with a random direction?

1. `task` finds the networks and the data; nothing is written before all of it is sound. Losses of networks too large to stack are
   kept point by point, so that a killed run continues.
2. Every line gets all heights of `barriers.HEIGHTS` for every loss, with intervals over examples, which are drawn for all points of
   a line together. Every run gets its own losses, every pair its Euclidean distance.
3. Control: from the start of the first lines, an equal distance tensor by tensor, to an end in a random direction. A low barrier
   between two fine-tunings of one network says as much as the loss rises there. That end is no trained network: a line to it may
   be uphill all the way and have no barrier, so lines and controls are compared by their *loss increase*, the largest loss minus
   that of the first network.
"""

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from repscope import stats
from repscope.conditions import ESTIMATE, RANDOM
from repscope.results import Result, Row, concat
from repscope.studies.connect.basins import LEAST, basins_of
from repscope.studies.connect.names import OWN, RISE, UNIT, metric_of
from repscope.studies.connect.options import ConnectOptions
from repscope.studies.connect.task import ConnectTask, Pairs, connect_task
from repscope.studies.run.provenance import beside_weights
from repscope.studies.run.study import Context, Setup, Step, Subject
from repscope.trace.barriers import GAP, HEIGHTS, height
from repscope.trace.interpolation import Curves, all_pairs

_CELLS = "cells.jsonl"
_DEFINITIONS = {
    "chord": "max(0, largest loss above the straight line between the ends' losses)",
    "larger endpoint": "largest loss minus the larger of the ends' losses",
    "mean endpoint": "largest loss minus the mean of the ends' losses",
    GAP: "largest chord barrier over all contiguous parts",
    RISE: "largest loss minus that of the first network",
}


def subject(setup: Setup[ConnectOptions]) -> Subject:
    """All networks."""
    task = _task(setup)
    names = task.names[:2] if len(task.names) == 2 else (task.names[0], f"{len(task.names)}-runs")
    facts: dict[str, Any] = {"model": f"{', '.join(task.names)} ({task.kind})", "precision": "", "fingerprint": task.fingerprint}
    facts |= {"data": task.data, "names": list(task.names), "loss unit": task.unit}
    key = {"models": list(task.names), "fingerprint": task.fingerprint, "digest": task.digest}
    return Subject("-".join(name[-24:].strip("-") for name in names), task.fingerprint, facts, key, beside_weights(task.folders))


def steps(setup: Setup[ConnectOptions]) -> list[Step]:
    """One step: all lines, and the analysis of distances between runs."""
    return [Step("connect", partial(_connect, setup), lambda: _task(setup).cost(setup.options.points))]


def _task(setup: Setup[ConnectOptions]) -> ConnectTask:
    """The task, created once per run."""
    return setup.once("connect", lambda: connect_task(setup.options))


def _connect(setup: Setup[ConnectOptions], context: Context) -> Result:
    o, task = setup.options, _task(setup)
    pairs = _spread(all_pairs(len(task.names)), o.controls, task.groups)
    context.partial.mkdir(parents=True, exist_ok=True)
    found = task.walk(pairs, min(o.controls, len(pairs)), context.partial / _CELLS)
    distances = task.distances(pairs)
    result = _result(task, found, len(pairs), distances)
    return _with_basins(result, task, found, pairs, distances) if len(task.names) >= LEAST else result


def _spread(pairs: Pairs, first: int, groups: Shaped[np.ndarray, "run"] | None) -> Pairs:
    """The pairs, first those with a control: evenly spaced, and if groups are known, half of them across groups."""
    across = np.zeros(len(pairs), dtype=bool) if groups is None else groups[pairs[:, 0]] != groups[pairs[:, 1]]
    halves = [np.flatnonzero(across), np.flatnonzero(~across)]
    counts = [min(len(halves[0]), (first + 1) // 2), 0]
    counts[1] = min(len(halves[1]), first - counts[0])
    taken = [half[np.linspace(0, len(half) - 1, count).astype(int)] for half, count in zip(halves, counts) if count]
    front = np.concatenate(taken) if taken else np.zeros(0, dtype=int)
    order = np.concatenate([front, np.setdiff1d(np.arange(len(pairs)), front)])
    return np.asarray(pairs[order])


def _result(task: ConnectTask, found: Curves, lines: int, distances: Float[np.ndarray, "pair"]) -> Result:
    names = task.names
    where: dict[str, Any] = {}
    rows: list[Row] = []
    arrays = {"alphas": found.alphas, "pairs": found.pairs}
    for loss, values in found.losses.items():
        arrays[f"line {loss}"] = values
        for run, name in enumerate(names):
            line, end = next((i, e) for i, pair in enumerate(found.pairs) for e in (0, 1) if pair[e] == run)
            point = -1 if end else 0
            columns = where | {"metric": loss, "definition": OWN, "item": name}
            if loss in found.each:
                sums = found.each[loss][line, point]
                rows.append(Row.of(stats.ratio(sums[:, 0], sums[:, 1], unit=UNIT), **columns))
            else:
                rows.append(Row(value=float(values[line, point]), **columns))
        heights: dict[str, Any] = {how: partial(height, how=how) for how in HEIGHTS} | {RISE: _rise}
        for i, curve in enumerate(values):
            a, b = found.pairs[i] if i < lines else found.pairs[i - lines]  # a control belongs to the line with the same start
            columns = where | {"item": f"{names[a]} – {names[b]}", "condition": ESTIMATE if i < lines else RANDOM}
            if loss in found.each:
                sums = found.each[loss][i]  # point, example, 2
                estimates = stats.functions_of_ratios(sums[..., 0].T, sums[..., 1].T, heights, unit=UNIT)
                rows += [Row.of(e, **columns, **_defined(loss, how)) for how, e in estimates.items()]
            else:
                rows += [Row(value=float(of(curve)), **columns, **_defined(loss, how)) for how, of in heights.items()]
    for (a, b), value in zip(found.pairs[:lines], distances):
        columns = where | {"item": f"{names[a]} – {names[b]}", "metric": "distance"}
        rows.append(Row(value=float(value), **columns, definition="Euclidean, of all weights"))
    return Result.of(rows, arrays=arrays, notes=task.notes)


def _with_basins(result: Result, task: ConnectTask, found: Curves, pairs: Pairs, distances: Float[np.ndarray, "pair"]) -> Result:
    """With clusters of the runs, from the lines without controls."""
    lines = Curves(len(task.names), pairs, found.alphas, {k: v[: len(pairs)] for k, v in found.losses.items()})
    where: dict[str, Any] = {}
    more = basins_of(lines, lines.filled(distances), task.names, task.groups, where)
    both = concat([result, more])
    return Result(both.table, {**both.arrays, "gaps": lines.matrix("loss", GAP)}, both.side, both.notes)


def _defined(loss: str, how: str) -> dict[str, Any]:
    return {"metric": metric_of(loss, how), "definition": _DEFINITIONS[how]}


def _rise(losses: Float[np.ndarray, "*curve point"]) -> Float[np.ndarray, "*curve"]:
    risen: Float[np.ndarray, "*curve"] = losses.max(-1) - losses[..., 0]
    return risen
