"""Small LSTM language models, stacked along a leading axis of networks: states and logits.

Embedding, layers of torch's LSTM (gates in the order input, forget, cell, output; two biases, of which one is enough), and a head
tied to the embedding. The products of all networks at one time step are one batched product.
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
class LSTMShape:
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


def initial(shape: LSTMShape, seeds: list[int]) -> State:
    """Random weights, uniform within ± 1 / √width as torch's, embeddings of unit scale / √width; one network per seed."""
    each = [_initial(shape, seed) for seed in seeds]
    return {name: torch.stack([w[name] for w in each]) for name in each[0]}


def _initial(shape: LSTMShape, seed: int) -> State:
    generator, d = torch.Generator().manual_seed(seed), shape.width
    bound = 1 / sqrt(d)

    def uniform(*size: int) -> Tensor:
        return bound * (2 * torch.rand(*size, generator=generator) - 1)

    found = {"embed.weight": torch.randn(shape.vocab, d, generator=generator) * bound, "head.bias": torch.zeros(shape.vocab)}
    for i in range(shape.layers):
        found |= {f"lstm.{i}.input": uniform(d, 4 * d), f"lstm.{i}.recurrent": uniform(d, 4 * d), f"lstm.{i}.bias": uniform(4 * d)}
    return found


def logits(
    shape: LSTMShape, state: State, tokens: Int[Tensor, "network document token"]
) -> Float[Tensor, "network document token vocabulary"]:
    """Logits of the next token at every position. Differentiable."""
    n, b, t = tokens.shape
    table = state["embed.weight"]
    offsets = shape.vocab * torch.arange(runs_of(state))[:, None, None]
    x = functional.embedding(tokens + offsets, table.flatten(0, 1)).view(n, b * t, shape.width)
    for i in range(shape.layers):
        gates = torch.baddbmm(state[f"lstm.{i}.bias"][:, None], x, state[f"lstm.{i}.input"]).view(n, b, t, -1)
        recurrent = state[f"lstm.{i}.recurrent"]
        h = c = x.new_zeros(n, b, shape.width)
        out = []
        for at in range(t):
            inputs, forget, cell, output = torch.baddbmm(gates[:, :, at], h, recurrent).chunk(4, -1)
            c = torch.sigmoid(forget) * c + torch.sigmoid(inputs) * torch.tanh(cell)
            h = torch.sigmoid(output) * torch.tanh(c)
            out.append(h)
        x = torch.stack(out, 2).view(n, b * t, shape.width)
    return torch.baddbmm(state["head.bias"][:, None], x, table.mT).view(n, b, t, shape.vocab)


@torch.no_grad()
def generate(
    shape: LSTMShape, state: State, start: Int[Tensor, "network document token"], new: int, generator: torch.Generator | None = None
) -> Int[Tensor, "network document token"]:
    """Continue documents by `new` tokens: sampled, or the most likely ones without a generator."""
    tokens = start
    for _ in range(new):
        odds = logits(shape, state, tokens)[:, :, -1]
        if generator is not None:  # the exponential race: argmax of p / e is a sample of p
            odds = odds.softmax(-1) / torch.empty_like(odds).exponential_(generator=generator)
        tokens = torch.cat([tokens, odds.argmax(-1, keepdim=True)], -1)
    return tokens
