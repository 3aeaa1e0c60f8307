"""Small LSTM and GRU language models, stacked along a leading axis of networks: states and logits.

Embedding, layers of torch's cells, and a head tied to the embedding. Gates stand in torch's order: input, forget, cell, output of
an LSTM, whose two biases are one; reset, update, new of a GRU, whose second bias stands inside the product of the reset gate. The
products of all networks at one time step are one batched product.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from repscope.errors import UserError
from repscope.models.loading.stacked_weights import State, runs_of

_GATES = {"lstm": 4, "gru": 3}


@dataclass(frozen=True)
class Shape:
    """Cell and sizes of the networks.

    Raises a `UserError` for a size below one.
    """

    cell: Literal["lstm", "gru"]
    vocab: int
    width: int
    layers: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        if min(self.vocab, self.width, self.layers) < 1:
            raise UserError(f"{self} is no network: every size is at least 1.")


def initial(shape: Shape, seeds: list[int]) -> State:
    """Random weights, uniform within ± 1 / √width as torch's, embeddings of unit scale / √width; one network per seed."""
    each = [_initial(shape, seed) for seed in seeds]
    return {name: torch.stack([w[name] for w in each]) for name in each[0]}


def _initial(shape: Shape, seed: int) -> State:
    generator, d, gates = torch.Generator().manual_seed(seed), shape.width, _GATES[shape.cell] * shape.width
    bound = 1 / sqrt(d)

    def uniform(*size: int) -> Tensor:
        return bound * (2 * torch.rand(*size, generator=generator) - 1)

    found = {"embed.weight": torch.randn(shape.vocab, d, generator=generator) * bound, "head.bias": torch.zeros(shape.vocab)}
    for name in (f"{shape.cell}.{i}" for i in range(shape.layers)):
        found |= {f"{name}.input": uniform(d, gates), f"{name}.recurrent": uniform(d, gates), f"{name}.bias": uniform(gates)}
        if shape.cell == "gru":
            found[f"{name}.recurrent_bias"] = uniform(gates)
    return found


def logits(
    shape: Shape, state: State, tokens: Int[Tensor, "network document token"]
) -> Float[Tensor, "network document token vocabulary"]:
    """Logits of the next token at every position. Differentiable."""
    n, b, t = tokens.shape
    table = state["embed.weight"]
    offsets = shape.vocab * torch.arange(runs_of(state))[:, None, None]
    x = functional.embedding(tokens + offsets, table.flatten(0, 1)).view(n, b * t, shape.width)
    for name in (f"{shape.cell}.{i}" for i in range(shape.layers)):
        inputs = torch.baddbmm(state[f"{name}.bias"][:, None], x, state[f"{name}.input"]).view(n, b, t, -1)
        states = _lstm(state, name, inputs) if shape.cell == "lstm" else _gru(state, name, inputs)
        x = torch.stack(states, 2).view(n, b * t, shape.width)
    return torch.baddbmm(state["head.bias"][:, None], x, table.mT).view(n, b, t, shape.vocab)


Gates = Float[Tensor, "network document token gate"]
Hidden = Float[Tensor, "network document unit"]


def _lstm(state: State, name: str, inputs: Gates) -> list[Hidden]:
    recurrent = state[f"{name}.recurrent"]
    h = c = inputs.new_zeros(*inputs.shape[:2], recurrent.shape[1])
    out = []
    for at in range(inputs.shape[2]):
        entry, forget, cell, output = torch.baddbmm(inputs[:, :, at], h, recurrent).chunk(4, -1)
        c = torch.sigmoid(forget) * c + torch.sigmoid(entry) * torch.tanh(cell)
        h = torch.sigmoid(output) * torch.tanh(c)
        out.append(h)
    return out


def _gru(state: State, name: str, inputs: Gates) -> list[Hidden]:
    recurrent, bias = state[f"{name}.recurrent"], state[f"{name}.recurrent_bias"][:, None]
    h, out = inputs.new_zeros(*inputs.shape[:2], recurrent.shape[1]), []
    for at in range(inputs.shape[2]):
        reset, update, new = torch.baddbmm(bias, h, recurrent).chunk(3, -1)
        given = inputs[:, :, at].chunk(3, -1)
        candidate = torch.tanh(given[2] + torch.sigmoid(given[0] + reset) * new)
        h = torch.lerp(candidate, h, torch.sigmoid(given[1] + update))
        out.append(h)
    return out


@torch.no_grad()
def generate(
    shape: Shape, state: State, start: Int[Tensor, "network document token"], new: int, generator: torch.Generator | None = None
) -> Int[Tensor, "network document token"]:
    """Continue documents by `new` tokens: sampled, or the most likely ones without a generator."""
    tokens = start
    for _ in range(new):
        odds = logits(shape, state, tokens)[:, :, -1]
        if generator is not None:  # the exponential race: argmax of p / e is a sample of p
            odds = odds.softmax(-1) / torch.empty_like(odds).exponential_(generator=generator)
        tokens = torch.cat([tokens, odds.argmax(-1, keepdim=True)], -1)
    return tokens
