"""Charts of losses along lines between networks."""

import altair as alt
import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.report.style import by_condition, data, finish, numbers, styles_of, tips


def along(frame: pd.DataFrame, *, value_title: str, share: bool = False) -> alt.LayerChart:
    """A value along lines, one line per pair and condition. Columns pair, alpha, condition, value. `share`: values from 0 to 1."""
    styles = styles_of(frame["condition"])
    drawn = frame.assign(line=frame["pair"] + " · " + frame["condition"])
    many = drawn["line"].nunique() > 12
    x = alt.X("alpha:Q", title="place on the line (0: first network, 1: second)", scale=alt.Scale(domain=[0, 1]))
    color, dash = (by_condition(kind, styles, lines=True) for kind in ("color", "dash"))
    layers = []
    for own in (True, False):  # controls on top: a few would be hidden by many lines
        part = drawn[(drawn["condition"] == ESTIMATE) == own]
        if part.empty:
            continue
        base = alt.Chart(data(part)).encode(
            x=x.axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1]),
            y=alt.Y("value:Q", title=value_title, scale=alt.Scale(zero=share, nice=True)),
            color=color,
            detail="line:N",
            tooltip=[*tips("pair", "condition"), *numbers("alpha", "value", titles=("place", "value"))],
        )
        thin = many and own
        layers.append(base.mark_line(strokeWidth=1.2 if thin else 2.2, opacity=0.35 if thin else 1).encode(strokeDash=dash))
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
