"""Options of the `discover` study."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from repscope.discovery.comparison import RANDOM_METHOD
from repscope.studies.run.options import ModelOptions, TableOptions


class DiscoverOptions(ModelOptions, TableOptions):
    """What the `discover` study takes."""

    prompts: str | None = Field(None, description="A file of prompts: .txt with one a line, or a table with the column text.")
    plain: bool = Field(False, description="Take prompts as they are, and not as a user's turn in the chat template.")
    source: int | None = Field(None, ge=0, description="Block at whose output vectors are added; a quarter up if not given.")
    target: int | None = Field(None, ge=1, description="Block at whose output effects are read; three quarters up if not given.")
    tokens: str = Field("last 6", description="Where effects are read: last, mean, all, or the mean of the last 6.")
    methods: tuple[str, ...] = Field(
        (
            RANDOM_METHOD,
            "L2",
            "L2 + contrastive",
            "contrastive, skip removed",
            "L2 + soft-orthogonal",
            "contrastive",
            "DCT",
            "Jacobian",
        ),
        description="Ways to directions.",
    )
    vectors: int = Field(12, ge=2, description="Directions of each method.")
    steps: int = Field(40, ge=1, description="Steps of each search.")
    seeds: int = Field(3, ge=1, description="Runs of each method; intervals are over them.")
    scale: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Length of a vector over the median length at the source; calibrated if not given.",
    )
    damage: float = Field(
        0.5, gt=0, allow_inf_nan=False, description="Most that the Jacobian's leading directions may cost, in nats of KL."
    )
    new_tokens: int = Field(16, ge=0, description="Tokens of each text on which damage is measured; 0 for none.")

    @model_validator(mode="after")
    def _one_scale(self) -> "DiscoverOptions":
        if self.scale is not None and self.given("damage"):
            raise ValueError("--damage is what the scale is calibrated by, and --scale gives one; leave one of them away")
        return self

    def sized(self) -> "DiscoverOptions":
        """With the smaller numbers that `tiny` and `short` stand for."""
        small: dict[str, Any] = {}
        if self.tiny:
            small = {"vectors": 4, "steps": 3, "seeds": 2, "new_tokens": 3, "tokens": "last 3", "plain": True}
            small["methods"] = (RANDOM_METHOD, "L2", "L2 + contrastive", "Jacobian")
        elif self.short:
            small = {"vectors": 4, "steps": 10, "seeds": 2, "new_tokens": 12}
            small["methods"] = (RANDOM_METHOD, "L2", "L2 + contrastive", "Jacobian")
        return self.with_sizes(small)

    def files(self) -> list[Path]:
        """The user's own prompts."""
        return [Path(self.prompts)] if self.prompts else []
