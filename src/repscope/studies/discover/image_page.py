"""The page of `discover` on an image generator and its closing lines, from the tables of the run."""

from typing import Any

import numpy as np
import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.discovery.generators.comparison import IMAGE_METRICS, LABELLED, ORTHOGONAL, RANDOM_DIRECTIONS
from repscope.discovery.generators.judges import GENERATOR_METRICS, KNOWN, Known
from repscope.report.charts import grids, images
from repscope.report.page import Figure, Page, Section, Table
from repscope.report.text import format_estimate
from repscope.studies.discover import image_names as names
from repscope.studies.discover.options import DiscoverOptions
from repscope.studies.run.study import Answer, Record

_KEY = ("distinct factors", "selectivity", "factor change", "overlap")
_MORE = (
    "distinct factors",
    "factors reached",
    "factor change",
    "monotonicity",
    "overlap",
    "effective rank",
    "consistency",
    "image change",
    "sprites explained",
    "digits explained",
    "stability",
)
_COMPARED = ("selectivity", "factor change", "overlap", "effective rank")  #: metrics whose differences a page shows
_CONTROLS = [RANDOM_DIRECTIONS, LABELLED, ORTHOGONAL]
_STRIPPED = 5  #: methods in the filmstrips
_READ = {
    "sprites": "by factors that a regressor reads from edited images",
    "digits": "by the probabilities of the ten classes that classifiers read from edited images; they are the factors below",
}
_LOOK = {
    "sprites": "Look for factors that two regressors read alike from the generator's images.",
    "digits": "Look for images that two classifiers read as the same digit, and for classes that the generator leaves out.",
}


def image_page(record: Record[DiscoverOptions]) -> Page:
    """The page."""
    o = record.options
    kind = (
        "a GAN of sprites"
        if o.subject == names.GAN
        else f"a diffusion model of sprites, added to the {'words' if o.site == 'conditioning' else 'bottleneck'}"
    )
    return Page(
        title="Unsupervised directions of an image generator",
        context=(f"{len(KNOWN[o.data].properties)} {'classes' if KNOWN[o.data].exclusive else 'known factors'}",),
        tested=f"Directions of {kind}, which draws {o.data}. All vectors have one norm ({_scale(record)}). Directions are found on "
        f"some samples and judged on others, {_READ[o.data]}.",
        headline=_headline(record),
        key=_key(record),
        sections=(_strips(record), _matrix(record), _compared(record), _generator(record)),
    )


def image_answer(record: Record[DiscoverOptions]) -> Answer:
    """One line per method, and where the directions are."""
    table = _rows(record)
    lines = []
    for name in dict.fromkeys(table["item"]):
        cells = {str(r["metric"]): r for r in table[table["item"] == name].to_dict("records")}
        said = ", ".join(f"{m} {format_estimate(cells[m])}" for m in _KEY if m in cells)
        lines.append(f"{name}: {said}.")
    files = sorted(record.artifacts.glob("*.safetensors"))
    return Answer([*lines, *([f"Directions: {files[0].parent}"] if files else [])])


def _sentence(text: str) -> str:
    """With a capital, and names as they are."""
    return text[:1].upper() + text[1:]


def _known(record: Record[Any]) -> Known:
    return KNOWN[record.options.data]


def _rows(record: Record[Any]) -> pd.DataFrame:
    table = record.results["summary"].table
    return table[table["metric"] != names.GAIN]


def _scale(record: Record[Any]) -> str:
    scale, norm = record.results[record.options.methods[0]].arrays["scale"]
    return f"{scale:.3g}, {scale / norm:.2g} of the median norm at the source"


def _points(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.rename(columns={"item": "name"})[["metric", "name", "value", "lo", "hi", "n"]]


def _headline(record: Record[Any]) -> Figure:
    rows = _rows(record)
    rows = rows[rows["metric"] == "selectivity"]
    return Figure(
        grids.points(_points(rows), value_title="selectivity for one factor", controls=_CONTROLS),
        "How selectively the directions of each method change one factor",
        f"{IMAGE_METRICS['selectivity'].capitalize()}, on held-out images. Interval over {int(rows['n'].max())} seeds; grey: "
        "random directions, and directions from labels.",
    )


def _key(record: Record[Any]) -> Table:
    table = _rows(record)
    lines: dict[str, dict[str, Any]] = {}
    for r in table[table["metric"].isin(_KEY)].to_dict("records"):
        line = lines.setdefault(str(r["item"]), {"method": str(r["item"]), **dict.fromkeys(_KEY, "–"), "seeds": int(r["n"])})
        line[str(r["metric"])] = format_estimate(r)
    return Table(
        pd.DataFrame(list(lines.values())),
        "Key numbers",
        "Mean and 95 % bootstrap interval over seeds; all vectors have equal norm.",
    )


def _strips(record: Record[Any]) -> Section:
    side = record.results["filmstrips"].side
    strips, lines = side["strips"], side["directions"]
    shown = list(dict.fromkeys(strips["method"]))
    first = (names.BASELINE, names.BOTH, names.CONTRASTIVE, *names.PUBLISHED.values(), LABELLED)
    shown = list(dict.fromkeys([*(m for m in first if m in shown), *shown]))[:_STRIPPED]
    figure = Figure(
        images.filmstrips(strips[strips["method"].isin(shown)], side=_known(record).side, order=shown),
        "Filmstrips",
        "One held-out image along the three most selective directions of each method (first seed), from minus the scale to it.",
    )
    return Section(
        "Filmstrips",
        "Look for rows in which one property of the sprite changes and the others stay."
        if record.options.data == names.SPRITES
        else "Look for rows that end in one digit whatever they begin with, and for changes of style that no class shows.",
        (
            figure,
            Table(lines.round(2), "Directions shown", "Top factor, selectivity and change per direction, on held-out images."),
        ),
    )


def _matrix(record: Record[Any]) -> Section:
    frames = []
    for name in record.options.methods:
        matrix, selectivity = record.results[name].arrays["matrix"][0], record.results[name].arrays["selectivity"][0]
        order = np.argsort(-selectivity, kind="stable")
        for place, k in enumerate(order):
            changes = zip(_known(record).properties, matrix[k])
            frames += [{"method": name, "direction": place + 1, "factor": f, "value": float(v)} for f, v in changes]
    figure = Figure(
        images.factor_matrix(pd.DataFrame(frames), factors=_known(record).properties),
        "Which factor each direction changes",
        "Mean change at the scale in standard deviations of the data, first seed, most selective direction first.",
    )
    return Section("Factors by direction", "Look for columns with one dark cell: they change one factor alone.", (figure,))


def _compared(record: Record[Any]) -> Section:
    rows = _rows(record)
    titles = {m: m.capitalize() for m in _MORE if m in set(rows["metric"])}
    meanings = "; ".join(f"{m}: {IMAGE_METRICS[m]}" for m in titles)
    drawn = Figure(
        grids.multiples(_points(rows[rows["metric"].isin(list(titles))]), titles=titles, controls=_CONTROLS),
        "What the directions do, by method",
        f"Interval over {int(rows['n'].max())} seeds; grey: random directions, and directions from labels. {_sentence(meanings)}.",
    )
    gains = record.results["summary"].table
    gains = gains[(gains["metric"] == names.GAIN) & gains["definition"].isin(_COMPARED)]
    frame = pd.DataFrame(
        [
            {"method and number": r["item"], "compared with": str(r["condition"]).removeprefix("over "), "gain": format_estimate(r)}
            for r in gains.to_dict("records")
        ]
    )
    return Section(
        "Methods compared",
        "Look for methods that are more selective than random directions, and whose changes overlap little.",
        (
            drawn,
            *(
                (Table(frame, "Differences", "Paired by seed, mean and 95 % interval; of other metrics in the table of the run."),)
                if len(frame)
                else ()
            ),
        ),
    )


def _generator(record: Record[Any]) -> Section:
    held, known = record.results["generator"], _known(record)
    table = held.table
    by_factor = [
        {"class" if known.exclusive else "factor": f}
        | {
            m: format_estimate(r)
            for m in known.each
            for r in table[(table["metric"] == m) & (table["item"] == f)].to_dict("records")
        }
        for f in known.properties
    ]
    of_all = [
        {"images": item}
        | {
            m: format_estimate(r)
            for m in known.whole
            for r in table[(table["metric"] == m) & (table["item"] == item)].to_dict("records")
        }
        for item in dict.fromkeys(table[table["metric"] == known.readable]["item"])
    ]
    shown = held.side["images"]
    own = list(table[(table["metric"] == known.readable) & (table["condition"] == ESTIMATE)].to_dict("records"))
    explains = "Sprites of the factors read explain" if known.data == names.SPRITES else "The nearest training digits explain"
    said = f"{explains} {format_estimate(own[0])} of the variance of its images." if own else ""
    return Section(
        "Is the generator good enough to judge by?",
        f"{_LOOK[known.data]} {said}",
        (
            Figure(images.gallery(shown, side=known.side), "Images of the generator", "Sixteen draws, not selected.", small=True),
            Table(
                pd.DataFrame(by_factor),
                "Classes" if known.exclusive else "Factors",
                _sentence("; ".join(f"{m}: {GENERATOR_METRICS[m]}" for m in known.each)) + ".",
            ),
            Table(
                pd.DataFrame(of_all),
                f"Share explained by {known.data}",
                _sentence("; ".join(f"{m}: {GENERATOR_METRICS[m]}" for m in known.whole)) + ".",
            ),
        ),
    )
