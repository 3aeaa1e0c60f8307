"""Charts of trained runs: a matrix of distances, and behaviour against quality. Style as in `report.style`."""

from itertools import pairwise
from typing import Any

import altair as alt
import pandas as pd

from repscope.report.style import (
    GROUP_COLORS,
    GROUP_SHAPES,
    MUTED,
    data,
    finish,
    gradient,
    legend,
    numbers,
    sequential,
    text_color,
    tips,
)

_WRITTEN = 12  #: most runs for numbers in the cells


def distances(frame: pd.DataFrame, *, value_title: str, top: float | None = None) -> alt.LayerChart:
    """A matrix of one number per pair of runs, in the given order, with lines between groups. A few runs have numbers in the cells.

    Columns a, b (positions in the order), value, name_a, name_b and group_a, which labels rows and columns. `top` is the end of the
    colour scale: figures with the same `top` can be compared.
    """
    n = int(frame["a"].max()) + 1
    top = top or max(float(frame["value"].max()), 1e-3)
    groups = frame.drop_duplicates("a").sort_values("a")["group_a"].tolist()
    borders = [i for i in range(1, n) if groups[i] != groups[i - 1]]
    starts = [0, *borders, n]
    x, y = (alt.Scale(domain=[0, n], nice=False), alt.Scale(domain=[0, n], nice=False, reverse=True))
    drawn = frame[["a", "b", "value", "name_a", "name_b"]].assign(
        a2=frame["a"] + 1, b2=frame["b"] + 1, row=frame["a"] + 0.5, column=frame["b"] + 0.5, value=frame["value"].clip(upper=top)
    )
    bare = alt.Axis(labels=False, ticks=False, grid=False, domain=False)
    base = alt.Chart(data(drawn)).encode(tooltip=[*tips("name_a", "name_b"), *numbers("value")])
    cells = base.mark_rect().encode(
        x=alt.X("b:Q", scale=x, title=None, axis=bare),
        x2="b2:Q",
        y=alt.Y("a:Q", scale=y, title=None, axis=bare),
        y2="a2:Q",
        color=alt.Color("value:Q", title=value_title).scale(sequential(top)).legend(gradient(format=".2~g")),
    )
    lines = alt.Chart(data(pd.DataFrame({"at": borders or [0]}))).mark_rule(color="white", strokeWidth=2)
    names = pd.DataFrame(
        {"at": [(a + b) / 2 for a, b in pairwise(starts)], "group": [groups[a] for a in starts[:-1]], "zero": 0, "end": n}
    )
    single = len(names) == n > 2  # a label per run: tilted, as the columns are narrow
    left = alt.Chart(data(names)).mark_text(align="right", dx=-6, fontSize=12, limit=150)
    tilt: dict[str, Any] = {"angle": 325.0, "align": "right"} if single else {}
    below = alt.Chart(data(names), mark=alt.MarkDef("text", baseline="top", dy=5, fontSize=12, limit=150, **tilt))
    layers = [cells, lines.encode(x=alt.X("at:Q", scale=x)), lines.encode(y=alt.Y("at:Q", scale=y))]
    if n <= _WRITTEN:
        color = text_color(f"datum.value > {0.68 * top:.4g}")
        text = alt.Text("value:Q", format=".2~g")
        layers.append(base.mark_text(fontSize=10.5).encode(x=alt.X("column:Q"), y=alt.Y("row:Q"), text=text, color=color))
    return finish(
        *layers,
        left.encode(x=alt.X("zero:Q", scale=x), y=alt.Y("at:Q", scale=y), text="group:N"),
        below.encode(y=alt.Y("end:Q", scale=y), x=alt.X("at:Q", scale=x), text="group:N"),
        height=300,
        max_width=400,
        aspect=1.25,
    )


def scattered(frame: pd.DataFrame, *, x_title: str, y_title: str) -> alt.LayerChart:
    """One point per run: two numbers, its group as colour and shape. Columns x, y, group and name.

    If y is from 0 to 1 and varies by more than a fifth, its axis is from 0 to 1 with a line at one half.
    """
    groups = list(dict.fromkeys(frame["group"]))
    key = legend(groups)
    share = bool(frame["y"].between(0, 1).all()) and float(frame["y"].max() - frame["y"].min()) > 0.2
    across = alt.Scale(domain=[0, 1]) if share else alt.Scale(zero=False, nice=True)
    base = alt.Chart(data(frame[["x", "y", "group", "name"]])).encode(
        x=alt.X("x:Q", title=x_title, scale=alt.Scale(zero=False, nice=True)),
        y=alt.Y("y:Q", title=y_title, scale=across),
        color=alt.Color("group:N", title=None, legend=key).scale(domain=groups, range=list(GROUP_COLORS[: len(groups)])),
        shape=alt.Shape("group:N", title=None, legend=key).scale(domain=groups, range=list(GROUP_SHAPES[: len(groups)])),
        tooltip=[alt.Tooltip("name:N", title="run"), *tips("group"), *numbers("x", "y", titles=(x_title, y_title))],
    )
    half = alt.Chart(data(pd.DataFrame({"y": [0.5]}))).mark_rule(color=MUTED, strokeDash=[3, 3], strokeWidth=0.8)
    layers = [base.mark_point(filled=True, size=52, opacity=0.8)]
    if share:
        layers.insert(0, half.encode(y="y:Q"))
    return finish(*layers, height=280, max_width=620)
