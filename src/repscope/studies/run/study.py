"""Study: a question as options, steps and a page. What a step may read, and what a page may read.

A study knows nothing of folders, keys or progress: it names its steps, each computes a `Result` from a `Context`, and its page is
drawn from a `Record`. To add one: a folder in `studies/` with a `STUDY`, and a line in `studies/catalogue.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from repscope.report.page import Page
from repscope.report.verdict import Verdict
from repscope.results import Result, concat
from repscope.studies.run.options import StudyOptions

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

Made = TypeVar("Made")
AnyOptions = TypeVar("AnyOptions", bound=StudyOptions)


@dataclass(frozen=True)
class Cost:
    """Forecast of a step.

    tokens: through the network. network_flops, fit_flops: floating-point operations of the network and of fits. disk_bytes: kept on
    disk. blocks: that run. memory_bytes: at the most, beside the weights.
    """

    tokens: int = 0
    network_flops: float = 0.0
    fit_flops: float = 0.0
    disk_bytes: float = 0.0
    blocks: int = 0
    memory_bytes: float = 0.0


@dataclass(frozen=True)
class Setup(Generic[AnyOptions]):
    """What the steps of a study are made from: the options as they run, and the network, loaded when it is first read.

    memo: what the steps of one run share and make once.
    """

    options: AnyOptions
    load: "Callable[[], LanguageModel] | None" = None
    memo: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """What the steps of one run share: made at the first call of this name."""
        if name not in self.memo:
            self.memo[name] = make()
        found: Made = self.memo[name]
        return found

    @cached_property
    def network(self) -> "LanguageModel":
        """The network under study."""
        assert self.load is not None, "this study has no network"
        return self.load()


@dataclass(frozen=True)
class Context:
    """What a step reads besides its setup.

    inputs: the results of the steps in its `needs`, and no others. scratch: an empty folder for the time of the step. partial: a
    folder that stays when the run is killed in this step, and goes when it is finished. artifacts: where files for others go.
    """

    inputs: Mapping[str, Result]
    scratch: Path
    partial: Path
    artifacts: Path


@dataclass(frozen=True)
class Step:
    """One step of a study.

    name: unique in the study. compute: its result. cost: its forecast. version: raised when its numbers would change. needs: the
    steps whose results it reads. ignores: options that decide which steps there are, and not what this one computes.
    """

    name: str
    compute: Callable[[Context], Result]
    cost: Callable[[], Cost]
    version: int | str = 1
    needs: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record(Generic[AnyOptions]):
    """A finished run, as its page sees it: from memory or from disk, without a network.

    options: as they ran. results: by step, in order. facts: `run.json`. folder: of the run.
    """

    options: AnyOptions
    results: Mapping[str, Result]
    facts: Mapping[str, Any]
    folder: Path

    @cached_property
    def table(self) -> Any:
        """All rows of all steps."""
        return concat(self.results.values()).table

    @property
    def notes(self) -> tuple[str, ...]:
        """What the steps left out, guessed or sampled; each note once."""
        return tuple(dict.fromkeys(note for result in self.results.values() for note in result.notes))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the engine's checks of this network found, in sentences."""
        return tuple(self.facts.get("verified", {}).get("warnings", ()))

    @property
    def artifacts(self) -> Path:
        """The folder of files that the steps left for others."""
        return self.folder / "artifacts"


@dataclass(frozen=True)
class Subject:
    """What a study without a single network is about.

    name: for the folder. fingerprint: for the column `model`. facts: model, precision, data …, for `run.json` and the page. key:
    what identifies the run besides its options. beside: digests of files that decide what its networks compute, beside weights.
    libraries: on which its numbers depend besides those of every run.
    """

    name: str
    fingerprint: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    key: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()


def trained_here(setup: Setup[AnyOptions], networks: str) -> Subject:
    """Networks that the study trains; networks: what they are called."""
    facts = {"model": networks, "precision": "float32, trained in this run"}
    return Subject("tiny" if setup.options.tiny else networks, networks, facts)


@dataclass(frozen=True)
class Answer:
    """What the command line prints: rows as a table under a title, and lines. more: for `--json`. passed: exit code 0 or 1."""

    lines: Sequence[str]
    rows: Sequence[Mapping[str, Any]] = ()
    title: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)
    passed: bool = True


@dataclass(frozen=True)
class Study(Generic[AnyOptions]):
    """A question.

    name: on the command line. question: one sentence. options: their class. steps: from the setup. page, answer: from the record.
    verdict: from the table of a run that is not tiny; its rules' thresholds are in `report/verdicts.toml`.
    subject: for studies that train or combine networks (None where these options do not); the others load `options.model`.
    verified: whether the engine is checked on the network and the checks join the run. positional: options that the command line
    takes without their name, which its help calls `usage`. unused: shared options that mean nothing here, which it does not take.
    least_minutes: that its short form takes on any machine; with less left, the tour makes no forecast, for which some studies
    read a corpus.
    """

    name: str
    question: str
    options: type[AnyOptions]
    steps: Callable[[Setup[AnyOptions]], Sequence[Step]]
    page: Callable[[Record[AnyOptions]], Page]
    answer: Callable[[Record[AnyOptions]], Answer]
    verdict: Callable[[Any], Verdict] | None = None
    subject: Callable[[Setup[AnyOptions]], Subject | None] | None = None
    verified: bool = True
    positional: tuple[str, ...] = ()
    usage: str = ""
    unused: tuple[str, ...] = ()
    least_minutes: float = 0.8
