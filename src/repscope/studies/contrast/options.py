"""Options of the `contrast` study."""

from pathlib import Path
from typing import Any

from pydantic import Field

from repscope.steer.dose_response import MOST_DAMAGE, STRENGTHS
from repscope.steer.from_texts import METHODS
from repscope.studies.run.options import ModelOptions, TableOptions


class ContrastOptions(ModelOptions, TableOptions):
    """What the `contrast` study takes."""

    contrast: str = Field(
        "sentiment",
        description="A built-in contrast (sentiment, formality, refusal, language, honesty), or a file with the columns "
        "positive and negative, or text and label.",
    )
    positive: str | None = Field(None, description="Which of a file's two labels is the positive one; 1, true and yes are known.")
    choices: str | None = Field(None, description="A file with the columns prompt, yes, no: what the effect is measured on.")
    instruction: str = Field("", description="What prompting says for the positive pole; the contrast's own if not given.")
    chat: bool = Field(False, description="Whether the texts of a file are a user's turn.")
    methods: tuple[str, ...] = Field(tuple(METHODS), description="How directions are made.")
    blocks: tuple[int, ...] = Field(
        (), description="Blocks to choose from; about ten between 0.2 and 0.85 of the depth if not given."
    )
    tokens: str = Field("last", description="Which token of a text is read: last, mean, or an index.")
    strengths: tuple[float, ...] = Field(STRENGTHS, description="Lengths over the median length of what stands at the site.")
    random: int = Field(16, ge=2, description="Random directions of equal length.")
    new_tokens: int = Field(24, ge=1, description="Tokens of each text on which damage is measured.")
    most_damage: float = Field(
        MOST_DAMAGE, gt=0, allow_inf_nan=False, description="Damage that the working range may cost, in nats a token."
    )

    def sized(self) -> "ContrastOptions":
        """With the smaller numbers that `tiny` and `short` stand for."""
        small: dict[str, Any] = {}
        if self.tiny:
            small = {"methods": self.methods[:2], "strengths": (-0.4, 0.2, 0.4), "random": 3, "new_tokens": 4}
        elif self.short:
            small = {"strengths": (-0.4, 0.1, 0.2, 0.4, 0.6), "random": 8, "new_tokens": 16}
        return self.with_sizes(small)

    def files(self) -> list[Path]:
        """The user's own texts and choices."""
        return [Path(p) for p in (self.contrast, self.choices) if p and Path(p).suffix]
