"""Charts of neurons: a score of each against its noise ceiling, and matrices of numbers of their pairs."""

import altair as alt
import numpy as np
import pandas as pd
from jaxtyping import Float

from repscope.report.style import GROUP_COLORS, GROUP_SHAPES, MUTED, data, finish, gradient, legend, numbers, sequential, tips

MOST = 40  #: rows and columns of a matrix; larger ones are drawn as means of blocks


def against_ceiling(frame: pd.DataFrame, *, x_title: str, y_title: str) -> alt.LayerChart:
    """One point per neuron and model, with the line on which both are equal.

    Columns name, group, x (the ceiling) and y (the score).
    """
    groups = list(dict.fromkeys(frame["group"]))
    low = float(np.floor(min(float(frame["y"].min()), 0.0) * 10) / 10)
    key = legend(groups)
    line = alt.Chart(data(pd.DataFrame({"x": [0.0, 1.0], "y": [0.0, 1.0]}))).mark_line(
        color=MUTED, strokeDash=[4, 3], strokeWidth=1
    )
    x = alt.X("x:Q", title=x_title, scale=alt.Scale(domain=[0, 1], nice=False))
    y = alt.Y("y:Q", title=y_title, scale=alt.Scale(domain=[low, 1], nice=False))
    points = alt.Chart(data(frame[["name", "group", "x", "y"]])).mark_point(filled=True, size=46, opacity=0.75)
    return finish(
        line.encode(x=x, y=y),
        points.encode(
            x=x,
            y=y,
            color=alt.Color("group:N", title=None, legend=key).scale(domain=groups, range=list(GROUP_COLORS[: len(groups)])),
            shape=alt.Shape("group:N", title=None, legend=key).scale(domain=groups, range=list(GROUP_SHAPES[: len(groups)])),
            tooltip=[*tips("name", "group"), *numbers("x", "y", titles=(x_title, y_title))],
        ),
        height=320,
        aspect=1.0,
        max_width=420,
    )


def matrix(values: Float[np.ndarray, "pre post"], *, x_title: str, y_title: str, value_title: str) -> alt.LayerChart:
    """Numbers of pairs, [pre, post], in the given order; above `MOST` cells as means of blocks. NaN is left white.

    The colours end at the 98th percentile, so that one large number does not hide the others; numbers below 0 have its pale end.
    """
    held = blocks(values)
    known = np.isfinite(held)
    top = float(np.quantile(held[known], 0.98)) if known.any() else 1.0
    i, j = np.nonzero(known)
    size = len(values) / len(held)
    frame = pd.DataFrame({"a": i * size, "b": j * size, "a2": (i + 1) * size, "b2": (j + 1) * size, "value": held[i, j]})
    ends = alt.Scale(domain=[0, len(values)], nice=False)
    bare = alt.Axis(ticks=False, grid=False, domain=False, values=[0, len(values)])
    chart = alt.Chart(data(frame)).mark_rect()
    return finish(
        chart.encode(
            x=alt.X("b:Q", title=x_title, scale=ends, axis=bare),
            x2="b2:Q",
            y=alt.Y("a:Q", title=y_title, scale=alt.Scale(domain=[0, len(values)], nice=False, reverse=True), axis=bare),
            y2="a2:Q",
            color=alt.Color("value:Q", title=value_title).scale(sequential(max(top, 1e-6))).legend(gradient(format=".2~g")),
            tooltip=numbers("value", titles=(value_title,)),
        ),
        height=280,
        aspect=1.0,
        max_width=380,
    )


def blocks(values: Float[np.ndarray, "pre post"], most: int = MOST) -> Float[np.ndarray, "block block"]:
    """Means of what is known in blocks of nearly equal size, at most so many per side; NaN where nothing is.

    >>> blocks(np.array([[1.0, 3.0], [np.nan, np.nan]]), 1)
    array([[2.]])
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) <= most:
        return x
    edges = np.linspace(0, len(x), most + 1).astype(int)
    known = np.isfinite(x)
    sums, counts = (
        np.add.reduceat(np.add.reduceat(part, edges[:-1], axis=0), edges[:-1], axis=1)
        for part in (np.where(known, x, 0.0), known.astype(np.float64))
    )
    return np.asarray(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0))
