"""The page of `minimal-pairs` and its closing lines, from the table of the run."""

from typing import Any

import pandas as pd

from repscope.conditions import ESTIMATE, FEWER_TOKENS, RANDOM_WEIGHTS
from repscope.read.pair_scores import ACCURACY, ALL, CONVENTIONS, MEAN, SCORES, SUM
from repscope.report.charts import grids
from repscope.report.page import Figure, Page, Section, Table
from repscope.report.text import format_estimate
from repscope.results import records, select
from repscope.studies.minimal_pairs.options import MinimalPairsOptions
from repscope.studies.minimal_pairs.verdict import last_checkpoint
from repscope.studies.run.study import Answer, Record

_NAMES = {SUM: "sum", MEAN: "per token"}


def page(record: Record[MinimalPairsOptions]) -> Page:
    """Accuracy by phenomenon, by checkpoint where there are several."""
    held = last_checkpoint(record.table)
    sections = [_by_phenomenon(held)]
    if _is_series(record):
        sections.insert(0, _by_step(record.table))
    how = CONVENTIONS[record.options.convention]
    return Page(
        title="Minimal pairs",
        tested=f"Pairs: {record.facts.get('data', record.options.file)}. Convention {how.name}: {how.meaning}",
        headline=_headline(held),
        key=_key(held),
        sections=tuple(sections),
    )


def answer(record: Record[MinimalPairsOptions]) -> Answer:
    """Accuracy of each phenomenon by both scores, and over all."""
    held = last_checkpoint(record.table)
    lines = [
        {
            "phenomenon": name,
            **{_NAMES[s]: format_estimate(rows[ESTIMATE, s]) for s in SCORES},
            "fewer tokens": f"{rows[FEWER_TOKENS, SUM]['value']:.2f}",
        }
        for name, rows in _rows(held).items()
    ]
    said = [
        f"Over phenomena: accuracy {format_estimate(key[ESTIMATE, SUM])} by summed log-probability, "
        f"{format_estimate(key[ESTIMATE, MEAN])} per token; fewer tokens {format_estimate(key[FEWER_TOKENS, SUM])}."
        for name, key in _rows(held).items()
        if name == ALL
    ]
    return Answer(said, lines, f"Accuracy on minimal pairs, convention {record.options.convention}")


def _rows(table: pd.DataFrame) -> dict[str, dict[tuple[str, str], dict[Any, Any]]]:
    """Phenomenon → (condition, score) → row."""
    found: dict[str, dict[tuple[str, str], dict[Any, Any]]] = {}
    for row in records(table, metric=ACCURACY):
        found.setdefault(row["item"], {})[row["condition"], row["definition"]] = row
    return found


def _is_series(record: Record[MinimalPairsOptions]) -> bool:
    return bool((record.table["token"] != "").any())


def _headline(held: pd.DataFrame) -> Figure:
    lines: list[dict[str, Any]] = []
    for name, rows in _rows(held).items():
        for condition in (ESTIMATE, FEWER_TOKENS, RANDOM_WEIGHTS):
            if (condition, SUM) in rows and (condition == ESTIMATE or name == ALL):
                label = name if condition == ESTIMATE else f"{name}: {condition}"
                lines.append(rows[condition, SUM] | {"name": label, "order": (name != ALL, -rows[ESTIMATE, SUM]["value"])})
    lines.sort(key=lambda line: tuple(line["order"]))
    frame = pd.DataFrame(lines)
    controls = [str(name) for name in frame["name"] if str(name).endswith((FEWER_TOKENS, RANDOM_WEIGHTS))]
    return Figure(
        grids.points(frame, value_title="accuracy", controls=controls, label_limit=330, rule=0.5),
        "Share of pairs whose acceptable sentence has the higher summed log-probability",
        "Bars: 95 % intervals over pairs; of the mean, over phenomena. Line: chance. Grey: controls.",
    )


def _key(held: pd.DataFrame) -> Table:
    rows = _rows(held)
    name = ALL if ALL in rows else next(iter(rows))
    lines = []
    for score in SCORES:
        known = [c for c in (ESTIMATE, FEWER_TOKENS, RANDOM_WEIGHTS) if (c, score) in rows[name]]
        cells = {c: format_estimate(rows[name][c, score]) for c in known}
        lines.append({"score": score, **cells, "n": int(rows[name][ESTIMATE, score]["n"])})
    return Table(pd.DataFrame(lines), "Key numbers", f"Accuracy, {name}. n: number of {rows[name][ESTIMATE, SUM]['unit']}s.")


def _by_phenomenon(held: pd.DataFrame) -> Section:
    lines = []
    for name, rows in _rows(held).items():
        cells = {_NAMES[s]: format_estimate(rows[ESTIMATE, s]) for s in SCORES}
        cells |= {c: format_estimate(rows[c, SUM]) for c in (FEWER_TOKENS, RANDOM_WEIGHTS) if (c, SUM) in rows}
        lines.append({"phenomenon": name, **cells, "n": int(rows[ESTIMATE, SUM]["n"])})
    return Section(
        "Accuracy by phenomenon",
        "Look for phenomena at which the model is no better than the sentence with fewer tokens, and for those whose two scores "
        "disagree: there the length of the sentences matters.",
        (Table(pd.DataFrame(lines), "Accuracy by phenomenon", "Sum and per token: two scores of a sentence. n: pairs."),),
    )


def _by_step(table: pd.DataFrame) -> Section:
    figures: list[Figure | Table] = []
    for run in dict.fromkeys(table["split"]):
        some = select(table, metric=ACCURACY, split=run, definition=SUM)
        shown = some[some["item"] == ALL] if (some["item"] == ALL).any() else some
        frame = shown.assign(dose=pd.to_numeric(shown["token"]))
        frame = frame[frame["condition"] != RANDOM_WEIGHTS].sort_values("dose")
        chart = grids.dose(frame, x_title="step", value_title="accuracy, mean over phenomena", share=True)
        figures.append(Figure(chart, f"Accuracy by checkpoint, {run}", "Bands: 95 % intervals over phenomena."))
        own = some[(some["condition"] == ESTIMATE) & (some["item"] != ALL)]
        wide = own.assign(step=own["token"].astype(int)).pivot_table(index="item", columns="step", values="value", sort=False)
        table = wide.rename_axis("phenomenon").reset_index().rename(columns=str)
        figures.append(Table(table, f"Accuracy by phenomenon and step, {run}"))
    return Section("By checkpoint", "Look for phenomena that are learned before others.", tuple(figures))
