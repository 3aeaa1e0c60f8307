"""Options of the `contrast` study."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from repscope.steer.dose_response import MOST_DAMAGE, STRENGTHS
from repscope.steer.from_texts import METHODS
from repscope.studies.run.options import ModelOptions, Sizes, TableOptions


class ContrastOptions(ModelOptions, TableOptions):
    """Options of the `contrast` study."""

    SHORT: ClassVar[Sizes] = {"strengths": (-0.4, 0.2, 0.4, 0.6), "random": 8, "new_tokens": 12}
    TINY: ClassVar[Sizes] = {"methods": tuple(METHODS)[:2], "strengths": (-0.4, 0.2, 0.4), "random": 3, "new_tokens": 4}

    contrast: str = Field(
        "sentiment",
        description="A built-in contrast (sentiment, formality, refusal, language, honesty), or a file with the columns "
        "positive and negative, or text and label.",
    )
    positive: str | None = Field(None, description="The positive one of a file's two labels; 1, true and yes are recognised.")
    choices: str | None = Field(None, description="A file with the columns prompt, yes, no, on which the effect is measured.")
    instruction: str = Field(
        "", description="Instruction for the positive pole, the prompting baseline; the contrast's own if not given."
    )
    chat: bool = Field(False, description="Treat the texts of a file as user turns of a chat.")
    methods: tuple[str, ...] = Field(tuple(METHODS), description="Methods that fit directions.")
    blocks: tuple[int, ...] = Field((), description="Candidate blocks; about ten between 0.2 and 0.85 of the depth if not given.")
    tokens: str = Field("last", description="Token at which texts are read: last, mean, or an index.")
    strengths: tuple[float, ...] = Field(
        STRENGTHS, description="Strengths: norm of the added vector relative to the median norm at the site."
    )
    random: int = Field(16, ge=2, description="Number of random directions of equal norm.")
    new_tokens: int = Field(24, ge=1, description="Tokens per generated text for the measure of damage.")
    most_damage: float = Field(
        MOST_DAMAGE, gt=0, allow_inf_nan=False, description="Largest damage in the working range, in nats per token."
    )

    def files(self) -> list[Path]:
        """The user's own texts and choices."""
        return [Path(p) for p in (self.contrast, self.choices) if p and Path(p).suffix]
