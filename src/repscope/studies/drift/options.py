"""Options of the `drift` study."""

from typing import ClassVar

from pydantic import Field, model_validator

from repscope.studies.run.options import Sizes, StudyOptions


class DriftOptions(StudyOptions):
    """Options of the `drift` study."""

    SHORT: ClassVar[Sizes] = {"seeds": 3, "pretraining": 300, "rates": (3e-4,), "documents": 192, "levels": (0, 6, 12, 18)}
    SHORT |= {"small_rates": (1e-6,), "small_updates": 10, "fitting": 20}
    TINY: ClassVar[Sizes] = {"seeds": 2, "width": 8, "pretraining": 12, "gain": 0.05, "divergence": 0.02, "rate": 0.02}
    TINY |= {"rates": (0.02,), "updates": 24, "documents": 24, "levels": (0, 1, 2), "gap_gain": 0.2, "small_rates": (1e-5,)}
    TINY |= {"small_updates": 2, "fitting": 3}

    seeds: int = Field(
        5, ge=2, le=1000, description="Number of worlds; each has a corpus, a pretrained network and runs of its own."
    )
    width: int = Field(48, ge=4, description="Width of the networks (two blocks of the GPT-2 layout, two heads).")
    pretraining: int = Field(600, ge=1, description="Pretraining steps of 64 documents.")
    gain: float = Field(0.2, gt=0, lt=1, description="Reward above the base's at which the methods are compared.")
    divergence: float = Field(0.15, gt=0, description="KL from the base (nats per token) at which they are compared, too.")
    rate: float = Field(3e-4, gt=0, allow_inf_nan=False, description="Learning rate of the main comparison.")
    rates: tuple[float, ...] = Field((1e-4, 3e-4, 1e-3), description="Learning rates; the rate above is always included.")
    updates: int = Field(
        160, ge=1, description="Most updates of a run at the main rate; other rates have proportionally more or fewer."
    )
    documents: int = Field(512, ge=16, le=1_000_000, description="Documents per network of an evaluation of the reward.")
    levels: tuple[int, ...] = Field((0, 6, 12, 18, 26), description="Updates of imitation at the checkpoints from which RL starts.")
    gap_gain: float = Field(0.33, gt=0, lt=1, description="Reward above the base's to which every imitation checkpoint is brought.")
    small_rates: tuple[float, ...] = Field(
        (1e-6, 1e-5), description="Learning rates of the twins that are trained in float32 and in bfloat16."
    )
    small_updates: int = Field(50, ge=1, description="Updates of the twins.")
    fitting: int = Field(60, ge=1, description="Steps that fit one constant vector per site.")

    @model_validator(mode="after")
    def _fits(self) -> "DriftOptions":
        if self.width % 2:
            raise ValueError(f"--width {self.width} is odd, and the networks have two heads")
        if len(set(self.levels)) < 3 or min(self.levels) < 0:
            raise ValueError("--levels needs at least three different numbers of updates, for a slope")
        if any(rate <= 0 for rate in (*self.rates, *self.small_rates)):
            raise ValueError("--rates and --small-rates need positive learning rates")
        return self

    @property
    def all_rates(self) -> tuple[float, ...]:
        """The main rate, then the others in order."""
        return (self.rate, *sorted(set(self.rates) - {self.rate}))
