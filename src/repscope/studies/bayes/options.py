"""Options of the `bayes` study."""

from typing import Any

from pydantic import Field

from repscope.studies.run.options import StudyOptions


class BayesOptions(StudyOptions):
    """Options of the `bayes` study."""

    concepts: int = Field(5, ge=2, description="Hidden Markov models in the pretraining distribution; as many more are never seen.")
    values: int = Field(5, ge=2, description="Values of an entity; hidden states are values times slots.")
    slots: int = Field(8, ge=3, description="Slots, one of them the delimiter.")
    symbols: int = Field(30, ge=3, description="Symbols, the delimiter included.")
    networks: int = Field(3, ge=1, description="Transformers, one per seed, trained together.")
    width: int = Field(64, ge=4, description="Width of the networks; two blocks, two heads.")
    length: int = Field(80, ge=16, description="Symbols per document.")
    batch: int = Field(64, ge=1, description="Documents per update and network.")
    steps: int = Field(1000, ge=10, description="Updates.")
    rate: float = Field(3e-3, gt=0, allow_inf_nan=False, description="Peak learning rate of AdamW.")
    lengths: tuple[int, ...] = Field((3, 5, 8), description="Symbols per example of a prompt, label included.")
    prompts: int = Field(500, ge=20, description="Prompts per length.")
    worlds: int = Field(20, ge=1, description="Worlds that the margin rule chooses from.")
    floors: tuple[float, ...] = Field((1e-6, 1e-4, 1e-2), description="Floors under the transitions of the Bayes predictor.")

    def sized(self) -> "BayesOptions":
        """With the smaller numbers of `tiny` and `short`."""
        small: dict[str, Any] = {}
        if self.tiny:
            small = {"networks": 2, "width": 8, "length": 24, "batch": 8, "steps": 12, "lengths": (3, 4), "prompts": 40}
            small |= {"concepts": 2, "values": 3, "slots": 4, "symbols": 12, "worlds": 40}
        elif self.short:
            small = {"networks": 2, "steps": 500, "lengths": (3, 5), "prompts": 300, "length": 64, "batch": 32}
        return self.with_sizes(small)
