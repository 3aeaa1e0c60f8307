"""The page of the `discover` study, and its closing lines: figures and sentences made from the run's tables, and nothing else."""

import textwrap
from typing import Any

import pandas as pd

from repscope.data.requests import requests
from repscope.discovery.comparison import DISCOVERY_METRICS, RANDOM_METHOD
from repscope.report.charts import grids
from repscope.report.claims import evaluate_claims, load_claims
from repscope.report.page import Figure, Page, Section, Table
from repscope.report.text import format_estimate, format_gain
from repscope.studies.discover.options import DiscoverOptions
from repscope.studies.run.provenance import page_facts
from repscope.studies.run.study import Answer, Record

#: metric → title of its axis, in the order of the page
_FIGURES = {
    "size": "size of the effect (median lengths at the target)",
    "overlap": "overlap of mean effects (mean |cos|)",
    "effective rank": "effective rank of mean effects",
    "clusters": "clusters of mean effects",
    "consistency": "consistency on held-out prompts (cos, injected vector off)",
    "kl": "KL of the next token (nats)",
    "damage": "damage to text (nats a token)",
    "stability": "stability over seeds (mean |cos|)",
    "supervised": "nearness to labelled directions (max |cos|)",
}
_ANSWERED = ("size", "overlap", "clusters", "consistency", "kl")
#: method → how it stands in the answer
_BESIDE = {
    "contrastive, skip removed": "Instead of L2",
    "contrastive": "Instead of L2, with the injected vector left in",
    "L2 + contrastive": "Beside L2",
}


def page(record: Record[DiscoverOptions]) -> Page:
    """The whole page."""
    return Page(
        title="Directions that nobody labelled",
        question=record.facts["question"],
        answer="\n\n".join([*record.warnings, *_told(record)]),
        sections=(_compared(record), _behaviours(record), _dose(record)),
        verdicts=evaluate_claims(load_claims(), record.table),
        notes=record.notes,
        facts=page_facts(record.facts),
    )


def answer(record: Record[DiscoverOptions]) -> Answer:
    """The numbers that matter, one line each, and where the directions are."""
    kept = sorted(record.artifacts.glob("*.safetensors"))
    return Answer([*record.warnings, *_told(record), *([f"Directions: {kept[0].parent}"] if kept else [])])


def _rows(record: Record[Any]) -> pd.DataFrame:
    return record.results["summary"].table


def _scale(record: Record[Any]) -> str:
    rows = {r["metric"]: r for r in record.results["scale"].table.to_dict("records")}
    why = str(rows["scale"]["definition"]).partition("; ")[2]
    return f"{rows['scale']['value']:.3g}, {rows['relative scale']['value']:.2g} of the median length at the source ({why})"


def _told(record: Record[Any]) -> list[str]:
    """What contrastive objectives change against L2, paired by seed; every number is a cell of the table."""
    table = _rows(record)
    gains = {r["item"]: r for r in table[table["metric"] == "gain"].to_dict("records")}
    source = str(record.results["scale"].table["site"].iloc[0])
    said = [f"All vectors act at {source} and have the length {_scale(record)}."]
    values = {(r["item"], r["metric"]): r for r in table[table["metric"] != "gain"].to_dict("records")}
    for name, words in _BESIDE.items():
        if f"{name}: overlap" not in gains:
            continue
        changes = ", ".join(
            f"{'KL' if m == 'kl' else m} {format_gain(gains[f'{name}: {m}'])}" for m in _ANSWERED if f"{name}: {m}" in gains
        )
        said.append(f"{words} ({name} less L2, paired by seed): {changes}.")
    if ("L2", "kl") in values and (RANDOM_METHOD, "kl") in values:
        said.append(
            f"At this scale L2's directions cost {format_estimate(values['L2', 'kl'])} nats of KL on held-out prompts, "
            "random directions of equal norm "
            f"{format_estimate(values[RANDOM_METHOD, 'kl'])}."
        )
    return said


def _compared(record: Record[Any]) -> Section:
    table = _rows(record)
    items: list[Figure | Table] = []
    for metric, title in _FIGURES.items():
        rows = table[table["metric"] == metric]
        if rows.empty:
            continue
        frame = rows.rename(columns={"item": "name"})[["name", "value", "lo", "hi", "n"]]
        said = DISCOVERY_METRICS.get(metric, "mean |cos| with the directions of other seeds, matched one to one")
        said = said[0].upper() + said[1:]
        items.append(
            Figure(
                grids.points(frame, value_title=title, controls=[RANDOM_METHOD]),
                metric.capitalize() if metric != "kl" else "KL",
                f"{said}. Interval over {int(rows['n'].max())} seeds; grey: random directions as long.",
                small=True,
            )
        )
    cells = table[table["metric"] != "gain"].assign(
        cell=[format_estimate(r) for r in table[table["metric"] != "gain"].to_dict("records")]
    )
    wide = cells.pivot(index="item", columns="metric", values="cell").fillna("–")
    order = [m for m in [*_FIGURES, *wide.columns] if m in wide.columns]
    wide = wide.loc[list(dict.fromkeys(cells["item"])), list(dict.fromkeys(order))].rename_axis("").reset_index()
    items.append(Table(wide, "All numbers", "Mean and 95 % bootstrap interval over seeds."))
    return Section(
        "Objectives and solvers beside each other",
        "Directions are found on some prompts and judged on others, all at one length.",
        tuple(items),
    )


def _behaviours(record: Record[Any]) -> Section:
    held = record.results["clusters"].side
    members, texts = held["members"], held["texts"]
    mine = members[members["method"] != RANDOM_METHOD]
    asked = requests(record.options.prompts, **record.options.how())[1]

    def wrote(some: pd.DataFrame) -> dict[str, str]:
        return {textwrap.shorten(asked[int(row["prompt"])], 80): row["text"] or "(nothing)" for row in some.to_dict("records")}

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
                f"The {len(frame) - 1} largest. Greedy continuations of held-out prompts under the most consistent "
                "member; a cluster has the number that its directions have in their files.",
            ),
        )
        if len(frame) > 1
        else ()
    )
    return Section(
        "What they do",
        "Directions of the first seed, all methods together, grouped where their mean effects hang together at "
        "|cos| > .8: vectors that "
        f"differ and do the same count once. Groups by method: {counted}.",
        items,
    )


def _dose(record: Record[Any]) -> Section:
    dosed = record.results["clusters"].side["dose"].rename(columns={"method": "condition"})
    titles = {"size": "size of the effect (median lengths)", "kl": "KL of the next token (nats)"}
    items = tuple(
        Figure(
            grids.dose(
                dosed[dosed["metric"] == metric].drop(columns="metric"),
                x_title="dose (1 = the scale)",
                value_title=title,
                share=False,
            ),
            "Size by dose" if metric == "size" else "KL by dose",
            "Held-out prompts, directions of the first seed; bands: 95 % bootstrap intervals over directions.",
            small=True,
        )
        for metric, title in titles.items()
    )
    return Section("Dose", "What parts of the scale do.", items)
