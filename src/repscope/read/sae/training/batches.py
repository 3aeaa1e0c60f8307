"""Batches of rows for training: from an activation store, or from tensors in memory.

A source has `batches(sites, rows=, seed=, start=, epochs=)`, an iterator of batches with the position where the next one begins. An
`ActivationStore` is one. `TensorRows` is another: whole epochs of rows in memory, each in a random order of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from repscope.errors import UserError


@dataclass(frozen=True)
class TensorPosition:
    """Where a batch of `TensorRows` begins: epoch and row of its order (block is 0)."""

    epoch: int = 0
    block: int = 0
    offset: int = 0


class AnyBatch(Protocol):
    """rows by site, and the position after them: an object with the fields epoch, block and offset."""

    @property
    def rows(self) -> Mapping[Any, Float[Tensor, "row d"]]:
        """Rows by site."""

    @property
    def position(self) -> Any:
        """Where the next batch begins."""


class Source(Protocol):
    """Where batches come from. `batches` takes `start=None` for the beginning, or a position of an earlier batch."""

    def batches(
        self, sites: Any, rows: int = ..., seed: int = ..., start: Any = ..., *, epochs: int | None = ...
    ) -> Iterator[AnyBatch]:
        """Batches from a position on, in an order that depends on the seed alone; endless for `epochs=None`."""


@dataclass(frozen=True)
class TensorBatch:
    """Rows by site, and where the next batch begins."""

    rows: Mapping[str, Float[Tensor, "row d"]]
    position: TensorPosition


@dataclass(frozen=True, eq=False)
class TensorRows:
    """Rows in memory: (row, d) by site, the same tokens for all sites. The rest of an epoch that fills no batch is left out.

    Raises
    ------
    UserError
        If sites have different numbers of rows.
    """

    by_site: Mapping[str, Float[Tensor, "row d"]]

    def __post_init__(self) -> None:
        """Check that the sites have the same rows."""
        if len(set(self._lengths())) != 1:
            raise UserError(f"The sites have {self._lengths()} rows; give the same rows of each.")

    def batches(
        self, sites: Sequence[str], rows: int = 4096, seed: int = 0, start: Any = None, *, epochs: int | None = 1
    ) -> Iterator[TensorBatch]:
        """Batches of `rows` rows; endless for `epochs=None`.

        Raises
        ------
        UserError
            If there are fewer rows than that, or no such site.
        """
        n = self._lengths()[0]
        if rows > n:
            raise UserError(f"A batch needs {rows} rows and there are {n}; choose a smaller batch.")
        if missing := [str(site) for site in sites if str(site) not in self.by_site]:
            raise UserError(f"There are no rows of {', '.join(missing)}; there are those of {', '.join(self.by_site)}.")
        epoch, offset = (start.epoch, start.offset) if start is not None else (0, 0)
        while epochs is None or epoch < epochs:
            order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
            while offset + rows <= n:
                chosen = order[offset : offset + rows]
                offset += rows
                yield TensorBatch({str(s): self.by_site[str(s)][chosen] for s in sites}, TensorPosition(epoch, 0, offset))
            epoch, offset = epoch + 1, 0

    def _lengths(self) -> list[int]:
        return [len(rows) for rows in self.by_site.values()]
