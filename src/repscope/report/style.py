"""The style of all figures: one colour, dash and shape per condition, one theme, legends that fit a phone, small data.

The colours are those of Okabe & Ito (2008), which colour-blind readers can distinguish; dash and shape repeat them for print in
grey. Figures are in `report.charts`.
"""

import zlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.utils import schemapi
from altair.utils.schemapi import debug_mode

from repscope.conditions import condition

BLOCK_TITLE = "block (emb = input embedding)"


@dataclass(frozen=True)
class Style:
    """The style of a condition. dash: lengths in px of line and gap. shape: a Vega symbol. wide: with a thicker line."""

    color: str
    dash: tuple[float, ...] = (1, 0)
    shape: str = "circle"
    wide: bool = False


#: Colours of Okabe & Ito (2008). Only the estimate has a solid line.
STYLES: dict[str, Style] = {
    "blue": Style("#0072B2", wide=True),
    "blue dashed": Style("#0072B2", (5, 2), wide=True),
    "sky": Style("#56B4E9", (10, 2), "diamond"),
    "green": Style("#009E73", (8, 2, 2, 2), "triangle-up"),
    "vermillion": Style("#D55E00", (6, 3), "square"),
    "purple": Style("#CC79A7", (4, 2), "diamond"),
    "orange": Style("#E69F00", (2, 2), "triangle-down"),
    "black": Style("#000000", (3, 5), "cross"),
    "grey": Style("#8C8C8C", (1, 2), "triangle-right"),
}
#: Kinds of pairs of runs, which figures draw in place of a condition.
_PAIRS = {"rule – rule": "blue", "lexical overlap – lexical overlap": "vermillion", "across groups": "black"}
_SPARE = (
    Style("#7A5195", (12, 3), "triangle-left"),
    Style("#8B6D31", (5, 2, 1, 2), "triangle-up"),
    Style("#3B6E8F", (2, 4), "square"),
    Style("#A6445D", (9, 4), "cross"),
    Style("#5E7F4E", (4, 4), "triangle-down"),
)
GROUP_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
GROUP_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")
_CUT_COLORS = ("#F5B57F", "#EE8F46", "#D96C1E", "#B04E0F", "#7F3608", "#4F2105")
_LEAST, _MOST = -0.5, 1.5  # R² has no lower bound: values beyond are drawn here, and the axis title says so
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', 'DejaVu Sans', Arial, sans-serif"
INK, MUTED, _GRID = "#1a1a1a", "#555555", "#e8e8e8"
_TIPS = {"lo": "interval from", "hi": "interval to", "above": "above shuffled labels", "control": "shuffled labels"}
_THEME: dict[str, Any] = {
    "font": _FONT,
    "background": "white",
    "padding": 4,
    "view": {"stroke": None},
    "axis": {
        "labelFlush": False,
        "labelFontSize": 12,
        "titleFontSize": 12.5,
        "titleFontWeight": "normal",
        "labelColor": INK,
        "titleColor": INK,
        "gridColor": _GRID,
        "domainColor": MUTED,
        "tickColor": MUTED,
        "labelPadding": 4,
        "titlePadding": 9,
    },
    "legend": {
        "labelFontSize": 12,
        "titleFontSize": 12.5,
        "titleFontWeight": "normal",
        "labelColor": INK,
        "titleColor": INK,
        "labelLimit": 300,
        "titleLimit": 330,
        "symbolStrokeWidth": 2,
        "symbolSize": 80,
        "rowPadding": 3,
        "offset": 12,
    },
}


def style_of(name: str) -> Style | None:
    """The style of a condition, or of a kind of pairs; None of another name."""
    if name in _PAIRS:
        return STYLES[_PAIRS[name]]
    try:
        return STYLES.get(condition(name).style)
    except ValueError:
        return None


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """The style of each condition; "over X" looks like X. Another name gets a spare style that no other name here has.

    The order is that of `STYLES`, then cut contexts from short to long, then the rest by name.
    """
    known = {name: style for name in set(names) if (style := style_of(name)) is not None}
    order = {style: i for i, style in enumerate(STYLES.values())}
    asked = sorted(set(names), key=lambda n: (order[known[n]] if n in known else len(order), _context_length(n), n))
    cuts = [n for n in asked if _context_length(n)]
    spare, found = list(_SPARE), {}
    for name in asked:
        if name in cuts:
            shade = round(cuts.index(name) * (len(_CUT_COLORS) - 1) / max(len(cuts) - 1, 1))
            found[name] = Style(_CUT_COLORS[shade], (1.5 + 2 * cuts.index(name), 2))
        elif name in known:
            found[name] = known[name]
        else:  # by the name's checksum, so that it looks the same in the next figure as well
            spare = spare or list(_SPARE)
            found[name] = spare.pop(zlib.crc32(name.encode()) % len(spare))
    return found


def by_condition(kind: str, styles: dict[str, Style], *, lines: bool = False) -> Any:
    """The encoding of a condition by color, dash or shape, with one shared legend of lines or symbols."""
    kinds: dict[str, Any] = {"color": alt.Color, "dash": alt.StrokeDash, "shape": alt.Shape}
    key = legend(list(styles), **({"symbolType": "stroke"} if lines else {}))
    domain = alt.Scale(domain=list(styles), range=[getattr(s, kind) for s in styles.values()])
    return kinds[kind]("condition:N", scale=domain, legend=key, title=None)


def legend(names: Sequence[str], **more: Any) -> alt.Legend:
    """A legend above the plot, filled row by row, with as many columns as fit the width."""
    widths = [31 + 6.2 * len(name) for name in names]
    columns = "1"
    for k in range(2, len(names) + 1):
        needed = sum(max(widths[c::k]) for c in range(k))
        columns = f"width > {needed:.0f} ? {k} : ({columns})"
    limit = alt.ExprRef("max(90, width - 22)")  # a label wider than the plot is cut, not drawn beyond the figure
    return alt.Legend(orient="top", columns=alt.ExprRef(columns), labelLimit=limit, symbolOpacity=1, **more)


def value_scale(drawn: pd.DataFrame, title: str, *, share: bool = True) -> tuple[alt.Scale, list[str]]:
    """The scale of values with 0 in it, and the axis title; shares far out (R² has no lower end) are drawn at the edge, which the
    title says. Where values are no shares, such as nats, all are drawn where they are."""
    if not share:
        return alt.Scale(zero=True, nice=True), [title]
    lowest, highest = float(drawn[["value", "lo"]].min().min()), float(drawn[["value", "hi"]].max().max())
    ends: dict[str, Any] = {"domainMin": _LEAST} if lowest < _LEAST else {}
    ends |= {"domainMax": _MOST} if highest > _MOST else {}
    words = {"domainMin": f"−{-_LEAST:g} or below", "domainMax": f"{_MOST:g} or above"}
    note = [f"(at the edge: {', '.join(words[end] for end in ends)})"] if ends else []
    return alt.Scale(zero=True, nice=True, clamp=True, **ends), [title, *note]


def finish(*layers: alt.Chart, height: float, **hints: float) -> alt.LayerChart:
    """The layers as one chart, as wide as its container, in the theme, with hints for the page."""
    chart = alt.LayerChart(
        layer=list(layers),
        width="container",
        height=height,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        usermeta=hints,
    )
    themed(chart)
    return chart


def themed(chart: Any) -> Any:
    """The chart, in the theme of all figures."""
    chart.config = _theme()
    return chart


@cache
def _theme() -> alt.Config:
    """The theme, one object for all figures, since Altair takes most of a chart's time to make it. No chart changes its own."""
    return alt.Config.from_dict(_THEME)


def faceted(chart: alt.FacetChart, min_width: float) -> alt.FacetChart:
    """A faceted chart in the theme; it keeps its width and scrolls in a narrower box."""
    chart.config = _theme()
    chart.usermeta = {"min_width": min_width}
    return chart


def data(frame: pd.DataFrame) -> alt.InlineData:
    """A frame as inline records: numbers to 4 significant digits, what is missing as null."""
    columns = {c: [_plain(v) for v in frame[c]] for c in frame.columns}
    rows: Any = tuple(dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return alt.InlineData(values=rows)  # Altair copies lists, record by record, for each layer; what is in a tuple it leaves


def _plain(value: Any) -> str | int | float | None:
    if value is None or value is pd.NA:
        return None
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return four(float(value)) if isfinite(value) else None
    return str(value)


def four(value: float) -> float:
    """The value to 4 significant digits: more cannot be seen."""
    return float(f"{value:.4g}")


def tips(*fields: str) -> list[alt.Tooltip]:
    """Tooltip lines of text."""
    return [alt.Tooltip(f"{name}:N") for name in fields]


def numbers(*fields: str, titles: Sequence[str] = ()) -> list[alt.Tooltip]:
    """Tooltip lines of numbers, to 3 significant digits."""
    named = titles or [_TIPS.get(name, name) for name in fields]
    return [alt.Tooltip(f"{n}:Q", format=".3~g", title=t) for n, t in zip(fields, named, strict=True)]


def text_color(dark: str) -> Any:
    """White text where the expression `dark` holds, ink elsewhere."""
    return alt.condition(dark, alt.value("white"), alt.value(INK))


def sequential(top: float) -> alt.Scale:
    """Pale at 0, dark at `top`: even steps of lightness, readable in grey."""
    return alt.Scale(scheme="yellowgreenblue", domain=[0, four(top)], clamp=True)


def gradient(**more: Any) -> alt.Legend:
    """The legend of a sequential scale, above the plot and narrow enough for a phone."""
    return alt.Legend(orient="top", direction="horizontal", gradientLength=220, gradientThickness=10, **more)


def _context_length(name: str) -> int:
    return int("".join(filter(str.isdigit, name)) or 0) if name.startswith("context:") else 0


def visible(token: object, longest: int = 16) -> str:
    """A token with its white space visible, cut to a length."""
    shown = str(token).replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def block_name(block: float) -> str:
    """The label of a block; −1 is the input embedding."""
    return "emb" if block < 0 else str(int(block))


def unchecked() -> AbstractContextManager[None]:
    """Charts made and written inside are not checked against the schema of Vega-Lite, which takes most of the time of a page.

    The tests check every chart that is written.
    """
    return debug_mode(False)


def spec_of(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """The chart as Vega-Lite, checked against its schema except inside `unchecked`."""
    return dict(chart.to_dict(validate=schemapi.DEBUG_MODE))


def vega_lite_version() -> str:
    """The Vega-Lite that Altair writes for, as vl-convert names it."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
