"""Options of the `paths` study."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from repscope.data.reading import OPTIONS as READING
from repscope.studies.run.options import StudyOptions, TableOptions
from repscope.trace.interpolation import POINTS


class PathsOptions(StudyOptions, TableOptions):
    """What the `paths` study takes."""

    pretrainings: int = Field(3, ge=1, description="Networks that are pretrained; everything is repeated from each.")
    runs: int = Field(12, ge=2, description="Fine-tuned runs of each group, from each pretraining.")
    points: int = Field(POINTS, ge=3, description="Points of a path, ends included.")
    forks: tuple[int, ...] = Field(
        (200, 300, 400, 500, 600, 700, 800), description="Steps of the pretraining at which fine-tuning may begin."
    )
    rate: float = Field(4e-3, gt=0, allow_inf_nan=False, description="Largest rate of Adam in fine-tuning.")
    rates: tuple[float, ...] = Field((2e-3, 4e-3, 1e-2), description="Rates of the phase diagram, the one above included.")
    steps: int = Field(240, ge=1, description="Steps of fine-tuning.")
    early_bias: int = Field(120, ge=0, description="Number of initial fine-tuning steps that use group-specific data.")
    plain_runs: int = Field(4, ge=2, description="Runs of each cell of the phase diagram.")
    apart: int = Field(8, ge=0, description="Runs from pretrainings of their own; 0 for none.")
    texts: int = Field(512, ge=8, description="Held-out ambiguous examples; half as many disambiguating examples.")
    published: tuple[Path, ...] = Field(
        (), description="Tables of published accuracies by run; alone, only these are analysed and nothing is trained."
    )
    train: bool = Field(False, description="With --published: train the study's own runs too. Other options of training imply it.")
    clusters: Path | None = Field(
        None, description="Runs of the smaller cluster, or run and cluster (csv); the twelve of the MNLI BERTs if not given."
    )

    @model_validator(mode="after")
    def _clusters_of_something(self) -> "PathsOptions":
        if self.clusters is not None and not self.published:
            raise ValueError("--clusters goes with --published FILE, whose runs it is of")
        return self

    @property
    def table_alone(self) -> bool:
        """Whether a published table is all that is asked about."""
        return bool(self.published) and self.model_fields_set <= {"published", "clusters", "seed", *READING}

    def sized(self) -> "PathsOptions":
        """With the smaller numbers that `tiny` and `short` stand for."""
        small_ones: dict[str, Any] = {}
        if self.tiny:
            small_ones = {
                "pretrainings": 2,
                "runs": 2,
                "points": 4,
                "forks": (2, 4),
                "rates": (4e-3,),
                "steps": 10,
                "early_bias": 4,
                "plain_runs": 2,
                "apart": 4,
                "texts": 24,
            }
        elif self.short:
            small_ones = {
                "runs": 8,
                "forks": (300, 400, 500, 600, 700),
                "rates": (4e-3, 1e-2),
                "plain_runs": 3,
                "apart": 6,
                "texts": 256,
            }
        return self.with_sizes(small_ones)

    def files(self) -> list[Path]:
        """Published tables and the list of clusters."""
        return [*self.published, *([self.clusters] if self.clusters else [])]
