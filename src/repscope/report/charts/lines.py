"""Charts of losses along lines between networks."""

import altair as alt
import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.report.style import GROUP_COLORS, Style, by_condition, data, finish, numbers, styles_of, tips

MOST_COLOURS = 8  #: lines that one scale of colours can tell apart
_OTHERS = "other lines"
_DASHES: tuple[tuple[float, ...], ...] = ((1, 0), (6, 3), (8, 2, 2, 2), (4, 2), (2, 2), (10, 2), (12, 3), (5, 2, 1, 2))


def along(frame: pd.DataFrame, *, value_title: str, share: bool = False) -> alt.LayerChart:
    """A value along lines, one line per pair and condition. Columns pair, alpha, condition, value. `share`: values from 0 to 1.

    Up to eight pairs have a colour each; of more, the three highest, and the others are pale.
    """
    own = frame[frame["condition"] == ESTIMATE]
    highest = own.groupby("pair", sort=False)["value"].max()
    named = list(highest.index) if len(highest) <= MOST_COLOURS else list(highest.nlargest(3).index)
    label = frame["pair"].where(frame["pair"].isin(named), _OTHERS).where(frame["condition"] == ESTIMATE, frame["condition"])
    drawn = frame.assign(line=frame["pair"] + " · " + frame["condition"], condition=label, own=frame["condition"] == ESTIMATE)
    styles = {name: Style(GROUP_COLORS[i], _DASHES[i]) for i, name in enumerate(named)}
    styles |= {_OTHERS: Style("#A9BCCB")} if len(named) < len(highest) else {}
    styles |= styles_of([c for c in frame["condition"].unique() if c != ESTIMATE])
    x = alt.X("alpha:Q", title="place on the line (0: first network, 1: second)", scale=alt.Scale(domain=[0, 1]))
    color, dash = (by_condition(kind, styles, lines=True) for kind in ("color", "dash"))
    layers = []
    groups = (drawn["condition"] == _OTHERS, drawn["own"] & (drawn["condition"] != _OTHERS), ~drawn["own"])
    for part in (drawn[rows].drop(columns="own") for rows in groups):  # controls on top: a few would be hidden by many lines
        if part.empty:
            continue
        thin = part["condition"].iloc[0] == _OTHERS
        base = alt.Chart(data(part)).encode(
            x=x.axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1]),
            y=alt.Y("value:Q", title=value_title, scale=alt.Scale(zero=share, nice=True)),
            color=color,
            detail="line:N",
            tooltip=[*tips("pair", "condition"), *numbers("alpha", "value", titles=("place", "value"))],
        )
        layers.append(base.mark_line(strokeWidth=1.2 if thin else 2.2, opacity=0.6 if thin else 1).encode(strokeDash=dash))
        if not thin:
            layers.append(base.mark_point(filled=True, size=34, opacity=1))
    return finish(*layers, height=250, max_width=620)


def curves_frame(
    names: tuple[str, ...], pairs: list[list[int]], alphas: list[float], values: list[list[float]], conditions: list[str]
) -> pd.DataFrame:
    """Losses along lines, as the frame of `along`."""
    return pd.DataFrame(
        [
            {"pair": f"{names[a]} – {names[b]}", "alpha": alpha, "condition": condition, "value": value}
            for (a, b), curve, condition in zip(pairs, values, conditions)
            for alpha, value in zip(alphas, curve)
        ],
        columns=["pair", "alpha", "condition", "value"],
    ).sort_values("condition", key=lambda c: c == ESTIMATE, kind="stable")
