"""Keys and values of rows in buffers, as a cache of transformers: written in place, each row at its own positions.

1. A pass over prompts, packed or padded, attends to itself; its keys and values go to the rows that begin with its tokens.
2. A pass over one new token per row writes it after the row's own last token, and attends to the row's buffer up to there
   (`StepAttention`): nothing is concatenated, and heads that share keys are further queries of the same keys.
3. Rows of unequal length need no padding; a mask hides what lies beyond each row's end.

Knows transformers' interface of caches, and no family of networks. Whether a network agrees is tried (`generating_network`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class RowKeys:
    """Keys and values of each row, a pair of buffers (row, head, position, feature) per layer.

    rows, positions: their sizes. width: positions that a mask of transformers counts as cached, 0 while prompts run.
    """

    def __init__(self, rows: int, positions: int) -> None:
        self.rows, self.positions, self.width = rows, positions, 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._source: tuple[Tensor, Tensor] | None = None
        self._target: tuple[Tensor, Tensor] | None = None

    def prompts(self, source: tuple[Int[Tensor, "n"], Int[Tensor, "n"]], target: tuple[Int[Tensor, "n"], Int[Tensor, "n"]]) -> None:
        """Before a pass over prompts: its cells (row, column) that are kept, and the row and position of each here."""
        self._source, self._target, self.width = source, target, 0

    def step(self, at: Int[Tensor, "row"]) -> Bool[Tensor, "row 1 1 key"] | None:
        """Before a pass over one new token per row, each at its position; which keys each row attends to, None for all."""
        self.width = int(at.max())
        self._source, self._target = None, (torch.arange(len(at), device=at.device), at)
        if int(at.min()) == self.width:
            return None
        return (torch.arange(self.width + 1, device=at.device) <= at[:, None])[:, None, None]

    def keep(self, rows: Int[Tensor, "kept"]) -> None:
        """Drop all other rows."""
        self._layers = {n: (k.index_select(0, rows), v.index_select(0, rows)) for n, (k, v) in self._layers.items()}
        self.rows = len(rows)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values (row, head, column, feature) of a pass; return those that it attends to."""
        if layer not in self._layers:  # zeros: what is masked must be finite
            self._layers[layer] = tuple(x.new_zeros(self.rows, x.shape[1], self.positions, x.shape[3]) for x in (k, v))  # type: ignore[assignment]
        assert self._target is not None
        row, position = self._target
        for buffer, x in zip(self._layers[layer], (k, v)):
            source = x[:, :, 0] if self._source is None else x[self._source[0], :, self._source[1]]
            buffer[row, :, position] = source
        if self._source is not None:
            return k, v
        k, v = self._layers[layer]
        return k[:, :, : self.width + 1], v[:, :, : self.width + 1]

    def as_cache(self) -> Any:
        """A cache of transformers that stores here."""
        from transformers import DynamicCache

        held = self

        class Cache(DynamicCache):
            def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
                return held.update(layer_idx, key_states, value_states)

            def get_seq_length(self, layer_idx: int = 0) -> int:
                return held.width

            def get_mask_sizes(self, query: Any, layer_idx: int = 0) -> tuple[int, int]:  # its length, or in 5.0 its positions
                return held.width + (query if isinstance(query, int) else len(query)), 0

        return Cache()


class StepAttention(TorchFunctionMode):
    """Attention of one new token per row to the row's keys, while it is entered; in place of `scaled_dot_product_attention`.

    sees: see `RowKeys.step`. calls: products so far, 0 for a network that attends by other functions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sees: Tensor | None = None  # (row, 1, 1, key)
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Float[Tensor, "row head 1 d_head"],
        key: Float[Tensor, "row kv_head key d_head"],
        value: Float[Tensor, "row kv_head key d_value"],
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if query.shape[2] != 1 or is_causal:
            raise NotImplementedError("attention of several tokens")
        self.calls += 1
        heads, groups = query.shape[1], key.shape[1]
        if self.sees is not None and self.sees.dtype == torch.bool:  # once per step, not in every block
            self.sees = torch.zeros_like(self.sees, dtype=query.dtype).masked_fill_(~self.sees, -torch.inf)
        mask = self.sees
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
            if attn_mask.shape[1] == heads != groups:  # heads that share keys are further queries
                attn_mask = attn_mask.reshape(len(attn_mask), groups, heads // groups, -1)
            mask = attn_mask if mask is None else attn_mask + mask
        grouped = query.reshape(len(query), groups, -1, query.shape[3])
        out = functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scale)
        return out.reshape(*query.shape[:3], value.shape[3])
