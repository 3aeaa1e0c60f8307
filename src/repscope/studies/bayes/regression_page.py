"""The part of the `bayes` page about in-context linear regression, and its line in the answer."""

import re
from typing import Any

import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.report.charts import grids
from repscope.report.page import Figure, Item, Section, Table
from repscope.report.text import format_estimate
from repscope.results import records, select
from repscope.trace.bayes.regression import DISTANCE, DMMSE, ERROR, NEARER, RIDGE, SOURCES, UNTRAINED

_ITEM = re.compile(rf"(?P<tasks>\d+|new) tasks, (?P<source>{'|'.join(SOURCES)})")


def section(table: pd.DataFrame) -> Section:
    """Errors and distances by number of pretraining tasks, with both exact predictors."""
    items: list[Item] = []
    for source in SOURCES:
        rows = _by_tasks(table, ERROR, source)
        rows = rows[rows["condition"].isin((ESTIMATE, DMMSE, RIDGE, UNTRAINED))]
        caption = {
            SOURCES[0]: "On tasks of the list, dMMSE is exact and nothing has a smaller error.",
            SOURCES[1]: "On new tasks ridge is exact. A network below dMMSE generalises beyond the tasks that it was trained on.",
        }[source]
        items.append(_figure(rows, f"Squared error, {source}", "squared error per dimension", caption))
    caption = "Above zero: nearer to ridge. With many tasks both predict almost the same: compare with untrained networks."
    rows = _by_tasks(table, NEARER, SOURCES[1])
    items.append(_figure(rows, f"Distance to dMMSE minus distance to ridge, {SOURCES[1]}", "difference", caption))
    items.append(Table(_numbers(table), "Regression", "Means over at least one pair; 95 % intervals over prompts."))
    text = (
        "The same question where tasks are vectors: networks learn to predict y from pairs (x, y). dMMSE knows the list of "
        "pretraining tasks, ridge knows only that tasks are normally distributed. "
        "Look for where the networks leave dMMSE as the list grows."
    )
    return Section("In-context linear regression", text, tuple(items))


def lines(table: pd.DataFrame) -> list[str]:
    """One sentence for the closing lines; none without the step."""
    rows = _by_tasks(table, NEARER, SOURCES[1])
    rows = rows[rows["condition"] == ESTIMATE].sort_values("dose")
    if rows.empty:
        return []
    few, many = rows.iloc[0], rows.iloc[-1]
    return [
        f"Regression: distance to dMMSE minus distance to ridge on unseen tasks is {format_estimate(dict(few))} "
        f"with {few['dose']:.0f} pretraining tasks and {format_estimate(dict(many))} "
        f"with {many['dose']:.0f} (negative: nearer to dMMSE)."
    ]


def _by_tasks(table: pd.DataFrame, metric: str, source: str) -> pd.DataFrame:
    """Rows of a metric without a number of pairs, with the number of pretraining tasks as `dose`."""
    rows = select(table, metric=metric)
    found = [_ITEM.fullmatch(item) for item in rows["item"]]
    keep = [m is not None and m["source"] == source and m["tasks"] != "new" for m in found]
    rows = rows[pd.Series(keep, index=rows.index, dtype=bool)]  # an empty list would drop the columns
    return rows.assign(dose=[int(item.split()[0]) for item in rows["item"]])


def _figure(rows: pd.DataFrame, title: str, said: str, caption: str) -> Figure:
    chart = grids.dose(rows, x_title="pretraining tasks", value_title=said, share=False, log=True)
    return Figure(chart, title, caption, small=True)


def _numbers(table: pd.DataFrame) -> pd.DataFrame:
    """One line per number of tasks and source."""
    found: list[dict[str, Any]] = []
    for item in dict.fromkeys(select(table, metric=ERROR, condition=ESTIMATE)["item"]):
        if not _ITEM.fullmatch(item):
            continue
        rows = select(table, item=item)
        error = {r["condition"]: format_estimate(r) for r in records(rows, metric=ERROR)}
        far = records(rows, metric=DISTANCE, condition=ESTIMATE)
        to = {r["definition"].split(",")[0].removeprefix("to "): format_estimate(r) for r in far}
        named = {"networks": error[ESTIMATE], **{c: error.get(c, "–") for c in (DMMSE, RIDGE, UNTRAINED)}}
        found.append(
            {"trained on, asked on": item}
            | {f"error of {c}": v for c, v in named.items()}
            | {f"networks to {c}": to.get(c, "–") for c in (DMMSE, RIDGE)}
        )
    return pd.DataFrame(found)
