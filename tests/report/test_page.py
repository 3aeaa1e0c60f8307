import re

import altair as alt
import pandas as pd
import pytest
from altair.utils.schemapi import SchemaValidationError
from markupsafe import escape

from report import browser, synthetic
from repscope.report import claims
from repscope.report.charts import layers
from repscope.report.glossary import GlossaryEntry
from repscope.report.page import Figure, Page, Section, Table, render, write
from repscope.report.style import unchecked
from repscope.report.verdict import Verdict

TABLE = synthetic.table(blocks=8)
CITY = TABLE[TABLE["item"] == "cities.continent"]
WIDE = pd.DataFrame({f"column {i}": [0.12345, -3.0, 1e-9] for i in range(24)})


def build(names: tuple[str, ...] = synthetic.HOSTILE) -> Page:
    """A page with every figure, hostile names wherever a name can stand."""
    bad = " ".join(names)
    hostile = TABLE.assign(item=TABLE["item"].str.replace("elements.series", bad, regex=False))
    at_chosen = hostile[(hostile["metric"] == "accuracy") & (hostile["site"] == layers.CHOSEN)]
    charts = {
        "ranked": layers.ranked(at_chosen, title="accuracy"),
        "gains": layers.gains(hostile),
        "by layer": layers.by_layer(CITY, metric_title="accuracy"),
        "context": layers.context_cut(CITY),
        "tokens": layers.heat_map(CITY),
        "places": layers.places(*synthetic.places(names)),
        "numbers": layers.predicted_against_true(synthetic.numbers(names), "log10 people"),
        "lens": layers.lens(synthetic.lens((*names, " Paris", "\n"))),
    }
    drawn = tuple(Figure(chart, f"{title} {bad}", f"Caption {bad}") for title, chart in charts.items())
    table = Table(pd.DataFrame({"name": list(names), "value": [0.12345] * len(names)}), f"Names {bad}", bad)
    return Page(
        title=f"Entities {bad}",
        question=f"Is it? {bad}",
        verdict=Verdict("Yes", f"By 30 points {bad}", {bad: Verdict("No", bad)}),
        context=("entities", bad),
        tested=bad,
        headline=drawn[0],
        key=table,
        terms=(GlossaryEntry(term=bad, definition=f"Text {bad}.", formula=bad, source=bad),),
        warnings=(bad,),
        sections=(Section(f"What {bad}", f"One.\n\nTwo {bad}", (*drawn[1:], Table(WIDE, "Wide"))),),
        claims=claims.evaluate_claims(claims.load_claims(), hostile),
        notes=(f"3 rows dropped {bad}",),
        facts={"model": "tiny", "fingerprint": "9f" * 40, f"option {bad}": bad},
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(build(), tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def html(path):
    return path.read_text()


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as held:
        yield held


def test_text_is_escaped_and_scripts_are_ours(html):
    outside = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    for name in synthetic.HOSTILE[:3]:
        assert name not in outside
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in outside
    assert html.count("<script>") == 2, "the bundle and the drawing, once"
    assert html.count("</script>") == 2 + 8, "no name ends a script element"
    assert "{{7*7}}" in outside


def test_nothing_is_fetched_from_elsewhere(html):
    outside = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert not re.search(r"""(?:src|@import|url\()\s*=?\s*["'(]?\s*(?:https?:)?//""", outside)
    assert {a for a in re.findall(r'href="(.*?)"', outside) if not a.startswith("https://")} == {"data:,"}


def test_order_and_semantics(html):
    bad = str(escape(" ".join(synthetic.HOSTILE)))
    html = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert re.findall(r"<h(\d)>(.*?)</h\d>", html) == [
        ("1", f"Entities {bad}"),
        ("2", f"What {bad}"),
        ("2", "What the literature claims, and what this run says"),
        ("2", "Notes"),
        ("2", "How this was made"),
    ]
    assert '<html lang="en">' in html
    assert f"<title>Entities {bad} · entities · {bad}</title>" in html
    assert re.findall(r'class="number">(\w+ \d)\.', html) == ["Figure 1", "Table 1"] + [f"Figure {i}" for i in range(2, 9)] + [
        "Table 2"
    ]
    assert '<td class="numeric">0.123</td>' in html
    assert '<td class="numeric">−3.00</td>' in html
    assert '<td class="numeric">1e−09</td>' in html


def test_a_page_without_figures_carries_no_script_and_no_empty_section():
    html = render(Page("t", "q", "a", facts={"model": "m"}))
    assert "<script" not in html
    assert "script-src 'none'" in html.replace("&#39;", "'")
    assert "literature" not in html
    assert "Notes" not in html
    assert len(html) < 20_000


def test_cells_of_every_kind():
    frame = pd.DataFrame(
        {
            "whole": pd.array([1, None], dtype="Int64"),
            "flag": [True, False],
            "text": ["a", None],
            "number": [float("nan"), 12345.6],
            "small": [100.0, 0.5],
        }
    )
    html = render(Page("t", "q", "a", (Section("s", "", (Table(frame, "x"),)),)))
    cells = re.findall(r"<td.*?>(.*?)</td>", html)
    assert cells == ["1", "yes", "a", "–", "100", "–", "no", "–", "12346", "0.500"]


def test_a_chart_that_vega_lite_does_not_take_is_told_in_tests(tmp_path):
    """Pages do not check their charts, as that takes most of their time; `conftest.py` does."""
    with unchecked():
        chart = alt.Chart(alt.InlineData(values=[{"a": 1}])).mark_point(size="huge").encode(x="a:Q")
    with pytest.raises(SchemaValidationError, match="huge"):
        write(Page("t", "q", headline=Figure(chart, "t", "c")), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_write_is_whole_and_readable(path):
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert path.stat().st_size < 2_000_000


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_real_browser(chromium, path, width):
    with browser.opened(chromium, path, width) as held:
        assert held.troubles == []
        assert held.requests == []
        assert held.dialogs == []
        assert held.overflow() <= 0, "no sideways scroll"
        marks = held.page.eval_on_selector_all(
            ".chart", "boxes => boxes.map(b => b.querySelectorAll('svg [class*=mark-] path, svg [class*=mark-] text').length)"
        )
        assert len(marks) == 8
        assert min(marks) > 10
        # what lies outside its drawing is cut off: legends, titles and labels must lie inside
        outside = held.page.evaluate("""() => [...document.querySelectorAll('.chart svg')].flatMap(svg => {
            const frame = svg.getBoundingClientRect();
            return [...svg.querySelectorAll('text')].filter(t => t.textContent.length < 60).filter(t => {
                const box = t.getBoundingClientRect();
                return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1
                                     || box.top < frame.top - 1 || box.bottom > frame.bottom + 1);
            }).map(t => t.textContent);
        })""")
        assert outside == []
        boxes = held.page.eval_on_selector_all(".scroll", "all => all.map(b => b.scrollWidth - b.clientWidth)")
        assert boxes[-1] > 100, "the wide table scrolls inside its own box"


@pytest.mark.browser
def test_the_tooltip_shows_a_hostile_name_as_text(chromium, path):
    with browser.opened(chromium, path) as held:
        points = held.page.locator(".chart").nth(6).locator(".mark-symbol path[aria-roledescription=point]")
        points.first.hover(force=True)
        tip = held.page.locator("#vg-tooltip-element")
        tip.wait_for()
        assert synthetic.HOSTILE[0] in tip.inner_text()
        assert tip.locator("script, img, b").count() == 0
        assert held.dialogs == []
        assert held.troubles == []


@pytest.mark.browser
def test_figures_can_be_saved_offline(chromium, path):
    with browser.opened(chromium, path) as held:
        for kind, magic in {"svg": b"<svg", "png": b"\x89PNG"}.items():
            with held.page.expect_download() as download:
                held.page.locator("figure").nth(2).locator(f"button[data-format={kind}]").click()
            assert download.value.suggested_filename == f"figure-2.{kind}"
            assert download.value.path().read_bytes().startswith(magic)


@pytest.mark.browser
def test_the_drawing_follows_the_window(chromium, path):
    with browser.opened(chromium, path, 1280) as held:
        size = "document.querySelector('.chart svg').getBoundingClientRect().width"
        wide = held.page.evaluate(size)
        held.page.set_viewport_size({"width": 390, "height": 800})
        held.page.wait_for_function(f"{size} < 380")
        assert wide > 1000
        assert held.overflow() <= 0
