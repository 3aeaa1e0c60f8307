"""`repscope connect`: losses along the straight lines between networks, as a folder beside the runs, with a page.

1. `connected_subject` finds the networks and the data; nothing is written before all of it is sound.
2. The folder's name holds a digest of what the numbers depend on: weights, data, options, version. Losses of networks too large to
   stack are kept in it point by point, so that a killed run goes on.
3. Every line gets all heights of `connectivity.HEIGHTS` for every loss, with intervals over examples, which are drawn for
   all points of a line together. Every run gets its own losses, every pair its Euclidean distance.
4. Control: from the start of the first lines, as far tensor by tensor, to an end in a random direction. A low barrier between two
   fine-tunings of one network says as much as the loss rises there. That end is no trained network: a line to it may be uphill all
   the way and have no barrier, so that lines and controls are compared by their *rise*, the largest loss minus that of the first
   network.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from repscope import __version__, stats
from repscope.conditions import ESTIMATE, RANDOM
from repscope.disk import whole_file
from repscope.errors import UserError
from repscope.report.page import write
from repscope.results import Result, Row, concat
from repscope.studies.connect.basins import LEAST, basins_of, sentence
from repscope.studies.connect.page import page
from repscope.studies.connect.task import Asked, ConnectTask, Pairs, subject
from repscope.trace.barriers import GAP, HEIGHTS, height
from repscope.trace.interpolation import Curves, all_pairs

STEP = "connect"
OWN = "of the run itself"
RISE = "rise"
UNIT = "example"
_LIBRARIES = ("torch", "transformers", "numpy")
_CELLS = "cells.jsonl"
_MOST_POINTS = 60  #: the convexity gap looks at every part of a line, for every draw of its interval


@dataclass(frozen=True)
class Connected:
    """Networks that were connected: what was asked, what between, the numbers, seconds, the folder."""

    asked: Asked
    subject: ConnectTask
    result: Result
    seconds: float
    folder: Path

    @property
    def answer(self) -> list[str]:
        """What a reader is told first: the plain loss, then its twins on other splits."""
        table = self.result.table
        losses = [str(m) for m in table[table["definition"] == OWN]["metric"].unique() if m.endswith("loss")]
        said = [_sentence(self, loss) for loss in losses]
        return [*said, *filter(None, [sentence(self.result)])] if "clusters" in self.result.side else said


def metric_of(loss: str, how: str) -> str:
    """The name of a height in the table: a barrier without its name is not a number."""
    return f"{how} of {loss}" if how in (GAP, RISE) else f"{how} barrier of {loss}"


def connected(asked: Asked, out: Path, *, fresh: bool = False) -> Connected:
    """Measure losses along all lines, and write them.

    Parameters
    ----------
    asked
        What to connect.
    out
        Folder of all runs.
    fresh
        Start anew, not where a killed run stopped.

    Raises
    ------
    UserError
        For a mistake in what was asked.
    """
    if asked.points < 3:
        raise UserError(f"A path of {asked.points} points has no inside; take at least 3.")
    if asked.points > _MOST_POINTS:
        raise UserError(f"{asked.points} points are more than a line needs; take at most {_MOST_POINTS}.")
    if asked.controls < 0 or (asked.examples is not None and asked.examples < 1):
        raise UserError("Controls are 0 or more, and examples at least 1; leave --examples away for all.")
    started = time.perf_counter()
    between = subject(asked)
    pairs = _spread(all_pairs(len(between.names)), asked.controls, between.arm)
    folder = out / _name(asked, between)
    cells = folder / _CELLS
    if fresh:
        cells.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".lock").touch()  # what makes a folder a run
    controls = min(asked.controls, len(pairs))
    try:
        found = between.walk(pairs, controls, cells)
    except UserError:
        if not cells.is_file() and not (folder / "report.html").is_file():  # a mistake leaves no run behind
            shutil.rmtree(folder)
        raise
    distances = between.distances(pairs)
    result = _result(between, found, len(pairs), distances)
    if len(between.names) >= LEAST:
        result = _with_basins(result, between, found, pairs, distances)
    made = Connected(asked, between, result, time.perf_counter() - started, folder)
    _written(made)
    return made


def _spread(pairs: Pairs, first: int, arm: Shaped[np.ndarray, "run"] | None) -> Pairs:
    """The pairs with those that get a control in front: evenly over all, where arms are known half of them across arms."""
    across = np.zeros(len(pairs), dtype=bool) if arm is None else arm[pairs[:, 0]] != arm[pairs[:, 1]]
    halves = [np.flatnonzero(across), np.flatnonzero(~across)]
    counts = [min(len(halves[0]), (first + 1) // 2), 0]
    counts[1] = min(len(halves[1]), first - counts[0])
    taken = [half[np.linspace(0, len(half) - 1, count).astype(int)] for half, count in zip(halves, counts) if count]
    front = np.concatenate(taken) if taken else np.zeros(0, dtype=int)
    order = np.concatenate([front, np.setdiff1d(np.arange(len(pairs)), front)])
    return np.asarray(pairs[order])


def rows_of(found: Connected) -> list[dict[str, Any]]:
    """A row a pair and loss: losses of the ends, the four heights with intervals, and the chord barrier of the control."""
    table = found.result.table
    by = {(str(r["item"]), str(r["metric"]), str(r["condition"])): r for r in table.to_dict("records")}
    rows = []
    for a, b in all_pairs(len(found.subject.names)):
        ends = [found.subject.names[i] for i in (a, b)]
        item = " – ".join(ends)
        for loss in table[table["definition"] == OWN]["metric"].unique():
            row = {"pair": item, "loss": str(loss)}
            row |= {f"at {w} end": f"{by[e, loss, ESTIMATE]['value']:.4g}" for w, e in zip(("one", "the other"), ends)}
            heights = {how: interval(by[item, metric_of(loss, how), ESTIMATE]) for how in HEIGHTS}
            risen = {c: by.get((item, metric_of(loss, RISE), c)) for c in (ESTIMATE, RANDOM)}
            row |= {"chord": heights["chord"]}
            row |= {RISE if c == ESTIMATE else f"{RISE}, {c}": interval(r) if r else "–" for c, r in risen.items()}
            row |= heights
            rows.append(row)
    return rows


def interval(row: Mapping[Any, Any]) -> str:
    """A number and its interval, three digits; of what comes out at rounding's size only that it does."""
    value, lo, hi = (0.0 if abs(row[c]) < 5e-7 else float(row[c]) for c in ("value", "lo", "hi"))
    return f"{value:.3g}" if np.isnan(lo) else f"{value:.3g} [{lo:.3g}, {hi:.3g}]"


def _name(asked: Asked, between: ConnectTask) -> str:
    options = {k: v for k, v in asdict(asked).items() if k not in ("models", "data")}
    key = json.dumps([between.names, between.fingerprint, between.digest, options, __version__])
    names = between.names[:2] if len(between.names) == 2 else (between.names[0], f"{len(between.names)}-runs")
    said = "-".join("".join(c if c.isalnum() or c in "._-" else "-" for c in name)[-24:].strip("-") for name in names)
    return f"{STEP}-{said}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"


def _result(between: ConnectTask, found: Curves, lines: int, distances: Float[np.ndarray, "pair"]) -> Result:
    names = between.names
    where: dict[str, Any] = {"study": STEP, "step": STEP, "model": between.fingerprint}
    rows: list[Row] = []
    arrays = {"alphas": found.alphas, "pairs": found.pairs}
    for loss, values in found.losses.items():
        arrays[f"line {loss}"] = values
        for run, name in enumerate(names):
            line, end = next((i, e) for i, pair in enumerate(found.pairs) for e in (0, 1) if pair[e] == run)
            point = -1 if end else 0
            told = where | {"metric": loss, "definition": OWN, "item": name}
            if loss in found.each:
                sums = found.each[loss][line, point]
                rows.append(Row.of(stats.ratio(sums[:, 0], sums[:, 1], unit=UNIT), **told))
            else:
                rows.append(Row(value=float(values[line, point]), **told))
        heights: dict[str, Any] = {how: partial(height, how=how) for how in HEIGHTS} | {RISE: _rise}
        for i, curve in enumerate(values):
            a, b = found.pairs[i] if i < lines else found.pairs[i - lines]  # a control stands for the line it is beside
            told = where | {"item": f"{names[a]} – {names[b]}", "condition": ESTIMATE if i < lines else RANDOM}
            if loss in found.each:
                sums = found.each[loss][i]  # point, example, 2
                made = stats.functions_of_ratios(sums[..., 0].T, sums[..., 1].T, heights, unit=UNIT)
                rows += [Row.of(e, **told, metric=metric_of(loss, how), definition=_said(how)) for how, e in made.items()]
            else:
                rows += [
                    Row(value=float(of(curve)), **told, metric=metric_of(loss, how), definition=_said(how))
                    for how, of in heights.items()
                ]
    for (a, b), value in zip(found.pairs[:lines], distances):
        told = where | {"item": f"{names[a]} – {names[b]}", "metric": "distance"}
        rows.append(Row(value=float(value), **told, definition="Euclidean, of all weights"))
    return Result.of(rows, arrays=arrays, notes=between.notes)


def _with_basins(result: Result, between: ConnectTask, found: Curves, pairs: Pairs, distances: Float[np.ndarray, "pair"]) -> Result:
    """With clusters of the runs, from the lines between them alone."""
    lines = Curves(len(between.names), pairs, found.alphas, {k: v[: len(pairs)] for k, v in found.losses.items()})
    where: dict[str, Any] = {"study": STEP, "step": STEP, "model": between.fingerprint}
    more = basins_of(lines, lines.filled(distances), between.names, between.arm, where)
    both = concat([result, more])
    return Result(both.table, {**both.arrays, "gaps": lines.matrix("loss", GAP)}, both.side, both.notes)


def _said(how: str) -> str:
    return {
        "chord": "max(0, largest loss above the straight line between the ends' losses)",
        "larger endpoint": "largest loss minus the larger of the ends' losses",
        "mean endpoint": "largest loss minus the mean of the ends' losses",
        GAP: "largest chord barrier over all contiguous parts",
        RISE: "largest loss minus that of the first network",
    }[how]


def _rise(losses: Float[np.ndarray, "*curve point"]) -> Float[np.ndarray, "*curve"]:
    risen: Float[np.ndarray, "*curve"] = losses.max(-1) - losses[..., 0]
    return risen


def _sentence(found: Connected, loss: str) -> str:
    unit, several = found.subject.unit, len(found.subject.names) > 2
    chord, _ = _pooled(found.result, metric_of(loss, "chord"), f" {unit}", matched=False)
    risen, control = _pooled(found.result, metric_of(loss, RISE))
    if several:
        lines = len(all_pairs(len(found.subject.names)))
        said = f"Over {lines} lines between {len(found.subject.names)} runs the chord barrier of the {loss} is {chord}"
    else:
        said = f"From {' to '.join(found.subject.names)} the chord barrier of the {loss} is {chord}"
    if not control:
        return f"{said}."
    which = "; on those with a control it rises" if several else "; it rises"
    count = len(found.result.select(metric=metric_of(loss, RISE), condition=RANDOM))
    values = found.result.arrays[f"line {loss}"][:count]
    own = float(np.median(np.maximum(0.0, values[:, -1] - values[:, 0])))
    ends = f" ({own:.3g} of it the second network's own loss)" if own > 5e-7 else ""
    return f"{said}{which} by {risen} above the first network's{ends}, and by {control} as far in a random direction."


def _pooled(result: Result, metric: str, unit: str = "", *, matched: bool = True) -> tuple[str, str]:
    """A metric on the lines (`matched`: those with controls) and on the controls: of one its interval, of several the range."""
    said = []
    controls = result.select(metric=metric, condition=RANDOM)["item"]
    for condition in (ESTIMATE, RANDOM):
        rows = result.select(metric=metric, condition=condition)
        if matched and len(controls):
            rows = rows[rows["item"].isin(controls)]
        values = rows["value"]
        if len(rows) < 2:
            said.append(interval(rows.iloc[0].to_dict()) + unit if len(rows) else "")
        else:
            said.append(f"{values.median():.3g}{unit} in the median ({values.min():.3g} to {values.max():.3g})")
    return said[0], said[1]


def _written(made: Connected) -> None:
    folder, asked = made.folder, made.asked
    made.result.save(folder / "result")
    with whole_file(folder / "results" / f"{STEP}.parquet") as partial_file:
        made.result.table.to_parquet(partial_file, index=False)
    versions = {"repscope": __version__} | {name: version(name) for name in _LIBRARIES}
    facts = {
        "study": STEP,
        "model": f"{len(made.subject.names)} × {made.subject.kind}",
        "fingerprint": made.subject.fingerprint,
        "options": asdict(asked),
        "data": made.subject.data,
        "said": made.answer,
        "versions": versions,
        "seconds": round(made.seconds, 1),
    }
    with whole_file(folder / "study.json") as partial_file:
        partial_file.write_text(json.dumps(facts, indent=2))
    told = {
        "Networks": f"{', '.join(made.subject.names)} ({made.subject.kind})",
        "Fingerprint of all weights": made.subject.fingerprint,
        "Judged on": made.subject.data,
        "Options": ", ".join(f"{k} {v}" for k, v in asdict(asked).items() if k not in ("models", "data") and v is not None),
        "Seconds": f"{made.seconds:.0f}",
        "Versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
    }
    write(page(made.answer, made.subject.names, made.result, rows_of(made), made.subject.unit, told), folder / "report.html")
