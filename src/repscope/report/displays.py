"""How objects show themselves in a notebook: a card (what it is, where it is from, a small table, a figure), and their figures.

1. A card is HTML without scripts. Its figure is an SVG inside it, so that it is seen offline and in stored notebooks.
2. A card computes nothing with a network, and reads at most `_ROWS` rows of activations.
3. Functions are found by the name of the class, so that showing a table loads no torch.
"""

import base64
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd
from markupsafe import Markup

from repscope.errors import UserError
from repscope.report.style import (
    BLOCK_TITLE,
    by_condition,
    data,
    numbers,
    sequential,
    spec_of,
    styles_of,
    themed,
    tips,
    vega_lite_version,
)

if TYPE_CHECKING:
    from repscope.directions import DirectionSet
    from repscope.models.activations import Activations
    from repscope.models.checkpoints import CheckpointSet
    from repscope.models.jacobian import Jacobian
    from repscope.results import Result

_ROWS = 1000  #: of activations whose norms a figure shows
_PANELS = 12  #: most panels of a figure of a result
_SMALL = 4  #: most panels of the figure inside a card
_SHOWN = 12  #: rows of a card's table
_NAMED = 24  #: most directions of the figure inside a card
_SINGULAR = 16  #: leading singular values
_BLOCKS: dict[str, Any] = {"format": "d", "tickMinStep": 1, "labelExpr": "datum.value < 0 ? 'emb' : datum.label"}


def figure(shown: Any) -> alt.TopLevelMixin:
    """The figure of an object.

    Raises
    ------
    UserError
        If it has nothing that a figure could show.
    """
    made: alt.TopLevelMixin = _FIGURES[type(shown).__name__](shown)
    return made


def html(shown: Any) -> str:
    """The card of an object."""
    return _CARDS[type(shown).__name__](shown)


# ---- results


def _result_figure(result: "Result") -> Any:
    """Value by block with its interval, or values with intervals if no row has a layer: one panel per item and metric."""
    table = result.table
    layered = _layered(table)
    drawn = layered if len(layered) else table[table["value"].notna()]
    if drawn.empty:
        raise UserError("This result has no rows with a value to draw; look at its side tables and notes instead.")
    shown = drawn.assign(panel=(drawn["item"] + " · " + drawn["metric"]).str.removeprefix(" · "))
    panels = list(dict.fromkeys(shown["panel"]))[:_PANELS]
    shown = shown[shown["panel"].isin(panels)]
    styles = styles_of(shown["condition"])
    fields = ["panel", "condition", "site", "token", "split", "value", "lo", "hi", "n"]
    frame = shown[fields].assign(layer=shown["layer"].astype("float"))
    color = by_condition("color", styles, lines=bool(len(layered)))
    base = alt.Chart().encode(color=color, tooltip=[*tips("condition", "site", "token"), *numbers("value", "lo", "hi"), *tips("n")])
    if len(layered):
        base = base.encode(x=alt.X("layer:Q", title=BLOCK_TITLE).axis(**_BLOCKS), detail=["token:N", "split:N"])
        y, lo = (alt.Y(f"{end}:Q", title="value") for end in ("value", "lo"))
        dash = by_condition("dash", styles, lines=True)
        marks = [base.mark_area(opacity=0.15).encode(y=lo, y2="hi:Q"), base.mark_line(point=True).encode(y=y, strokeDash=dash)]
    else:
        base = base.encode(y=alt.Y("condition:N", title=None, sort=list(styles)))
        x, lo_x = (alt.X(f"{end}:Q", title="value") for end in ("value", "lo"))
        shape = by_condition("shape", styles)
        marks = [
            base.mark_rule().encode(x=lo_x, x2="hi:Q"),
            base.mark_point(filled=True, size=50, opacity=1).encode(x=x, shape=shape),
        ]
    size = {"width": 300, "height": 200} if len(layered) else {"width": 300}
    chart = alt.layer(*marks, data=data(frame)).properties(**size)
    facets = chart.facet(alt.Facet("panel:N", title=None, sort=panels), columns=2)
    return themed(facets.resolve_scale(x="shared" if len(layered) else "independent", y="independent"))


def _layered(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with a block; that of the embedding is −1, if there are others."""
    some = table[table["layer"].notna() | (table["site"] == "embed")]
    return some.assign(layer=some["layer"].fillna(-1)) if some["layer"].notna().any() else some.iloc[:0]


def _result_card(result: "Result") -> str:
    table = result.table
    columns = ["metric", "item", "site", "token", "condition", "value", "lo", "hi", "n", "unit"]
    facts = {name: _few(table[name]) for name in ("study", "step", "model")}
    more = {"side tables": ", ".join(result.side), "arrays": str(len(result.arrays) or "")}
    layered = _layered(table)
    drawn = 0 < len(layered.drop_duplicates(["item", "metric"])) <= _SMALL
    title = f"Result: {len(table):,} row{'s' * (len(table) != 1)}"
    return _card(title, facts | more, table[columns], _result_figure(result) if drawn else None, result.notes)


# ---- activations


def _norms(acts: "Activations") -> pd.DataFrame:
    """Per site: median, 5th and 95th percentile of the norms of its rows (of `_ROWS` evenly spaced ones)."""
    rows = []
    for site in acts.sites:
        held = acts[site]
        some = np.unique(np.linspace(0, len(held) - 1, min(len(held), _ROWS)).astype(int))
        norms = np.linalg.norm(np.asarray(held[some], dtype=np.float32).reshape(len(some), -1), axis=1)
        middle, lo, hi = np.percentile(norms, [50, 5, 95]) if len(norms) else [np.nan] * 3
        shape = " × ".join(map(str, held.shape))
        rows.append((str(site), site.kind, site.layer, shape, middle, lo, hi))
    names = ["site", "kind", "layer", "shape", "median norm", "5th percentile", "95th percentile"]
    return pd.DataFrame(rows, columns=names).astype({"layer": "Float64"})


def _activations_figure(acts: "Activations") -> Any:
    """Norms of activations by block: median and the range from the 5th to the 95th percentile, one line per kind of site."""
    frame = _norms(acts)
    frame = frame.assign(layer=frame["layer"].astype("float").fillna(-1.0))
    frame = frame.rename(columns={"median norm": "value", "5th percentile": "lo", "95th percentile": "hi"})
    base = alt.Chart(data(frame)).encode(
        x=alt.X("layer:Q", title=BLOCK_TITLE).axis(**_BLOCKS),
        color=alt.Color("kind:N", title=None).legend(orient="top"),
        tooltip=[
            *tips("site", "shape"),
            *numbers("value", "lo", "hi", titles=["median norm", "5th percentile", "95th percentile"]),
        ],
    )
    y, lo = alt.Y("value:Q", title="norm of a row (median, 5–95 %)"), alt.Y("lo:Q", title="norm of a row (median, 5–95 %)")
    bands, lines = base.mark_area(opacity=0.15).encode(y=lo, y2="hi:Q"), base.mark_line(point=True).encode(y=y)
    return themed(alt.layer(bands, lines).properties(width=420, height=220))


def _activations_card(acts: "Activations") -> str:
    facts = {
        "model": acts.model,
        "prompts": f"{len(acts):,}",
        "tokens": str(acts.tokens),
        "rows per site": f"{len(acts.positions):,}",
        "seconds": f"{acts.seconds:.2g}" if acts.seconds else "",
    }
    frame = _norms(acts).drop(columns=["kind", "layer"])
    title = f"Activations at {len(acts.sites)} site{'s' * (len(acts.sites) != 1)}"
    return _card(title, facts, frame, _activations_figure(acts) if len(acts.sites) > 1 else None)


# ---- directions


def _directions_figure(held: "DirectionSet") -> Any:
    """Absolute cosines between all directions. UserError if their widths differ."""
    cosines = held.cosines()
    labels = [f"{i} {name}" for i, name in enumerate(held.names)]
    i, j = np.indices(cosines.shape)
    named = np.array(labels, dtype=object)
    frame = pd.DataFrame({"a": named[i.ravel()], "b": named[j.ravel()], "cosine": cosines.ravel()})
    frame = frame.assign(absolute=frame["cosine"].abs())
    side = alt.Axis(title=None, labelLimit=160, domain=False, ticks=False)
    base = alt.Chart(data(frame)).encode(
        x=alt.X("a:N", sort=labels, axis=side),
        y=alt.Y("b:N", sort=labels, axis=side),
        tooltip=[*tips("a", "b"), *numbers("cosine")],
    )
    color = alt.Color("absolute:Q", title="|cosine|", scale=sequential(1.0))
    return themed(base.mark_rect().encode(color=color).properties(width={"step": 22}, height={"step": 22}))


def _directions_card(held: "DirectionSet") -> str:
    facts = {"model": held.model, "architecture": held.architecture, "blocks": str(held.blocks or ""), "note": held.note}
    rows = [{"name": d.name, "site": str(d.site), "features": d.width, "scale": d.scale, "summary": d.card()} for d in held]
    one_width = len({d.width for d in held}) == 1
    drawn = _directions_figure(held) if one_width and 1 < len(held) <= _NAMED else None
    return _card(f"{len(held)} direction{'s' * (len(held) != 1)}", facts, pd.DataFrame(rows), drawn)


# ---- checkpoints


def _checkpoints_figure(held: "CheckpointSet") -> Any:
    """One point per checkpoint: runs by step, coloured by group if the table has groups."""
    table = held.table
    group = table["group"].astype(str) if "group" in table else pd.Series("", index=table.index)
    frame = pd.DataFrame({"run": table["run"].astype(str), "step": table["step"].astype(float), "group": group})
    color = alt.Color("group:N", title="group").legend(orient="top") if "group" in table else alt.value("#0072B2")
    base = alt.Chart(data(frame)).encode(
        x=alt.X("step:Q", title="training step"),
        y=alt.Y("run:N", title=None, sort=list(held.runs)),
        color=color,
        tooltip=tips("run", "step", "group"),
    )
    return themed(base.mark_point(filled=True, size=60).properties(width=420))


def _checkpoints_card(held: "CheckpointSet") -> str:
    facts = {"folder": str(held.folder), "runs": str(len(held.runs)), "network": str(held.shape or ""), "summary": repr(held)}
    frame = held.table.assign(path=[_relative(path, held.folder) for path in held.table["path"]])
    drawn = _checkpoints_figure(held) if 1 < len(held.runs) <= _NAMED else None
    return _card(f"Checkpoint set: {len(held):,} checkpoint{'s' * (len(held) != 1)}", facts, frame, drawn)


def _relative(path: Any, folder: Any) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


# ---- Jacobians


def _jacobian_figure(jac: "Jacobian") -> Any:
    """Leading singular values of the mean Jacobian, one line per source; each takes tens of products with the network."""
    rows = []
    for site in jac.sources:
        found = jac[site].mean().svd(min(_SINGULAR, *jac[site].shape))
        rows += [
            {"source": str(site), "rank": i + 1, "value": s, "residual": r} for i, (s, r) in enumerate(zip(found.s, found.residual))
        ]
    base = alt.Chart(data(pd.DataFrame(rows))).encode(
        x=alt.X("rank:Q", title="rank").axis(format="d", tickMinStep=1),
        y=alt.Y("value:Q", title="singular value of the mean Jacobian"),
        color=alt.Color("source:N", title="source", sort=[str(s) for s in jac.sources]),
        tooltip=[*tips("source", "rank"), *numbers("value", "residual")],
    )
    return themed(base.mark_line(point=True).properties(width=420, height=220))


def _jacobian_card(jac: "Jacobian") -> str:
    rows = []
    for site in jac.sources:
        one = jac[site]
        norm = float(np.median(np.linalg.norm(one.point, axis=1))) if len(jac) else float("nan")
        rows.append([str(site), str(jac.target), one.shape[1], one.shape[0], norm])
    value = float(np.median(np.linalg.norm(jac.value, axis=1))) if len(jac) else float("nan")
    facts = {"prompts": str(len(jac)), "median norm of the target": f"{value:.3g}"}
    notes = ("figure() computes and draws the leading singular values of the mean Jacobian.",)
    frame = pd.DataFrame(rows, columns=["source", "target", "d_source", "d_target", "source norm"])
    return _card(repr(jac), facts, frame, None, notes)


# ---- shared

_FIGURES: Mapping[str, Callable[[Any], alt.TopLevelMixin]] = {
    "Result": _result_figure,
    "Activations": _activations_figure,
    "DirectionSet": _directions_figure,
    "CheckpointSet": _checkpoints_figure,
    "Jacobian": _jacobian_figure,
}
_CARDS: Mapping[str, Callable[[Any], str]] = {
    "Result": _result_card,
    "Activations": _activations_card,
    "DirectionSet": _directions_card,
    "CheckpointSet": _checkpoints_card,
    "Jacobian": _jacobian_card,
}


def _card(
    title: str, facts: Mapping[str, str], table: pd.DataFrame, drawn: alt.TopLevelMixin | None = None, notes: tuple[str, ...] = ()
) -> str:
    """Title, facts, table and figure as HTML; empty facts are left out, all text is escaped."""
    line = Markup(" · ").join(Markup("{}: <b>{}</b>").format(name, value) for name, value in facts.items() if value)
    listed = Markup("").join(Markup("<li>{}</li>").format(note) for note in notes)
    rows = Markup(
        table.to_html(index=False, max_rows=_SHOWN, float_format=lambda v: f"{v:.3g}", na_rep="–", border=0)
    )  # pandas escapes cells
    picture = Markup('<img alt="{}" src="data:image/svg+xml;base64,{}">').format(f"Figure: {title}", _svg(drawn)) if drawn else ""
    parts = (Markup("<div><b>{}</b>").format(title), Markup("<br>") + line if line else "", rows, picture)
    return str(Markup("").join(parts) + (Markup("<ul>{}</ul>").format(listed) if notes else "") + Markup("</div>"))


def _svg(chart: alt.TopLevelMixin) -> str:
    import vl_convert as vlc

    return base64.b64encode(vlc.vegalite_to_svg(spec_of(chart), vl_version=vega_lite_version()).encode()).decode()


def _few(values: "pd.Series[str]") -> str:
    """The distinct values, the first few by name."""
    names = [str(v) for v in values.dropna().unique() if v]
    return ", ".join(names[:4]) + (f" … ({len(names)})" if len(names) > 4 else "")
