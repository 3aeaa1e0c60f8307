"""Batches of activations, and positions at which reading continues."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, order=True)
class Position:
    """A place in the shuffled order of a store's rows; reading from it gives the same batches as reading past it.

    epoch: passes over all rows before it. block: the first block of the mixing buffer, in the epoch's order of blocks. offset: rows
    of that buffer that were read.
    """

    epoch: int = 0
    block: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Labels:
    """Where rows come from.

    token: (row), token ids. document: (row), index of the document in its corpus. position: (row), index of the token in its
    document, without the special tokens that a tokenizer adds.
    """

    token: Int[Tensor, "row"]
    document: Int[Tensor, "row"]
    position: Int[Tensor, "row"]

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True)
class Batch:
    """Rows of activations in shuffled order.

    rows: per site, by its name, a tensor (row, d) in the type of the store. position: where the next batch begins; give it as
    `start` to continue after this one. labels: tokens, documents and positions, if they were requested.
    """

    rows: Mapping[str, Float[Tensor, "row d"]]
    position: Position
    labels: Labels | None = None

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))
