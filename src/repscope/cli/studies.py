"""Commands that answer: a study each, made when one is asked for, and the tour."""

import json as jsonlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from repscope.cli.shared import RUNS, Fresh, Json, ModelName, Out, Plan, Seed, app, print_notes, print_table, study_app


def register(arguments: Sequence[str]) -> None:
    """Make a command of each study, when one is asked for."""
    if not arguments or arguments[0] != "study":
        return
    from repscope.studies.catalogue import ALL

    for study in ALL.values():
        if study.name not in study_app:
            study_app.command(_study_command(study), name=study.name)


def _study_command(study: Any) -> Callable[..., None]:
    def command(*, options: Any = None, out: Out = RUNS, plan: Plan = False, fresh: Fresh = False, json: Json = False) -> None:
        _answer(study, options or study.options(), out, plan, fresh, json)

    command.__doc__ = study.question
    command.__annotations__["options"] = Annotated[study.options, Parameter(name="*", group=Group("Options"))]
    return command


def _answer(study: Any, options: Any, out: Path, plan: bool, fresh: bool, json: bool) -> None:
    from repscope.studies.run.study import Run

    this = Run(study, options, out=out, fresh=fresh)
    if plan:
        _print_plan(this, json)
        return
    page = this.answer()
    lines = list(study.headline(this))
    print_notes(this.notes)
    if json:
        print(jsonlib.dumps({"page": str(page), "run": str(this.folder), "answer": lines, "notes": list(this.notes)}))
        return
    for line in lines:
        print(line)
    print(page)


def _print_plan(this: Any, json: bool) -> None:
    from repscope.models.engine.cost_estimate import product_rate
    from repscope.studies.run.study import seconds

    rate = product_rate()
    steps = [
        {
            "step": name,
            "done": done,
            "blocks": cost.blocks,
            "tokens": cost.tokens,
            "gflop": round((cost.network_flops + cost.fit_flops) / 1e9, 1),
            "minutes": round(seconds(cost, rate) / 60, 2),
            "memory_mb": round(cost.memory_bytes / 1e6, 1),
            "disk_mb": round(cost.disk_bytes / 1e6, 1),
        }
        for name, cost, done in this.plan()
    ]
    left = [s for s in steps if not s["done"]]
    total = {key: round(sum(float(s[key]) for s in left), 2) for key in ("tokens", "gflop", "minutes", "disk_mb")}
    if json:
        print(jsonlib.dumps({"run": str(this.folder), "steps": steps, "left": total}))
        return
    print_table([*steps, {"step": "left to do", "done": "", **total}], title=f"Plan of {this.folder}; nothing was run")


@app.command
def tour(*, model: ModelName = "", out: Out = RUNS, seed: Seed = 0, fresh: Fresh = False, json: Json = False) -> None:
    """The short form of the studies on the default model: what `make demo` runs."""
    from repscope.studies.catalogue import STUDIES

    for study in STUDIES.values():
        options = study.options(short=True, seed=seed, **({"model": model} if model else {}))
        _answer(study, options, out, False, fresh, json)
