"""Charts from tidy tables: rows of `repscope.results` or plain frames in, one Altair chart out.

Every chart is as wide as its container and contains only the columns and digits that it draws. It always shows the interval
(band or bar) and every control in the table. A condition has one colour, dash and shape in all figures (`report.style`).
Hints for the page go into `usermeta`: `min_width` (px; scrolls below it), `max_width` (px), `aspect` (width / height).
Knows no study and no model; captions are the caller's. `save` writes a chart for a paper.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import altair as alt
import pandas as pd

from repscope.conditions import ESTIMATE, SHARED
from repscope.disk import whole_file
from repscope.errors import unknown
from repscope.report.style import (
    BLOCK_TITLE,
    GROUP_COLORS,
    GROUP_SHAPES,
    INK,
    MUTED,
    STYLES,
    block_name,
    by_condition,
    data,
    finish,
    four,
    gradient,
    legend,
    numbers,
    sequential,
    spec_of,
    styles_of,
    text_color,
    tips,
    value_scale,
    vega_lite_version,
    visible,
)
from repscope.results import CHOSEN

PAPER_WIDTH = 680  #: px, the container of `save`


def by_layer(table: pd.DataFrame, *, metric_title: str, token: str = "last", share: bool = True) -> alt.LayerChart:
    """Value by block for one item: the estimate and each control with their intervals. `share`: a value from 0 to 1, or an R².

    Rows at other tokens, cut contexts and chosen-layer scores of the same item are left out. A control without a
    layer is a horizontal rule with its band.
    """
    shown = table[
        (table["token"].isin([token, ""]) | (table["condition"] == "first token alone"))
        & ~table["condition"].str.startswith("context:")
        & (table["site"] != CHOSEN)
        & (table["metric"] != "gain")
    ]
    _one(shown, "item", "metric")
    shared = (shown["split"] == "shared token") & (shown["condition"] == ESTIMATE)
    shown = shown.assign(condition=shown["condition"].mask(shared, SHARED))[shared | (shown["split"] != "shared token")]
    return _lines(shown, metric_title, share=share)


def context_cut(table: pd.DataFrame) -> alt.LayerChart:
    """Value by block for one item: the full context compared with the last 1, 2, 3 … tokens."""
    cut = table["condition"].str.startswith("context:")
    full = (table["condition"] == ESTIMATE) & (table["split"] != "shared token") & (table["site"] != CHOSEN)
    shown = table[(cut | full) & (table["token"].isin(["last", ""]) | cut)]
    metric = _one(shown, "item", "metric")[1]
    cuts = [c for c in shown["condition"].unique() if c != ESTIMATE]
    names = {c: c.removeprefix("context: ").replace("last 1 tokens", "last token") for c in cuts}
    names[ESTIMATE] = "full context"
    return _lines(shown, metric, names)


def heat_map(table: pd.DataFrame) -> alt.LayerChart:
    """Block × token position for one item: value minus that of shuffled labels at the same place, n under each column."""
    rows = table[(table["site"] != CHOSEN) & (table["split"] != "shared token") & (table["metric"] != "gain")]
    estimate = rows[(rows["condition"] == ESTIMATE) & rows["token"].ne("")]
    metric = _one(estimate, "item", "metric")[1]
    control = rows[rows["condition"] == "shuffled labels"]
    keys = ["site", "token"] if set(estimate["token"]) <= set(control["token"]) else ["site"]
    joined = estimate.merge(control.groupby(keys)["value"].mean().rename("control").reset_index(), on=keys)
    if joined.empty:
        raise ValueError("a heat map needs rows of shuffled labels at the sites of its estimates")
    order = sorted(joined["token"].unique(), key=_token_place)
    heads = {t: f"{t.replace('-', '−')}\nn {_counts(joined['n'][joined['token'] == t])}" for t in order}
    above = joined["value"] - joined["control"]
    cells = joined.assign(block=_block(joined).map(block_name), token=joined["token"].map(heads), above=above)
    cells = cells[["block", "token", "above", "value", "control", "lo", "hi", "n"]]
    blocks = [block_name(b) for b in sorted(set(_block(joined)), reverse=True)]
    top = max(float(cells["above"].max()), 0.05)
    base = alt.Chart(data(cells)).encode(
        x=alt.X("token:O", sort=[heads[t] for t in order], title="token, counted from the end of the name").axis(
            labelExpr="split(datum.label, '\\n')", labelAngle=0, domain=False, ticks=False
        ),
        y=alt.Y("block:O", sort=blocks, title=BLOCK_TITLE).axis(domain=False, ticks=False, labelOverlap="greedy"),
        tooltip=[*tips("block", "token"), *numbers("above", "value", "control", "lo", "hi"), *tips("n")],
    )
    boxes = base.mark_rect(stroke="white", strokeWidth=0.5).encode(
        color=alt.Color("above:Q", title=f"{metric} above shuffled labels")
        .scale(sequential(four(top)))
        .legend(gradient(format=".2~f"))
    )
    written = base.mark_text(fontSize=10.5).encode(
        text=alt.Text("above:Q", format=".2f"), color=text_color(f"datum.above > {0.68 * top:.4g}")
    )
    return finish(boxes, written, height=max(17 * len(blocks), 120), max_width=120 * len(order) + 240)


def gains(table: pd.DataFrame, *, title: str = "paired gain (accuracy or R²)", share: bool = True) -> alt.LayerChart:
    """A forest plot of paired differences: one row per item and control, with its interval and a line at 0."""
    shown = table[(table["metric"] == "gain") & (table["split"] != "shared token")]
    if shown.empty:
        raise ValueError("no row has the metric 'gain'")
    items = list(dict.fromkeys(shown["item"]))
    zero = alt.Chart(data(pd.DataFrame({"zero": [0]}))).mark_rule(color=INK).encode(x="zero:Q")
    return _forest(shown, items, title, [zero], share=share)


def by_item(table: pd.DataFrame, *, title: str, share: bool = True) -> alt.LayerChart:
    """Values of several items: one row per condition inside one band per item. `share`: a value from 0 to 1."""
    _one(table, "metric")
    return _forest(table, list(dict.fromkeys(table["item"])), title, [], share=share)


def ranked(table: pd.DataFrame, *, title: str) -> alt.LayerChart:
    """One number of many methods: one row per method, best first, controls in their own colour and shape."""
    _one(table, "metric", "model")
    styles = styles_of(table["condition"])
    drawn = table[["item", "condition", "value", "lo", "hi", "n"]].sort_values("value", ascending=False)
    base = alt.Chart(data(drawn)).encode(
        y=alt.Y("item:N", sort=list(drawn["item"]), title=None).axis(
            grid=True, domain=False, ticks=False, labelLimit=220, labelPadding=8
        ),
        color=by_condition("color", styles),
        tooltip=[*tips("item", "condition"), *numbers("value", "lo", "hi"), *tips("n")],
    )
    x, lo = (alt.X(f"{end}:Q", title=title, scale=alt.Scale(zero=True, nice=True)) for end in ("value", "lo"))
    bars = base.mark_rule(strokeWidth=1.6).encode(x=lo, x2="hi:Q")
    points = base.mark_point(filled=True, size=52, opacity=1).encode(x=x, shape=by_condition("shape", styles))
    return finish(bars, points, height=22 * len(drawn) + 10)


def places(frame: pd.DataFrame, backdrop: pd.DataFrame, *, max_backdrop: int = 2500) -> alt.LayerChart:
    """True place → predicted place on a map in degrees, by group.

    Parameters
    ----------
    frame
        Columns name, latitude, longitude, predicted_latitude, predicted_longitude (degrees) and group.
    backdrop
        Columns latitude, longitude of many cities: drawn in grey, thinned to `max_backdrop`, so that the land shows.
    """
    cells = backdrop.assign(key=(backdrop["latitude"] * 0.7).round() * 1000 + (backdrop["longitude"] * 0.7).round())
    land = cells.drop_duplicates("key")[["longitude", "latitude"]].round(1)  # one a cell: thins Europe, keeps Siberia
    if len(land) > max_backdrop:
        land = land.sample(max_backdrop, random_state=0)
    axes = {"longitude": "x", "latitude": "y", "predicted_longitude": "to_x", "predicted_latitude": "to_y"}
    shown = frame[["name", "group", *axes]].rename(columns=axes).dropna()
    groups = sorted(shown["group"].astype(str).unique())
    colors, shapes = ([kinds[i % len(kinds)] for i in range(len(groups))] for kinds in (GROUP_COLORS, GROUP_SHAPES))
    title, key = "true place (dot) to predicted (symbol)", legend(groups)
    color = alt.Color("group:N", title=title, legend=key, scale=alt.Scale(domain=groups, range=colors))
    shape = alt.Shape("group:N", title=title, legend=key, scale=alt.Scale(domain=groups, range=shapes))
    shown_tips = [*tips("name", "group"), *numbers("y", "x", "to_y", "to_x", titles=_PLACE)]
    x_scale = alt.Scale(domain=[-180, 180], nice=False, clamp=True)  # a probe knows no edge of the world: what it puts
    y_scale = alt.Scale(domain=[-58, 80], nice=False, clamp=True)  # beyond the map stands at the map's edge
    x, y = (
        alt.X("x:Q", title="longitude (°)", scale=x_scale, axis=alt.Axis(values=[*range(-180, 181, 30)], labelOverlap="parity")),
        alt.Y("y:Q", title="latitude (°)", scale=y_scale),
    )
    dots = alt.Chart(data(land.rename(columns={"longitude": "x", "latitude": "y"})))
    base = alt.Chart(data(shown)).encode(x=x, y=y, color=color, tooltip=shown_tips)
    return finish(
        dots.mark_square(size=7, color="#cfcfcf", opacity=1, clip=True).encode(x=x, y=y),
        base.mark_rule(strokeWidth=0.8, opacity=0.45).encode(x2="to_x:Q", y2="to_y:Q"),
        base.mark_circle(size=9, opacity=0.8),
        base.mark_point(filled=True, size=34, opacity=0.9).encode(x=alt.X("to_x:Q"), y=alt.Y("to_y:Q"), shape=shape),
        height=420,
        aspect=360 / 138,
    )


def predicted_against_true(frame: pd.DataFrame, unit: str) -> alt.LayerChart:
    """Predicted against true values with the line on which both are equal. Columns name, true, predicted, in `unit`."""
    shown = frame[["name", "true", "predicted"]].dropna()
    ends = [float(shown[["true", "predicted"]].min().min()), float(shown[["true", "predicted"]].max().max())]
    room = 0.03 * (ends[1] - ends[0]) or 1.0
    ends = [four(ends[0] - room), four(ends[1] + room)]
    scale = alt.Scale(domain=ends, nice=False, zero=False)
    x, y = (alt.X("true:Q", title=f"true ({unit})", scale=scale), alt.Y("predicted:Q", title=f"predicted ({unit})", scale=scale))
    line = alt.Chart(data(pd.DataFrame({"true": ends, "predicted": ends})))
    style = STYLES["blue"]
    points = alt.Chart(data(shown)).mark_point(filled=True, size=30, opacity=0.55, color=style.color, shape=style.shape)
    both = (
        line.mark_line(color=MUTED, strokeDash=[4, 3], strokeWidth=1).encode(x=x, y=y),
        points.encode(x=x, y=y, tooltip=[*tips("name"), *numbers("true", "predicted")]),
    )
    return finish(*both, height=440, aspect=1.0, max_width=560)


def lens(frame: pd.DataFrame) -> alt.LayerChart:
    """The logit lens: what each block would say next at each token of a prompt; the last block at the top.

    Columns block (−1: the embedding), position (from 0), token (of the prompt), predicted (the top token), probability
    and top_five (text for the tooltip).
    """
    heads = {int(p): f"{p} {visible(t, 12)}" for p, t in zip(frame["position"], frame["token"], strict=True)}
    columns, blocks = [heads[p] for p in sorted(heads)], sorted(set(frame["block"]), reverse=True)
    cells = pd.DataFrame(
        {
            "at": frame["position"].map(heads),
            "block": frame["block"].map(block_name),
            "says": frame["predicted"].map(visible),
            "probability": frame["probability"],
            "top five": frame["top_five"].map(lambda t: visible(t, 300)),
        }
    )
    base = alt.Chart(data(cells)).encode(
        x=alt.X("at:O", sort=columns, title="token of the prompt").axis(
            orient="top", labelAngle=-35, labelExpr="slice(datum.label, indexof(datum.label, ' ') + 1)", domain=False, ticks=False
        ),
        y=alt.Y("block:O", sort=[block_name(b) for b in blocks], title=BLOCK_TITLE).axis(domain=False, ticks=False),
        tooltip=[*tips("at", "block", "says"), *numbers("probability"), *tips("top five")],
    )
    boxes = base.mark_rect(stroke="white", strokeWidth=1).encode(
        color=alt.Color("probability:Q", title="probability of the top token")
        .scale(sequential(1))
        .legend(gradient(values=[0, 0.5, 1]))
    )
    words = base.mark_text(fontSize=11, limit=alt.ExprRef("bandwidth('x') - 4")).encode(
        text="says:N", color=text_color("datum.probability > 0.68")
    )
    return finish(boxes, words, height=20 * len(blocks), min_width=58 * len(columns) + 70)


def save(chart: alt.TopLevelMixin, path: Path, *, width: int = PAPER_WIDTH) -> Path:
    """Write a chart as SVG, PDF or PNG, by the suffix; a chart as wide as its container becomes `width` px wide.

    Raises
    ------
    UserError
        For another suffix.
    """
    import vl_convert as vlc

    writers: dict[str, Callable[..., str | bytes]] = {}
    writers |= {".svg": vlc.vegalite_to_svg, ".pdf": vlc.vegalite_to_pdf, ".png": vlc.vegalite_to_png}
    if path.suffix.lower() not in writers:
        raise unknown("figure format", path.suffix or path.name, writers)
    spec = spec_of(chart)
    hints = spec.pop("usermeta", {})
    if spec.get("width") == "container":
        spec["width"] = max(hints.get("min_width", 0), min(width, hints.get("max_width", width)))
        if "aspect" in hints:
            spec["height"] = round(spec["width"] / hints["aspect"])
    drawn = writers[path.suffix.lower()](spec, vl_version=vega_lite_version())
    with whole_file(path) as partial:
        partial.write_bytes(drawn if isinstance(drawn, bytes) else drawn.encode())
    return path


_PLACE = ("latitude", "longitude", "predicted latitude", "predicted longitude")


def _lines(shown: pd.DataFrame, metric_title: str, names: dict[str, str] | None = None, *, share: bool = True) -> alt.LayerChart:
    """Lines with bands by block, rules with bands for what has no layer; `names`: labels of some conditions."""
    styles = {(names or {}).get(c, c): style for c, style in styles_of(shown["condition"]).items()}
    drawn = shown.assign(block=_block(shown), condition=shown["condition"].replace(names or {}))
    drawn = drawn[["block", "condition", "value", "lo", "hi", "n"]]
    scale, said = value_scale(drawn, metric_title, share=share)
    color, dash = (by_condition(kind, styles, lines=True) for kind in ("color", "dash"))
    wide = alt.FieldOneOfPredicate(field="condition", oneOf=[name for name, s in styles.items() if s.wide])
    width = alt.condition(wide, alt.value(2.8), alt.value(1.6))
    y, lo = (alt.Y(f"{end}:Q", title=said, scale=scale) for end in ("value", "lo"))
    shown_tips = [*tips("condition"), *numbers("value", "lo", "hi"), *tips("n")]
    layered, flat = drawn[drawn["block"].notna()].sort_values("block"), drawn[drawn["block"].isna()]
    if layered.empty:
        raise ValueError("a figure by block needs rows with a layer")
    last = max(int(layered["block"].max()), 0)
    x = alt.X("block:Q", title=BLOCK_TITLE, scale=alt.Scale(domain=[-1, last], nice=False)).axis(
        values=[-1, *range(0, last + 1, 1 if last < 16 else 5)],
        format="d",
        grid=False,
        labelExpr="datum.value < 0 ? 'emb' : datum.label",
        labelOverlap="greedy",
        labelSeparation=4,
        labelFlush=False,
    )
    lines = alt.Chart(data(layered.assign(at=layered["block"].map(block_name)))).encode(x=x, color=color)
    bands, rules = [lines.mark_area(opacity=0.13).encode(y=lo, y2="hi:Q")], []
    if len(flat):
        base = alt.Chart(data(flat.drop(columns="block"))).encode(color=color)
        bands.append(base.mark_rect(opacity=0.12).encode(y=lo, y2="hi:Q"))
        rules.append(base.mark_rule().encode(y=y, strokeDash=dash, strokeWidth=width, tooltip=shown_tips))
    # a transparent stroke makes a small dot easy to point at
    points = lines.mark_point(filled=True, size=14, opacity=float(last <= 12), stroke="transparent", strokeWidth=9)
    rules.append(lines.mark_line().encode(y=y, strokeDash=dash, strokeWidth=width))
    return finish(*bands, *rules, points.encode(y=y, tooltip=[*tips("at"), *shown_tips]), height=340)


def _forest(shown: pd.DataFrame, items: list[str], title: str, under: Sequence[alt.Chart], *, share: bool = True) -> alt.LayerChart:
    """Points with intervals: one row per condition inside one band per item."""
    styles = styles_of(shown["condition"])
    drawn = shown[["item", "condition", "value", "lo", "hi", "n"]]
    scale, said = value_scale(drawn, title, share=share)
    color, shape = (by_condition(kind, styles) for kind in ("color", "shape"))
    base = alt.Chart(data(drawn)).encode(
        y=alt.Y("item:N", sort=items, title=None, scale=alt.Scale(padding=0)).axis(
            tickBand="extent",
            grid=True,
            domain=False,
            ticks=False,
            labelExpr="split(replace(datum.label, '.', '.\\n'), '\\n')",
            labelLimit=170,
            labelLineHeight=14,
        ),
        yOffset=alt.YOffset("condition:N", sort=list(styles)).scale(paddingOuter=0.6),
        color=color,
        tooltip=[*tips("item", "condition"), *numbers("value", "lo", "hi"), *tips("n")],
    )
    axis = alt.Axis(format=".2~f", labelOverlap="greedy", tickCount=alt.ExprRef("ceil(width / 80)"))
    x, lo = (alt.X(f"{end}:Q", title=said, scale=scale, axis=axis) for end in ("value", "lo"))
    bars = base.mark_rule(strokeWidth=1.6).encode(x=lo, x2="hi:Q")
    points = base.mark_point(filled=True, size=52, opacity=1).encode(x=x, shape=shape)
    return finish(*under, bars, points, height=len(items) * (11 * len(styles) + 14))


def _block(rows: pd.DataFrame) -> "pd.Series[float]":
    """Block of each row: −1 for the embedding, NaN for what has no layer."""
    return rows["layer"].astype("float64").mask((rows["site"] == "embed").to_numpy(dtype=bool), -1.0)


def _one(shown: pd.DataFrame, *columns: str) -> list[str]:
    """The only value of each column; two items in one figure would be drawn as one."""
    for column in columns:
        if shown[column].nunique() != 1:
            raise ValueError(f"this figure draws one {column}, not {sorted(shown[column].unique())}")
    return [str(shown[column].iloc[0]) for column in columns]


def _counts(n: "pd.Series[int]") -> str:
    return f"{n.min()}" if n.min() == n.max() else f"{n.min()}–{n.max()}"


def _token_place(token: str) -> tuple[int, int]:
    """Sorts first, …, -3, -2, last."""
    return {"first": (0, 0), "last": (2, 0)}.get(token, (1, int(token) if token.lstrip("-").isdigit() else 0))
