"""The section of the `brain` page on digital twins: the twin against its ceiling, what it recovers, and held-out neurons."""

from typing import Any

import numpy as np
import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.report.charts import grids, layers, neurons
from repscope.report.page import Figure, Item, Section, Table
from repscope.report.tables import cell
from repscope.report.text import format_estimate
from repscope.results import records, select
from repscope.studies.brain import parts
from repscope.studies.run.study import Record

_SCORES = ("CCnorm", "CCabs", "CCmax", "FEVE", "oracle correlation")
_FOUND = ("centres within one pixel", "error of preferred orientation", "signal correlation recovered")


def section(record: Record[Any], said: str) -> Section:
    """The section. said: the verdict on this part, or nothing."""
    items: list[Item] = [_ceiling(record), _centres(record), scores(record.table)]
    if parts.HELD_OUT in record.results:
        items.append(curve(record.table))
    if parts.RECORDED in record.results:
        items.insert(0, _recorded(record.table))
    text = (
        f"{said}\n\nA twin predicts each neuron's response to any stimulus. Look for points near the diagonal: the "
        f"prediction is as "
        "good as repeats of the recording allow. The neurons are simulated, so that their receptive fields are known; three in ten "
        "are complex cells, which no linear filter describes."
    )
    return Section("Does a digital twin recover what neurons encode?", text.strip(), tuple(items))


def curve(table: pd.DataFrame) -> Figure:
    """CCnorm of held-out neurons against minutes of their data."""
    rows = select(table, step=parts.HELD_OUT, metric="CCnorm of held-out neurons")
    frame = rows.assign(dose=[float(split.split()[0]) for split in rows["split"]])
    return Figure(
        grids.dose(frame, x_title="minutes of data", value_title="CCnorm", share=False, log=True),
        "Held-out neurons: performance against minutes of their data",
        "New neurons on the frozen core of the twin, one image per second. Controls: one linear filter per neuron, and the same "
        "readouts on a core that was never trained. Mean over neurons, 95 % intervals over them.",
    )


def _ceiling(record: Record[Any]) -> Figure:
    held = record.results[parts.FITTED].side["neurons"]
    frame = pd.concat(
        [
            pd.DataFrame({"x": held["CCmax"], "y": held[column], "group": label, "name": held["neuron"]})
            for column, label in (("CCabs", "twin"), ("CCabs of the LN model", "LN model"))
        ]
    )
    frame = frame[np.isfinite(frame["x"]) & np.isfinite(frame["y"])]
    return Figure(
        neurons.against_ceiling(frame, x_title="ceiling (CCmax)", y_title="CCabs"),
        "The twin against the noise ceiling, per neuron",
        "CCabs is the correlation of the prediction with the mean over repeats; CCnorm is the ratio of both axes. "
        "Neurons without a signal have no ceiling and are left out.",
        small=True,
    )


def _centres(record: Record[Any]) -> Figure:
    held = record.results[parts.FITTED].side["neurons"]
    frame = pd.concat(
        [
            pd.DataFrame({"name": held["neuron"] + f", {axis}", "true": held[axis], "predicted": held[f"{axis} found"]})
            for axis in ("row", "column")
        ]
    )
    return Figure(
        layers.predicted_against_true(frame, "pixels"),
        "Receptive-field centres: planted and found",
        "One point per neuron and axis; the centre of what a neuron's predicted rate is sensitive to.",
        small=True,
    )


def scores(table: pd.DataFrame) -> Table:
    """All numbers of the fitted twin."""
    rows = select(table, step=parts.FITTED)
    lines = []
    for metric in (*_SCORES, *_FOUND):
        found = {r["condition"]: r for r in records(rows, metric=metric)}
        if ESTIMATE in found:
            line = {"number": metric, "twin": format_estimate(found.pop(ESTIMATE))}
            line["control"] = ", ".join(f"{name}: {format_estimate(row)}" for name, row in found.items()) or "–"
            lines.append(line)
    caption = (
        "95 % intervals over neurons. Errors of orientation are in degrees; signal correlations are compared with the true ones."
    )
    return Table(pd.DataFrame(lines), "What the twin recovers", caption)


def _recorded(table: pd.DataFrame) -> Table:
    rows = select(table, step=parts.RECORDED)
    lines = []
    for metric in _SCORES:
        found = {r["condition"]: r for r in records(rows, metric=metric)}
        if ESTIMATE in found:
            cells = {"twin": format_estimate(found[ESTIMATE]), "LN model": cell(found.get("LN model"))}
            lines.append({"number": metric, **cells})
    return Table(pd.DataFrame(lines), "A twin of your recording", "On repeated test images; 95 % intervals over neurons.")
