"""Tasks and prompts of in-context linear regression (Garg et al. 2022; Raventós et al. 2023).

1. A task is a vector w ~ N(0, I). Pretraining knows a list of M tasks (its diversity), each equally likely, or draws a new one for
   every prompt (M infinite). Lists are nested: a larger list begins with the smaller ones.
2. A prompt is k pairs (x, y) of one task: x ~ N(0, I), y = w·x + σ ε, ε ~ N(0, 1). One pass over it asks for y after 0, 1, …, k − 1
   pairs.
3. Prompts come from pretraining tasks (drawn from the list) or from unseen ones (new w ~ N(0, I)).

Every draw follows from the seed that is given.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from repscope.errors import UserError


@dataclass(frozen=True)
class Regression:
    """Sizes of the tasks.

    dimension: of x. examples: pairs per prompt. noise: standard deviation σ of y. seed: of the list of tasks.

    Raises a `UserError` for a size below one, or noise that is not positive.
    """

    dimension: int = 8
    examples: int = 16
    noise: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that make no prompt."""
        if min(self.dimension, self.examples) < 1 or not 0 < self.noise < float("inf"):
            raise UserError(f"{self} makes no prompts: dimension and examples are at least 1, and the noise is positive.")

    def tasks(self, diversity: int) -> Float[np.ndarray, "task feature"]:
        """The first `diversity` tasks of the list.

        Raises
        ------
        UserError
            For a diversity below one.
        """
        if diversity < 1:
            raise UserError(f"A diversity of {diversity} has no task; use at least 1, or None for a new task per prompt.")
        # one generator per block of tasks: a longer list begins with the shorter one
        blocks = [
            np.random.default_rng([self.seed, 11, i]).standard_normal((256, self.dimension)) for i in range(-(-diversity // 256))
        ]
        return np.concatenate(blocks)[:diversity]

    def prompts(self, count: int, tasks: Float[np.ndarray, "task feature"] | None, rng: np.random.Generator) -> "Prompts":
        """Prompts of tasks drawn from these, or of new tasks if None."""
        if tasks is None:
            w = rng.standard_normal((count, self.dimension))
        else:
            w = tasks[rng.integers(len(tasks), size=count)]
        x = rng.standard_normal((count, self.examples, self.dimension))
        clean = np.einsum("pkd,pd->pk", x, w)
        return Prompts(x, clean + self.noise * rng.standard_normal(clean.shape), clean)


@dataclass(frozen=True, eq=False)
class Prompts:
    """Pairs by prompt. x, y: what is shown. clean: y without noise."""

    x: Float[np.ndarray, "prompt example feature"]
    y: Float[np.ndarray, "prompt example"]
    clean: Float[np.ndarray, "prompt example"]


Source = Literal["pretraining tasks", "unseen tasks"]
