"""Options of the `paths` study."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field, model_validator

from repscope.data.reading import OPTIONS as READING
from repscope.studies.run.options import Sizes, StudyOptions, TableOptions
from repscope.trace.interpolation import POINTS


class PathsOptions(StudyOptions, TableOptions):
    """Options of the `paths` study."""

    SHORT: ClassVar[Sizes] = {"runs": 6, "points": 7, "forks": (400, 500, 600, 700), "rates": (4e-3,), "unbiased_runs": 3}
    SHORT |= {"apart": 3, "texts": 192, "networks": 4, "grammar_runs": 3, "grammar_steps": 240, "pairs": 24, "checkpoints": 8}
    SHORT |= {"crossed": 2}
    TINY: ClassVar[Sizes] = {"pretrainings": 2, "runs": 2, "points": 4, "forks": (2, 4), "rates": (4e-3,), "steps": 10}
    TINY |= {"early_bias": 4, "unbiased_runs": 2, "apart": 4, "texts": 24, "networks": 2, "grammar_runs": 2, "grammar_steps": 12}
    TINY |= {"pairs": 6, "checkpoints": 4, "crossed": 2}

    pretrainings: int = Field(3, ge=1, le=1000, description="Number of pretrained networks; all runs are repeated from each.")
    runs: int = Field(12, ge=2, description="Fine-tuned runs per group and pretraining.")
    points: int = Field(POINTS, ge=3, description="Points per path, ends included.")
    forks: tuple[int, ...] = Field(
        (200, 300, 400, 500, 600, 700, 800), description="Pretraining steps at which fine-tuning may begin."
    )
    rate: float = Field(4e-3, gt=0, allow_inf_nan=False, description="Peak learning rate of Adam in fine-tuning.")
    rates: tuple[float, ...] = Field(
        (2e-3, 4e-3, 1e-2), description="Learning rates of the phase diagram; the rate above is always included."
    )
    steps: int = Field(240, ge=1, description="Number of fine-tuning steps.")
    early_bias: int = Field(120, ge=0, description="Number of initial fine-tuning steps that use group-specific data.")
    unbiased_runs: int = Field(4, ge=2, description="Unbiased runs per cell of the phase diagram.")
    apart: int = Field(8, ge=0, description="Number of runs from independent pretrainings; 0 for none.")
    texts: int = Field(
        512,
        ge=8,
        le=1_000_000,
        description="Number of held-out ambiguous examples; half as many disambiguating examples are evaluated too.",
    )
    orders: bool = Field(True, description="Compare the orders in which networks learn digits and grammar.")
    networks: int = Field(8, ge=2, description="Networks per architecture that learn digits; their order is compared.")
    grammar_runs: int = Field(4, ge=2, description="Language models per kind that learn each grammar.")
    grammar_steps: int = Field(600, ge=4, description="Training steps of these language models.")
    pairs: int = Field(100, ge=4, le=1_000_000, description="Minimal pairs per phenomenon of a grammar.")
    checkpoints: int = Field(
        16, ge=3, le=10_000, description="Checkpoints of these language models, evenly in the logarithm of the step."
    )
    crossed: int = Field(
        3,
        ge=0,
        description="Heads and orders of data in the crossed design, each with every pretraining and early data; 0 for none.",
    )
    published: tuple[Path, ...] = Field(
        (),
        description="Tables of published accuracies by run, or BLiMP's models_summary.jsonl. Given alone, only these are "
        "analysed and nothing is trained.",
    )
    train: bool = Field(False, description="With --published: train the study's own runs too. Other options of training imply it.")
    clusters: Path | None = Field(
        None,
        description="The runs of the smaller cluster, or a csv of runs and clusters; default: the twelve runs of the MNLI BERTs.",
    )

    @model_validator(mode="after")
    def _clusters_of_something(self) -> "PathsOptions":
        if self.clusters is not None and not self.published:
            raise ValueError("--clusters needs --published FILE, the table of the clustered runs")
        return self

    @property
    def table_alone(self) -> bool:
        """Whether only a published table is analysed."""
        return bool(self.published) and self.model_fields_set <= {"published", "clusters", "seed", *READING}

    @model_validator(mode="after")
    def _crossed(self) -> "PathsOptions":
        if self.crossed == 1:
            raise ValueError("a crossed design needs at least 2 heads and orders of data: one has no variance; 0 for none")
        return self

    def files(self) -> list[Path]:
        """The published tables and the list of clusters."""
        return [*self.published, *([self.clusters] if self.clusters else [])]
