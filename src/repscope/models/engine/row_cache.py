"""Keys and values of rows in buffers, as a cache of transformers: written in place, each row at its own positions.

1. Rows end at the same column, however long they are: the first one of a row is as far to the right as it is shorter.
2. A pass over prompts, packed or padded, attends to itself; its keys and values go to the rows that begin with its tokens.
3. A pass over one new token per row writes the next column of all rows, one slice, and attends to the columns up to there
   (`StepAttention`): nothing is concatenated, and heads that share keys are further queries of the same keys.
4. A mask hides what lies before each row; it is made once.

Knows transformers' interface of caches, and no family of networks. Whether a network agrees is tried (`generating_network`).
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


class RowKeys:
    """Keys and values of each row, a pair of buffers (row, head, column, feature) per layer.

    first: (row), the column of each row's first token. rows, columns: their sizes. width: columns before that which a step writes,
    0 while prompts run. attention: what attends in a step.
    """

    def __init__(self, first: Int[np.ndarray, "row"], columns: int, device: torch.device) -> None:
        self.rows, self.columns, self.width = len(first), columns, 0
        self.attention = StepAttention(_hidden(first, columns, device))
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._source: tuple[Tensor, Tensor] | None = None
        self._target: tuple[Tensor, Tensor] | None = None

    def prompts(self, source: tuple[Int[Tensor, "n"], Int[Tensor, "n"]], target: tuple[Int[Tensor, "n"], Int[Tensor, "n"]]) -> None:
        """Before a pass over prompts: its cells (row, column) that are kept, and the row and column of each here."""
        self._source, self._target, self.width = source, target, 0

    def step(self, column: int) -> None:
        """Before a pass over one new token per row, all of them at this column."""
        self._source, self.width = None, column
        self.attention.begin(column + 1)

    def keep(self, rows: Int[Tensor, "kept"]) -> None:
        """Drop all other rows."""
        self._layers = {n: (k.index_select(0, rows), v.index_select(0, rows)) for n, (k, v) in self._layers.items()}
        self.attention.keep(rows)
        self.rows = len(rows)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values (row, head, column, feature) of a pass; return those that it attends to."""
        if layer not in self._layers:  # zeros: what is masked must be finite
            self._layers[layer] = tuple(x.new_zeros(self.rows, x.shape[1], self.columns, x.shape[3]) for x in (k, v))  # type: ignore[assignment]
        held, width = self._layers[layer], self.width
        if self._source is None:
            for buffer, x in zip(held, (k, v)):
                buffer[:, :, width] = x[:, :, 0]
            return self.attention.of(held[0][:, :, : width + 1]), held[1][:, :, : width + 1]
        assert self._target is not None
        row, column = self._target
        for buffer, x in zip(held, (k, v)):
            buffer[row, :, column] = x[self._source[0], :, self._source[1]]
        return k, v

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


def _hidden(first: Int[np.ndarray, "row"], columns: int, device: torch.device) -> Bool[Tensor, "row 1 1 column"] | None:
    """Which columns of each row are before its first token; None if there are none."""
    if not first.any():
        return None
    return torch.from_numpy(np.arange(columns) < first[:, None])[:, None, None].to(device)


class StepAttention:
    """Attention of one new token per row to the row's keys, in place of `scaled_dot_product_attention`.

    The keys that a network attends to (`of`) are of a class of tensors that torch asks how to attend to them; whatever else is done
    with them is as ever.

    hidden: (row, 1, 1, column), what no row attends to. calls: products so far, 0 for a network that attends by other functions.
    """

    def __init__(self, hidden: Bool[Tensor, "row 1 1 column"] | None) -> None:
        self.calls = 0
        self._hidden, self._mask, self._width = hidden, dict[torch.dtype, Tensor](), 0
        attend = self._attend

        class Keys(Tensor):
            @classmethod
            def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func is functional.scaled_dot_product_attention:
                    with torch._C.DisableTorchFunctionSubclass():
                        return attend(*args, **(kwargs or {}))
                return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]

        self._class = Keys

    def of(self, keys: Float[Tensor, "row kv_head key d_head"]) -> Tensor:
        """The keys, as a network is to attend to them."""
        return keys.as_subclass(self._class)

    def begin(self, width: int) -> None:
        """Before a pass: how many columns there are to attend to."""
        self.calls, self._width = 0, width

    def keep(self, rows: Int[Tensor, "kept"]) -> None:
        """Drop all other rows."""
        self._mask.clear()
        self._hidden = None if self._hidden is None else self._hidden.index_select(0, rows)

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
        mask = self._added(query.dtype)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
            if attn_mask.shape[1] == heads != groups:  # heads that share keys are further queries
                attn_mask = attn_mask.reshape(len(attn_mask), groups, heads // groups, -1)
            mask = attn_mask if mask is None else attn_mask + mask
        grouped = query.reshape(len(query), groups, -1, query.shape[3])
        out = functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scale)
        return out.reshape(*query.shape[:3], value.shape[3])

    def _added(self, dtype: torch.dtype) -> Float[Tensor, "row 1 1 key"] | None:
        """What is added to scores; None if nothing is hidden."""
        if self._hidden is None:
            return None
        if dtype not in self._mask:
            self._mask[dtype] = torch.zeros_like(self._hidden, dtype=dtype).masked_fill_(self._hidden, -torch.inf)
        return self._mask[dtype][..., : self._width]
