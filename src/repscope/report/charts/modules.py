"""Charts of numbers by kind of module and block: frames in, one Altair chart out. Style as in `report.style`."""

from collections.abc import Sequence

import altair as alt
import pandas as pd

from repscope.report.style import GROUP_COLORS, STYLES, Style, by_condition, data, finish, numbers, styles_of, tips

_DASHES: tuple[tuple[float, ...], ...] = ((1, 0), (6, 3), (8, 2, 2, 2), (4, 2), (2, 2), (10, 2), (12, 3), (5, 2, 1, 2))
_MOST = len(GROUP_COLORS)


def by_block(
    frame: pd.DataFrame, *, value_title: str, rules: Sequence[tuple[str, float]] = (), log: bool = False
) -> alt.LayerChart:
    """A value by block, one line per kind of module; controls are horizontal rules.

    Parameters
    ----------
    frame
        Columns kind, block and value; at most eight kinds, of which the first have the first colours.
    value_title
        Of the vertical axis.
    rules
        Conditions and their values.
    log
        Whether the axis is logarithmic; values of zero are then left out.
    """
    kinds = list(dict.fromkeys(frame["kind"]))[:_MOST]
    styles = {kind: Style(GROUP_COLORS[i], _DASHES[i]) for i, kind in enumerate(kinds)} | styles_of([name for name, _ in rules])
    drawn = frame[frame["kind"].isin(kinds)].rename(columns={"kind": "condition"})
    drawn = drawn[drawn["value"] > 0] if log else drawn
    scale = alt.Scale(type="log", nice=True) if log else alt.Scale(zero=True, nice=True)
    y = alt.Y("value:Q", title=value_title, scale=scale).axis(format="~g")
    color, dash = (by_condition(kind, styles, lines=True) for kind in ("color", "dash"))
    x = alt.X("block:Q", title="block", scale=alt.Scale(nice=False)).axis(format="d", grid=False, tickMinStep=1)
    base = alt.Chart(data(drawn[["block", "condition", "value"]])).encode(
        x=x, y=y, color=color, tooltip=[*tips("condition", "block"), *numbers("value")]
    )
    layers = [base.mark_line(strokeWidth=2).encode(strokeDash=dash), base.mark_point(filled=True, size=22, opacity=1)]
    if rules:
        held = pd.DataFrame([{"condition": name, "value": value} for name, value in rules])
        lines = alt.Chart(data(held)).encode(y=y, color=color, tooltip=[*tips("condition"), *numbers("value")])
        layers.append(lines.mark_rule(strokeWidth=1.8).encode(strokeDash=dash))
    return finish(*layers, height=300)


def stacked_shares(frame: pd.DataFrame, *, x_title: str, value_title: str, parts: Sequence[str]) -> alt.LayerChart:
    """Shares that add up to one, stacked per place. Columns x (a number), part (one of `parts`, bottom first) and value."""
    styles = dict(zip(parts, ("blue", "orange", "vermillion", "grey")))
    color = alt.Color("part:N", title=None, scale=alt.Scale(domain=list(parts), range=[STYLES[styles[p]].color for p in parts]))
    order = frame["part"].map({part: i for i, part in enumerate(parts)})
    base = alt.Chart(data(frame.assign(order=order)[["x", "part", "value", "order"]])).encode(
        x=alt.X("x:O", title=x_title).axis(labelAngle=0, labelOverlap="greedy"),
        y=alt.Y("value:Q", title=value_title, stack="zero", scale=alt.Scale(domain=[0, 1])),
        color=color,
        order=alt.Order("order:Q"),
        tooltip=[*tips("x", "part"), *numbers("value")],
    )
    return finish(base.mark_bar(), height=240, max_width=680)
