"""The page of the `discover` study and its closing lines, from the tables of the run."""

import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from repscope.data.requests import requests
from repscope.discovery.comparison import DISCOVERY_METRICS, RANDOM_METHOD
from repscope.report.charts import grids
from repscope.report.page import Figure, Page, Section, Table
from repscope.report.text import format_estimate, format_gain
from repscope.results import records
from repscope.studies.discover.image_page import image_answer, image_page
from repscope.studies.discover.options import DiscoverOptions
from repscope.studies.run.study import Answer, Record

#: metric → title of its axis, in the order of the page
_FIGURES = {
    "size": "effect norm / median norm at the target",
    "overlap": "overlap of mean effects (mean |cos|)",
    "effective rank": "effective rank of mean effects",
    "clusters": "clusters of mean effects",
    "consistency": "consistency on held-out prompts (cos, injected vector subtracted)",
    "kl": "KL of the next token (nats)",
    "damage": "damage to text (nats per token)",
    "stability": "stability over seeds (mean |cos|)",
    "supervised": "similarity to supervised directions (max |cos|)",
}
_STABILITY = "mean |cos| with the directions of other seeds, matched one to one"
_ANSWERED = ("size", "overlap", "clusters", "consistency", "kl")
#: method → its wording in the answer
_WORDING = {
    "contrastive, skip removed": "Replacing the L2 objective",
    "contrastive": "Replacing the L2 objective, without subtracting the injected vector",
    "L2 + contrastive": "Added to the L2 objective",
}


def page(record: Record[DiscoverOptions]) -> Page:
    """The page; of an image generator, `image_page`."""
    if record.options.subject != "language":
        return image_page(record)
    source = str(record.results["scale"].table["site"].iloc[0])
    return Page(
        title="Unsupervised directions",
        context=(_prompts(record.options.prompts), f"added at {source}"),
        tested=f"All vectors are added at {source} and have the norm {_scale(record)}. Directions are found on some prompts and "
        "evaluated on others.",
        headline=_kl(record),
        key=_key(record),
        sections=(_compared(record), _behaviours(record), _dose(record)),
    )


def _prompts(given: str | None) -> str:
    return Path(given).name if given else "built-in prompts"


def answer(record: Record[DiscoverOptions]) -> Answer:
    """The main numbers, one line each, and where the directions are."""
    if record.options.subject != "language":
        return image_answer(record)
    files = sorted(record.artifacts.glob("*.safetensors"))
    return Answer([*record.warnings, *_sentences(record), *([f"Directions: {files[0].parent}"] if files else [])])


def _rows(record: Record[Any]) -> pd.DataFrame:
    return record.results["summary"].table


def _scale(record: Record[Any]) -> str:
    rows = {r["metric"]: r for r in records(record.results["scale"].table)}
    why = str(rows["scale"]["definition"]).partition("; ")[2]
    return f"{rows['scale']['value']:.3g}, {rows['relative scale']['value']:.2g} of the median norm at the source ({why})"


def _sentences(record: Record[Any]) -> list[str]:
    """Differences between contrastive objectives and L2, paired by seed; every number is a cell of the table."""
    table = _rows(record)
    gains = {r["item"]: r for r in records(table[table["metric"] == "gain"])}
    source = str(record.results["scale"].table["site"].iloc[0])
    lines = [f"All vectors are added at {source} and have the norm {_scale(record)}."]
    values = {(r["item"], r["metric"]): r for r in records(table[table["metric"] != "gain"])}
    for name, words in _WORDING.items():
        if f"{name}: overlap" not in gains:
            continue
        changes = ", ".join(
            f"{'KL' if m == 'kl' else m} {format_gain(gains[f'{name}: {m}'])}" for m in _ANSWERED if f"{name}: {m}" in gains
        )
        lines.append(f"{words} ({name} minus L2, paired by seed): {changes}.")
    if ("L2", "kl") in values and (RANDOM_METHOD, "kl") in values:
        lines.append(
            f"At this scale, L2's directions cause a KL of {format_estimate(values['L2', 'kl'])} nats on held-out "
            f"prompts, random directions of equal norm {format_estimate(values[RANDOM_METHOD, 'kl'])}."
        )
    return lines


def _points(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.rename(columns={"item": "name"})[["metric", "name", "value", "lo", "hi", "n"]]


def _kl(record: Record[Any]) -> Figure:
    rows = _rows(record)
    rows = rows[rows["metric"] == "kl"]
    return Figure(
        grids.points(_points(rows), value_title=_FIGURES["kl"], controls=[RANDOM_METHOD]),
        "Change of the next token by the directions of each method",
        f"KL(unsteered ‖ steered) of the next token on held-out prompts. Interval over {int(rows['n'].max())} seeds; grey: random "
        "directions of equal norm, the control.",
    )


def _key(record: Record[Any]) -> Table:
    table = _rows(record)
    lines: dict[str, dict[str, Any]] = {}
    for r in records(table[table["metric"].isin(_ANSWERED)]):
        line = lines.setdefault(str(r["item"]), {"method": str(r["item"]), **dict.fromkeys(_ANSWERED, "–"), "n": int(r["n"])})
        line[str(r["metric"])] = format_estimate(r)
    frame = pd.DataFrame(list(lines.values())).rename(columns={"kl": "KL (nats)", "size": "effect norm", "n": "seeds"})
    return Table(frame, "Key numbers", "Mean and 95 % bootstrap interval over seeds; all vectors have equal norm.")


def _compared(record: Record[Any]) -> Section:
    table = _rows(record)
    rows = table[table["metric"].isin([m for m in _FIGURES if m != "kl"])]
    titles = {m: "Effect norm" if m == "size" else m.capitalize() for m in _FIGURES if m in set(rows["metric"])}
    meanings = [f"{titles[m].lower()}: {DISCOVERY_METRICS.get(m, _STABILITY)}" for m in titles]
    drawn = Figure(
        grids.multiples(_points(rows), titles=titles, controls=[RANDOM_METHOD]),
        "What the directions do, by method",
        f"Interval over {int(rows['n'].max())} seeds; grey: random directions of equal norm. {'; '.join(meanings).capitalize()}.",
    )
    cells = table[table["metric"] != "gain"]
    cells = cells.assign(cell=[format_estimate(r) for r in records(cells)])
    wide = cells.pivot(index="item", columns="metric", values="cell").fillna("–")
    order = [m for m in [*_FIGURES, *wide.columns] if m in wide.columns]
    wide = wide.loc[list(dict.fromkeys(cells["item"])), list(dict.fromkeys(order))].rename_axis("").reset_index()
    return Section(
        "Objectives and solvers compared",
        "Look for methods with large effects that overlap little and are the same on other prompts (consistency) and for other "
        "seeds (stability).",
        (drawn, Table(wide, "All numbers", "Mean and 95 % bootstrap interval over seeds.")),
    )


def _behaviours(record: Record[Any]) -> Section:
    side = record.results["clusters"].side
    members, texts = side["members"], side["texts"]
    mine = members[members["method"] != RANDOM_METHOD]
    prompts = requests(record.options.prompts, **record.options.how())[1]

    def wrote(some: pd.DataFrame) -> dict[str, str]:
        return {textwrap.shorten(prompts[int(row["prompt"])], 80): row["text"] or "(nothing)" for row in records(some)}

    rows: list[dict[str, Any]] = [
        {"cluster": "unsteered", "directions": "", "KL": "", "consistency": ""} | wrote(texts[texts["cluster"] < 0])
    ]
    for cluster, some in mine.groupby("cluster"):
        shown = texts[texts["cluster"] == cluster]
        if shown.empty:
            continue
        counts = some["method"].value_counts()
        row = {
            "cluster": str(cluster),
            "directions": ", ".join(f"{n} {m}" for m, n in counts.items()),
            "KL": f"{some['kl'].mean():.2f}",
            "consistency": f"{some['consistency'].mean():.2f}",
        }
        rows.append(row | wrote(shown))
    frame = pd.DataFrame(rows)
    per = mine.groupby("method")["cluster"].nunique()
    counted = ", ".join(f"{name} {n}" for name, n in per.items())
    items = (
        (
            Table(
                frame,
                "Behaviours",
                f"The {len(frame) - 1} largest clusters. Greedy continuations of held-out prompts under the most "
                "consistent member. Cluster numbers are the same as in the files of directions.",
            ),
        )
        if len(frame) > 1
        else ()
    )
    return Section(
        "Behaviours",
        "Look for clusters that several methods find, and read what they write. Directions of the first seed, all methods "
        "together, clustered by their mean effects (|cos| > .8): "
        f"different vectors with the same effect count once. Clusters by method: {counted}.",
        items,
    )


def _dose(record: Record[Any]) -> Section:
    dosed = record.results["clusters"].side["dose"].rename(columns={"method": "condition"})
    titles = {"size": "effect norm / median norm", "kl": "KL of the next token (nats)"}
    caption = "Held-out prompts, directions of the first seed; bands: 95 % bootstrap intervals over directions."
    items = []
    for metric, title in titles.items():
        chart = grids.dose(dosed[dosed["metric"] == metric], x_title="dose (1 = the scale)", value_title=title, share=False)
        items.append(Figure(chart, "Effect norm by dose" if metric == "size" else "KL by dose", caption, small=True))
    text = "Look for where effects stop growing in proportion: there the response is no longer linear."
    return Section("Dose", text, tuple(items))
