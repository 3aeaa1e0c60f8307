"""Charts of trained runs: distances between all of them, and what they do beside how well they do. Style as in `figures`."""

from itertools import pairwise

import altair as alt
import pandas as pd

from repscope.report.style import GROUP_COLORS, GROUP_SHAPES, MUTED, data, finish, gradient, legend, numbers, tips


def distances(frame: pd.DataFrame, *, value_title: str, top: float) -> alt.LayerChart:
    """A matrix between runs, in the order given; rows and columns are labelled by group, lines stand between groups.

    Columns a, b (places in the order), value, name_a, name_b and group_a. `top` is the end of the colour scale, so that figures
    that share it can be compared.
    """
    n = int(frame["a"].max()) + 1
    groups = frame.drop_duplicates("a").sort_values("a")["group_a"].tolist()
    borders = [i for i in range(1, n) if groups[i] != groups[i - 1]]
    starts = [0, *borders, n]
    x, y = (alt.Scale(domain=[0, n], nice=False), alt.Scale(domain=[0, n], nice=False, reverse=True))
    drawn = frame[["a", "b", "value", "name_a", "name_b"]].assign(
        a2=frame["a"] + 1, b2=frame["b"] + 1, value=frame["value"].clip(upper=top)
    )
    bare = alt.Axis(labels=False, ticks=False, grid=False, domain=False)
    cells = (
        alt.Chart(data(drawn))
        .mark_rect()
        .encode(
            x=alt.X("b:Q", scale=x, title=None, axis=bare),
            x2="b2:Q",
            y=alt.Y("a:Q", scale=y, title=None, axis=bare),
            y2="a2:Q",
            color=alt.Color("value:Q", title=value_title).scale(scheme="viridis", domain=[0, top]).legend(gradient(format=".2~g")),
            tooltip=[*tips("name_a", "name_b"), *numbers("value")],
        )
    )
    lines = alt.Chart(data(pd.DataFrame({"at": borders or [0]}))).mark_rule(color="white", strokeWidth=2)
    names = pd.DataFrame(
        {"at": [(a + b) / 2 for a, b in pairwise(starts)], "group": [groups[a] for a in starts[:-1]], "zero": 0, "end": n}
    )
    left = alt.Chart(data(names)).mark_text(align="right", dx=-6, fontSize=12)
    below = alt.Chart(data(names)).mark_text(baseline="top", dy=5, fontSize=12)
    return finish(
        cells,
        lines.encode(x=alt.X("at:Q", scale=x)),
        lines.encode(y=alt.Y("at:Q", scale=y)),
        left.encode(x=alt.X("zero:Q", scale=x), y=alt.Y("at:Q", scale=y), text="group:N"),
        below.encode(y=alt.Y("end:Q", scale=y), x=alt.X("at:Q", scale=x), text="group:N"),
        height=300,
        max_width=400,
        aspect=1.25,
    )


def scattered(frame: pd.DataFrame, *, x_title: str, y_title: str, unit: str = "run") -> alt.LayerChart:
    """A point a run: two numbers, its group as colour and shape. Columns x, y, group and name.

    Shares (y from 0 to 1 that differ by more than a fifth) have the whole axis and a line at one half.
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
        tooltip=[alt.Tooltip("name:N", title=unit), *tips("group"), *numbers("x", "y", titles=(x_title, y_title))],
    )
    half = alt.Chart(data(pd.DataFrame({"y": [0.5]}))).mark_rule(color=MUTED, strokeDash=[3, 3], strokeWidth=0.8)
    layers = [base.mark_point(filled=True, size=52, opacity=0.8)]
    if share:
        layers.insert(0, half.encode(y="y:Q"))
    return finish(*layers, height=280, max_width=620)
