"""Prompts as branches of one row of tokens: what they begin with in common stands there once.

1. Sorted prompts form a prefix tree; each distinct beginning is one token of the row (a cell), in depth-first order.
2. Attention is masked: a cell sees the cells of its own prompt up to itself (`BranchAttention`). Where few cells of a block are
   read, it runs for these, and for the others up to their keys and values.
3. Groups of prompts have at most `MOST` cells: a mask computes the scores of all pairs of a row's cells, so long rows cost more
   than they save.

For causal networks alone. Whether a network gives the same this way is tested at the prompts (`block_replay`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from repscope.models.engine.prefix_tree import common_prefix
from repscope.models.prompts import Ragged

MOST = 128  #: cells of a row


@dataclass(frozen=True, eq=False)
class Branches:
    """Some prompts as one row.

    prompts: their indices. ids, positions: (cell), the token and its position in its prompts. cells: for each prompt (token), the
    cells of its tokens. sees: which cells each cell attends to.
    """

    prompts: tuple[int, ...]
    ids: Int[np.ndarray, "cell"]
    positions: Int[np.ndarray, "cell"]
    cells: tuple[Int[np.ndarray, "token"], ...]
    sees: Bool[np.ndarray, "cell cell"]


def branches(ids: Ragged, most: int = MOST) -> Iterator[Branches]:
    """The prompts in rows of at most so many cells; a longer prompt is a row by itself."""
    order = sorted(range(len(ids)), key=lambda i: ids[i].astype(">u4").tobytes())  # any order with common prefixes adjacent
    shared = [0, *(common_prefix(ids[a], ids[b]) for a, b in pairwise(order))]
    new = np.array([len(ids[i]) - n for i, n in zip(order, shared)])
    rows = -(-int(new.sum()) // most)
    even = max(most // 2, int(new.sum()) // rows)  # rows of about one size
    group: list[int] = []
    filled = 0
    for i, n in zip(order, new):
        if group and (filled + n > most or filled >= even):
            yield _row(ids, group)
            group, filled = [], 0
        filled += int(n) if group else len(ids[i])
        group.append(i)
    yield _row(ids, group)


def _row(ids: Ragged, prompts: Sequence[int]) -> Branches:
    """The row of sorted prompts."""
    cells: list[np.ndarray] = []
    made = 0
    for before, i in zip([None, *prompts], prompts):
        common = 0 if before is None else common_prefix(ids[before], ids[i])
        own = len(ids[i]) - common
        cells.append(np.concatenate([cells[-1][:common] if before is not None else np.empty(0, np.int64), made + np.arange(own)]))
        made += own
    row, positions, sees = np.empty(made, np.int64), np.empty(made, np.int64), np.zeros((made, made), dtype=bool)
    for i, held in zip(prompts, cells):
        row[held], positions[held] = ids[i], np.arange(len(held))
        sees[np.ix_(held, held)] |= np.tri(len(held), dtype=bool)
    return Branches(tuple(prompts), row, positions, tuple(cells), sees)


class _Collected(Exception):
    """Raised inside a block when its keys and values are known."""


class BranchAttention(TorchFunctionMode):
    """`scaled_dot_product_attention` of rows of branches, all rows laid out alike; calls: how often it was asked for.

    read: cells whose outputs alone are wanted; a block then runs for these after its keys and values were collected of all cells.
    """

    def __init__(self, sees: Bool[Tensor, "cell cell"], read: Int[Tensor, "read"] | None = None) -> None:
        super().__init__()
        self.calls = 0
        self._sees = sees if read is None else sees[read]
        self._collects = False
        self._held: tuple[Tensor, Tensor] | None = None
        self._masks = dict[tuple[torch.dtype, int], Tensor]()

    def collect(self, block: Callable[[], object]) -> None:
        """Run a block on all cells up to its keys and values, to which the next calls attend."""
        self._collects, self._held = True, None
        try:
            block()
        except _Collected:
            return
        finally:
            self._collects = False
        raise RuntimeError("a block does not attend by torch's scaled_dot_product_attention")

    def release(self) -> None:
        """Forget keys and values."""
        self._held = None

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Float[Tensor, "row head cell d_head"],
        key: Float[Tensor, "row kv_head cell d_head"],
        value: Float[Tensor, "row kv_head cell d_value"],
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Float[Tensor, "row head cell d_value"]:
        if self._collects:
            self._held = key, value
            raise _Collected
        key, value = self._held or (key, value)
        rows, heads, cells, _ = query.shape
        if (cells, key.shape[2]) != self._sees.shape:
            raise RuntimeError("attention is not of the row's cells to each other")
        self.calls += 1
        folds = heads // key.shape[1]  # heads that share keys are further queries
        folded = query.reshape(rows, key.shape[1], folds * cells, -1)
        out = functional.scaled_dot_product_attention(folded, key, value, attn_mask=self._mask(query.dtype, folds), scale=scale)
        return out.reshape(rows, heads, cells, -1)

    def _mask(self, dtype: torch.dtype, folds: int) -> Float[Tensor, "query cell"]:
        """What is added to the scores."""
        if (dtype, folds) not in self._masks:
            mask = torch.zeros(self._sees.shape, dtype=dtype, device=self._sees.device).masked_fill_(~self._sees, -torch.inf)
            self._masks[dtype, folds] = mask.repeat(folds, 1)
        return self._masks[dtype, folds]
