"""Commands that answer: one per study of the catalogue, made when it is asked for; `tour`; `report`."""

import inspect
import json as jsonlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Group, Parameter
from pydantic_core import PydanticUndefined

from repscope.cli.shared import RUNS, Fresh, Json, ModelName, Out, Plan, Seed, app, print_notes, print_table, say
from repscope.errors import UserError
from repscope.studies.catalogue import ALL, QUESTIONS, Entry, study

_GROUPS = {"study": "Answer one of the ten questions about a network.", "bench": "Benchmark methods where the answer is known."}
_OPTIONS = Group("Options")


def register(arguments: Sequence[str]) -> None:
    """Make the command that these words name, from its study's options; the others with their question alone, for `--help`."""
    for entry in ALL.values():
        asked = tuple(arguments[: len(entry.command)]) == entry.command
        parent = _parent(entry)
        name = entry.command[-1]
        if asked:
            if name in parent:
                del parent[name]
            found = study(entry.name)
            usage = f"Usage: repscope {' '.join(entry.command)} {found.usage} [OPTIONS]" if found.usage else None
            parent.command(_study_command(found), name=name, usage=usage)
        elif name not in parent:
            parent.command(_stub(entry), name=name)


def _parent(entry: Entry) -> App:
    if len(entry.command) == 1:
        return app
    group = entry.command[0]
    if group not in app:
        app.command(App(name=group, help=_GROUPS[group]))
    return app[group]


def _stub(entry: Entry) -> Callable[..., None]:
    def command(*words: str) -> None:
        """Never run: `register` puts the study's own command in its place when it is asked for."""

    command.__doc__ = entry.question
    return command


def _study_command(found: Any) -> Callable[..., None]:
    """A function with a parameter for each option of a study, as cyclopts reads it."""

    def command(*tokens: Any, out: Path = RUNS, plan: bool = False, fresh: bool = False, json: bool = False, **given: Any) -> None:
        if variadic and tokens:
            given[variadic] = tokens
        else:
            given |= dict(zip(found.positional, tokens))
        _answer(found, found.options(**given), out, plan, fresh, json)

    parameters, variadic = [], ""
    for name, field in found.options.model_fields.items():
        if name in found.unused:
            continue
        default = inspect.Parameter.empty if field.default is PydanticUndefined else field.default
        kind: Any = inspect.Parameter.KEYWORD_ONLY
        if name in found.positional:
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
            if str(field.annotation).startswith("tuple"):
                kind, variadic, default = inspect.Parameter.VAR_POSITIONAL, name, inspect.Parameter.empty
        type_: Any = str if kind is inspect.Parameter.VAR_POSITIONAL else field.annotation
        annotation = Annotated[type_, Parameter(help=field.description, group=_OPTIONS)]
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))
    for name, type_, default in (("out", Out, RUNS), ("plan", Plan, False), ("fresh", Fresh, False), ("json", Json, False)):
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=type_))
    parameters.sort(key=lambda p: p.kind)
    required = max(
        (i for i, p in enumerate(parameters) if p.kind.name == "POSITIONAL_OR_KEYWORD" and p.default is p.empty), default=0
    )
    parameters[:required] = [p.replace(default=p.empty) for p in parameters[:required]]  # what comes before is required too
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = found.question
    return command


def _answer(found: Any, options: Any, out: Path, plan: bool, fresh: bool, json: bool) -> None:
    from repscope.studies.run.runner import Run

    run = Run(found, options, out=out, fresh=fresh)
    if plan:
        _print_plan(run, json)
        return
    page = run.answer()
    answer, notes, verdict = run.headline(), run.notes, run.verdict
    print_notes(notes)
    if json:
        reply = None if verdict is None else verdict.as_json()
        shown = {"page": str(page), "run": str(run.folder), "verdict": reply, "answer": list(answer.lines), "notes": list(notes)}
        print(jsonlib.dumps(shown | dict(answer.more)))
    else:
        if answer.rows:
            print_table(answer.rows, title=answer.title)
        for line in [*answer.lines, *(verdict.lines() if verdict else []), page]:
            say(line)
    if not answer.passed:
        raise SystemExit(1)


def _print_plan(run: Any, json: bool) -> None:
    from repscope.models.engine.cost_estimate import product_rate
    from repscope.studies.run.forecast import forecast_seconds

    rate = product_rate()
    steps = [
        {
            "step": name,
            "done": done,
            "blocks": cost.blocks,
            "tokens": cost.tokens,
            "gflop": round((cost.network_flops + cost.fit_flops) / 1e9, 1),
            "minutes": round(forecast_seconds(run.study.name, name, cost, rate) / 60, 2),
            "memory_mb": round(cost.memory_bytes / 1e6, 1),
            "disk_mb": round(cost.disk_bytes / 1e6, 1),
        }
        for name, cost, done in run.plan()
    ]
    left = [s for s in steps if not s["done"]]
    total = {key: round(sum(float(s[key]) for s in left), 2) for key in ("tokens", "gflop", "minutes", "disk_mb")}
    if json:
        print(jsonlib.dumps({"run": str(run.folder), "steps": steps, "left": total}))
        return
    print_table([*steps, {"step": "left to do", "done": "", **total}], title=f"Plan of {run.folder}; nothing was run")


@app.command
def tour(
    *,
    model: ModelName = "",
    minutes: Annotated[float, Parameter(help="Studies start while their forecast fits in this time; the first always runs.")] = 4.5,
    out: Out = RUNS,
    seed: Seed = 0,
    fresh: Fresh = False,
    json: Json = False,
) -> None:
    """Run short forms of the questions on the default model, as many as fit in the time, and write one page over all answers.

    The page, `index.html` in the folder of runs, has each question's verdict and headline figure, and the commands of the others.
    """
    from repscope.studies.index import write_index
    from repscope.studies.run.options import ModelOptions
    from repscope.studies.run.runner import Run

    started = time.monotonic()
    told: list[dict[str, Any]] = []
    for name in QUESTIONS:
        left = minutes - (time.monotonic() - started) / 60
        found = study(name)
        if told and left < found.least_minutes:
            say(f"{name} is left out: {max(0, round(60 * left))} s are left of --minutes {minutes:g}.", file=sys.stderr)
            continue
        chosen = {"model": model} if model and issubclass(found.options, ModelOptions) else {}
        run = Run(found, found.options(short=True, seed=seed, **chosen), out=out, fresh=fresh)
        if told and (needed := run.minutes_left()) > left:
            say(f"{name} is left out: its short form takes about {max(1, round(needed))} min.", file=sys.stderr)
            continue
        page = run.answer()
        verdict = run.verdict
        told.append({"study": name, "verdict": None if verdict is None else verdict.as_json(), "page": str(page)})
        if not json:
            say(f"{found.question}\n  {verdict.sentence if verdict else 'No verdict.'}\n  {page}")
    index = write_index(out)
    print(jsonlib.dumps({"index": str(index), "studies": told}) if json else index)


@app.command
def report(run: str, *, pdf: Annotated[bool, Parameter(negative="")] = False, out: Out = RUNS, json: Json = False) -> None:
    """Draw the page of a finished run again, from its files, without the model.

    Parameters
    ----------
    run
        A run's name, the beginning of it, or its folder.
    pdf
        Write the page as PDF too, printed by an installed Chromium or Chrome.
    """
    from repscope.locks import only_process
    from repscope.report.pdf import print_pdf
    from repscope.studies.run.folder import MARK, find_run
    from repscope.studies.run.pages import complete_page
    from repscope.studies.run.runner import load_record

    folder = find_run(run, out)
    facts = folder.facts()
    if "study" not in facts:
        raise UserError(f"{folder.path / MARK} is damaged; run the command of {folder.path.name} again.")
    found = study(facts["study"])
    with only_process(folder.path, folder.path / ".lock"):
        record = load_record(found, folder)
        try:
            page = complete_page(found, record)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder.path / MARK} lacks what the page shows ({error}); run its command again.") from error
        paths = [folder.draw(page)]
        if pdf:
            paths.append(print_pdf(folder.page, folder.page.with_suffix(".pdf")))
    if json:
        print(jsonlib.dumps({"run": str(folder.path), "page": str(paths[0]), **({"pdf": str(paths[1])} if pdf else {})}))
        return
    for path in reversed(paths):
        say(path)
