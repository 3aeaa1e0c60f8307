"""The index of a folder of runs: each question with its verdict and headline figure, linked to its page; and what was not run."""

from pathlib import Path
from typing import Any

from repscope.errors import UserError
from repscope.report.page import Page, Section, write
from repscope.report.style import unchecked
from repscope.studies.catalogue import QUESTIONS, Entry, study
from repscope.studies.run.folder import RunFolder, list_runs
from repscope.studies.run.pages import NO_VERDICT
from repscope.studies.run.runner import load_record

INDEX = "index.html"


def write_index(out: Path) -> Path:
    """Write the index of the runs in a folder; its path."""
    runs = _latest(out)
    with unchecked():
        sections = [_section(entry, runs.get(name), out) for name, entry in QUESTIONS.items()]
    facts = [run.facts() for run in runs.values()]
    models = dict.fromkeys(str(f.get("model", "")) for f in facts)
    page = Page(
        title="What the network has learned",
        context=(", ".join(filter(None, models)), max((str(f.get("date", "")) for f in facts), default="")),
        question=f"{len(runs)} of the ten questions have a run in this folder. Each answer links to its page.",
        sections=tuple(sections),
    )
    return write(page, out / INDEX)


def _latest(out: Path) -> dict[str, RunFolder]:
    """The newest finished run of each question; test runs only where there is no other."""
    found: dict[str, tuple[bool, float, RunFolder]] = {}
    for run in list_runs(out):
        facts = run.facts()
        name = str(facts.get("study", ""))
        if not run.finished or name not in QUESTIONS or "steps" not in facts:
            continue
        rank = (not facts.get("options", {}).get("tiny"), run.page.stat().st_mtime)
        if name not in found or rank > found[name][:2]:
            found[name] = (*rank, run)
    return {name: run for name, (_, _, run) in found.items()}


def _section(entry: Entry, run: RunFolder | None, out: Path) -> Section:
    if run is None:
        return Section(entry.question, f"Not run yet. In minutes: repscope study {entry.name} --short")
    found = study(entry.name)
    try:
        record: Any = load_record(found, run)
    except UserError as error:
        return Section(entry.question, str(error))
    headline = found.page(record).headline
    verdict = record.facts.get("verdict")
    said = verdict["sentence"] if verdict else NO_VERDICT if record.options.tiny else " ".join(record.facts.get("answer", []))
    link = (str(run.page.relative_to(out)), f"The page of {entry.name}")
    return Section(entry.question, said, () if headline is None else (headline,), link)
