"""The index of a folder of runs: each question with its verdict and headline figure, linked to its page; and what was not run.

A question that was also asked about an image generator has a second entry.
"""

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
        sections = [part for name, entry in QUESTIONS.items() for part in _sections(entry, runs.get(name, {}), out)]
    facts = [run.facts() for some in runs.values() for run in some.values()]
    models = dict.fromkeys(str(f.get("model", "")) for f in facts)
    page = Page(
        title="What the network has learned",
        context=(", ".join(filter(None, models)), max((str(f.get("date", "")) for f in facts), default="")),
        question=f"{len(runs)} of the ten questions have a run in this folder. Each answer links to its page.",
        sections=tuple(sections),
    )
    return write(page, out / INDEX)


def _latest(out: Path) -> dict[str, dict[str, RunFolder]]:
    """The newest finished run of each question, by image generator ("" for none); test runs only where there is no other."""
    found: dict[tuple[str, str], tuple[bool, float, RunFolder]] = {}
    for run in list_runs(out):
        facts = run.facts()
        name = str(facts.get("study", ""))
        if not run.finished or name not in QUESTIONS or "steps" not in facts:
            continue
        options = facts.get("options", {})
        generator = str(facts.get("model", "")) if options.get("subject", "language") != "language" else ""
        rank = (not options.get("tiny"), run.page.stat().st_mtime)
        if (name, generator) not in found or rank > found[name, generator][:2]:
            found[name, generator] = (*rank, run)
    runs: dict[str, dict[str, RunFolder]] = {}
    for (name, generator), (_, _, run) in sorted(found.items(), key=lambda item: item[0]):
        runs.setdefault(name, {})[generator] = run
    return runs


def _sections(entry: Entry, runs: dict[str, RunFolder], out: Path) -> list[Section]:
    """That of the question, and one per image generator that it was asked about."""
    command = f"repscope study {entry.name} --short"
    first = _section(entry, runs[""], out) if "" in runs else Section(entry.question, f"Not run yet. In minutes: {command}")
    others = [_section(entry, run, out, f"{entry.question} ({generator})") for generator, run in runs.items() if generator]
    return [first, *others]


def _section(entry: Entry, run: RunFolder, out: Path, title: str = "") -> Section:
    title, found = title or entry.question, study(entry.name)
    try:
        record: Any = load_record(found, run)
    except UserError as error:
        return Section(title, str(error))
    headline = found.page(record).headline
    verdict = record.facts.get("verdict")
    said = verdict["sentence"] if verdict else NO_VERDICT if record.options.tiny else " ".join(record.facts.get("answer", []))
    link = (str(run.page.relative_to(out)), f"The page of {entry.name}")
    return Section(title, said, () if headline is None else (headline,), link)
