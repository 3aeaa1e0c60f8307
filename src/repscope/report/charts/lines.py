"""Charts of lines between networks: losses along them, and one number for every pair."""

import altair as alt
import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.report.style import by_condition, data, finish, gradient, numbers, sequential, styles_of, text_color, tips

_WRITTEN = 12  #: runs up to which a matrix has its numbers written in


def along(frame: pd.DataFrame, *, value_title: str, share: bool = False) -> alt.LayerChart:
    """A value along lines, a line a pair and condition. Columns pair, alpha, condition, value. `share`: the value is one."""
    styles = styles_of(frame["condition"])
    drawn = frame.assign(line=frame["pair"] + " · " + frame["condition"])
    many = drawn["line"].nunique() > 12
    x = alt.X("alpha:Q", title="place on the line (0: first network, 1: second)", scale=alt.Scale(domain=[0, 1]))
    color, dash = (by_condition(kind, styles, lines=True) for kind in ("color", "dash"))
    layers = []
    for own in (True, False):  # controls above, as few of them would be lost among many lines
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


def matrix(frame: pd.DataFrame, *, value_title: str) -> alt.LayerChart:
    """A number for every pair of runs, in the order given. Columns a, b (names), value; both (a, b) and (b, a)."""
    names = list(dict.fromkeys(frame["a"]))
    top = max(float(frame["value"].max()), 1e-3)
    base = alt.Chart(data(frame[["a", "b", "value"]])).encode(
        x=alt.X("b:O", sort=names, title=None).axis(labelAngle=-35, labelLimit=150, domain=False, ticks=False),
        y=alt.Y("a:O", sort=names, title=None).axis(labelLimit=190, domain=False, ticks=False),
        tooltip=[*tips("a", "b"), *numbers("value")],
    )
    boxes = base.mark_rect(stroke="white", strokeWidth=0.5).encode(
        color=alt.Color("value:Q", title=value_title).scale(sequential(top)).legend(gradient(format=".2~g"))
    )
    layers = [boxes]
    if len(names) <= _WRITTEN:
        layers.append(
            base.mark_text(fontSize=10.5).encode(
                text=alt.Text("value:Q", format=".2~g"), color=text_color(f"datum.value > {0.68 * top:.4g}")
            )
        )
    side = 30 if len(names) <= _WRITTEN else 16
    return finish(*layers, height=max(side * len(names), 90), max_width=int(1.9 * side * len(names)) + 220)


def curves_frame(
    names: tuple[str, ...], pairs: list[list[int]], alphas: list[float], values: list[list[float]], conditions: list[str]
) -> pd.DataFrame:
    """Losses along lines as `along` takes them."""
    return pd.DataFrame(
        [
            {"pair": f"{names[a]} – {names[b]}", "alpha": alpha, "condition": condition, "value": value}
            for (a, b), curve, condition in zip(pairs, values, conditions)
            for alpha, value in zip(alphas, curve)
        ],
        columns=["pair", "alpha", "condition", "value"],
    ).sort_values("condition", key=lambda c: c == ESTIMATE, kind="stable")
