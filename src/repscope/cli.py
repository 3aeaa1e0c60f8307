"""The command line: `repscope study NAME`, `tour`, and what looks at models and runs.

Standard output carries the answer, its last line the page's path (with `--json` one JSON object); progress goes to standard
error. Exit codes: 0 answered, 1 a check failed, 2 the user's mistake in one sentence, 70 our fault, 130 interrupted.
Everything heavy is imported inside the command that needs it, so that `--help` and typos answer at once.
"""

import json as jsonlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter

from repscope import __version__
from repscope.errors import UserError

app = App(
    name="repscope",
    version=__version__,
    help="What has a trained network learned? Every number with its control and its interval.",
    help_format="plaintext",
    # --methods A B C takes all three; there is no --empty-methods, as an empty list means nothing anywhere
    default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
)
study_app = App(name="study", help="Answer one of the ten questions about a network.")
app.command(study_app)
bench_app = App(name="bench", help="Judge methods where the answer is known.")
app.command(bench_app)

_RUN = Group("Run")
Out = Annotated[Path, Parameter(group=_RUN, help="Folder of all runs.")]
Plan = Annotated[bool, Parameter(group=_RUN, negative="", help="Print tokens, FLOPs, minutes and disk; run nothing.")]
Fresh = Annotated[bool, Parameter(group=_RUN, negative="", help="Start anew, not where a killed run stopped.")]
Json = Annotated[bool, Parameter(group=_RUN, negative="", help="Print one JSON object that holds the page's path.")]
ModelName = Annotated[str, Parameter(help="Alias, hub id org/name, local folder or .gguf file.")]
_DEFAULT_RUNS = Path("runs")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; a user's mistake is one sentence on standard error, never a traceback."""
    from pydantic import ValidationError

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        register(arguments)
        app(list(arguments), exit_on_error=False, print_error=False, result_action="return_value")
    except (UserError, CycloptsError, ValidationError) as error:
        print(f"repscope: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("repscope: interrupted; the same command goes on where this one stopped.", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return int(stop.code or 0)
    except BrokenPipeError:  # the reader of a pipe went away (| head)
        sys.stderr.close()
        return 0
    except Exception:
        import traceback

        traceback.print_exc()
        print("repscope: this is a fault of repscope; please report the lines above.", file=sys.stderr)
        return 70
    return 0


def _sentence(error: Exception) -> str:
    from pydantic import ValidationError

    if isinstance(error.__cause__, ValidationError):  # as cyclopts wraps it
        error = error.__cause__
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        return f"{'--' + where.replace('_', '-') + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}."
    return " ".join(str(error).split())


def register(arguments: Sequence[str]) -> None:
    """Make a command of each study, when one is asked for."""
    if not arguments or arguments[0] != "study":
        return
    from repscope.studies.catalogue import ALL

    for study in ALL.values():
        if study.name not in study_app:
            study_app.command(_study_command(study), name=study.name)


def _study_command(study: Any) -> Callable[..., None]:
    def command(
        *, options: Any = None, out: Out = _DEFAULT_RUNS, plan: Plan = False, fresh: Fresh = False, json: Json = False
    ) -> None:
        _answer(study, options or study.options(), out, plan, fresh, json)

    command.__doc__ = study.question
    command.__annotations__["options"] = Annotated[study.options, Parameter(name="*", group=Group("Options"))]
    return command


def _answer(study: Any, options: Any, out: Path, plan: bool, fresh: bool, json: bool) -> None:
    from repscope.studies.study import Run

    this = Run(study, options, out=out, fresh=fresh)
    if plan:
        _print_plan(this, json)
        return
    page = this.answer()
    lines = list(study.headline(this))
    if json:
        print(jsonlib.dumps({"page": str(page), "run": str(this.folder), "answer": lines}))
        return
    for line in lines:
        print(line)
    print(page)


def _print_plan(this: Any, json: bool) -> None:
    from repscope.models.forecast import product_rate
    from repscope.studies.study import seconds

    rate = product_rate()
    steps = [
        {
            "step": name, "done": done, "blocks": cost.blocks, "tokens": cost.tokens,
            "gflop": round((cost.network_flops + cost.fit_flops) / 1e9, 1),
            "minutes": round(seconds(cost, rate) / 60, 2), "memory_mb": round(cost.memory_bytes / 1e6, 1),
            "disk_mb": round(cost.disk_bytes / 1e6, 1),
        }
        for name, cost, done in this.plan()
    ]  # fmt: skip
    left = [s for s in steps if not s["done"]]
    total = {key: round(sum(float(s[key]) for s in left), 2) for key in ("tokens", "gflop", "minutes", "disk_mb")}
    if json:
        print(jsonlib.dumps({"run": str(this.folder), "steps": steps, "left": total}))
        return
    _print_table([*steps, {"step": "left to do", "done": "", **total}], title=f"Plan of {this.folder}; nothing was run")


@app.command
def tour(
    *, model: ModelName = "", out: Out = _DEFAULT_RUNS, seed: int = 0, fresh: Fresh = False, json: Json = False
) -> None:
    """The short form of the studies on the default model: what `make demo` runs."""
    from repscope.studies.catalogue import STUDIES

    for study in STUDIES.values():
        options = study.options(short=True, seed=seed, **({"model": model} if model else {}))
        _answer(study, options, out, False, fresh, json)


@app.command
def models(*, json: Json = False) -> None:
    """List the models that are cached here, with their size, and those that can be fetched by an alias."""
    from repscope.models.sources import cached

    rows = [
        {"name": c.name, "kind": c.kind, "state": c.state, "MB": round(c.size_bytes / 1e6), "precision": c.precision}
        for c in cached()
    ]
    if json:
        print(jsonlib.dumps(rows))
    else:
        _print_table(rows, title="Models")


@app.command
def sites(model: ModelName = "smollm2-135m-instruct-q4", *, revision: str | None = None, json: Json = False) -> None:
    """Show the sites of a model: where each is read, what it is, or why there is none."""
    from repscope.models.sources import load

    lm = load(model, revision=revision)
    rows = [dict(zip(("site", "read at", "definition", "identity"), row)) for row in lm.sites()]
    if json:
        print(jsonlib.dumps({"model": lm.name, "fingerprint": lm.fingerprint, "sites": rows}))
        return
    a = lm.anatomy
    form = (
        f"{a.blocks} {a.form} blocks of width {a.width}; identities hold to {a.error:.1e}" if a else "no blocks found"
    )
    _print_table(rows, title=f"{lm.name}: {form}")


@app.command
def verify(
    model: ModelName = "smollm2-135m-instruct-q4", *, revision: str | None = None, device: str | None = None,
    dtype: str = "float32", out: Out = _DEFAULT_RUNS, json: Json = False,
) -> None:  # fmt: skip
    """Check the engine on a model: against plain transformers, padded, cached, edited, restored. Exit code 1 when a check fails.

    Parameters
    ----------
    revision
        Branch, tag or commit of a hub id.
    device
        Device to run on; cuda where there is one, else cpu.
    dtype
        Precision of the weights: float32, bfloat16 or float16.
    """
    from repscope.models.sources import load
    from repscope.models.verify import verify as checked
    from repscope.studies.verified import write_verification

    found = checked(load(model, revision=revision, device=device, dtype=dtype))
    folder = write_verification(found, out)
    if json:
        said = {"passed": found.passed, "answer": found.sentence, "checks": found.rows}
        print(jsonlib.dumps({"run": str(folder), "page": str(folder / "report.html"), **said}))
    else:
        rows = [
            {"": "✓" if r["state"] == "passed" else "✗" if r["state"] == "failed" else "–", **r} for r in found.rows
        ]
        _print_table([{k: v for k, v in r.items() if k not in ("compared", "rows")} for r in rows], title=repr(found))
        print(folder)
    if not found.passed:
        raise SystemExit(1)


@bench_app.command(name="discovery")
def bench_discovery(
    *, setting: str = "planted-mlp", seeds: int | None = None, seed: int = 0, kinds: tuple[str, ...] = (), n: int | None = None,
    model: str = "", tiny: Annotated[bool, Parameter(negative="")] = False, out: Out = _DEFAULT_RUNS, json: Json = False,
) -> None:  # fmt: skip
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
    from repscope.studies.discovery_benched import PRINTED, Asked, benched, printed, write_bench

    found = benched(Asked(setting, seeds, seed, kinds, n, model, tiny))
    page = write_bench(found, out) / "report.html"
    if json:
        said = {"passed": not found.violations, "answer": found.sentence, "rows": printed(found)}
        print(jsonlib.dumps({"page": str(page), "run": str(page.parent), **said}))
    else:
        _print_table(printed(found, PRINTED), title=f"Discovery, {setting}")
        print(found.sentence)
        print(page)
    if found.violations:
        raise SystemExit(1)


@app.command
def lens(
    model: ModelName, prompt: str, *, out: Out = _DEFAULT_RUNS, every: int = 1, top: int = 5, json: Json = False
) -> None:
    """Logit lens: which next token each block would predict at each token of a prompt.

    Parameters
    ----------
    prompt
        The text to read.
    every
        Show every how many blocks in the terminal.
    top
        Tokens kept for each cell of the page.
    """
    from repscope.models.sources import load
    from repscope.read.lens import logit_lens
    from repscope.studies.lens_page import print_lens, write_lens

    lm = load(model)
    result = logit_lens(lm, prompt, top=top)
    page = write_lens(lm, prompt, result, out)
    if json:
        print(jsonlib.dumps({"page": str(page)}))
        return
    print_lens(result, every)
    print(page)


@app.command
def steer(
    model: ModelName, direction: str, *, prompt: Annotated[tuple[str, ...], Parameter(consume_multiple=False)] = (),
    scale: float | None = None, times: float = 1.0,
    name: str = "", block: int | None = None, tokens: int = 40, temperature: float = 0.0, seed: int = 0, chat: bool = False,
    anyway: bool = False, revision: str | None = None, device: str | None = None, dtype: str = "float32", json: Json = False,
) -> None:  # fmt: skip
    """Continue prompts without and with a direction, side by side, as they are written.

    Parameters
    ----------
    direction
        A file (.safetensors, llama.cpp's .gguf, a .pt matrix), or a contrast to learn one from now: sentiment, formality, refusal,
        language, honesty, or a file of texts.
    prompt
        What to continue; several make several answers.
    scale
        Length of what is added, in the site's own units; the direction's own when not given. Negative steers the other way.
    times
        A factor on that.
    name
        Which direction of a file with several; all of them when not given.
    block
        Where a .pt file with a single vector acts.
    tokens
        Most new tokens.
    temperature
        0 takes the likeliest token.
    chat
        Whether prompts are a user's turn in the model's chat template.
    anyway
        Use a direction that was made for other weights; its width must fit.
    revision
        Branch, tag or commit of a hub id.
    device
        Device to run on; cuda where there is one, else cpu.
    dtype
        Precision of the weights: float32, bfloat16 or float16.
    """
    from repscope.models.sources import load
    from repscope.report.beside import beside
    from repscope.studies.steered import directions_of, shown

    if not prompt:
        raise UserError("There is nothing to continue; give --prompt 'I went to the new restaurant and'.")
    held = directions_of(direction, name, block)
    lm = load(model, revision=revision, device=device, dtype=dtype)
    with beside(None if json else sys.stdout) as told:
        said = shown(lm, held, prompt, scale=scale, times=times, tokens=tokens, temperature=temperature, seed=seed, chat=chat,
                     anyway=anyway, told=told)  # fmt: skip
    if json:
        print(jsonlib.dumps(said))


@app.command
def directions(
    path: Path, *, to: Path | None = None, name: str = "", block: int | None = None, blocks: int | None = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Show what a file of directions holds, a card each; with --to write them in another format.

    Parameters
    ----------
    path
        A .safetensors file of directions, llama.cpp's control vector (.gguf), or a .pt matrix.
    to
        A file to write: .safetensors, .gguf or .pt.
    name
        Only the direction of that name.
    block
        Where a .pt file with a single vector acts.
    blocks
        How many blocks the model has, for a .pt file of directions that do not tell.
    """
    from repscope.studies.steered import converted, held_in

    held = held_in(path, name, block)
    if to is not None:
        converted(held, to, blocks)
    if json:
        print(jsonlib.dumps({"model": held.model, "directions": list(held.names), "written": str(to) if to else None}))
        return
    print(held.card())
    if to is not None:
        print(to)


@app.command
def runs(*, out: Out = _DEFAULT_RUNS, json: Json = False) -> None:
    """List the runs: study, model, whether it is done, when."""
    from repscope.studies.runs import listed

    rows = listed(out)
    if json:
        print(jsonlib.dumps(rows))
    elif rows:
        _print_table(rows, title=f"Runs in {out}")
    else:
        print(f"There is no run in {out} yet; `repscope tour` makes one.")


@app.command
def show(run: str, *, out: Out = _DEFAULT_RUNS, json: Json = False) -> None:
    """Show the numbers of one run, estimate and controls, and the path of its page.

    Parameters
    ----------
    run
        A run's name, the beginning of it, or its folder.
    """
    from repscope.studies.runs import found, summary

    folder = found(run, out)
    rows = summary(folder)
    if json:
        print(jsonlib.dumps({"run": str(folder), "page": str(folder / "report.html"), "rows": rows}))
        return
    _print_table(rows, title=folder.name)
    print(folder / "report.html")


@app.command
def query(sql: str, *, out: Out = _DEFAULT_RUNS, json: Json = False) -> None:
    """Ask SQL (DuckDB) of all runs at once: the table is called `results`, one row a number.

    Parameters
    ----------
    sql
        Such as "select item, condition, value from results where site = 'resid_post.8'".
    """
    from repscope.studies.runs import asked

    frame = asked(sql, out)
    if json:
        print(frame.to_json(orient="records"))
    else:
        print(frame.to_string(index=False, float_format=lambda v: f"{v:.4g}"))


@app.command
def claims(*, out: Out = _DEFAULT_RUNS, json: Json = False) -> None:
    """What the literature claims, and what the runs at hand say of each."""
    from repscope.studies.runs import verdicts

    rows = verdicts(out)
    if json:
        print(jsonlib.dumps(rows))
    else:
        _print_table(rows, title="Claims")


def _print_table(rows: Sequence[dict[str, Any]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in rows[0] if rows else ():
        number = isinstance(rows[0][column], (int, float)) and not isinstance(rows[0][column], bool)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(v) for v in row.values()))
    width = None if sys.stdout.isatty() else 200
    Console(width=width, markup=False, highlight=False).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
