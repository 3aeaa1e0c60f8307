"""The page of `connect`: losses along the lines, the matrix of barriers, the table of barriers by definition."""

from dataclasses import replace
from typing import Any

import pandas as pd

from repscope.conditions import ESTIMATE, RANDOM
from repscope.report.charts import lines, runs
from repscope.report.page import Figure, Page, Section, Table
from repscope.results import Result, records
from repscope.studies.connect.basins import section
from repscope.studies.connect.names import OWN, RISE
from repscope.studies.connect.options import ConnectOptions
from repscope.studies.connect.summary import height_rows, sentences
from repscope.studies.run.study import Answer, Record

_ENDS = ("at one end", "at the other end")
_PRINTED = 24  #: rows that a terminal shows
_MOST = 60  #: pairs in the table; the run's folder has all
_NAMES = (
    "Three different heights are called barrier; they agree only where the ends' losses do. Chord (Juneja et al. 2023): the "
    "largest loss above the straight line between the losses of the ends, and 0 where it lies below. Larger endpoint: above the "
    "larger of the two. Mean endpoint (Entezari et al. 2022, Git Re-Basin): above their mean. The convexity gap is the largest "
    "chord barrier over all contiguous parts of the line.\n\nIntervals are 95 % percentile bootstrap over examples, drawn for all "
    "points of a line together; a height is a maximum, which noise moves up.\n\nLoss increase: the largest loss minus that "
    "of the first network. A line to a random end may be uphill all the way and have no barrier; whether a line is low is "
    "read from its loss increase compared with that of its control."
)
_POINTS = (
    "Each point of a line is a network with the weights (1 − α) a + α b. Grey: the control, a line of equal norm (tensor by "
    "tensor) from the first network in a random direction."
)
_KEY = 8  #: lines in the table of key numbers
_ROUNDING = 1e-6  #: smaller heights are rounding errors
_FLAT = 4.0  #: if the range of a control is so many times that of the lines, the lines are drawn on a scale of their own


def page(record: Record[ConnectOptions]) -> Page:
    """Losses along the lines, barriers between all runs, clusters, and barriers by each definition."""
    names, result, unit = tuple(record.facts["names"]), record.results["connect"], record.facts["loss unit"]
    losses = [str(m) for m in dict.fromkeys(result.table[result.table["definition"] == OWN]["metric"])]  # the verdict's first
    heights = pd.DataFrame(height_rows(record))
    first, *others = [figure for loss in losses for figure in _lines(loss, names, result, unit)]
    sections = (
        [Section("Along the lines", f"Look for losses that rise between the networks. {_POINTS}", tuple(others))] if others else []
    )
    if len(names) > 2:
        sections.append(
            Section(
                "Between all runs",
                "Look for blocks of runs without barriers between them. Chord barriers, runs in the order given.",
                tuple(Figure(_matrix(loss, names, result), loss.capitalize(), "", small=len(names) <= 6) for loss in losses),
            )
        )
    if "gaps" in result.arrays:
        sections.append(section(result, result.arrays["gaps"]))
    sections.append(
        Section(
            "Barriers by definition",
            "Look for pairs whose barrier depends on its definition. " + _NAMES,
            (
                *(_heights(heights[heights["loss"] == loss].head(_MOST), loss, unit) for loss in losses),
                Table(_run_losses(result), "Losses of the runs", "With 95 % intervals over examples."),
                Table(_distances(result), "Euclidean distance of weights"),
            ),
        )
    )
    return Page(
        title="Paths between networks",
        context=(f"{len(names)} networks", f"control: {RANDOM}"),
        headline=replace(first, title=f"{losses[0].capitalize()} along the lines", caption=_POINTS, small=False),
        key=Table(
            heights[heights["loss"] == losses[0]].head(_KEY)[["pair", *(c for c in heights.columns if c == "chord" or RISE in c)]],
            "Key numbers",
            f"Chord barrier and loss increase of the {losses[0]} ({unit}) with 95 % intervals over examples; all lines are below.",
        ),
        sections=tuple(sections),
    )


def answer(record: Record[ConnectOptions]) -> Answer:
    """The sentences, and the heights of every line."""
    rows = height_rows(record)
    title = "Heights of losses between networks, with 95 % intervals over examples"
    if len(rows) > _PRINTED:
        title += f"; the first {_PRINTED} of {len(rows)} rows; the page and the run folder contain all"
    return Answer(sentences(record), rows[:_PRINTED], title, {"rows": rows})


def _lines(loss: str, names: tuple[str, ...], result: Result, unit: str) -> list[Figure]:
    pairs, values = result.arrays["pairs"], result.arrays[f"line {loss}"]
    own = int((pairs < len(names)).all(1).sum())
    ends = [*pairs[:own].tolist(), *pairs[: len(pairs) - own].tolist()]
    conditions = [ESTIMATE] * own + [RANDOM] * (len(pairs) - own)
    frame = lines.curves_frame(names, ends, result.arrays["alphas"].tolist(), values.tolist(), conditions)
    share = loss.endswith("error")
    title = f"{loss} (share)" if share else f"{loss} ({unit})"
    figures = [Figure(lines.along(frame, value_title=title, share=share), loss.capitalize(), "", small=True)]
    near = values[:own]
    if len(pairs) > own and values.max() - values.min() > _FLAT * (near.max() - near.min()) > _ROUNDING:
        alone = frame[frame["condition"] == ESTIMATE]
        closer = lines.along(alone, value_title=title)
        figures.append(Figure(closer, f"{loss.capitalize()}, the lines alone", "The same lines on their own scale.", small=True))
    return figures


def _matrix(loss: str, names: tuple[str, ...], result: Result) -> Any:
    rows = result.table[(result.table["metric"] == f"chord barrier of {loss}") & (result.table["condition"] == ESTIMATE)]
    by = dict(zip(rows["item"], rows["value"].where(rows["value"] > _ROUNDING, 0.0)))
    cells = [
        {"a": i, "b": j, "name_a": a, "name_b": b, "group_a": a}
        | {"value": 0.0 if a == b else by.get(f"{a} – {b}", by.get(f"{b} – {a}"))}
        for i, a in enumerate(names)
        for j, b in enumerate(names)
    ]
    return runs.distances(pd.DataFrame(cells), value_title=f"chord barrier of {loss}")


def _heights(rows: pd.DataFrame, loss: str, unit: str) -> Table:
    unit = "Shares" if loss.endswith("error") else unit[:1].upper() + unit[1:]
    cut = f" The first {_MOST} pairs; the run folder contains all." if len(rows) == _MOST else ""
    return Table(rows.drop(columns=["loss", *_ENDS]), f"Heights of the {loss}", f"{unit}, with 95 % intervals over examples.{cut}")


def _run_losses(result: Result) -> pd.DataFrame:
    rows = result.table[result.table["definition"] == "of the run itself"]
    found = [{"run": r["item"], str(r["metric"]): f"{r['value']:.4g} [{r['lo']:.4g}, {r['hi']:.4g}]"} for r in records(rows)]
    return pd.DataFrame(found).groupby("run", sort=False).first().reset_index()


def _distances(result: Result) -> pd.DataFrame:
    rows = result.table[result.table["metric"] == "distance"]
    return pd.DataFrame({"pair": rows["item"].astype(str), "distance": rows["value"]}).head(_MOST)
