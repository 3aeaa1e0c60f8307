"""Figures and tables of the `bayes` pages: curves by number of examples or symbols, the headline, the key numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.report.charts import grids
from repscope.report.page import Figure, Table
from repscope.report.tables import cell
from repscope.report.text import format_estimate
from repscope.results import records
from repscope.studies.bayes import names


def curves(table: pd.DataFrame, metric: str, titles: Sequence[str], conditions: Sequence[str]) -> pd.DataFrame:
    """Rows of a metric on these kinds of texts, with title, length and dose as columns."""
    rows = table[(table["metric"] == metric) & table["condition"].isin(conditions)]
    known = [names.parts(item) for item in rows["item"]]
    rows = rows.assign(title=[k[0] for k in known], length=[k[1] for k in known], dose=[k[2] for k in known])
    rows = rows[rows["title"].isin(titles)]
    return rows.assign(item=[names.series(t, n) for t, n in zip(rows["title"], rows["length"])])


def lengths(table: pd.DataFrame, titles: Sequence[str]) -> list[int]:
    """Lengths of examples on these kinds of texts, in order; 0 where texts are documents."""
    return sorted(set(curves(table, names.KL, titles, (ESTIMATE,))["length"]))


def figure(rows: pd.DataFrame, title: str, said: str, caption: str, *, share: bool, small: bool = True) -> Figure:
    """Values by number of examples, or of symbols where texts are documents."""
    documents = bool(len(rows)) and not rows["length"].any()
    x_title = "symbols seen" if documents else "examples before the query"
    return Figure(grids.dose(rows, x_title=x_title, value_title=said, share=share, log=documents), title, caption, small=small)


def headline(table: pd.DataFrame, titles: Sequence[str], conditions: Sequence[str]) -> Figure:
    """Accuracy at the shortest examples, with ceilings and controls."""
    length = lengths(table, titles)[0]
    metric = names.CLEAR if not curves(table, names.CLEAR, titles, conditions).empty else names.ACCURACY
    rows = curves(table, metric, titles, conditions)
    rows = rows[rows["length"] == length]
    by = f"number of examples, {length} symbols each" if length else "number of symbols seen"
    clear = (" on clear labels", f", where its margin is at least {names.CLEAR_MARGIN}") if metric == names.CLEAR else ("", "")
    aware = "; format-aware Bayes also knows the format" if names.AWARE in set(rows["condition"]) else ""
    return figure(
        rows,
        f"Accuracy{clear[0]} by {by}",
        "accuracy",
        f"Share of texts whose most probable next symbol is the oracle's{clear[1]}. Pretraining Bayes is what next-token training "
        f"converges to, the ceiling of a network that reads the text as a document{aware}. Bands: 95 % over texts.",
        share=True,
        small=False,
    )


def key(table: pd.DataFrame, beside: Sequence[str], untrained: str, subject: str = "networks") -> Table:
    """Distances per token, rises and changes, with the same numbers of these conditions.

    untrained: the control of distances. subject: heading of the estimates.
    """
    lines = []
    for row in records(table, metric=names.TOKEN_KL, condition=ESTIMATE):
        at = {r["condition"]: r for r in records(table, metric=names.TOKEN_KL, item=row["item"])}
        lines.append(_line(f"nats per token from Bayes, {row['item']}", row, at, (*beside, untrained)))
    for metric, said in ((names.RISE, "rise of accuracy"), (names.CHANGE, "change of KL to Bayes")):
        rows = table[table["metric"] == metric]
        for item, split in dict.fromkeys(zip(rows["item"], rows["split"])):
            here = rows[(rows["item"] == item) & (rows["split"] == split)]
            at = {r["condition"]: r for r in records(here)}
            own = at.get(ESTIMATE) or at.get(names.ONE)
            if own is not None:
                lines.append(_line(f"{said}, {item}, {split}", own, at, (*beside, untrained)))
    caption = "With 95 % intervals over prompts, for numbers per token over documents; means over networks if there are several."
    return Table(pd.DataFrame(lines).rename(columns={"networks": subject}), "Key numbers", caption)


def _line(what: str, own: Mapping[Any, Any], at: Mapping[str, Any], beside: Sequence[str]) -> dict[str, Any]:
    cells = {c: cell(at.get(c)) for c in beside}
    return {"number": what, "networks": format_estimate(own), **cells, "n": own["n"]}
