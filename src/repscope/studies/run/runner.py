"""Run: one execution of a study in a folder of its own.

1. Options are resolved once (`sized`); the folder's name is a hash of those that the user gave.
2. A step's result is kept under a hash of everything that it depends on: its version, the options, the weights, the user's files,
   the steps it needs, the libraries. A run that was killed continues at the first step that is missing.
   One whose files, or artifacts, have other bytes than were written is computed again, with a note.
3. When all are there, tables, facts and page are published; the engine's checks of the network (`verify`) join them.
"""

import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from repscope.disk import disk_error
from repscope.errors import UserError
from repscope.process import Uncollected
from repscope.progress import progress
from repscope.report.verdict import Verdict
from repscope.results import Result, concat, identified
from repscope.studies.run.folder import MARK, RunFolder, need_folder, slug
from repscope.studies.run.forecast import forecast_seconds
from repscope.studies.run.pages import complete_page, verdict
from repscope.studies.run.provenance import beside_weights, digest, file_digest, library_versions, provenance
from repscope.studies.run.room import need_room
from repscope.studies.run.study import Answer, AnyOptions, Context, Cost, Record, Setup, Step, Study, Subject

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel
    from repscope.models.verify.report import Verification


_WORTH_SYNC = 1.0  #: seconds of a step whose result is written through to the disk, so that a power failure costs less than that
_SCHEMA = 2  #: raised when names in tables change, so that a page never mixes old and new ones


@dataclass
class Run(Generic[AnyOptions]):
    """One execution of a study.

    study, options: what runs. out: the folder of all runs. fresh: start again from nothing. lm: the network, where it is in memory.
    """

    study: Study[AnyOptions]
    options: AnyOptions
    out: Path = Path("runs")
    fresh: bool = False
    lm: "LanguageModel | None" = None
    results: dict[str, Result] = field(default_factory=dict)
    took: dict[str, tuple[Cost, float]] = field(default_factory=dict)  #: of the steps computed now: forecast and seconds
    mended: list[str] = field(default_factory=list)  #: what was damaged or has changed and is made again, in sentences
    _read: dict[str, tuple[Any, str]] = field(default_factory=dict, repr=False)  #: user's file → its state and digest in the keys

    @cached_property
    def setup(self) -> Setup[AnyOptions]:
        """What the steps are made from."""
        return Setup(self.options.sized(), self._load)

    def _load(self) -> "LanguageModel":
        if self.lm is not None:
            return self.lm
        o: Any = self.options
        if o.tiny and not o.given("model"):
            from repscope.worlds.tiny import tiny

            return tiny(o.seed, device=getattr(o, "device", None) or "cpu", dtype=getattr(o, "dtype", "float32"))
        with Uncollected():
            from repscope.models.loading.sources import load

            how = {name: getattr(o, name) for name in ("revision", "device", "dtype") if hasattr(o, name)}
            lm = load(o.model, **how) if o.model else load(**how)
        if self.study.verified:
            from repscope.studies.run.proof_cache import restore_proofs

            restore_proofs(lm)
        return lm

    @cached_property
    def _own_subject(self) -> Subject | None:
        """What the study trains or combines; None where it is about `options.model`."""
        return None if self.study.subject is None else self.study.subject(self.setup)

    @cached_property
    def subject(self) -> Subject:
        """What the numbers are about."""
        if self._own_subject is not None:
            return self._own_subject
        o: Any = self.options
        lm = self.setup.network
        source = lm.source
        facts = {"model": source.name, "precision": source.precision, "fingerprint": lm.fingerprint, "revision": source.revision}
        return Subject(self._model_name(o), lm.fingerprint, facts, beside=beside_weights([source.path]))

    def _model_name(self, o: Any) -> str:
        return "tiny" if o.tiny else self.lm.name if self.lm is not None else str(o.model)

    @cached_property
    def verification(self) -> "Verification | None":
        """The engine's checks of the network, made now or kept from an earlier run; None for a study without a single network."""
        if not self.study.verified or self._own_subject is not None:
            return None
        from repscope.studies.run.verification import cached_verification

        return cached_verification(self.setup.network)

    @cached_property
    def run_folder(self) -> RunFolder:
        """Where this run is: `<study>-<model>-<hash of options>`."""
        key = self.options.key()
        if self._own_subject is not None:
            name = self._own_subject.name
            key |= self._own_subject.key
        else:
            name = self._model_name(self.options)
            key |= {} if self.lm is None else {"model": self.lm.fingerprint}
        return RunFolder(self.out / f"{self.study.name}-{slug(name)}-{digest(key)[:10]}")

    @property
    def folder(self) -> Path:
        """The path of the run's folder."""
        return self.run_folder.path

    @property
    def table(self) -> Any:
        """All rows of all steps so far."""
        return concat(self.results.values()).table

    @property
    def notes(self) -> tuple[str, ...]:
        """What was damaged or has changed and was made again, and what the steps so far left out, guessed or drew, each once."""
        return (*self.mended, *self.record.notes)

    @property
    def record(self) -> Record[AnyOptions]:
        """The run as its page sees it."""
        return Record(self.setup.options, self.results, self.facts(), self.folder)

    def artifact(self, name: str) -> Path:
        """A file that a step left for others."""
        return self.folder / "artifacts" / name

    def headline(self) -> Answer:
        """What the command line prints."""
        return self.study.answer(self.record)

    @property
    def verdict(self) -> Verdict | None:
        """The answer to the study's question; None of a tiny run, and of a study that gives none."""
        return verdict(self.study, self.record)

    def answer(self) -> Path:
        """Run what is missing, publish, and return the page's path.

        Raises
        ------
        UserError
            For a mistake in the options or the files they name, for what this machine has no room for, and when another process
            works on the same run.
        """
        started = time.monotonic()  # a clock that is set back must not count
        need_folder(self.out)
        keyed = self._keyed()  # a mistake in the options shows here, before anything is written
        costs = self._costs(keyed)
        with self.run_folder.locked({"study": self.study.name, **self.subject.facts, "given": self._given()}) as made:
            try:
                if self.fresh:
                    self.run_folder.clear()
                self._tell_changed_files()
                self._compute(keyed, costs)
                return self._publish(keyed, started)
            except UserError as error:
                # the same command would fail again, where it was not the disk, which may be mended
                cause = error.__cause__
                if made and not (isinstance(cause, Exception) and disk_error(cause)):
                    shutil.rmtree(self.folder, ignore_errors=True)
                raise

    def plan(self) -> list[tuple[str, Cost, bool]]:
        """Each step with its cost and whether it is there already; runs nothing.

        Raises
        ------
        UserError
            For a mistake in the options or the files they name, and for what this machine has no room for.
        """
        steps = [(s.name, s.cost(), self.run_folder.step_is_sound(s.name, key)) for s, key in self._keyed()]
        need_room(self.study.name, {name: cost for name, cost, done in steps if not done}, self.out)
        return steps

    def minutes_left(self) -> float:
        """Forecast of what is left to do, on this machine."""
        from repscope.models.engine.cost_estimate import product_rate

        rate = product_rate()
        return sum(forecast_seconds(self.study.name, name, cost, rate) for name, cost, done in self.plan() if not done) / 60

    def _keyed(self) -> list[tuple[Step, str]]:
        sizes = self.setup.options.model_dump(mode="json") if self.options.short or self.options.tiny else {}
        shared: dict[str, Any] = {
            "schema": _SCHEMA,
            "study": self.study.name,
            "options": self.options.key() | sizes,  # a version with other sizes never continues from the numbers of this one
            "weights": self.subject.fingerprint,
            "files": self._files(),
            "libraries": library_versions(self.subject.libraries),
        } | ({"beside": dict(beside)} if (beside := self.subject.beside) else {})
        keys: dict[str, str] = {}
        steps = list(self.study.steps(self.setup))
        for step in steps:
            own = {"step": step.name, "version": step.version, "needs": [keys[n] for n in step.needs]}
            options = {k: v for k, v in shared["options"].items() if k not in step.ignores}
            options["given"] = [name for name in options.get("given", []) if name not in step.ignores]
            keys[step.name] = digest(shared | {"options": options} | own)
        return [(step, keys[step.name]) for step in steps]

    def _files(self) -> dict[str, str]:
        """Digests of the user's files."""
        self._read = {str(p): (_stamp(p), file_digest(p.expanduser())) for p in self.options.files()}
        return {name: held for name, (_, held) in self._read.items()}

    def _need_unchanged(self) -> None:
        """Refuse numbers from files that are no longer those of the keys."""
        for name, (stamp, held) in self._read.items():
            if _stamp(Path(name)) != stamp and file_digest(Path(name).expanduser()) != held:
                raise UserError(f"{name} changed while the study read it; run the same command again.")

    def _tell_changed_files(self) -> None:
        """A note for each of the user's files that has other bytes than when this run was last finished."""
        before = self.run_folder.facts().get("files", {})
        for name, (_, held) in self._read.items():
            if before.get(name, held) != held:
                self.mended.append(f"{name} changed since this run was last finished, so its steps were computed again.")

    def _costs(self, keyed: "Sequence[tuple[Step, str]]") -> dict[str, Cost]:
        """Forecasts of the steps that are not there yet; refuses those that this machine has no room for."""
        left = (s for s, key in keyed if self.fresh or not self.run_folder.step(s.name, key).is_dir())
        costs = {step.name: step.cost() for step in left}
        need_room(self.study.name, costs, self.out)
        return costs

    def _compute(self, keyed: "Sequence[tuple[Step, str]]", costs: dict[str, Cost]) -> None:
        folder, self.results = self.run_folder, {}
        for step, key in keyed:
            self._load_step(step.name, key)
        missing = {s.name: costs.get(s.name) or s.cost() for s, _ in keyed if s.name not in self.results}
        weights = {name: forecast_seconds(self.study.name, name, cost) for name, cost in missing.items()}
        with progress(self.study.name, sum(weights.values())) as advance:
            for step, key in keyed:
                if step.name in missing:
                    began = time.perf_counter()
                    for old in folder.other_keys(step.name, {k for _, k in keyed}):
                        folder.forget_step(step.name, old)
                    others = {file for s, k in keyed if s is not step for file in folder.artifact_names(s.name, k)}
                    self._compute_one(step, key, others)
                    advance(weights[step.name])
                    self.took[step.name] = (missing[step.name], time.perf_counter() - began)
                    self.results[step.name] = folder.load_step(step.name, key)
        self.results = {step.name: self.results[step.name] for step, _ in keyed}

    def _load_step(self, name: str, key: str) -> None:
        """A step's result from the folder, if it is there; a damaged one is removed, with a note."""
        folder = self.run_folder
        if folder.step(name, key).is_dir():
            try:
                found = folder.load_step(name, key)
                if (wrong := folder.artifact_damage(name, key)) is not None:
                    raise UserError(f"{folder.artifacts} is damaged ({wrong})")
                self.results[name] = found
            except UserError as error:
                self.mended.append(f"{str(error).partition('; ')[0]}, so the step {name!r} was computed again.")
                folder.forget_step(name, key)

    def _compute_one(self, step: Step, key: str, others: "Collection[str]") -> None:
        folder = self.run_folder
        partial, before = folder.partial(step.name, key), folder.artifact_stamps()
        context = Context({name: self.results[name] for name in step.needs}, folder.scratch(), partial, folder.artifacts)
        began = time.monotonic()
        found = step.compute(context)
        long = time.monotonic() - began > _WORTH_SYNC
        self._need_unchanged()
        model = found.table["model"].where(found.table["model"] != "", self.subject.fingerprint)
        stamped = found.table.assign(study=self.study.name, step=step.name, model=model)
        result = Result(identified(stamped), found.arrays, found.side, found.notes)
        folder.save_step(step.name, key, result, before, others, sync=long)
        shutil.rmtree(partial, ignore_errors=True)

    def _publish(self, keyed: "Sequence[tuple[Step, str]]", started: float) -> Path:
        checks = {} if self.verification is None else {"verify": self.verification.result(self.study.name)}
        if self.lm is None and checks:
            from repscope.studies.run.proof_cache import keep_proofs

            keep_proofs(self.setup.network)
        facts = self.facts() | {
            "steps": {step.name: key for step, key in keyed},
            "files": {name: held for name, (_, held) in self._read.items()},
            "seconds": round(time.monotonic() - started, 1),
            "took": self._forecast_and_taken(),
        }
        record = Record(self.setup.options, self.results, facts, self.folder)
        answer = self.study.answer(record)
        reply = verdict(self.study, record)
        facts |= {"answer": list(answer.lines), "verdict": None if reply is None else reply.as_json(), "passed": answer.passed}
        return self.run_folder.publish(self.results | checks, facts, complete_page(self.study, record))

    def _forecast_and_taken(self) -> dict[str, dict[str, float]]:
        """For each step computed now, the seconds that its plan forecast and those that it took."""
        from repscope.models.engine.cost_estimate import product_rate

        rate = product_rate()
        return {
            name: {"forecast_seconds": round(forecast_seconds(self.study.name, name, cost, rate), 2), "seconds": round(took, 2)}
            for name, (cost, took) in self.took.items()
        }

    def _given(self) -> dict[str, Any]:
        return self.options.model_dump(mode="json", include=self.options.model_fields_set)

    def facts(self) -> dict[str, Any]:
        """How this run was made: what `run.json` holds and the page's last section shows."""
        options = self.setup.options.model_dump(mode="json", exclude=set(self.study.unused))
        if options.get("model") and self.options.tiny and not self.options.given("model"):
            options["model"] = "tiny"
        checks = self.verification
        verified = (
            {}
            if checks is None
            else {"verified": {"passed": checks.passed, "summary": checks.sentence, "warnings": list(checks.warnings)}}
        )
        return {
            "study": self.study.name,
            "question": self.study.question,
            **self.subject.facts,
            **verified,
            "given": self._given(),
            "options": options,
            "seed": self.options.seed,
            **provenance(self.subject.libraries),
        }


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    """What differs when a file has changed; None where there is none."""
    try:
        stat = path.expanduser().stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def load_record(study: Study[Any], folder: RunFolder) -> Record[Any]:
    """A finished run from disk, without its network.

    Raises
    ------
    UserError
        When it is not finished, or its files are damaged.
    """
    facts = folder.facts()
    if "steps" not in facts:
        raise UserError(f"{folder.path.name} is not finished; the command that began it continues it.")
    if (wrong := folder.damage(page=False)) is not None:
        raise UserError(f"{folder.path} is damaged: {wrong}; run its command again.")
    if missing := [name for name in ("model", "given", "options", "versions", "command") if name not in facts]:
        raise UserError(f"{folder.path / MARK} is damaged (it lacks {missing[0]!r}); run the same command with --fresh.")
    try:
        options = study.options(**facts["given"]).sized()
    except ValueError as error:  # pydantic's, and our own
        raise UserError(f"{folder.path / MARK} is damaged (other options); run the same command with --fresh.") from error
    results = {str(name): folder.load_step(name, key) for name, key in facts["steps"].items()}
    return Record(options, results, facts, folder.path)
