"""The section of the `brain` page on self and other: the matrix of decoders with its calibration, and the user's trials."""

from typing import Any

import pandas as pd

from repscope.align.self_other.cross_decoding import WITHIN
from repscope.bench import sharing as bench
from repscope.conditions import ESTIMATE
from repscope.report.charts import grids, layers
from repscope.report.page import Figure, Item, Section, Table
from repscope.report.text import format_estimate
from repscope.results import records, select
from repscope.studies.brain import parts
from repscope.studies.run.study import Record

_AGENTS = ("self", "other")
_KINDS = {"shared": "shared population", "separate": "separate populations", "stimulus": "stimulus predicts outcomes"}


def section(record: Record[Any], said: str) -> Section:
    """The section. said: the verdicts on this part, or nothing."""
    table = record.table
    items: list[Item] = []
    if parts.TRIALS in record.results:
        items += [matrix(table, parts.TRIALS), controls(table, parts.TRIALS)]
    items += [matrix(table, parts.DECODED), _found(table), controls(table, parts.DECODED), _wiring(table)]
    absent = (
        ""
        if parts.TRIALS in record.results
        else " No trials of animals were given (--trials FILE): all numbers are of simulated networks."
    )
    text = (
        f"{said}\n\nA decoder of an agent's own outcomes is tested on outcomes that it only observes, and back. Look at the "
        "cells off the diagonal: where the code is shared, they are as large as those on it. Chance is 0.5. The "
        "third kind of network "
        "is a trap: its codes are separate, but what is shown predicts outcomes, so that decoders work across agents; permuted "
        f"labels and matched stimuli show why.{absent}"
    )
    return Section("Does a network code others' outcomes as its own?", text.strip(), tuple(items))


def matrix(table: pd.DataFrame, step: str) -> Figure:
    """Mean AUC by the agent that the decoder was fitted on and the agent that it was tested on."""
    rows = select(table, step=step, metric=bench.AUC)
    lines = []
    for item in dict.fromkeys(rows["item"]):
        for source in _AGENTS:
            for target in _AGENTS:
                split, condition = (source, WITHIN) if source == target else (f"{source} to {target}", ESTIMATE)
                for row in records(rows, item=item, split=split, condition=condition):
                    label = f"{item}, " if item in _KINDS else ""
                    at = {"x": f"tested on {target}", "y": f"{label}fitted on {source}"}
                    lines.append(at | {k: row[k] for k in ("value", "lo", "hi", "n")})
    simulated = step == parts.DECODED
    return Figure(
        grids.grid(pd.DataFrame(lines), x_title="", y_title="", value_title="AUC"),
        "Self–other matrix of simulated networks" if simulated else "Self–other matrix of your trials",
        "Area under the ROC curve of held-out trials (diagonal: same agent). "
        + (
            "Shared or separate populations, or a stimulus that predicts outcomes; mean over networks."
            if simulated
            else "95 % intervals over trials."
        ),
    )


def controls(table: pd.DataFrame, step: str) -> Figure:
    """AUCs across agents with their controls."""
    rows = select(table, step=step, metric=bench.AUC)
    rows = rows[rows["condition"] != WITHIN]
    rows = rows.assign(item=[f"{_KINDS.get(item, 'your trials')}, {split}" for item, split in zip(rows["item"], rows["split"])])
    return Figure(
        layers.by_item(rows, title="AUC across agents"),
        "Decoding across agents, with its controls",
        "Shuffled labels: the null. Identity decoder: a decoder of who acted, tested on outcomes. Matched stimuli: trials in "
        "which no stimulus predicts the outcome. Disjoint stimuli: fitted and tested on different stimuli.",
        small=step == parts.DECODED,
    )


def _found(table: pd.DataFrame) -> Figure:
    rows = select(table, step=parts.DECODED, metric=bench.FOUND)
    frame = rows.assign(name=[f"{_KINDS[item]}, {split}" for item, split in zip(rows["item"], rows["split"])])
    traps = [name for name in frame["name"] if not name.startswith(_KINDS["shared"])]
    return Figure(
        grids.points(frame, value_title="share of networks", controls=traps, label_limit=320, rule=0.05),
        "How often is a shared code found?",
        "A code counts as shared if both directions have p ≤ .05; the line is at 5 %. Grey: networks without a shared code. 95 % "
        "intervals over networks.",
        small=True,
    )


def _wiring(table: pd.DataFrame) -> Table:
    rows = records(table, step=parts.SHARED_WIRING, metric=bench.WIRED)
    lines = [{"synapses": row["item"], "wiring predicts shared coding": format_estimate(row), "networks": row["n"]} for row in rows]
    caption = (
        "Share of networks in which pairs of units with shared coding have more synapses (cells permuted, p ≤ .05): with synapses "
        "planted between shared units; without, where synapses still pass the code on; and with the synapses of another network, "
        "the null. 95 % intervals over networks."
    )
    return Table(pd.DataFrame(lines), "Does wiring predict shared coding?", caption)
