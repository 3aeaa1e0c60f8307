"""Weights of several small networks stacked along a run axis; sizes of the built-in transformer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError

State = dict[str, Tensor]  #: name → (run, …)
#: One number per network, or per example the sum and the count whose ratio is a loss: nats and tokens, errors and ones.
Losses = dict[str, Float[np.ndarray, "network"] | Float[np.ndarray, "network example 2"]]
Evaluate = Callable[[State], Losses]


@dataclass(frozen=True)
class Shape:
    """Sizes of a small transformer. ff: width of the MLP over the network's. classes: of the head; 0 for none."""

    vocabulary: int
    tokens: int
    width: int = 32
    blocks: int = 2
    heads: int = 4
    ff: int = 4
    classes: int = 2

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit each other.

        Raises a `UserError` when heads do not divide the width, or a size is below one.
        """
        if min(self.vocabulary, self.tokens, self.width, self.blocks, self.heads, self.ff) < 1 or self.classes < 0:
            raise UserError(f"{self} has a size below one; every size counts something.")
        if self.width % self.heads:
            raise UserError(f"{self.heads} heads do not divide a width of {self.width}; take a divisor of it.")


def stack(states: Iterable[State]) -> State:
    """Weights of single networks as one dictionary with a leading run axis."""
    held = list(states)
    return {name: torch.stack([state[name] for state in held]) for name in held[0]}


def unstack(state: State, run: int) -> State:
    """The weights of one run, a copy, without the run axis."""
    return {name: value[run].detach().clone() for name, value in state.items()}


def runs_of(state: State) -> int:
    """How many runs there are."""
    return len(next(iter(state.values())))


def select_runs(state: State, runs: Sequence[int] | Int[Tensor, "run"]) -> State:
    """The weights of these runs, in this order, a copy."""
    index = torch.as_tensor(runs)
    return {name: value[index] for name, value in state.items()}


def arrays_of(state: State, prefix: str = "w/") -> dict[str, np.ndarray]:
    """Weights as arrays of a result, under a prefix."""
    return {prefix + name: value.numpy() for name, value in state.items()}


def state_of(arrays: Mapping[str, np.ndarray], prefix: str = "w/") -> State:
    """Weights among the arrays of a result, a copy."""
    found = {name.removeprefix(prefix): torch.from_numpy(x.copy()) for name, x in arrays.items() if name.startswith(prefix)}
    assert found, f"no weights under {prefix!r}"
    return found
