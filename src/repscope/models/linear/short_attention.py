"""The derivative of attention as one step: from a vector at its output to those at queries, keys and values, and back.

With weights p of one query over its keys, out = Σ p v:

    dscore = p ∘ (c · (v - out)),   dq = scale Σ dscore k,   dk = scale dscore q,   dv = p c

torch's own way of it keeps and passes over (vector, head, query, key) for softmax, masks and joined keys. With many vectors and few
queries nothing of the size of the keys is made for each vector: dq = cB with one matrix B = scale Σ p (v - out) kᵀ per query, and
dscore is computed for the positions of the pass alone, as earlier keys and values are constants.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_MANY = 2  #: vectors per feature of a head from which B is worth making
_FEW_POSITIONS = 4  #: of a pass for which it is


@dataclass(frozen=True, eq=False)
class Attended:
    """Attention at one point.

    Heads that share keys are further queries. query: scaled. key, value: of all positions. share: the weights of the keys. new: the
    last keys, through which derivatives go. scale: of the products of queries and keys.
    """

    query: Float[Tensor, "row group query d"]
    key: Float[Tensor, "row group key d"]
    value: Float[Tensor, "row group key d_value"]
    share: Float[Tensor, "row group query key"]
    out: Float[Tensor, "row group query d_value"]
    new: int
    scale: float

    def back(self, c: Float[Tensor, "vector row head query d_value"]) -> tuple[Tensor, Tensor, Tensor]:
        """cᵀ∂out/∂(q, k, v) for each vector."""
        rows, groups, folded, d = self.query.shape
        if len(c) >= _MANY * d and self.new <= _FEW_POSITIONS:
            return self._back_of_many(c)
        queries = c.shape[3]
        wide = self._folded(c)  # (row, group, vector query, d_value)
        score = (wide @ self.value.transpose(-1, -2)).reshape(rows, groups, len(c), folded, -1)
        share = self.share[:, :, None]
        score -= (score * share).sum(-1, keepdim=True)
        score *= share
        to_query = (score.flatten(2, 3) @ self.key).mul_(self.scale).reshape(rows, groups, len(c), -1, queries, d)
        of_new = score[..., score.shape[-1] - self.new :].transpose(-1, -2).flatten(2, 3)
        to_key = (of_new @ self.query).reshape(rows, groups, len(c), self.new, d)
        to_value = self.share[:, :, None, :, -self.new :].transpose(-1, -2) @ wide.reshape(rows, groups, len(c), folded, -1)
        return to_query.movedim(2, 0).flatten(2, 3), to_key.movedim(2, 0), to_value.movedim(2, 0)

    def forth(self, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "vector row head query d_value"]:
        """∂out/∂(q, k, v) times tangents (vector, row, head or group, position, d)."""
        rows, groups, folded, _ = self.query.shape
        score = (self._folded(q) @ self.key.transpose(-1, -2)).mul_(self.scale).reshape(rows, groups, len(q), folded, -1)
        of_new = self.query @ k.movedim(0, 2).flatten(2, 3).transpose(-1, -2)  # (row, group, query, vector key)
        score[..., score.shape[-1] - self.new :] += of_new.reshape(rows, groups, folded, len(q), self.new).movedim(3, 2)
        share = self.share[:, :, None]
        score *= share
        score -= share * score.sum(-1, keepdim=True)
        out = (score.flatten(2, 3) @ self.value).reshape(rows, groups, len(q), folded, -1)
        out += share[..., -self.new :] @ v.movedim(0, 2)
        return out.movedim(2, 0).reshape(*q.shape[:4], -1)

    def _folded(self, x: Float[Tensor, "vector row head query d"]) -> Float[Tensor, "row group vector_query d"]:
        """Heads of a group and vectors as further queries."""
        wide = x.reshape(len(x), *self.query.shape[:3], x.shape[-1]).movedim(0, 2)
        return wide.reshape(*wide.shape[:2], -1, x.shape[-1])

    def _back_of_many(self, c: Float[Tensor, "vector row head query d_value"]) -> tuple[Tensor, Tensor, Tensor]:
        """As `back`, by one matrix per query."""
        rows, groups, folded, d = self.query.shape
        queries, d_value = c.shape[3], c.shape[4]
        off = self.value[:, :, None] - self.out[:, :, :, None]  # (row, group, query, key, d_value)
        matrix = off.transpose(-1, -2) @ (self.share[..., None] * self.key[:, :, None] * self.scale)
        of_new = (off * self.share[..., None])[..., off.shape[-2] - self.new :, :].transpose(-1, -2)
        share = self.share[..., -self.new :].tolist()
        to_query = torch.empty_like(c) if d == d_value else c.new_empty(*c.shape[:4], d)
        to_key, to_value = (c.new_empty(len(c), rows, self.new, groups, size) for size in (d, d_value))
        for row in range(rows):
            for group in range(groups):
                written = [False] * self.new
                for i in range(folded):
                    head, query = group * (folded // queries) + i // queries, i % queries
                    given = c[:, row, head, query]
                    torch.mm(given, matrix[row, group, i], out=to_query[:, row, head, query])
                    along = given @ of_new[row, group, i]
                    for j, weight in enumerate(share[row][group][i]):
                        at_key, at_value = to_key[:, row, j, group], to_value[:, row, j, group]
                        if not written[j]:
                            torch.mul(along[:, j, None], self.query[row, group, i], out=at_key)
                            torch.mul(given, weight, out=at_value)
                        elif weight != 0.0:
                            at_key.addr_(along[:, j], self.query[row, group, i])
                            at_value.add_(given, alpha=weight)
                        written[j] = True
        return to_query, to_key.transpose(2, 3), to_value.transpose(2, 3)


def attended(query: Tensor, key: Tensor, value: Tensor, out: Float[Tensor, "row head query d_value"], held: Attended) -> Tensor:
    """The output of attention with its derivative at queries, new keys and new values."""
    made: Tensor = _Attention.apply(query, key, value, out, held)  # type: ignore[no-untyped-call]
    return made


class _Attention(torch.autograd.Function):
    """The output as it is; the derivative by `Attended`."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, out: Tensor, held: Attended) -> Tensor:
        return out.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, Attended], output: Tensor) -> None:
        ctx.held = inputs[4]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        return (*_Back.apply(cotangents[0], ctx.held), None, None)  # type: ignore[no-untyped-call]


class _Back(torch.autograd.Function):
    """From a vector at the output to those at queries, keys and values."""

    @staticmethod
    def forward(c: Tensor, held: Attended) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = held.back(c[None])
        return q[0], k[0], v[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Attended], output: Any) -> None:
        ctx.held = inputs[1]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        return _Forth.apply(*cotangents, ctx.held), None  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, None], c: Tensor, held: Attended) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        assert dims[0] is not None
        return held.back(c.movedim(dims[0], 0)), (0, 0, 0)


class _Forth(torch.autograd.Function):
    """From tangents at queries, keys and values to that at the output."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, held: Attended) -> Tensor:
        return held.forth(q[None], k[None], v[None])[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Attended], output: Tensor) -> None:
        ctx.held = inputs[3]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        return (*_Back.apply(cotangents[0], ctx.held), None)  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], q: Tensor, k: Tensor, v: Tensor, held: Attended) -> tuple[Tensor, int]:
        whole = [x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0) for x, dim in zip((q, k, v), dims[:3])]
        return held.forth(*whole), 0
