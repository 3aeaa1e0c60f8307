"""Options of fine-tuning, and the four methods with their defaults.

The learning rate is constant, without warm-up: each checkpoint of a series equals the end of a shorter run, so that two methods
can be compared at equal reward.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from repscope.errors import UserError, unknown

BASE, STATE = "base", "trainer"  #: folders of a series: the base, and the trainer's state of an unfinished run
RECORD, ROWS, LOG = "finetune.json", "examples.jsonl", "log.csv"  #: files of a series, beside its table of checkpoints
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

_KEEP, _GROUP, _SAMPLES = 4, 4, 4  #: defaults
_READ_BY: dict[str, tuple[Method, ...]] = {  #: options that not every method reads: given to another, they would do nothing
    "beta": ("dpo", "reinforce", "grpo"),
    "group": ("reinforce", "grpo"),
    "samples": ("dpo",),
}


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How a model is fine-tuned.

    method: a key of `METHODS`. lora: rank of the adapters on all linear layers, α = 2 · rank; None trains every weight. rate: of
    AdamW. steps: optimiser steps. batch: rows per step; answers per step for reinforce and grpo. keep: checkpoints, evenly spaced,
    the last included; None keeps 4, or one per step where there are fewer. beta: weight of the KL to the base in reinforce and
    grpo, β of DPO; None is the method's default. group: answers per prompt in reinforce and grpo; None is 4. new_tokens: most
    tokens of a sampled answer. max_length: most tokens of a row, prompt included. samples: answers per prompt from which dpo's
    preference pairs are made; None is 4. seed: of adapters, order of rows, and sampling. dtype: of the weights that are trained.

    Raises
    ------
    UserError
        For values out of range, and for beta, group or samples given to a method that does not read them.
    """

    method: Method
    lora: int | None = 8
    rate: float | None = None
    steps: int = 60
    batch: int = 8
    keep: int | None = None
    beta: float | None = None
    group: int | None = None
    new_tokens: int = 24
    max_length: int = 512
    samples: int | None = None
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        for name in ("steps", "batch", "keep", "new_tokens", "max_length", "samples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{_flag(name)} is {value}; give 1 or more.")
        for name, methods in _READ_BY.items():
            if getattr(self, name) is not None and self.method not in methods:
                raise UserError(f"{_flag(name)} does not apply to {self.method}, only to {', '.join(methods)}; leave it out.")
        if self.lora is not None and self.lora < 1:
            raise UserError(f"A LoRA of rank {self.lora} trains nothing; give 1 or more, or train every weight (--full).")
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise UserError(f"--rate is {self.rate}; give a positive learning rate.")
        if self.beta is not None and not (math.isfinite(self.beta) and self.beta >= 0):
            raise UserError(f"--beta is {self.beta}; give 0 or more.")
        if self.method == "dpo" and self.beta == 0:
            raise UserError("DPO with --beta 0 has no gradient; give a positive one.")
        if self.keep is not None and self.keep > self.steps:
            raise UserError(f"--keep is {self.keep} and --steps {self.steps}; keep at most one checkpoint per step.")
        if METHODS[self.method].samples and (self.group_size < 2 or self.batch % self.group_size):
            raise UserError(
                f"{self.method} compares answers to one prompt: --group is 2 or more and divides --batch, "
                f"but --group is {self.group_size} and --batch {self.batch}."
            )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed is {self.seed}; give a number from 0 to 2³² − 1.")

    @property
    def kl_weight(self) -> float:
        """β as trained."""
        return METHODS[self.method].beta if self.beta is None else self.beta

    @property
    def learning_rate(self) -> float:
        """Learning rate as trained: 2e-4 for adapters, 1e-5 for all weights."""
        return self.rate if self.rate is not None else 2e-4 if self.lora is not None else 1e-5

    @property
    def group_size(self) -> int:
        """Answers per prompt in reinforce and grpo."""
        return _GROUP if self.group is None else self.group

    @property
    def answers_per_pair(self) -> int:
        """Answers per prompt from which a preference pair is made."""
        return _SAMPLES if self.samples is None else self.samples

    @property
    def kept(self) -> tuple[int, ...]:
        """Steps whose checkpoints are kept, the last included; step 0, the base, comes in addition."""
        keep = min(_KEEP, self.steps) if self.keep is None else self.keep
        return tuple(sorted({round(self.steps * (i + 1) / keep) for i in range(keep)}))

    def as_dict(self) -> dict[str, Any]:
        """The options with defaults resolved, for files."""
        return asdict(self) | {
            "beta": self.kl_weight,
            "rate": self.learning_rate,
            "keep": len(self.kept),
            "group": self.group_size,
            "samples": self.answers_per_pair,
        }


def _flag(name: str) -> str:
    """An option as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


assert set(METHODS) == set(get_args(Method))
