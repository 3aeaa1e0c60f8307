"""Reading and editing of queries, keys, values and attention weights inside attention.

Families write attention in many ways (fused projections, rotation, grouped keys, kernels); what they share is the product itself.
While an attention module runs, a `TorchFunctionMode` looks at torch's own functions:

1. `scaled_dot_product_attention(q, k, v)` holds all operands; the weights are computed beside it, and in its place where they
   are edited.
2. Otherwise the last product before a softmax is q · k, and the first one after it is weights · v.

Every operand is shown as (row, token, head, feature), keys and values with as many heads as are distinct. Knows tensors and torch
functions, never a module's name. A kernel that torch does not dispatch (flash-attention) shows nothing, so such sites are refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

PARTS = ("q", "k", "v", "pattern")
_PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "__matmul__"})
OperandHandler = Callable[[str, Tensor], Tensor | None]


@dataclass
class AttentionCall:
    """One run of one attention module.

    handler: called with a part's name and its tensor (row, token, head, feature); what it returns, if anything, takes its place.
    parts: parts to show. rows: of the batch. heads, kv_heads: how many, 0 where that is not known yet.
    """

    handler: OperandHandler
    parts: frozenset[str]
    rows: int
    heads: int = 0
    kv_heads: int = 0
    after_softmax: bool = False

    def fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`scaled_dot_product_attention`, its operands shown."""
        query, key, value = self._handled("q", query), self._handled("k", key), self._handled("v", value)
        if "pattern" in self.parts:
            weights = _weights(query, key, attn_mask, is_causal, scale)
            edited = self._handled("pattern", weights)
            if edited is not weights:
                return edited @ grouped(value, query.shape[1])
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    def product(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A matrix product: q · k before the softmax, weights · v after it, or something else, which passes."""
        named = {name: kwargs[name] for name in ("batch1", "batch2") if name in kwargs}
        first = 1 if func.__name__ == "baddbmm" else 0
        a, b = named.values() if len(named) == 2 else args[first : first + 2]
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or min(a.dim(), b.dim()) < 3:
            return func(*args, **kwargs)
        if len(a) % self.rows or len(b) % self.rows:  # one for all rows: the angles of a rotation
            return func(*args, **kwargs)
        if self.after_softmax:
            self.after_softmax = False
            a, b = self._handled("pattern", a), self._handled("v", b)
        else:
            a, b = self._handled("q", a), self._handled("k", b.transpose(-1, -2)).transpose(-1, -2)
        if len(named) == 2:
            return func(*args, **(kwargs | {"batch1": a, "batch2": b}))
        return func(*args[:first], a, b, *args[first + 2 :], **kwargs)

    def _handled(self, part: str, raw: Tensor) -> Tensor:
        """Show an operand; the operand itself where nothing takes its place."""
        if part not in self.parts:
            return raw
        shaped = raw if raw.dim() == 4 else torch.unflatten(raw, 0, (self.rows, -1))
        packed = part in ("q", "pattern") and self.heads and shaped.shape[1] != self.heads
        if packed:  # one query with the heads of a group along the token axis, as transformers lays out a decoding step
            shaped = shaped.reshape(self.rows, self.heads, 1, -1)
        repeats = 1
        if part in ("k", "v") and self.kv_heads:
            repeats = shaped.shape[1] // self.kv_heads
        new = self.handler(part, shaped[:, ::repeats].transpose(1, 2))
        if new is None:
            return raw
        new = new.transpose(1, 2).to(raw.dtype)
        return (new.repeat_interleave(repeats, dim=1) if repeats > 1 else new).reshape(raw.shape)


class AttentionProducts(TorchFunctionMode):
    """Shows the operands of attention to the current call, if there is one; every other torch function passes."""

    def __init__(self) -> None:
        super().__init__()
        self.call: AttentionCall | None = None

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self.call is None:
            return func(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            return self.call.fused(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS:
            return self.call.product(func, tuple(args), kwargs)
        if name == "softmax":
            self.call.after_softmax = True
        return func(*args, **kwargs)


def distinct_heads(keys: Float[Tensor, "row token head feature"]) -> int:
    """How many heads hold keys of their own: grouped heads are repeats of each other, one after the other."""
    heads = keys.shape[2]
    for groups in range(1, heads):
        if heads % groups == 0:
            grouped = torch.unflatten(keys, 2, (groups, -1))
            if torch.equal(grouped, grouped[:, :, :, :1].expand_as(grouped)):
                return groups
    return heads


def grouped(keys: Float[Tensor, "row kv_head key feature"], heads: int) -> Float[Tensor, "row head key feature"]:
    """Keys or values repeated to so many heads."""
    return keys.repeat_interleave(heads // keys.shape[1], dim=1) if keys.shape[1] != heads else keys


def _weights(
    query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> Float[Tensor, "row head query key"]:
    """The softmax that `scaled_dot_product_attention` takes inside, in float32 or wider; zeros where all keys are masked."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ grouped(key, query.shape[1]).to(wide).transpose(-1, -2)
    scores = scores * (scale if scale is not None else query.shape[-1] ** -0.5)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).nan_to_num(0.0).to(query.dtype)
