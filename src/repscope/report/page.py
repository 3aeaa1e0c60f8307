"""One self-contained HTML file from text, charts and tables: no network access, no further files, readable in ten years.

1. Each chart becomes its Vega-Lite specification as JSON inside the file; "<" is written as an escape, so that no name
   in the data can end its element. All text goes through Jinja2's autoescape.
2. Vega, Vega-Lite and vega-embed come from vl-convert's bundle, in Altair's version.
3. A content security policy names the digests of exactly these scripts: nothing else runs, nothing is fetched, and
   Vega's expressions are interpreted rather than compiled.
Knows no study: the content of sections is the caller's.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from repscope import manifest
from repscope.disk import cache_home, whole_file
from repscope.errors import UserError
from repscope.report.claims import ClaimVerdict
from repscope.report.glossary import GlossaryEntry
from repscope.report.style import spec_of, unchecked, vega_lite_version
from repscope.report.verdict import Verdict

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """A chart with a title above it and a caption below it; two small ones share a row if there is room."""

    chart: alt.TopLevelMixin
    title: str
    caption: str
    small: bool = False


@dataclass(frozen=True)
class Table:
    """A frame as a table, without its index: numbers to three digits, right-aligned."""

    frame: pd.DataFrame
    title: str
    caption: str = ""


@dataclass(frozen=True)
class Card:
    """What is known of one feature. facts: one line. passages: tokens, each with its shade from 0 to 1."""

    title: str
    facts: str
    passages: tuple[tuple[tuple[str, float], ...], ...]


@dataclass(frozen=True)
class Cards:
    """Cards under a title and a caption, two in a row if there is room."""

    cards: tuple[Card, ...]
    title: str
    caption: str


Item = Figure | Table | Cards


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs (separated by empty lines; the first says what to look for), figures and tables.

    link: address and text of a page with more.
    """

    title: str
    text: str
    items: tuple[Item, ...] = ()
    link: tuple[str, str] | None = None

    @classmethod
    def of(cls, title: str, text: str, *items: Item | None) -> "Section | None":
        """A section on the items that there are; None without any."""
        held = tuple(item for item in items if item is not None)
        return cls(title, text, held) if held else None


@dataclass(frozen=True)
class Page:
    """The content of a page, in print order.

    context: model, data, date. verdict: None of a test run, and where a page answers in paragraphs: `answer`. tested: which part of
    the question is tested. warnings: what the reader must know first. headline: the figure that carries the verdict. key: its
    numbers. terms: what the fold explains. claims: of the literature. facts: precision, fingerprint, versions, options, command …
    """

    title: str
    question: str = ""
    answer: str = ""
    sections: tuple[Section, ...] = ()
    context: tuple[str, ...] = ()
    verdict: Verdict | None = None
    tested: str = ""
    warnings: tuple[str, ...] = ()
    headline: Figure | None = None
    key: Table | None = None
    terms: tuple[GlossaryEntry, ...] = ()
    claims: tuple[ClaimVerdict, ...] = ()
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def write(page: Page, path: Path) -> Path:
    """Write the page, completely or not at all."""
    with unchecked():
        text = render(page)
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")  # half of a surrogate pair is no text
    return path


def render(page: Page) -> str:
    """The page as one HTML document."""
    specs: list[dict[str, Any]] = []
    tables = 0

    def entry(item: Item) -> dict[str, Any]:
        nonlocal tables
        common = {"title": item.title, "caption": item.caption}
        if isinstance(item, Figure):
            specs.append(_responsive(spec_of(item.chart), item.title))
            return common | {"figure": len(specs), "hints": specs[-1].get("usermeta", {}), "small": item.small}
        if isinstance(item, Cards):
            return common | {"cards": item.cards}
        tables += 1
        return common | {"table": tables, **_cells(item.frame)}

    top = [entry(item) for item in (page.headline, page.key) if item is not None]
    sections = [
        {
            "title": section.title,
            "paragraphs": _paragraphs(section.text),
            "entries": [entry(item) for item in section.items],
            "link": section.link,
        }
        for section in page.sections
    ]
    scripts = (_bundle(), (_HERE / "draw.js").read_text(encoding="utf-8")) if specs else ()
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        page=page,
        answer=_paragraphs(page.answer),
        top=top,
        sections=sections,
        specs=[_json(spec) for spec in specs],
        scripts=[Markup(script) for script in scripts],
        digests=" ".join(_digest(script) for script in scripts) or "'none'",
    )


@lru_cache(maxsize=1)
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script, about 0.9 MB. Bundling takes seconds, so the script is cached on disk."""
    kept = cache_home() / "vega" / f"vega-lite-{vega_lite_version()}-vl-convert-{version('vl-convert-python')}.js"
    if manifest.sealed(kept):
        return kept.read_text(encoding="utf-8").partition("\n")[2]
    import vl_convert as vlc

    if vega_lite_version() not in vlc.get_vegalite_versions():
        raise RuntimeError(
            f"Altair writes Vega-Lite {vega_lite_version()}, vl-convert has {vlc.get_vegalite_versions()}: install the "
            "vl-convert-python that this Altair names in its `save` extra"
        )
    script = str(vlc.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=vega_lite_version())).replace("\r\n", "\n")
    if "</script" in script.lower() or "<!--" in script:
        raise RuntimeError("the Vega bundle holds text that would end its script element")
    with (
        suppress(UserError, OSError),
        whole_file(kept, sync=False) as partial,
    ):  # a cache that cannot be written costs time, not the page
        partial.write_text(f"// {manifest.UNSEALED}\n{script}", encoding="utf-8", newline="\n")
        manifest.seal(partial)
    return script


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(spec: dict[str, Any]) -> Markup:
    """JSON that no HTML parser reads as markup, for any names in it."""
    return Markup(json.dumps(spec, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def _responsive(spec: dict[str, Any], title: str) -> dict[str, Any]:
    """As wide as its container, for single and layered charts, which Vega-Lite can resize."""
    if "width" not in spec and ("layer" in spec or "mark" in spec):
        spec["width"] = "container"
    return spec | {"description": title}


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def _cells(frame: pd.DataFrame) -> dict[str, Any]:
    """Heads and rows of a table as text; columns of numbers are marked for right alignment."""
    numeric = [pd.api.types.is_numeric_dtype(t) and not pd.api.types.is_bool_dtype(t) for t in frame.dtypes]
    rows = [[_text(value) for value in row] for row in frame.astype("object").itertuples(index=False, name=None)]
    return {"heads": [str(c) for c in frame.columns], "numeric": numeric, "rows": rows}


def _text(value: Any) -> str:
    """A cell: three digits for fractions, whole numbers whole, a dash for missing values."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return "–"
    if isinstance(value, float | np.floating):
        size = abs(float(value))
        digits = ".0f" if 1000 <= size < 1e7 else "#.3g" if 1e-3 <= size < 1000 else ".3g"
        return format(float(value), digits).rstrip(".").replace("-", "−")
    if isinstance(value, int | np.integer):
        return str(value).replace("-", "−")
    return str(value)
