"""Small transformers that read pairs of real numbers, stacked along an axis of networks.

1. A prompt is a sequence x_1, y_1, x_2, y_2, …: each token has d + 1 numbers, x at even places (last number 0), y at odd ones
   (first d numbers 0), and is read in by a linear map (Garg et al. 2022).
2. The blocks of `small_lm.transformer`; the final norm; a linear read-out of one number.
3. The prediction of y_k is read at x_k, so that one causal pass asks for every number of pairs. Loss: mean squared error over them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.models.loading.stacked_weights import State, runs_of
from repscope.worlds.small_lm import LossOf, transformer

Pairs = tuple[Float[Tensor, "network prompt example feature"], Float[Tensor, "network prompt example"]]


@dataclass(frozen=True)
class Shape:
    """Sizes of the networks: of x, of prompts, of the transformer. Raises as `small_lm.transformer.Shape`."""

    dimension: int
    examples: int
    width: int = 64
    layers: int = 2
    heads: int = 2

    @property
    def blocks(self) -> transformer.Shape:
        """The transformer inside; it has no vocabulary of its own."""
        return transformer.Shape(1, 2 * self.examples, self.width, self.layers, self.heads)


def initial(shape: Shape, seeds: list[int]) -> State:
    """Random weights: read-in normal with variance 1 / (dimension + 1), read-out .02, blocks as GPT-2's; one network per seed."""
    state = transformer.initial(shape.blocks, seeds)
    del state["transformer.wte.weight"]
    generators = [torch.Generator().manual_seed(seed + 1_000_003) for seed in seeds]

    def normal(scale: float, *size: int) -> Tensor:
        return scale * torch.stack([torch.randn(*size, generator=g) for g in generators])

    n, d = len(seeds), shape.width
    state["read_in.weight"] = normal(1 / sqrt(shape.dimension + 1), shape.dimension + 1, d)
    state["read_in.bias"] = torch.zeros(n, d)
    state["read_out.weight"] = normal(0.02, d, 1)
    state["read_out.bias"] = torch.zeros(n, 1)
    return state


def predictions(shape: Shape, state: State, x: Tensor, y: Tensor) -> Float[Tensor, "network prompt example"]:
    """What each network predicts for each y from the pairs before it. Differentiable.

    x: (network, prompt, example, feature); y: (network, prompt, example). An axis of one network is for all.
    """
    n, (prompts, examples, d) = runs_of(state), x.shape[1:]
    tokens = x.new_zeros(len(x), prompts, examples, 2, d + 1)
    tokens[..., 0, :d], tokens[..., 1, d] = x, y
    rows = tokens.expand(n, -1, -1, -1, -1).reshape(n, -1, d + 1)
    inside = torch.baddbmm(state["read_in.bias"][:, None], rows, state["read_in.weight"]).view(n, prompts, 2 * examples, -1)
    inside = inside + state["transformer.wpe.weight"][:, None, : 2 * examples]
    out = transformer.blocks(shape.blocks, state, inside)[-1][:, :, ::2]
    gain, shift = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    out = torch.addcmul(shift[:, None], transformer.normed(out.reshape(n, -1, shape.width)), gain[:, None])
    return torch.baddbmm(state["read_out.bias"][:, None], out, state["read_out.weight"]).view(n, prompts, examples)


def squared_error(shape: Shape, pairs: Callable[[int], Pairs]) -> LossOf:
    """Each network's mean squared error over prompts and numbers of pairs; `pairs`: step → x and y."""

    def loss(state: State, step: int) -> Float[Tensor, "network"]:
        x, y = pairs(step)
        return (predictions(shape, state, x, y) - y).square().mean((1, 2))

    return loss


@torch.no_grad()
def answers(
    shape: Shape, state: State, x: Float[np.ndarray, "prompt example feature"], y: Float[np.ndarray, "prompt example"]
) -> Float[np.ndarray, "network prompt example"]:
    """What each network predicts on prompts that are the same for all."""
    found, step = [], max(1, 8192 // (2 * shape.examples))
    for at in range(0, len(x), step):
        given = (torch.from_numpy(v[None, at : at + step]).float() for v in (x, y))
        found.append(predictions(shape, state, *given).double().numpy())
    return np.concatenate(found, 1)
