"""Options of the `discover` study."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from repscope.discovery.comparison import RANDOM_METHOD
from repscope.studies.run.options import ModelOptions, TableOptions

MOST_PROMPTS = 3  #: for discovery, and as many held out, of the short form


class DiscoverOptions(ModelOptions, TableOptions):
    """Options of the `discover` study."""

    prompts: str | None = Field(None, description="A file of prompts: .txt with one per line, or a table with the column text.")
    plain: bool = Field(False, description="Use prompts as they are, without the chat template.")
    source: int | None = Field(
        None, ge=0, description="Block to whose output vectors are added; at a quarter of the depth if not given."
    )
    target: int | None = Field(
        None, ge=1, description="Block at whose output effects are measured; at three quarters of the depth if not given."
    )
    tokens: str = Field(
        "last 6", description='Tokens at which effects are measured: last, mean, all, or the mean of the last 6 ("last 6").'
    )
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
        description="Methods to compare.",
    )
    vectors: int = Field(12, ge=2, description="Directions per method.")
    steps: int = Field(40, ge=1, description="Optimisation steps per method.")
    seeds: int = Field(3, ge=1, description="Seeds per method; intervals are over seeds.")
    scale: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Norm of the vectors relative to the median norm at the source; calibrated if not given.",
    )
    damage: float = Field(
        0.5,
        gt=0,
        allow_inf_nan=False,
        description="Limit of the calibration: largest KL (nats) of the Jacobian's leading directions.",
    )
    new_tokens: int = Field(16, ge=0, description="Tokens per generated text for the measure of damage; 0 for none.")

    @model_validator(mode="after")
    def _one_scale(self) -> "DiscoverOptions":
        if self.scale is not None and self.given("damage"):
            raise ValueError("--damage calibrates the scale and --scale sets it; give only one of them")
        return self

    def sized(self) -> "DiscoverOptions":
        """With the smaller numbers of `tiny` and `short`."""
        small: dict[str, Any] = {}
        if self.tiny:
            small = {"vectors": 4, "steps": 3, "seeds": 2, "new_tokens": 3, "tokens": "last 3", "plain": True}
            small["methods"] = (RANDOM_METHOD, "L2", "L2 + contrastive", "Jacobian")
        elif self.short:
            small = {"vectors": 4, "steps": 6, "seeds": 3, "new_tokens": 5}
            small["methods"] = (RANDOM_METHOD, "L2", "L2 + contrastive", "Jacobian")
        return self.with_sizes(small)

    def files(self) -> list[Path]:
        """The user's own prompts."""
        return [Path(self.prompts)] if self.prompts else []
