"""The page of a run: what its study draws, and what every page has: question, verdict, claims, notes, provenance."""

from dataclasses import replace
from typing import Any

from repscope.report.claims import evaluate_claims, load_claims
from repscope.report.glossary import entries_for
from repscope.report.page import Page
from repscope.report.style import unchecked
from repscope.report.verdict import Verdict
from repscope.studies.run.provenance import page_facts
from repscope.studies.run.study import Record, Study

NO_VERDICT = "A test run on a tiny model: its numbers mean nothing, and it gives no verdict."
_WORDS = ("95 % CI", "n", "chosen on the other half")  #: terms of every page


def verdict(study: Study[Any], record: Record[Any]) -> Verdict | None:
    """The verdict of a run; None of a tiny one, and of a study that gives none."""
    return None if study.verdict is None or record.options.tiny else study.verdict(record.table)


def complete_page(study: Study[Any], record: Record[Any]) -> Page:
    """The page of a run, whole."""
    with unchecked():
        drawn, facts = study.page(record), record.facts
    table = record.table
    tiny = record.options.tiny and study.verdict is not None
    model = f"{facts['model']} ({facts['precision']})" if facts.get("precision") else str(facts["model"])
    return replace(
        drawn,
        question=drawn.question or study.question,
        context=tuple(part for part in (study.name, model, *drawn.context, facts.get("date", "")) if part),
        verdict=verdict(study, record),
        answer=NO_VERDICT if tiny else drawn.answer,
        warnings=record.warnings,
        terms=entries_for(table["metric"].unique(), table["condition"].unique(), study=study.name, words=_WORDS),
        claims=() if record.options.tiny else evaluate_claims(load_claims(), table),
        notes=(*record.notes, *drawn.notes),
        facts=page_facts(facts, **drawn.facts),
    )
