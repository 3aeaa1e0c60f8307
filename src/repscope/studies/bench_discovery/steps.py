"""`repscope bench discovery`: run one setting of the benchmark of discovery, and write it as a folder beside the runs, with a page.

Settings stand in `SETTINGS`: what the setting is, its defaults, its short form (`--tiny`), and which numbers its table and figures
show. The folder's name holds a digest of what the numbers depend on: setting, options, model and version.
"""

import hashlib
import json
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from repscope import __version__
from repscope.bench import discovery, trigger
from repscope.conditions import ESTIMATE, RANDOM
from repscope.disk import whole_file
from repscope.errors import UserError, unknown
from repscope.report.charts import layers
from repscope.report.page import Figure, Page, Section, Table, write
from repscope.results import Result
from repscope.worlds.planted import functions, transformer
from repscope.worlds.planted.trigger import Recipe

PRINTED = 8  #: columns that a terminal holds; the page has all
_LIBRARIES = ("torch", "transformers", "numpy")


@dataclass(frozen=True)
class Asked:
    """What was asked for. setting: a key of `SETTINGS`. seeds, kinds, n: the setting's own where None or empty. model: of `lm`.
    tiny: seconds instead of minutes, and numbers that mean nothing."""

    setting: str
    seeds: int | None = None
    seed: int = 0
    kinds: tuple[str, ...] = ()
    n: int | None = None
    model: str = ""
    tiny: bool = False


@dataclass(frozen=True)
class Setting:
    """One row of the table of settings.

    says: what is planted where. run: from what was asked, with nothing left open, to a result and the model's name. seeds, n: when
    nobody says. kinds: networks there are. columns: numbers of the printed table, those first that a terminal shows. drawn: numbers
    with a figure, and its axis.
    """

    says: str
    run: Callable[[Asked], tuple[Result, str]]
    seeds: int
    n: int
    kinds: tuple[str, ...]
    columns: tuple[str, ...]
    drawn: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Benched:
    """A benchmark that was run: what was asked, the result, the model's name, seconds."""

    asked: Asked
    result: Result
    model: str
    seconds: float

    @property
    def violations(self) -> list[str]:
        """What is wrong with the benchmark itself."""
        return discovery.violations(self.result)

    @property
    def sentence(self) -> str:
        """What a reader is told first."""
        broken = self.violations
        if broken:
            return " ".join(broken)
        return "The controls stand where they must; which method wins is no check."


def benched(asked: Asked) -> Benched:
    """Run a setting.

    Raises
    ------
    UserError
        For an unknown setting or kind, no seed, no direction, a model where the setting brings its own.
    """
    if asked.setting not in SETTINGS:
        raise unknown("setting of the benchmark", asked.setting, SETTINGS)
    setting = SETTINGS[asked.setting]
    for kind in asked.kinds:
        if kind not in setting.kinds:
            raise unknown(f"kind of network in the setting {asked.setting}", kind, setting.kinds)
    if asked.model and asked.setting != "lm":
        raise UserError(f"The setting {asked.setting} draws its own networks; --model goes with --setting lm.")
    whole = Asked(
        asked.setting,
        (1 if asked.tiny else setting.seeds) if asked.seeds is None else asked.seeds,
        asked.seed,
        asked.kinds or setting.kinds,
        (4 if asked.tiny else setting.n) if asked.n is None else asked.n,
        asked.model,
        asked.tiny,
    )
    started = time.perf_counter()
    result, model = setting.run(whole)
    return Benched(whole, result, model, time.perf_counter() - started)


def write_bench(found: Benched, out: Path) -> Path:
    """Write a benchmark as a folder among the runs, listed and shown as they are: its result, its table, a page."""
    asked = found.asked
    digest = hashlib.sha256(json.dumps([vars(asked), found.model, __version__]).encode()).hexdigest()[:10]
    folder = out / f"bench-discovery-{asked.setting}{'-tiny' if asked.tiny else ''}-{digest}"
    found.result.save(folder / "result")
    with whole_file(folder / "results" / "bench.parquet") as partial:
        found.result.table.to_parquet(partial, index=False)
    facts = {
        "study": "bench",
        "model": found.model,
        "options": vars(asked),
        "passed": not found.violations,
        "said": found.sentence,
        "versions": _versions(),
        "seconds": round(found.seconds, 1),
    }
    with whole_file(folder / "study.json") as partial:
        partial.write_text(json.dumps(facts, indent=2))
    write(_page(found), folder / "report.html")
    (folder / ".lock").touch()  # what makes a folder a run
    return folder


def printed(found: Benched, columns: int | None = None) -> list[dict[str, Any]]:
    """A row a network and method, a column a number with its interval; of these the first so many, or all."""
    table = found.result.table[found.result.table["metric"] != "planted"]
    rows = []
    for (model, item), some in table.groupby(["model", "item"], sort=False):
        by = {str(row["metric"]): row for row in some.to_dict("records")}
        shown = {c: _interval(by[c]) if c in by else "–" for c in SETTINGS[found.asked.setting].columns[:columns]}
        rows.append({"network": str(model), "method": str(item), **shown})
    return rows


def _interval(row: Mapping[Hashable, Any]) -> str:
    value, lo, hi = (
        f"{row[c]:.0f}" if abs(row["value"]) >= 50 or row["metric"] == "cost" else f"{row[c]:.2f}" for c in ("value", "lo", "hi")
    )
    return value if lo == hi else f"{value} [{lo}, {hi}]"


def _page(found: Benched) -> Page:
    setting, table = SETTINGS[found.asked.setting], found.result.table
    drawn = [
        Figure(layers.ranked(some, title=title), _said(f"{metric}: {model}"), _said(discovery.BENCH_METRICS[metric]) + ".")
        for metric, title in setting.drawn
        for model, some in table[table["metric"] == metric].groupby("model", sort=False)
    ]
    shown_here = [k for k in discovery.BENCH_METRICS if k in setting.columns]
    numbers = pd.DataFrame([{"number": k, "what it is": discovery.BENCH_METRICS[k]} for k in shown_here])
    methods = pd.DataFrame(printed(found))
    each = [Table(some.drop(columns="network"), f"Methods: {model}") for model, some in methods.groupby("network", sort=False)]
    items: list[Figure | Table] = [*drawn, *each, Table(numbers, "Numbers")]
    planted_rows = table[table["metric"] == "planted"]
    if len(planted_rows):
        shown = planted_rows[["item", "value", "lo", "hi", "n"]]
        items.insert(0, Table(shown, "How well the trigger is planted", str(planted_rows["definition"].iloc[0])))
    return Page(
        title="Discovery, judged on what was planted",
        question="Which methods find directions that were planted, and what do the others find?",
        answer="\n\n".join([found.sentence, *_leading(found)]),
        sections=(
            Section(
                "Methods",
                setting.says + " Points are means over seeds, bars 95 % bootstrap intervals over them; random "
                "directions are the control, the oracle is the truth (of lm: made with the sentence itself as the objective), "
                "supervised directions are made from labels.",
                tuple(items),
            ),
        ),
        notes=tuple(found.violations),
        facts={
            "Setting": found.asked.setting,
            "Networks": found.model,
            "Options": ", ".join(f"{k} {_listed(v)}" for k, v in vars(found.asked).items() if v not in ("", (), False)),
            "Seconds": f"{found.seconds:.0f}",
            "Versions": ", ".join(f"{k} {v}" for k, v in _versions().items()),
        },
    )


def _leading(found: Benched) -> list[str]:
    """A sentence a network: the largest of the first drawn number, and its controls."""
    metric, title = SETTINGS[found.asked.setting].drawn[0]
    table = found.result.table[found.result.table["metric"] == metric]
    said = []
    for model, some in table.groupby("model", sort=False):
        rows = sorted(some.to_dict("records"), key=lambda row: -row["value"])
        without = [row for row in rows if row["condition"] == ESTIMATE]
        others = [row for row in rows if row["condition"] in (RANDOM, "supervised", "oracle")]
        if without:
            told = "; ".join(f"{row['item']} {_interval(row)}" for row in [*without[:3], *others])
            said.append(f"{_said(str(model))}, {title}, the largest and the controls: {told}.")
    return said


def _said(text: str) -> str:
    return text[:1].upper() + text[1:]


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _versions() -> dict[str, str]:
    return {"repscope": __version__} | {name: version(name) for name in _LIBRARIES}


def _mlp(asked: Asked) -> tuple[Result, str]:
    options: dict[str, Any] = {"seed": asked.seed, "n": asked.n, "steps": 2 if asked.tiny else None}
    return discovery.planted_mlp(asked.kinds, asked.seeds or 0, **options), _named("planted", asked.kinds)


def _transformer(asked: Asked) -> tuple[Result, str]:
    options: dict[str, Any] = {"seed": asked.seed, "n": asked.n, "steps": 2 if asked.tiny else None}
    found = discovery.planted_transformers(asked.kinds, asked.seeds or 0, **options)
    return found, _named("planted transformer", asked.kinds)


def _lm(asked: Asked) -> tuple[Result, str]:
    from repscope.models.loading.sources import load
    from repscope.worlds.tiny import tiny

    if asked.tiny and asked.model:
        raise UserError("--tiny brings its own model; leave --model away.")
    lm = tiny() if asked.tiny else load(asked.model) if asked.model else load()
    options: dict[str, Any] = {"seed": asked.seed, "n": asked.n}
    options |= {"steps": 2, "recipe": Recipe(steps=2, first=0.25, stop=0.5)} if asked.tiny else {}
    return trigger.trigger_benchmark(lm, asked.seeds or 0, **options), f"{lm.name} ({lm.fingerprint})"


def _named(what: str, kinds: Sequence[str]) -> str:
    return f"{what} {', '.join(kinds)}"


_PLANTED = ("recovered", "mmcs", "false", "reached", "overlap", "consistency", "stability", "cost")
_LATER = ("size per spread", "rank", "half dose", "seconds")
SETTINGS: dict[str, Setting] = {
    "planted-mlp": Setting(
        "Directions are planted in functions of 64 dimensions: 12 features that add to a residual stream.",
        _mlp,
        5,
        discovery.SOUGHT,
        tuple(functions.FUNCTION_KINDS),
        (*_PLANTED, *_LATER),
        (("recovered", "share of features recovered"),),
    ),
    "planted-transformer": Setting(
        "Directions are written into the MLP of a random transformer, 12 features; methods see what real models give.",
        _transformer,
        5,
        discovery.SOUGHT_TRANSFORMER,
        tuple(transformer.NEURON_KINDS),
        (*_PLANTED, *_LATER, "kl"),
        (("recovered", "share of features recovered"), ("mmcs", "best |cos| with a feature, mean over features")),
    ),
    "lm": Setting(
        "A language model was taught to say a sentence where a word stands in the prompt; directions are sought without that word.",
        _lm,
        5,
        trigger.SOUGHT,
        (),
        ("elicits", "gain", "best gain", "kl", "overlap", "consistency", "stability", "cost", *_LATER),
        (("elicits", "share of directions that elicit the sentence"), ("best gain", "largest gain, nats a token")),
    ),
}
