"""Small GRU language models, stacked along a leading axis of networks: states and logits.

Embedding, layers of torch's GRU (gates in the order reset, update, new; the second bias inside the reset gate's product), and a
head tied to the embedding. The products of all networks at one time step are one batched product.
"""

from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from repscope.errors import UserError
from repscope.models.loading.stacked_weights import State, runs_of


@dataclass(frozen=True)
class GRUShape:
    """Sizes of the networks.

    Raises a `UserError` for a size below one.
    """

    vocab: int
    width: int
    layers: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        if min(self.vocab, self.width, self.layers) < 1:
            raise UserError(f"{self} is no network: every size is at least 1.")


def initial(shape: GRUShape, seeds: list[int]) -> State:
    """Random weights, uniform within ± 1 / √width as torch's, embeddings of unit scale / √width; one network per seed."""
    each = [_initial(shape, seed) for seed in seeds]
    return {name: torch.stack([w[name] for w in each]) for name in each[0]}


def _initial(shape: GRUShape, seed: int) -> State:
    generator, d = torch.Generator().manual_seed(seed), shape.width
    bound = 1 / sqrt(d)

    def uniform(*size: int) -> Tensor:
        return bound * (2 * torch.rand(*size, generator=generator) - 1)

    found = {"embed.weight": torch.randn(shape.vocab, d, generator=generator) * bound, "head.bias": torch.zeros(shape.vocab)}
    for i in range(shape.layers):
        found |= {f"gru.{i}.input": uniform(d, 3 * d), f"gru.{i}.recurrent": uniform(d, 3 * d)}
        found |= {f"gru.{i}.bias": uniform(3 * d), f"gru.{i}.recurrent_bias": uniform(3 * d)}
    return found


def logits(
    shape: GRUShape, state: State, tokens: Int[Tensor, "network document token"]
) -> Float[Tensor, "network document token vocabulary"]:
    """Logits of the next token at every position. Differentiable."""
    n, b, t = tokens.shape
    table = state["embed.weight"]
    offsets = shape.vocab * torch.arange(runs_of(state))[:, None, None]
    x = functional.embedding(tokens + offsets, table.flatten(0, 1)).view(n, b * t, shape.width)
    for i in range(shape.layers):
        gates = torch.baddbmm(state[f"gru.{i}.bias"][:, None], x, state[f"gru.{i}.input"]).view(n, b, t, -1)
        recurrent, bias = state[f"gru.{i}.recurrent"], state[f"gru.{i}.recurrent_bias"][:, None]
        h, out = x.new_zeros(n, b, shape.width), []
        for at in range(t):
            reset, update, new = torch.baddbmm(bias, h, recurrent).chunk(3, -1)
            from_input = gates[:, :, at].chunk(3, -1)
            reset, update = torch.sigmoid(from_input[0] + reset), torch.sigmoid(from_input[1] + update)
            candidate = torch.tanh(from_input[2] + reset * new)
            h = torch.lerp(candidate, h, update)
            out.append(h)
        x = torch.stack(out, 2).view(n, b * t, shape.width)
    return torch.baddbmm(state["head.bias"][:, None], x, table.mT).view(n, b, t, shape.vocab)
