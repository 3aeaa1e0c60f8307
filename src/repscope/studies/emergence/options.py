"""Options of the `emergence` study."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from repscope.studies.run.options import Dtype, Sizes, StudyOptions

SHOTS, EXAMPLES = 4, 100  #: as `trace.emergence.probes`, which brings torch with it
_ASKED = ("probes", "probe_tasks", "probe_relations", "probe_pairs", "heads")
_NETWORKS = ("entities", "relations", "ratios", "seeds", "width", "layers", "steps", "facts")
_TRAINED = (*_NETWORKS, "walk_lengths", "walk_steps", "rungs")


class EmergenceOptions(StudyOptions):
    """Options of the `emergence` study.

    A run is about networks that it trains. `ladder` puts a table of the user's in their place, and asks about compute alone;
    `checkpoints` puts the user's checkpoints there, and asks when what probes, tasks, relations and minimal pairs test appears.
    """

    SHORT: ClassVar[Sizes] = {"entities": 20, "relations": 16, "ratios": (3, 11), "seeds": 2, "steps": 1100, "walk_lengths": (1, 8)}
    SHORT |= {"walk_steps": 400, "rungs": (20, 40, 80, 160, 320), "draws": 300}
    TINY: ClassVar[Sizes] = {"entities": 8, "relations": 6, "ratios": (1, 3), "seeds": 2, "width": 16, "layers": 2, "steps": 30}
    TINY |= {"facts": 12, "walk_lengths": (1, 4), "walk_steps": 12, "rungs": (2, 4, 8, 16, 32), "draws": 50}

    ladder: str | None = Field(
        None,
        description="Your table in place of networks trained here: columns compute, loss (or score, a share between 0 and 1), "
        "enhancement (empty for the ladder), and possibly unit.",
    )
    checkpoints: str | None = Field(
        None,
        description="Your checkpoints in place of networks trained here: a folder with checkpoints.csv or one folder per step, "
        "or MODEL@step1000,step2000: revisions of a hub id.",
    )
    probes: str | None = Field(
        None, description="With --checkpoints: a table with the columns probe, prompt, answer, and possibly wrong (a worse answer)."
    )
    probe_tasks: tuple[str, ...] = Field((), description="With --checkpoints: tasks of in-context learning, by name or file.")
    probe_relations: tuple[str, ...] = Field((), description="With --checkpoints: relations, by name or file.")
    probe_pairs: str | None = Field(None, description="With --checkpoints: a table of minimal pairs, as for minimal-pairs.")
    convention: Literal["lm-eval", "plain", "minicons"] = Field(
        "lm-eval", description="How the sentences of minimal pairs become tokens, as for minimal-pairs."
    )
    heads: bool = Field(
        False, description="With --checkpoints: induction scores of all heads, and with --probe-tasks function-vector heads too."
    )
    shots: int = Field(SHOTS, ge=0, description="Examples in a prompt of a task or a relation.")
    examples: int = Field(EXAMPLES, ge=2, description="Most prompts of a task or relation, and pairs of a phenomenon.")
    device: str | None = Field(None, description="With --checkpoints: the device; cuda if available, else cpu.")
    dtype: Dtype = Field("float32", description="With --checkpoints: precision of the weights.")
    entities: int = Field(24, ge=4, le=10_000, description="Entities of a graph of two-hop facts.")
    relations: int = Field(19, ge=4, le=1000, description="Relations of that graph; facts are entities times relations.")
    ratios: tuple[float, ...] = Field((2, 4, 8, 14), description="Trained two-hop queries per fact (phi), one training for each.")
    seeds: int = Field(3, ge=2, le=1000, description="Graphs, and networks per phi; worlds of the other parts.")
    width: int = Field(48, ge=4, description="Width of the networks, with four heads.")
    layers: int = Field(3, ge=2, description="Blocks of the networks.")
    steps: int = Field(1200, ge=10, description="Updates of the networks on facts.")
    facts: int = Field(64, ge=2, description="Facts per update and network; four queries begin with each.")
    walk_lengths: tuple[int, ...] = Field((1, 2, 8), description="Steps of the random walks that networks are trained on.")
    walk_steps: int = Field(800, ge=10, description="Updates of the networks on random walks.")
    rungs: tuple[int, ...] = Field((25, 50, 100, 200, 400, 800), description="Updates of each rung of the compute ladder.")
    draws: int = Field(500, ge=50, le=1_000_000, description="Resamples of an interval.")

    @field_validator("ratios")
    @classmethod
    def _ratios_above_zero(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if not ratios or not all(0 < ratio < 1e6 for ratio in ratios):
            raise ValueError("every phi must be above 0, such as 2")
        return tuple(sorted(dict.fromkeys(ratios)))

    @field_validator("walk_lengths")
    @classmethod
    def _walks_of_a_step(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if not lengths or min(lengths) < 1 or max(lengths) > 8:
            raise ValueError("walks have 1 to 8 steps")
        return tuple(sorted(dict.fromkeys(lengths)))

    @field_validator("rungs")
    @classmethod
    def _rungs_of_a_ladder(cls, rungs: tuple[int, ...]) -> tuple[int, ...]:
        found = tuple(sorted(dict.fromkeys(rungs)))
        if len(found) < 5 or found[0] < 1:
            raise ValueError("a ladder needs at least five different numbers of updates, such as 25 50 100 200 400")
        return found

    @field_validator("width")
    @classmethod
    def _width_of_four_heads(cls, width: int) -> int:
        if width % 4:
            raise ValueError("networks have four heads, so the width must be a multiple of 4")
        return width

    @model_validator(mode="after")
    def _options_that_fit(self) -> "EmergenceOptions":
        for name, value in (("--ladder", self.ladder), ("--checkpoints", self.checkpoints)):
            if value is not None and (given := self.given(*_TRAINED)):
                raise ValueError(f"{' and '.join(given)} belong to networks trained here, which {name} replaces; omit one of them")
        if self.ladder is not None and self.checkpoints is not None:
            raise ValueError("--ladder and --checkpoints are two runs; give one of them")
        asked = bool(self.given(*_ASKED))
        if self.checkpoints is None and (given := self.given(*_ASKED, "shots", "examples", "convention", "device", "dtype")):
            raise ValueError(f"{' and '.join(given)} and --checkpoints belong together: what is measured, and of what; give both")
        if self.checkpoints is not None and not asked:
            raise ValueError(
                "--checkpoints and what is asked of them belong together; give --probes, --probe-tasks, --probe-relations, "
                "--probe-pairs or --heads"
            )
        if self.heads and self.probe_tasks and self.shots < 2:
            raise ValueError("function-vector heads need prompts with two examples or more; give --shots 2 or more")
        return self

    def files(self) -> list[Path]:
        """The user's tables."""
        given = [file for file in (self.ladder, self.probes) if file is not None]
        given += [one for one in (*self.probe_tasks, *self.probe_relations) if Path(one).expanduser().is_file()]
        home = Path(self.probe_pairs).expanduser() if self.probe_pairs is not None else None
        inside = sorted(p for p in home.iterdir() if p.is_file()) if home is not None and home.is_dir() else [home] if home else []
        return [*(Path(file).expanduser() for file in given), *inside]
