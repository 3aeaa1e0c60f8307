"""MLPs whose derivative is multiplied with many vectors: one matrix per position in place of all weights per vector.

Back through an MLP  D (a(Gx) ∘ Ux)  each vector takes three products with weights of width × hidden. Its derivative at a position
is

    J = D (diag(a(Gx)) U + diag(a'(Gx) ∘ Ux) G)

of width × width. J takes one product of the size of D, and each vector then one with J. With as many vectors as the network is wide
(a whole Jacobian) that is less than half of the work, and nothing of the hidden width is read or written for each vector. With few
vectors the weights are taken one by one. An MLP without gate, D a(Ux), has the one part diag(a'(Ux)) U.

The parts are recognised while a pass runs (`short_derivatives`), by the steps themselves, whatever module holds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_WORTH = 0.8  #: of the work with the weights, below which J is made; making it reads and writes weights as well


@dataclass(frozen=True, eq=False)
class Hidden:
    """Hidden activations whose derivative at x is Σ diag(slope) W over the parts.

    x: (*row, d_in). parts: W (hidden, d_in) and slope (*row, hidden).
    """

    x: Float[Tensor, "*row d_in"]
    parts: tuple[tuple[Float[Tensor, "hidden d_in"], Float[Tensor, "*row hidden"]], ...]


def mlp(hidden: Hidden, value: Float[Tensor, "*row d_out"], down: Float[Tensor, "d_out hidden"]) -> Float[Tensor, "*row d_out"]:
    """The value of an MLP with the derivative of its parts; only the first derivative is right."""
    made: Tensor = _Mlp.apply(hidden.x, value, _Weights(down.detach(), hidden.parts))  # type: ignore[no-untyped-call]
    return made


@dataclass(frozen=True, eq=False)
class _Weights:
    """The weights of J at each row: D, and the parts of the hidden activations."""

    down: Float[Tensor, "d_out hidden"]
    parts: tuple[tuple[Float[Tensor, "hidden d_in"], Float[Tensor, "*row hidden"]], ...]

    def times(self, c: Float[Tensor, "*vector_row d"], forth: bool) -> Float[Tensor, "*vector_row d"]:
        """cᵀJ of each row, or Jc: with the weights one by one."""
        if forth:
            return _summed([(c @ w.T) * slope for w, slope in self.parts]) @ self.down.T
        inner = c @ self.down
        return _summed([(inner * slope) @ w for w, slope in self.parts])

    def merges(self, count: int) -> bool:
        """Whether J is less work than the weights for so many vectors."""
        (d_out, hidden), d_in = self.down.shape, self.parts[0][0].shape[1]
        apart = count * hidden * (d_out + len(self.parts) * d_in)
        return self.down.dtype in (torch.float32, torch.float64) and d_in * d_out * (hidden + count) < _WORTH * apart

    def merged(self, c: Float[Tensor, "vector *row d"], forth: bool) -> Float[Tensor, "vector *row d"]:
        """As `times`, for many vectors per row."""
        count, *row, _ = c.shape
        c = c.reshape(count, -1, c.shape[-1])
        slopes = [slope.reshape(c.shape[1], -1, 1) for _, slope in self.parts]
        inner = torch.empty_like(self.parts[0][0])
        j = c.new_empty(len(self.down), inner.shape[1])
        out = c.new_empty(count, c.shape[1], j.shape[0 if forth else 1])
        for r in range(c.shape[1]):
            torch.mul(self.parts[0][0], slopes[0][r], out=inner)
            for (w, _), slope in zip(self.parts[1:], slopes[1:]):
                inner.addcmul_(w, slope[r])
            torch.mm(self.down, inner, out=j)
            torch.mm(c[:, r], j.T if forth else j, out=out[:, r])
        return out.reshape(count, *row, -1)


def _summed(parts: Sequence[Tensor]) -> Tensor:
    """Their sum."""
    return reduce(torch.add, parts)


class _Mlp(torch.autograd.Function):
    """The value as it is; the derivative by J."""

    @staticmethod
    def forward(x: Tensor, value: Tensor, weights: _Weights) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, _Weights], output: Tensor) -> None:
        ctx.weights = inputs[2]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(cotangents[0], ctx.weights, False), None, None  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """cᵀJ of each row, or Jc; a batch of vectors decides whether J is made."""

    @staticmethod
    def forward(c: Tensor, weights: _Weights, forth: bool) -> Tensor:
        return weights.times(c, forth)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Weights, bool], output: Tensor) -> None:
        _, ctx.weights, ctx.forth = inputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(cotangents[0], ctx.weights, not ctx.forth), None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, None, None], c: Tensor, weights: _Weights, forth: bool) -> tuple[Tensor, int]:
        assert dims[0] is not None
        c = c.movedim(dims[0], 0)
        return (weights.merged if weights.merges(len(c)) else weights.times)(c, forth), 0
