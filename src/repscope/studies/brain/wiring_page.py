"""The section of the `brain` page on wiring and function: simulated connectomes, and the user's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from repscope.align.structure_function import rows as wiring
from repscope.bench import wiring as bench
from repscope.conditions import ESTIMATE
from repscope.report.charts import layers, neurons
from repscope.report.page import Figure, Item, Section, Table
from repscope.report.tables import cell, wide
from repscope.report.text import format_estimate
from repscope.results import first_row, records, select
from repscope.studies.brain import parts
from repscope.studies.run.study import Record

_KINDS = {"synapses": "synapses", "exposure": "contact or co-travel", "function": "function"}
_INFERENCES = {
    ESTIMATE: "jackknife over cells",
    wiring.NAIVE: "Wald, pairs as independent",
    wiring.PERMUTED: "cells permuted (null)",
}


def sections(record: Record[Any], said: str, given: str) -> list[Section]:
    """The sections. said: the verdict on simulated connectomes; given: those on the user's, or nothing."""
    found = [_given(record, given)] if {parts.SIMILARITY_OF, parts.SIGNALS_OF} & set(record.results) else []
    return [*found, _simulated(record, said), _common_input(record)]


def slopes(table: pd.DataFrame, step: str) -> Figure:
    """Like-to-like slopes with their controls, of each connectome."""
    rows = select(table, step=step, metric=wiring.SLOPE)
    rows = rows[~rows["condition"].str.startswith(wiring.PRE_ALONE)]  # in the table
    return Figure(
        layers.by_item(rows, title="log rate of synapses per unit of similarity", share=False),
        "Like-to-like slope",
        "Estimate: with its interval over cells. Pairs taken as independent: the naive Wald interval, too narrow. Permuted cells: "
        "the range of slopes if similarity has nothing to do with wiring. Rewired: connectomes with the same numbers of partners.",
    )


def inferences(table: pd.DataFrame, step: str) -> Table:
    """The slope under three inferences, and in other models."""
    lines = []
    for item in dict.fromkeys(select(table, step=step, metric=wiring.SLOPE)["item"]):
        rows = select(table, step=step, item=item)
        at = {r["condition"]: r for r in records(rows, metric=wiring.SLOPE)}
        p = {r["condition"]: r["value"] for r in records(rows, metric=wiring.P, definition=wiring.SLOPE)}
        for model in (ESTIMATE, wiring.PRE_ALONE, wiring.NO_OFFSET, f"{wiring.PRE_ALONE}, no offset"):
            if model in at:
                line = {"connectome": item, "model": "effects of both cells, exposure" if model == ESTIMATE else model}
                shown = _INFERENCES if model == ESTIMATE else {model: _INFERENCES[ESTIMATE]}
                line |= {said: format_estimate(at[c]) for c, said in shown.items() if c in at}
                lines.append(line | {"p, cells permuted": f"{p[model]:.3g}" if model in p else "–"})
    caption = "Slope and its interval by three inferences. The null's interval is the range of the slopes of permuted cells."
    return Table(pd.DataFrame(lines).fillna("–"), "Like-to-like slope under three inferences", caption)


def shares(table: pd.DataFrame, step: str) -> Figure:
    """How often pairs have a functional link, by synapse and contact."""
    rows = select(table, step=step, metric=wiring.SHARE)
    return Figure(
        layers.by_item(rows[rows["condition"] != wiring.NAIVE], title="mean of the measure (share with a signal)", share=False),
        "Probability of a functional link by synapse and contact",
        "Estimate: pairs with a synapse. Compared with pairs in contact that have none, and with pairs that do not touch; 95 % "
        "intervals over cells.",
    )


def links(table: pd.DataFrame, step: str) -> Table:
    """Differences with a synapse, with their controls, and the same shares if pairs were independent."""
    rows = select(table, step=step)
    lines = []
    for item in dict.fromkeys(select(rows, metric=wiring.DIFFERENCE)["item"]):
        at = {r["condition"]: r for r in records(rows, metric=wiring.DIFFERENCE, item=item)}
        p = select(rows, metric=wiring.P, definition=wiring.DIFFERENCE, item=item)["value"].tolist()
        ratio = first_row(rows, metric=wiring.RATIO, item=item, condition=ESTIMATE)
        line = {"connectome": item, "difference with a synapse": format_estimate(at[ESTIMATE])}
        line["p, cells permuted"] = f"{p[0]:.3g}" if p else "–"
        for name in (wiring.MATCHED, wiring.REWIRED):
            line[name] = cell(at.get(name))
        lines.append(line | {"log ratio, effects of both cells": cell(ratio)})
    caption = (
        "Difference: pairs with a synapse minus pairs in contact without one. Matched pairs: the same presynaptic cell and equal "
        "contact. Rewired: what remains when synapses are rewired in proportion to contact, all numbers of partners kept."
    )
    return Table(pd.DataFrame(lines), "What a synapse adds", caption)


def _given(record: Record[Any], said: str) -> Section:
    table, items = record.table, list[Item]()
    name = ""
    drawn: dict[str, tuple[Callable[[pd.DataFrame, str], Item], ...]]
    drawn = {parts.SIMILARITY_OF: (slopes, inferences), parts.SIGNALS_OF: (shares, links)}
    for step, draw in drawn.items():
        if step in record.results:
            name = str(record.results[step].table["item"].iloc[0])
            items += [one(table, step) for one in draw]
            items += _matrices(record, step, name, "similarity" if step == parts.SIMILARITY_OF else "signals")
    if parts.INPUT_OF in record.results:
        items.append(_by_input(table))
    text = (
        f"{said}\n\nLook at whether the estimate leaves the range of its controls: permuted cells, rewired "
        f"connectomes, and pairs matched "
        "on contact. Pairs of cells share cells, so that an interval that takes pairs as independent is too narrow."
    )
    return Section(f"Wiring and function: {name}", text.strip(), tuple(items))


def _by_input(table: pd.DataFrame) -> Table:
    rows = select(table, step=parts.INPUT_OF)
    lines = [
        {"number": row["metric"], "value": format_estimate(row)}
        for row in records(rows)
        if row["metric"] in (parts.INPUT, parts.BEYOND)
    ]
    p = select(rows, metric=wiring.P)["value"].tolist()
    caption = (
        f"Mean similarity of cells with input from the same cells minus that of all pairs (p = {p[0]:.3g}, cells permuted), and "
        "what the slope of like-to-like leaves of it; 95 % intervals over cells."
    )
    return Table(pd.DataFrame(lines), "Do cells with common input respond alike?", caption)


def _matrices(record: Record[Any], step: str, name: str, kind: str) -> list[Item]:
    held = {key.rpartition("/")[2]: x for key, x in record.results[step].arrays.items() if key.startswith(f"{name}, ")}
    order = _order(held["function"])
    return [
        Figure(
            neurons.matrix(
                held[key][np.ix_(order, order)],
                x_title="postsynaptic" if key != "function" or kind == "signals" else "cell",
                y_title="presynaptic" if key != "function" or kind == "signals" else "cell",
                value_title=kind if key == "function" else title,
            ),
            f"{name}: {kind if key == 'function' else title}",
            "Cells in one order, that of the leading pattern of the functional measure. White: not measured. Large matrices are "
            "drawn as means of blocks.",
            small=True,
        )
        for key, title in _KINDS.items()
        if key in held
    ]


def _order(function: np.ndarray) -> np.ndarray:
    """Cells by the leading singular vector of the measure, what was not measured at its mean."""
    x = np.asarray(function, dtype=np.float64)
    off = ~np.eye(len(x), dtype=bool)
    mean = float(np.nanmean(x[off]))
    filled = np.where(off & np.isfinite(x), x - mean, 0.0)
    return np.argsort(np.linalg.svd(filled + filled.T)[0][:, 0], kind="stable")


def _simulated(record: Record[Any], said: str) -> Section:
    table = record.table
    given = {parts.SIMILARITY_OF, parts.SIGNALS_OF} & set(record.results)
    absent = (
        ""
        if given
        else " No recorded connectome was given (--connectome, --microns FOLDER; --connectome worm for C. elegans), so "
        "that nothing here is about an animal. No tables of mouse cortex come with repscope."
    )
    text = (
        f"{said}\n\nThe truth is known: synapses follow the similarity of cells, or other features that nobody "
        f"measured. Look at the "
        "connectomes without like-to-like: a valid test finds it in 5 % of them; a test that takes pairs as "
        "independent finds it far "
        f"more often.{absent}"
    )
    items: list[Item] = [rates(table, parts.LIKE_TO_LIKE, bench.LIKE), _holds(table), slopes(table, parts.LIKE_TO_LIKE)]
    items += [inferences(table, parts.LIKE_TO_LIKE)]
    items += _matrices(record, parts.LIKE_TO_LIKE, parts.simulated(bench.PLANTED), "similarity")
    items += [rates(table, parts.SIGNALS, bench.SIGNALS), shares(table, parts.SIGNALS), links(table, parts.SIGNALS)]
    return Section("Would the tests find wiring that follows function?", text.strip(), tuple(items))


def rates(table: pd.DataFrame, step: str, metric: str) -> Figure:
    """In what share of connectomes each test finds something."""
    title = "How often is like-to-like found?" if metric == bench.LIKE else "How often do synapses seem to carry signals?"
    return Figure(
        layers.by_item(select(table, step=step, metric=metric), title="share of connectomes"),
        title,
        "Estimate: cells permuted, p ≤ .05. Where there is nothing to find, 5 % is right. 95 % intervals over connectomes.",
        small=True,
    )


def _holds(table: pd.DataFrame) -> Table:
    rows = select(table, step=parts.LIKE_TO_LIKE, metric=bench.HOLDS)
    names = {ESTIMATE: "interval over cells", wiring.NAIVE: "Wald, pairs as independent"}
    found = wide(rows.assign(condition=rows["condition"].map(names)), "item", "condition")
    caption = "Nominal: 95 %. In brackets: 95 % intervals over connectomes."
    return Table(found, "How often do intervals contain the true slope?", caption)


def _common_input(record: Record[Any]) -> Section:
    text = (
        "Two cells that get input from a third are correlated, whether or not a synapse between them carries anything. Look at "
        "common input, by correlation: neighbours and cells of one type share input and have synapses, so that a synapse goes "
        "along with correlation although it carries nothing. Permuting cells is right to reject, as wiring and correlation are not "
        "independent; it says nothing about the cause. Matching on contact removes what contact explains; matching on common input "
        "needs the cells that drive others in the connectome. Stimulation finds links only where synapses carry them."
    )
    figure = Figure(
        layers.by_item(select(record.table, step=parts.COMMON_INPUT, metric=bench.LINK), title="share of networks"),
        "How often does a synapse seem to link two cells?",
        "Items: what carries activity, and how links were measured. Estimate: pairs with a synapse have more, p ≤ .05, cells "
        "permuted. Matched: the interval over cells is above 0 compared with unconnected pairs of equal contact, or of equal "
        "input from the same cells. 95 % intervals over networks.",
    )
    return Section("Common input", text, (figure,))
