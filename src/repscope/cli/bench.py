"""Commands that judge methods where the answer is known."""

import json as jsonlib
from typing import Annotated

from cyclopts import Parameter

from repscope.cli.shared import RUNS, Json, Out, Seed, bench_app, print_table


@bench_app.command(name="discovery")
def bench_discovery(
    *,
    setting: str = "planted-mlp",
    seeds: int | None = None,
    seed: Seed = 0,
    kinds: tuple[str, ...] = (),
    n: int | None = None,
    model: str = "",
    tiny: Annotated[bool, Parameter(negative="")] = False,
    out: Out = RUNS,
    json: Json = False,
) -> None:
    """Judge ways to find directions without labels where directions were planted. Exit code 1 when a control is out of place.

    Parameters
    ----------
    setting
        planted-mlp (functions), planted-transformer (weights of a small transformer), lm (a behaviour in a language model).
    seeds
        How many networks of each kind, or draws of prompts; the setting's own when not given.
    seed
        The first of them.
    kinds
        Kinds of planted networks; all when not given.
    n
        Directions that each method finds.
    model
        The model of the setting lm.
    tiny
        Seconds instead of minutes: a few steps of each method, numbers that mean nothing.
    """
    from repscope.disk import need_folder
    from repscope.studies.bench_discovery.steps import PRINTED, Asked, benched, printed, write_bench

    need_folder(out)
    found = benched(Asked(setting, seeds, seed, kinds, n, model, tiny))
    page = write_bench(found, out) / "report.html"
    if json:
        said = {"passed": not found.violations, "answer": found.sentence, "rows": printed(found)}
        print(jsonlib.dumps({"page": str(page), "run": str(page.parent), **said}))
    else:
        print_table(printed(found, PRINTED), title=f"Discovery, {setting}")
        print(found.sentence)
        print(page)
    if found.violations:
        raise SystemExit(1)
