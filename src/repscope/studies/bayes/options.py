"""Options of the `bayes` study."""

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from repscope.studies.run.options import Dtype, StudyOptions

_OF_WORLD = ("concepts", "values", "slots", "symbols", "lengths", "worlds", "floors")
_OF_TRAINING = ("networks", "width", "batch", "steps", "rate")
_OF_MODEL = ("words", "revision", "device", "dtype")


class BayesOptions(StudyOptions):
    """Options of the `bayes` study.

    A run is about networks that it trains in a GINC world. `hmm` puts the user's hidden Markov models in place of that world, and
    `model` an existing language model in place of those networks.
    """

    hmm: str | None = Field(
        None,
        description="Your hidden Markov models in place of a GINC world: a .npz, .safetensors or .json file with start, "
        "transition and emission.",
    )
    model: str | None = Field(
        None, description="A language model in place of networks trained here: alias, hub id org/name, local folder or .gguf file."
    )
    words: tuple[str, ...] = Field(
        (), description="With --model: the text of each symbol, one token each; the tokenizer's first words if not given."
    )
    revision: str | None = Field(None, description="With --model: branch, tag or commit of a hub id.")
    device: str | None = Field(None, description="With --model: its device; cuda if available, else cpu.")
    dtype: Dtype = Field("float32", description="With --model: precision of its weights: float32, bfloat16 or float16.")
    concepts: int = Field(5, ge=2, description="Hidden Markov models in the pretraining distribution; as many more are never seen.")
    values: int = Field(5, ge=2, description="Values of an entity; hidden states are values times slots.")
    slots: int = Field(8, ge=3, description="Slots, one of them the delimiter.")
    symbols: int = Field(30, ge=3, description="Symbols, the delimiter included.")
    networks: int = Field(3, ge=1, description="Transformers, one per seed, trained together.")
    width: int = Field(64, ge=4, description="Width of the networks; two blocks, two heads.")
    length: int = Field(80, ge=16, description="Symbols per document, and most symbols of a prompt.")
    batch: int = Field(64, ge=1, description="Documents per update and network.")
    steps: int = Field(1000, ge=10, description="Updates, the same number in every training.")
    rate: float = Field(3e-3, gt=0, allow_inf_nan=False, description="Peak learning rate of AdamW.")
    lengths: tuple[int, ...] = Field((3, 5, 8, 10), description="Symbols per example of a prompt, label included.")
    prompts: int = Field(500, ge=20, description="Prompts per length; with --hmm documents. 200 with --model.")
    worlds: int = Field(20, ge=1, le=10_000, description="Worlds that the margin rule chooses from.")
    floors: tuple[float, ...] = Field(
        (1e-6, 1e-4, 1e-2), description="Floors of the Bayes predictor's sweep; main numbers have 0.01."
    )

    @field_validator("floors")
    @classmethod
    def _floors_between(cls, floors: tuple[float, ...]) -> tuple[float, ...]:
        if not floors or not all(0 < floor < 1 for floor in floors):
            raise ValueError("every floor must be between 0 and 1, both excluded, such as 1e-4")
        return tuple(dict.fromkeys(floors))

    @field_validator("lengths")
    @classmethod
    def _lengths_of_examples(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if not lengths or min(lengths) < 2:
            raise ValueError("an example has an input symbol and a label, so every length is at least 2")
        return tuple(dict.fromkeys(lengths))

    @field_validator("width")
    @classmethod
    def _width_of_two_heads(cls, width: int) -> int:
        if width % 2:
            raise ValueError("networks have two heads, so the width must be even")
        return width

    @model_validator(mode="after")
    def _options_that_fit(self) -> "BayesOptions":
        if self.hmm is not None and (given := self.given(*_OF_WORLD)):
            raise ValueError(f"{' and '.join(given)} belong to the GINC world, which --hmm replaces; omit them or --hmm")
        if self.model is not None and (given := self.given(*_OF_TRAINING)):
            raise ValueError(f"{' and '.join(given)} belong to networks trained here, which --model replaces; omit them or --model")
        if self.model is None and (given := self.given(*_OF_MODEL)):
            raise ValueError(f"{' and '.join(given)} belong to a language model; give --model too, or omit them")
        return self

    def files(self) -> list[Path]:
        """The user's hidden Markov models."""
        return [] if self.hmm is None else [Path(self.hmm).expanduser()]

    def sized(self) -> "BayesOptions":
        """With the smaller numbers of `tiny` and `short`, and with the fewer prompts of a language model."""
        small: dict[str, Any] = {} if self.model is None else {"prompts": 200}
        if self.tiny:
            small = {"networks": 2, "width": 8, "length": 24, "batch": 8, "steps": 12, "lengths": (3, 4), "prompts": 40}
            small |= {"concepts": 2, "values": 3, "slots": 4, "symbols": 12, "worlds": 40}
        elif self.short:
            small = {"networks": 2, "steps": 750, "lengths": (3, 5), "prompts": 200, "length": 64, "batch": 32}
            small |= {} if self.model is None else {"prompts": 60}
        return self.with_sizes(small)
