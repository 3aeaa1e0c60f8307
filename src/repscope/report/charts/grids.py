"""Charts over two settings, over a dose, and of names in a plane: frames in, one Altair chart out."""

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd

from repscope.report.style import (
    INK,
    MUTED,
    STYLES,
    by_condition,
    data,
    faceted,
    finish,
    gradient,
    numbers,
    sequential,
    styles_of,
    text_color,
    tips,
)

_ACROSS, _WIDTH = 3, 230  #: small multiples per row, and px of each


def grid(frame: pd.DataFrame, *, x_title: str, y_title: str, value_title: str) -> alt.LayerChart:
    """A value for each pair of settings, written in its cell.

    Columns x and y (text, in order; y from the bottom up), value, lo, hi and n.
    """
    columns, rows = list(dict.fromkeys(frame["x"])), list(dict.fromkeys(frame["y"]))[::-1]
    top = max(float(frame["value"].max()), 0.05)
    base = alt.Chart(data(frame[["x", "y", "value", "lo", "hi", "n"]])).encode(
        x=alt.X("x:O", sort=columns, title=x_title).axis(labelAngle=0, labelLimit=150, domain=False, ticks=False),
        y=alt.Y("y:O", sort=rows, title=y_title).axis(domain=False, ticks=False, labelOverlap="greedy", labelLimit=190),
        tooltip=[*tips("x", "y"), *numbers("value", "lo", "hi"), *tips("n")],
    )
    boxes = base.mark_rect(stroke="white", strokeWidth=0.5).encode(
        color=alt.Color("value:Q", title=value_title).scale(sequential(top)).legend(gradient(format=".2~f"))
    )
    written = base.mark_text(fontSize=10.5).encode(
        text=alt.Text("value:Q", format=".2f"), color=text_color(f"datum.value > {0.68 * top:.4g}")
    )
    return finish(
        boxes,
        written,
        height=max(17 * len(rows), 60),
        max_width=130 * len(columns) + 260,
        min_width=(8 * max(map(len, columns)) + 12) * len(columns) + 90,
    )


def dose(
    frame: pd.DataFrame,
    *,
    x_title: str,
    value_title: str,
    share: bool = True,
    span: tuple[float, float] | None = None,
    height: float = 260,
    log: bool = False,
) -> alt.LayerChart:
    """A value by dose with its interval, one line per condition; rows without a dose are horizontal rules with a band.

    Columns dose (a number, or missing), condition, value, lo, hi and n. `share`: values from 0 to 1. `span`: doses to
    shade, such as the working range. `log`: doses on a logarithmic axis with base 2.
    """
    styles = styles_of(frame["condition"])
    color, dash = (by_condition(kind, styles, lines=True) for kind in ("color", "dash"))
    scale = alt.Scale(domain=[0, 1]) if share else alt.Scale(zero=True, nice=True)
    y, lo = (alt.Y(f"{end}:Q", title=value_title, scale=scale) for end in ("value", "lo"))
    shown_tips = [*tips("condition"), *numbers("value", "lo", "hi"), *tips("n")]
    frame = frame[["dose", "condition", "value", "lo", "hi", "n"]]
    along, flat = frame[frame["dose"].notna()], frame[frame["dose"].isna()]
    x_scale = alt.Scale(type="log", base=2, nice=False, padding=12) if log else alt.Scale()
    lines = alt.Chart(data(along)).encode(x=alt.X("dose:Q", title=x_title, scale=x_scale), color=color)
    layers = [lines.mark_area(opacity=0.13).encode(y=lo, y2="hi:Q")]
    if len(flat):
        rules = alt.Chart(data(flat.drop(columns="dose"))).encode(color=color)
        layers += [
            rules.mark_rect(opacity=0.12).encode(y=lo, y2="hi:Q"),
            rules.mark_rule(strokeWidth=1.6).encode(y=y, strokeDash=dash, tooltip=shown_tips),
        ]
    layers += [
        lines.mark_line(strokeWidth=2.4).encode(y=y, strokeDash=dash),
        lines.mark_point(filled=True, size=40).encode(y=y, tooltip=[alt.Tooltip("dose:Q"), *shown_tips]),
    ]
    if span is not None:
        shade = pd.DataFrame({"from": [span[0]], "to": [span[1]]})
        layers.insert(0, alt.Chart(data(shade)).mark_rect(color=MUTED, opacity=0.1).encode(x="from:Q", x2="to:Q"))
    if not share:
        zero = alt.Chart(data(pd.DataFrame({"zero": [0]}))).mark_rule(color=MUTED, strokeWidth=0.8)
        layers.insert(0, zero.encode(y="zero:Q"))
    return finish(*layers, height=height, max_width=620)


def trade(frame: pd.DataFrame, *, x_title: str, y_title: str, most: float) -> alt.LayerChart:
    """Effect against cost: one point per candidate, a vertical rule at the largest allowed cost.

    Columns name, condition, x (the cost, above 0), y with lo and hi.
    """
    styles = styles_of(frame["condition"])
    color, shape = (by_condition(kind, styles) for kind in ("color", "shape"))
    x = alt.X("x:Q", title=x_title, scale=alt.Scale(type="log", nice=True)).axis(grid=False, format="~g", labelOverlap="greedy")
    base = alt.Chart(data(frame[["name", "condition", "x", "y", "lo", "hi"]])).encode(x=x, color=color)
    shown_tips = [*tips("name", "condition"), *numbers("x", "y", "lo", "hi", titles=("cost", "effect", "from", "to"))]
    limit = alt.Chart(data(pd.DataFrame({"x": [most]}))).mark_rule(color=MUTED, strokeDash=[4, 3])
    zero = alt.Chart(data(pd.DataFrame({"y": [0]}))).mark_rule(color=MUTED, strokeWidth=0.8)
    y = alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=True))
    return finish(
        zero.encode(y="y:Q"),
        limit.encode(x="x:Q"),
        base.mark_point(filled=True, size=36, opacity=0.75).encode(y=y, shape=shape, tooltip=shown_tips),
        height=320,
        max_width=720,
    )


def points(
    frame: pd.DataFrame, *, value_title: str, controls: Sequence[str] = (), label_limit: int = 190, rule: float | None = None
) -> alt.LayerChart:
    """One row per name, in the given order: its value and interval. Controls are grey. `label_limit`: px, longer names are cut.
    `rule`: a value with a line, such as that of no effect.

    Columns name, value, lo, hi and n.
    """
    style = STYLES["blue"]
    drawn = frame.assign(control=frame["name"].isin(list(controls)))
    base = alt.Chart(data(drawn[["name", "value", "lo", "hi", "n", "control"]])).encode(
        y=alt.Y("name:N", sort=list(frame["name"]), title=None).axis(
            labelLimit=label_limit, domain=False, ticks=False, labelPadding=8
        ),
        color=alt.condition("datum.control == 1", alt.value(STYLES["grey"].color), alt.value(style.color)),
        tooltip=[*tips("name"), *numbers("value", "lo", "hi"), *tips("n")],
    )
    scale = alt.Scale(zero=True, nice=True)
    x, lo = (alt.X(f"{end}:Q", title=value_title, scale=scale) for end in ("value", "lo"))
    bars = base.mark_rule(strokeWidth=1.8).encode(x=lo, x2="hi:Q")
    at = (
        []
        if rule is None
        else [alt.Chart(data(pd.DataFrame({"rule": [rule]}))).mark_rule(color=INK, strokeWidth=1).encode(x="rule:Q")]
    )
    marks = base.mark_point(filled=True, size=46, opacity=1).encode(x=x)
    return finish(*at, bars, marks, height=19 * len(frame) + 30, max_width=620)


def multiples(frame: pd.DataFrame, *, titles: Mapping[str, str], controls: Sequence[str] = ()) -> alt.FacetChart:
    """`points` for several metrics as small multiples, each with its own scale. Controls are grey.

    Columns metric (a key of `titles`, which gives their order), name, value, lo, hi and n.
    """
    drawn = frame.assign(control=frame["name"].isin(list(controls)), metric=frame["metric"].map(titles))
    names = list(dict.fromkeys(frame["name"]))
    base = alt.Chart().encode(
        y=alt.Y("name:N", sort=names, title=None).axis(labelLimit=190, domain=False, ticks=False, labelPadding=8),
        color=alt.condition("datum.control == 1", alt.value(STYLES["grey"].color), alt.value(STYLES["blue"].color)),
        tooltip=[*tips("metric", "name"), *numbers("value", "lo", "hi"), *tips("n")],
    )
    x, lo = (alt.X(f"{end}:Q", title=None, scale=alt.Scale(zero=True, nice=True)).axis(tickCount=4) for end in ("value", "lo"))
    layer = alt.layer(
        base.mark_rule(strokeWidth=1.8).encode(x=lo, x2="hi:Q"),
        base.mark_point(filled=True, size=46, opacity=1).encode(x=x),
        data=data(drawn[["metric", "name", "value", "lo", "hi", "n", "control"]]),
    ).properties(width=_WIDTH, height=19 * len(names) + 10)
    header = alt.Header(title=None, labelAnchor="start", labelLimit=_WIDTH + 20, labelFontSize=12, labelFontWeight=600)
    facet = alt.Facet("metric:N", sort=list(titles.values()), title=None, header=header)
    return faceted(layer.facet(facet=facet, columns=_ACROSS).resolve_scale(x="independent"), 210 + _ACROSS * (_WIDTH + 24))


def plane(frame: pd.DataFrame, *, x_title: str, y_title: str) -> alt.LayerChart:
    """Names at positions in a plane, dot area by n. Columns name, x, y and n."""
    base = alt.Chart(data(frame[["name", "x", "y", "n"]])).encode(
        x=alt.X("x:Q", title=x_title, scale=alt.Scale(zero=False, padding=26)),
        y=alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=False, padding=16)),
        tooltip=tips("name", "n"),
    )
    dots = base.mark_circle(color=STYLES["blue"].color, opacity=0.75).encode(
        size=alt.Size(
            "n:Q", title="subjects", scale=alt.Scale(range=[18, 160]), legend=alt.Legend(orient="top", direction="horizontal")
        )
    )
    words = base.mark_text(dy=-9, fontSize=11, color=INK).encode(text="name:N")
    axes = alt.Chart(data(pd.DataFrame({"zero": [0]}))).mark_rule(color=MUTED, strokeDash=[2, 3], strokeWidth=0.7)
    return finish(axes.encode(x="zero:Q"), axes.encode(y="zero:Q"), dots, words, height=420, max_width=720)
