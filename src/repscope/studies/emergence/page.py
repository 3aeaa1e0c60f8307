"""The page of `emergence` and its closing lines, from the tables of the run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.report.page import Page, Section, Table
from repscope.report.tables import cell
from repscope.report.text import format_estimate
from repscope.results import first_row, records, select
from repscope.studies.emergence import figures, names
from repscope.studies.emergence.options import EmergenceOptions
from repscope.studies.run.study import Answer, Record

_GRADUAL = (
    "Look for gradual growth where accuracy jumps: then the jump is a property of accuracy, which counts only the better answer."
)
_TITLE = "When skills appear, and what compute they are worth"


def page(record: Record[EmergenceOptions]) -> Page:
    """The page."""
    table, o = record.table, record.options
    if o.ladder is not None:
        given = record.results["ladder table"].side
        return Page(
            title=_TITLE,
            context=(str(o.ladder),),
            tested="Tested on the table alone: whether its losses are comparable is not known here.",
            headline=figures.ladder(given["law"], given["ladder"]),
            key=figures.gains(given["gains"]),
        )
    if o.checkpoints is not None:
        asked = (o.probes, *o.probe_tasks, *o.probe_relations, o.probe_pairs)
        sections = [Section("Log-probabilities", _GRADUAL, (figures.probes(table, names.LOG_PROBABILITY),))]
        return Page(
            title=_TITLE,
            context=(str(o.checkpoints), *(str(one) for one in asked if one is not None)),
            tested="Tested on these prompts and answers alone, by log-probabilities of the answers.",
            headline=figures.probes(table, names.ACCURACY),
            key=figures.probe_transitions(table),
            sections=(*sections, *((_heads(table),) if o.heads else ())),
        )
    side = record.results["ladder"].side
    few = (
        "The short form has fewer values of phi, seeds, rungs and updates, on smaller graphs; two networks per phi give no more "
        "than a hint of an interval."
    )
    return Page(
        title=_TITLE,
        context=(f"{o.seeds} graphs of {o.entities * o.relations} facts", f"networks of {o.layers} blocks, width {o.width}"),
        tested="Tested on small networks trained in this study. Not tested: language models, and skills other than these.",
        headline=figures.headline(table),
        key=_key(table),
        sections=(_curves(table), _coefficients(table), _bridge(table), _walks(table), _compute(side)),
        notes=(few,) if o.short else (),
    )


def answer(record: Record[EmergenceOptions]) -> Answer:
    """The main numbers, one line each."""
    table, lines = record.table, list(record.warnings)
    if record.options.checkpoints is not None:
        for row in records(table, metric=names.STEP, condition=ESTIMATE):
            lines.append(f"{row['item']}: step of 50 % {figures.steps_text(row)}.")
        return Answer([*lines, *record.notes])
    for phi in figures.phis(table):
        said = []
        for condition, title in (("facts", "facts"), ("trained queries", "trained queries"), (ESTIMATE, "held-out queries")):
            found = first_row(table, metric=names.STEP, item=names.item(phi), condition=condition)
            said.append(f"{title} {figures.steps_text(found)}")
        lines.append(f"{names.item(phi)}: step of 50 % of {', '.join(said)}.")
    for row in records(table, metric=names.KL, item=names.BEST, condition=ESTIMATE):
        lines.append(f"{row['split']}: nearest path sum ({row['definition']}) at a KL of {format_estimate(row)} nats.")
    for row in records(table, metric=names.GAIN, condition=ESTIMATE, split="by loss"):
        if np.isfinite(row["value"]):
            lines.append(f"{row['item']}: worth {figures.steps_text(row, '.2f')} times the pre-training compute.")
    return Answer([*lines, *record.notes])


def _key(table: pd.DataFrame) -> Table:
    """Accuracy at the last step, by phi and kind."""
    rows = []
    for phi in figures.phis(table):
        own = select(table, metric=names.ACCURACY, item=names.item(phi))
        last = max(names.step_of(split) for split in own["split"])
        line = {"phi": f"{phi:g}"}
        titles = {"facts": "facts", "trained queries": "trained queries", ESTIMATE: "held-out queries", names.OOD: "both facts OOD"}
        for condition, title in titles.items():
            line[title] = cell(first_row(own, condition=condition, split=names.at(int(last))))
        line["held-out queries, untrained"] = cell(first_row(own, condition=names.UNTRAINED))
        rows.append(line)
    return Table(pd.DataFrame(rows), "Accuracy at the last step", "Means over networks, 95 % intervals over graphs.")


def _curves(table: pd.DataFrame) -> Section:
    items = []
    for phi in figures.phis(table):
        items.append(figures.curve(table, names.ACCURACY, phi, "Share of examples whose answer is the most probable one."))
        items.append(figures.curve(table, names.LOG_PROBABILITY, phi, "Nats; 0 is certainty."))
    text = (
        "Look for the distance between the orange line (memorised) and the blue one (generalised), and whether the blue one rises "
        "at all when phi is small. Queries out of distribution need a fact at a place where networks never had to store it."
    )
    return Section("Curves over training", text, (figures.transitions(table), *items))


def _bridge(table: pd.DataFrame) -> Section:
    text = (
        "Look at which site of r1 the bridge can be read from and whether patching it there changes the answer: a network that "
        "generalises has it before its last block, where r2 can still read it; one that memorises does not use it."
    )
    return Section("The bridge entity", text, (figures.bridges(table),))


def _coefficients(table: pd.DataFrame) -> Section:
    text = (
        "Look where the coefficient grows, and whether it goes on growing once queries are memorised: more directions of the "
        "weights matter to the loss then. Below 0 the weights are at no minimum, as before training. Chains are short, so values "
        "of one setting compare steps and values of phi, and nothing else."
    )
    return Section("The local learning coefficient", text, (figures.probes(table, names.COEFFICIENT),))


def _heads(table: pd.DataFrame) -> Section:
    items: list[Any] = [figures.head_table(table), figures.probes(table, names.INDUCTION)]
    if len(select(table, metric=names.EFFECT)):
        items.append(figures.probes(table, names.EFFECT))
    text = (
        "Look at whether the induction score rises where accuracy on repeated tokens and on tasks does, and before or after the "
        "effect of function-vector heads. Attention is no proof of use: the indirect effect is."
    )
    return Section("Induction and function-vector heads", text, tuple(items))


def _walks(table: pd.DataFrame) -> Section:
    text = (
        "Look for a path sum that is nearer to the network than every control is: then what the network expects of an edge that "
        "it never saw is what walks over other relations say. The nearest neighbours need no path."
    )
    return Section("Unseen edges as sums over paths", text, figures.paths(table))


def _compute(side: "Mapping[str, pd.DataFrame]") -> Section:
    text = (
        "First the gains that are known: their intervals should contain 1, 4 and 0.5. Then imitation and RL as multiples of the "
        "pre-training compute of their base. A refusal is an answer, too: below the floor, no pre-training gets there."
    )
    return Section("Compute-equivalent gains", text, (figures.ladder(side["law"], side["ladder"]), figures.gains(side["gains"])))
