"""Options of fine-tuning, and the four methods with their defaults.

The learning rate is constant, without warm-up: each checkpoint of a series equals the end of a shorter run, so that two methods
can be compared at equal reward.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from repscope.errors import UserError, unknown

BASE, STATE = "base", "trainer"  #: folders of a series: the base, and the trainer's state of an unfinished run
Method = Literal["sft", "dpo", "reinforce", "grpo"]


@dataclass(frozen=True)
class MethodInfo:
    """One method. says: what it is. learns_from: what its rows need. samples: whether answers are sampled in training. beta:
    default weight of the KL to the base (DPO: inverse temperature).
    """

    says: str
    learns_from: tuple[str, ...]
    samples: bool
    beta: float


METHODS: dict[Method, MethodInfo] = {
    "sft": MethodInfo("cross-entropy on demonstrations", ("prompt", "completion"), False, 0.0),
    "dpo": MethodInfo("direct preference optimisation (arXiv 2305.18290, eq. 7)", ("prompt", "chosen", "rejected"), False, 0.1),
    "reinforce": MethodInfo("REINFORCE with a leave-one-out baseline (RLOO, arXiv 2402.14740)", ("prompt",), True, 0.0),
    "grpo": MethodInfo("group-relative policy optimisation (arXiv 2402.03300)", ("prompt",), True, 0.0),
}


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How a model is fine-tuned.

    method: a key of `METHODS`. lora: rank of the adapters on all linear layers, α = 2 · rank; None trains every weight. rate: of
    AdamW. steps: optimiser steps. batch: rows per step; answers per step for reinforce and grpo. keep: checkpoints, evenly spaced,
    the last included. beta: weight of the KL to the base in reinforce and grpo, β of DPO; None is the method's default. group:
    answers per prompt in reinforce and grpo. new_tokens: most tokens of a sampled answer. max_length: most tokens of a row, prompt
    included. samples: answers per prompt from which preference pairs are made. seed: of adapters, order of rows, and sampling.
    dtype: of the weights that are trained.
    """

    method: Method
    lora: int | None = 8
    rate: float | None = None
    steps: int = 60
    batch: int = 8
    keep: int = 4
    beta: float | None = None
    group: int = 4
    new_tokens: int = 24
    max_length: int = 512
    samples: int = 4
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        for name in ("steps", "batch", "keep", "new_tokens", "max_length", "samples"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give 1 or more.")
        if self.lora is not None and self.lora < 1:
            raise UserError(f"A LoRA of rank {self.lora} trains nothing; give 1 or more, or train every weight (--full).")
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise UserError(f"rate is {self.rate}; give a positive learning rate.")
        if self.beta is not None and not (math.isfinite(self.beta) and self.beta >= 0):
            raise UserError(f"beta is {self.beta}; give 0 or more.")
        if self.method == "dpo" and self.beta == 0:
            raise UserError("DPO with beta 0 has no gradient; give a positive beta.")
        if self.keep > self.steps:
            raise UserError(f"keep is {self.keep} and there are {self.steps} steps; keep at most one checkpoint per step.")
        if METHODS[self.method].samples and (self.group < 2 or self.batch % self.group):
            raise UserError(
                f"{self.method} compares answers to one prompt: group is 2 or more and divides batch, "
                f"but group is {self.group} and batch {self.batch}."
            )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; give a number from 0 to 2³² − 1.")

    @property
    def kl_weight(self) -> float:
        """β as trained."""
        return METHODS[self.method].beta if self.beta is None else self.beta

    @property
    def learning_rate(self) -> float:
        """Learning rate as trained: 2e-4 for adapters, 1e-5 for all weights."""
        return self.rate if self.rate is not None else 2e-4 if self.lora is not None else 1e-5

    @property
    def kept(self) -> tuple[int, ...]:
        """Steps whose checkpoints are kept, the last included; step 0, the base, comes in addition."""
        return tuple(sorted({round(self.steps * (i + 1) / self.keep) for i in range(self.keep)}))

    def as_dict(self) -> dict[str, Any]:
        """The options with defaults resolved, for files."""
        return asdict(self) | {"beta": self.kl_weight, "rate": self.learning_rate}


assert set(METHODS) == set(get_args(Method))
