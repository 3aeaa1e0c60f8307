"""The page of `bench discovery`: which methods recover the planted directions, compared with the controls."""

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from repscope.bench import discovery, generators
from repscope.bench.methods import BENCH_METRICS
from repscope.conditions import ESTIMATE, RANDOM
from repscope.report.charts import layers
from repscope.report.page import Figure, Page, Section, Table
from repscope.results import records
from repscope.studies.bench_discovery.options import BenchOptions
from repscope.studies.bench_discovery.settings import SETTINGS
from repscope.studies.run.study import Answer, Record

_PRINTED = 8  #: columns that a terminal holds; the page has all


def number_rows(record: Record[BenchOptions], columns: int | None = None) -> list[dict[str, Any]]:
    """One row per network and method, one column per metric with its interval; at most `columns` metrics."""
    table = record.table[record.table["metric"] != "planted"]
    rows = []
    for (model, item), some in table.groupby(["model", "item"], sort=False):
        by = {str(row["metric"]): row for row in records(some)}
        shown = {c: _interval(by[c]) if c in by else "–" for c in SETTINGS[record.options.setting].columns[:columns]}
        rows.append({"network": str(model), "method": str(item), **shown})
    return rows


def _interval(row: Mapping[Hashable, Any]) -> str:
    value, lo, hi = (
        f"{row[c]:.0f}" if abs(row["value"]) >= 50 or row["metric"] == "cost" else f"{row[c]:.2f}" for c in ("value", "lo", "hi")
    )
    return value if lo == hi else f"{value} [{lo}, {hi}]"


def page(record: Record[BenchOptions]) -> Page:
    """Methods compared with the controls."""
    setting, table = SETTINGS[record.options.setting], record.table
    drawn = [
        Figure(layers.ranked(some, title=title), _capitalised(f"{metric}: {model}"), _capitalised(BENCH_METRICS[metric]) + ".")
        for metric, title in setting.drawn
        for model, some in table[table["metric"] == metric].groupby("model", sort=False)
    ]
    shown_here = [k for k in BENCH_METRICS if k in setting.columns]
    numbers = pd.DataFrame([{"number": k, "what it is": BENCH_METRICS[k]} for k in shown_here])
    methods = pd.DataFrame(number_rows(record))
    each = [Table(some.drop(columns="network"), f"Methods: {model}") for model, some in methods.groupby("network", sort=False)]
    items: list[Figure | Table] = [*drawn, *each, Table(numbers, "Numbers")]
    planted_rows = table[table["metric"] == "planted"]
    if len(planted_rows):
        shown = planted_rows[["item", "value", "lo", "hi", "n"]]
        items.insert(0, Table(shown, "How well the trigger is planted", str(planted_rows["definition"].iloc[0])))
    return Page(
        title="Direction discovery compared with planted ground truth",
        question="Which methods recover planted directions, and what do the others find?",
        answer="\n\n".join([_verdict(record), *_leading(record)]),
        sections=(
            Section(
                "Methods",
                setting.says + " Points are means over seeds, bars 95 % bootstrap intervals over them; random "
                "directions are the control, the oracle is the truth (of lm: made with the sentence itself as the objective), "
                "supervised directions are made from labels.",
                tuple(items),
            ),
        ),
        notes=tuple(_violations(record)),
    )


def _leading(record: Record[BenchOptions]) -> list[str]:
    """One sentence per network: the largest values of the first metric with a figure, and the controls."""
    metric, title = SETTINGS[record.options.setting].drawn[0]
    table = record.table[record.table["metric"] == metric]
    lines = []
    for model, some in table.groupby("model", sort=False):
        rows = sorted(records(some), key=lambda row: -row["value"])
        without = [row for row in rows if row["condition"] == ESTIMATE]
        others = [row for row in rows if row["condition"] in (RANDOM, "supervised", "oracle")]
        if without:
            values = "; ".join(f"{row['item']} {_interval(row)}" for row in [*without[:3], *others])
            lines.append(f"{_capitalised(str(model))}, {title}, the largest values and the controls: {values}.")
    return lines


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def answer(record: Record[BenchOptions]) -> Answer:
    """Whether the controls are as expected, and one row per method; exit code 1 if a control is not."""
    broken = _violations(record)
    more = {"passed": not broken, "rows": number_rows(record)}
    title = f"Discovery, {record.options.setting}"
    return Answer([_verdict(record)], number_rows(record, _PRINTED), title, more, not broken)


def _violations(record: Record[BenchOptions]) -> list[str]:
    """Violations of the benchmark's own controls."""
    found = record.results["bench"]
    of_images = [] if record.options.tiny else generators.violations(found)  # an untrained generator has no factors to tell apart
    return [*discovery.violations(found), *of_images]


def _verdict(record: Record[BenchOptions]) -> str:
    return " ".join(_violations(record)) or "The controls are as expected. Which method is best is a result, not a check."
