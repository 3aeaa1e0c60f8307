"""Charts of small images and of factors changed by directions: frames in, one Altair chart out. Style as in `report.style`."""

from collections.abc import Sequence

import altair as alt
import pandas as pd

from repscope.report.style import data, faceted, finish, four, numbers, tips

_DARK = 0.06  #: pixels below this are background and not drawn
_PIXEL = 3.0  #: px, of images of 16 pixels; smaller ones are drawn larger


def gallery(frame: pd.DataFrame, *, side: int, columns: int = 8) -> alt.LayerChart:
    """Images in a grid, bright on black. Columns image (from 0) and value from 0 to 1, pixels row by row from the top."""
    pixel = frame.groupby("image").cumcount()
    at = frame.assign(
        x=(frame["image"] % columns) * (side + 1) + pixel % side, y=(frame["image"] // columns) * (side + 1) + pixel // side
    )
    wide, high = columns * (side + 1), int(at["y"].max()) + 2
    base = _background(frame["image"].unique().tolist(), columns, side)
    return finish(*_layers(base, at, wide, high), height=_pixel(side) * high, max_width=_pixel(side) * wide + 30)


def filmstrips(frame: pd.DataFrame, *, side: int, order: Sequence[str]) -> alt.FacetChart:
    """One image along directions: a row per direction, a column per dose, a facet per method.

    Columns method, direction, factor, selectivity, dose, pixel and value.
    """
    doses = sorted(frame["dose"].unique())
    place = {(m, k): i for m, some in frame.groupby("method") for i, k in enumerate(dict.fromkeys(some["direction"]))}
    row = [place[m, k] for m, k in zip(frame["method"], frame["direction"])]
    column = [doses.index(d) for d in frame["dose"]]
    at = frame.assign(
        x=[c * (side + 1) + p % side for c, p in zip(column, frame["pixel"])],
        y=[r * (side + 1) + p // side for r, p in zip(row, frame["pixel"])],
    )
    wide, high = len(doses) * (side + 1), (max(row) + 1) * (side + 1)
    boxes = at[at["pixel"] == 0][["method", "x", "y"]].assign(x2=lambda f: f["x"] + side, y2=lambda f: f["y"] + side, value=0.0)
    bright = at[at["value"] > _DARK][["method", "x", "y", "value"]].assign(x2=lambda f: f["x"] + 1, y2=lambda f: f["y"] + 1)
    both = pd.concat([boxes, bright], ignore_index=True)
    chart = _rectangles(alt.Chart(data(both)), wide, high).properties(width=_pixel(side) * wide, height=_pixel(side) * high)
    header = alt.Header(title=None, labelAnchor="start", labelFontSize=12, labelFontWeight=600)
    facet = alt.Facet("method:N", sort=list(order), title=None, header=header)
    return faceted(chart.facet(facet=facet, columns=2), 2 * _pixel(side) * wide + 60)


def factor_matrix(frame: pd.DataFrame, *, factors: Sequence[str]) -> alt.FacetChart:
    """Change of each factor by each direction, a facet per method. Columns method, direction, factor and value."""
    top = four(max(float(frame["value"].abs().max()), 0.05))
    color = alt.Color("value:Q", title="change (SD)").scale(scheme="blueorange", domain=[-top, top], clamp=True)
    names = list(dict.fromkeys(frame["method"]))
    chart = (
        alt.Chart(data(frame[["method", "direction", "factor", "value"]]))
        .mark_rect()
        .encode(
            x=alt.X("direction:O", title="direction").axis(labelAngle=0, labelOverlap="greedy", domain=False, ticks=False),
            y=alt.Y("factor:N", sort=list(factors), title=None).axis(domain=False, ticks=False),
            color=color.legend(orient="top", direction="horizontal", gradientLength=220, gradientThickness=10),
            tooltip=[*tips("method", "direction", "factor"), *numbers("value")],
        )
        .properties(width=200, height=18 * len(factors))
    )
    header = alt.Header(title=None, labelAnchor="start", labelFontSize=12, labelFontWeight=600)
    return faceted(chart.facet(facet=alt.Facet("method:N", sort=names, title=None, header=header), columns=3), 840)


def _pixel(side: int) -> float:
    return _PIXEL * max(1.0, min(2.0, 16 / side))


def _background(images: Sequence[int], columns: int, side: int) -> pd.DataFrame:
    """A black square per image."""
    corners = pd.DataFrame({"x": [(i % columns) * (side + 1) for i in images], "y": [(i // columns) * (side + 1) for i in images]})
    return corners.assign(x2=corners["x"] + side, y2=corners["y"] + side, value=0.0)


def _layers(boxes: pd.DataFrame, at: pd.DataFrame, wide: int, high: int) -> list[alt.Chart]:
    bright = at[at["value"] > _DARK][["x", "y", "value"]].assign(x2=lambda f: f["x"] + 1, y2=lambda f: f["y"] + 1)
    return [_rectangles(alt.Chart(data(some)), wide, high) for some in (boxes, bright) if len(some)]


def _rectangles(chart: alt.Chart, wide: int, high: int) -> alt.Chart:
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, wide], nice=False), axis=None)
    y = alt.Y("y:Q", scale=alt.Scale(domain=[high, 0], nice=False), axis=None)
    color = alt.Color("value:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=["#000000", "#ffffff"], clamp=True))
    drawn: alt.Chart = chart.mark_rect().encode(x=x, x2="x2:Q", y=y, y2="y2:Q", color=color)
    return drawn
