"""Figures and tables of the `emergence` page: curves over steps, transitions, sites of the bridge, the ladder."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.report.charts import grids
from repscope.report.page import Figure, Table
from repscope.report.style import INK, STYLES, data, finish, numbers, tips
from repscope.report.tables import cell
from repscope.report.text import format_estimate
from repscope.results import first_row, records, select
from repscope.studies.emergence import names

_TITLES = {"facts": "facts", "trained queries": "trained queries", ESTIMATE: "held-out queries", names.OOD: "OOD"}
CURVES = (ESTIMATE, "trained queries", "first fact OOD", "both facts OOD", "facts")


def phis(table: pd.DataFrame) -> list[float]:
    """Values of phi, in order."""
    found = {names.phi_of(item) for item in select(table, metric=names.ACCURACY)["item"]}
    return sorted(phi for phi in found if np.isfinite(phi))


def curve(table: pd.DataFrame, metric: str, phi: float, caption: str, *, title: str = "", small: bool = True) -> Figure:
    """A metric over updates on a log axis, one line per kind of examples."""
    rows = table[(table["metric"] == metric) & (table["item"] == names.item(phi)) & table["condition"].isin(CURVES)]
    rows = rows.assign(dose=[names.step_of(split) for split in rows["split"]])
    rows = rows[rows["dose"] > 0]
    chart = grids.dose(rows, x_title="updates", value_title=metric, share=metric == names.ACCURACY, log=True)
    return Figure(chart, title or f"{metric.capitalize()}, {names.item(phi)}", caption, small=small)


def headline(table: pd.DataFrame) -> Figure:
    """Accuracy at the largest phi."""
    phi = phis(table)[-1]
    caption = (
        "Means over networks of different graphs with 95 % intervals. Blue: queries that were never trained, of trained facts."
    )
    return curve(
        table, names.ACCURACY, phi, caption, title=f"Facts, trained and held-out two-hop queries, {names.item(phi)}", small=False
    )


def transitions(table: pd.DataFrame) -> Table:
    """Steps of 50 % by phi, lag and sharpness."""
    rows = []
    for phi in phis(table):
        own = select(table, item=names.item(phi))
        line: dict[str, Any] = {"phi": f"{phi:g}"}
        for condition, title in _TITLES.items():
            line[f"step of 50 %, {title}"] = steps_text(first_row(own, metric=names.STEP, condition=condition))
        line["lag"] = steps_text(first_row(own, metric=names.LAG, condition=ESTIMATE), "")
        for condition, title in ((ESTIMATE, "sharpness"), (names.EVEN, "learned evenly")):
            line[title] = cell(first_row(own, metric=names.SHARPNESS, condition=condition))
        rows.append(line)
    caption = "Intervals resample networks and examples. “Not reached” within the training of this run."
    return Table(pd.DataFrame(rows), "Transitions", caption)


def steps_text(row: dict[Any, Any] | None, form: str = ".0f") -> str:
    """A step, or a ratio of steps, with its interval; what is infinite was not reached."""
    if row is None:
        return "–"
    if not np.isfinite(row["value"]):
        return "not reached"
    if not form and np.isfinite(row["hi"]):
        return format_estimate(row)
    form = form or ".2f"
    hi = f"{row['hi']:{form}}" if np.isfinite(row["hi"]) else "∞"
    return f"{row['value']:{form}} [{row['lo']:{form}}, {hi}]"


def probes(table: pd.DataFrame, metric: str) -> Figure:
    """A metric of every probe or head over steps, its control dashed; intervals over the examples of a skill."""
    rows = select(table, metric=metric)
    rows = rows.assign(step=[max(1.0, names.step_of(split)) for split in rows["split"]])
    rows = rows.assign(line=rows["item"].where(rows["condition"] == ESTIMATE, rows["item"] + ", " + rows["condition"]))
    share = metric in (names.ACCURACY, names.INDUCTION)
    scale = alt.Scale(domain=[0, 1]) if share else alt.Scale(zero=False, nice=True)
    x = alt.X("step:Q", title="step", scale=alt.Scale(type="log", nice=False, padding=12))
    color = alt.Color("item:N", title=None, legend=alt.Legend(orient="top", labelLimit=220))
    layers = []
    for own, dash in ((rows[rows["condition"] == ESTIMATE], [1, 0]), (rows[rows["condition"] != ESTIMATE], [4, 3])):
        if own.empty:
            continue
        base = alt.Chart(data(own[["item", "condition", "line", "step", "value", "lo", "hi", "n"]])).encode(
            x=x,
            color=color,
            detail="line:N",
            tooltip=[*tips("item", "condition"), *numbers("step", "value", "lo", "hi"), *tips("n")],
        )
        y, lo = (alt.Y(f"{end}:Q", title=metric, scale=scale) for end in ("value", "lo"))
        if dash == [1, 0]:
            layers.append(base.mark_area(opacity=0.12).encode(y=lo, y2="hi:Q"))
        layers.append(base.mark_line(point=True, strokeDash=dash).encode(y=y))
    caption = "Dashed: the control. Step 0 is drawn at 1."
    return Figure(finish(*layers, height=260, max_width=620), f"{metric.capitalize()} over checkpoints", caption)


def head_table(table: pd.DataFrame) -> Table:
    """Chosen heads at the last step, beside their controls."""
    rows = table[table["metric"].isin((names.INDUCTION, names.EFFECT))]
    last = names.at(int(max(names.step_of(split) for split in rows["split"])))
    lines = []
    for r in records(rows, condition=ESTIMATE, split=last):
        line = {"of": r["item"], "what": r["metric"], "heads": r["definition"], "at the last step": format_estimate(r)}
        for condition in (names.OTHER_TOKENS, names.OTHER_HEADS):
            line[condition] = cell(first_row(rows, metric=r["metric"], item=r["item"], condition=condition, split=last))
        lines.append(line)
    caption = "Chosen at the last step on one half of the sequences or prompts, reported on the other."
    return Table(pd.DataFrame(lines), "Heads", caption)


def probe_transitions(table: pd.DataFrame) -> Table:
    """Steps and sharpness of every probe."""
    lines = []
    for row in records(table, metric=names.STEP, condition=ESTIMATE):
        line = {"probe": row["item"], "step of 50 %": steps_text(row)}
        for metric, condition, title in (
            (names.SHARPNESS, ESTIMATE, "sharpness"),
            (names.SHARPNESS, names.EVEN, "sharpness, learned evenly"),
        ):
            line[title] = cell(first_row(table, metric=metric, condition=condition, item=row["item"]))
        lines.append(line)
    return Table(pd.DataFrame(lines), "Transitions", "Intervals resample probes (of one run), or runs and probes.")


def bridges(table: pd.DataFrame) -> Table:
    """Probes and patches at the last step, by phi, site and token."""
    rows = table[table["metric"].isin((names.BRIDGE, names.PATCHED))]
    last = max(names.step_of(split) for split in rows["split"])
    rows = rows[rows["split"] == names.at(int(last))]
    rows = rows.assign(cell=[format_estimate(r) for r in records(rows)], phi=[names.phi_of(i) for i in rows["item"]])
    kinds = {names.BRIDGE: "probe", names.PATCHED: "patch", (names.PERMUTED): "shuffled labels", names.UNPATCHED: "no patch"}
    rows = rows.assign(kind=[kinds[r["metric"] if r["condition"] == ESTIMATE else r["condition"]] for r in records(rows)])
    rows = rows.assign(order=[-1 if pd.isna(n) else int(n) for n in rows["layer"]])
    wide = rows.pivot_table(index=["phi", "token", "order", "site"], columns="kind", values="cell", aggfunc="first").sort_index()
    wide = wide.reset_index().drop(columns="order").fillna("–")
    return Table(wide, "The bridge, at the last step", "By number of queries per fact, token and site of the residual stream.")


def paths(table: pd.DataFrame) -> tuple[Figure, Table]:
    """KL of path sums by largest path length for the longest walks, and the best path sum beside the controls for all."""
    rows = table[table["metric"] == names.KL]
    splits = list(dict.fromkeys(rows["split"]))
    doses = [float(item.rpartition(" ")[2]) if item.startswith("paths of") else float("nan") for item in rows["item"]]
    own = rows.assign(dose=doses)
    own = own[(own["split"] == splits[-1]) & (own["item"] != names.BEST)]
    chart = grids.dose(own, x_title="most relations of a path", value_title="KL(prediction ‖ network), nats", share=False)
    caption = (
        "Means over left-out edges. Lower is nearer to what the network expects. Path sums over other relations than the asked one."
    )
    figure = Figure(chart, f"Predictions of left-out edges, networks trained on {splits[-1]}", caption)
    lines = []
    for split in splits:
        at = table[table["split"] == split]
        best = {r["condition"]: r for r in records(at, metric=names.KL, item=names.BEST)}
        line = {"trained on": split, "best path sum": best[ESTIMATE]["definition"], "its KL": format_estimate(best[ESTIMATE])}
        line["untrained network"] = format_estimate(best[names.UNTRAINED])
        for r in records(at, metric=names.NEARER):
            line[f"{r['condition']} minus it"] = format_estimate(r)
        for r in records(at, metric=names.MASS):
            line[f"mass on true tails, {r['condition']}"] = format_estimate(r)
        lines.append(line)
    said = "Chosen on half of the left-out edges, reported on the other half."
    return figure, Table(pd.DataFrame(lines), "The best path sum and the controls", said)


def ladder(law: pd.DataFrame, points: pd.DataFrame) -> Figure:
    """Losses by compute with the fitted law, and the enhanced networks at the compute of their base."""
    score = names.LOSS
    own = points[points["method"].isna() | (points["method"] == "")]
    mean = own.groupby("compute")[score].mean().rename("value").reset_index().assign(name="ladder")
    tuned = points.drop(own.index)
    keys = [k for k in ("method", "dose") if k in tuned.columns]
    tuned = tuned.groupby([*keys, "compute"])[score].mean().rename("value").reset_index().rename(columns={"method": "name"})
    x = alt.X("compute:Q", title="pre-training compute", scale=alt.Scale(type="log")).axis(format="~e")
    y = alt.Y("value:Q", title=score, scale=alt.Scale(zero=False, nice=True))
    line = alt.Chart(data(law[law["score"] == score][["compute", "value"]])).mark_line(color=STYLES["blue"].color, strokeWidth=1.6)
    rungs = alt.Chart(data(mean)).mark_point(filled=True, size=60, color=INK, opacity=1)
    layers = [line.encode(x=x, y=y), rungs.encode(x=x, y=y, tooltip=[*tips("name"), *numbers("compute", "value")])]
    if len(tuned):
        marks = alt.Chart(data(tuned[["name", "compute", "value"]])).mark_point(size=46, strokeWidth=1.6)
        colors = [STYLES[c].color for c in ("vermillion", "orange", "green", "purple", "sky")]
        color = alt.Color("name:N", title=None, scale=alt.Scale(range=colors), legend=alt.Legend(orient="top", labelLimit=260))
        layers.append(marks.encode(x=x, y=y, color=color, tooltip=[*tips("name"), *numbers("compute", "value")]))
    caption = "Black: the ladder, means over worlds. Blue: the fitted law. Open: fine-tuned networks at the compute of their base."
    return Figure(finish(*layers, height=280, max_width=620), "The compute ladder", caption)


def gains(frame: pd.DataFrame) -> Table:
    """Gains, or why there is none."""
    found = []
    for r in records(frame):
        hi = f"{r['hi']:.2f}" if np.isfinite(r["hi"]) else "∞"
        said = r["refusal"] or f"{r['gain']:.2f} [{r['lo']:.2f}, {hi}]"
        found.append({"score": r["score"], "network": r["item"], "compute-equivalent gain, 90 % CI": said})
    return Table(pd.DataFrame(found), "Compute-equivalent gains", "A gain of 2 is worth twice the pre-training compute.")
