"""Token positions read from a batch, and the result rows they are written to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.models.prompts import Encoded
from repscope.models.sites import Site, Tokens

Sink = Callable[[Site, Int[np.ndarray, "row"], Float[Tensor, "row *feature"]], None]
Place = Callable[..., tuple[Int[np.ndarray, "position"], ...]]


@dataclass(frozen=True)
class BatchRows:
    """Positions read from one batch, and their destination.

    cells: (row) and (token) in the batch, or the index in a pack. segment: (position), output row of each, None if each is its own
    row. sizes: (row), positions averaged per row. destination: (row), rows of the result. first: how many positions are read, if
    they are the first of a pack in their order, else 0: they need not be gathered.
    """

    cells: tuple[Tensor, ...]
    segment: Tensor | None
    sizes: Tensor
    destination: Int[np.ndarray, "row"]
    first: int = 0

    def take(self, hidden: Float[Tensor, "row token feature"]) -> Float[Tensor, "out feature"]:
        """The requested rows, with averages in float32 or wider."""
        picked = hidden[: self.first] if self.first else hidden[self.cells]
        if self.segment is None:
            return picked
        wide = as_float(picked)
        sums = torch.zeros(len(self.sizes), *wide.shape[1:], dtype=wide.dtype, device=wide.device)
        return sums.index_add_(0, self.segment, wide) / self.sizes.view(-1, *[1] * (wide.dim() - 1)).to(wide.dtype)


class RequestedRows:
    """Requested positions of prompts, and the rows of the result they are written to.

    `inverse` is the index of each prompt's distinct prompt (only distinct prompts run), `device` that of the indices.
    """

    def __init__(self, encoded: Encoded, picked: Tokens, inverse: Int[np.ndarray, "prompt"], device: torch.device) -> None:
        self.encoded, self.picked, self.device = encoded, picked, device
        self._offsets = row_offsets(encoded, picked)
        self._order = np.argsort(inverse, kind="stable")  # grouped by distinct prompt
        self._counts = np.bincount(inverse)
        self._starts = np.cumsum(self._counts) - self._counts

    @property
    def first(self) -> Int[np.ndarray, "distinct"]:
        """First occurrence of each distinct prompt."""
        first: np.ndarray = self._order[self._starts]
        return first

    def of(self, batch: Int[np.ndarray, "row"], place: Place) -> BatchRows:
        """The rows of one batch of distinct prompts, for all their duplicates.

        `place` maps the row of the batch, the distinct prompt and the position in it to the indices of the tensor, per position.
        """
        counts, encoded = self._counts[batch], self.encoded
        prompts = self._order[np.repeat(self._starts[batch], counts) + ranges(counts)]
        sizes = encoded.stop[prompts] - encoded.start[prompts]
        within = ranges(sizes)
        destination, segment = np.repeat(self._offsets[prompts], sizes) + within, None
        if self.picked.pooled:
            destination, segment = prompts, torch.from_numpy(np.repeat(np.arange(len(prompts)), sizes)).to(self.device)
        row = np.repeat(np.repeat(np.arange(len(batch)), counts), sizes)
        cells = place(row, batch[row], np.repeat(encoded.start[prompts], sizes) + within)
        on_device = tuple(torch.from_numpy(cell).to(self.device) for cell in cells)
        first = len(cells[0]) if len(cells) == 1 and bool((cells[0] == np.arange(len(cells[0]))).all()) else 0
        return BatchRows(on_device, segment, torch.from_numpy(sizes).to(self.device), destination, first)


class RowReader:
    """Reads the requested rows of each site in forward passes and hands them to a sink; `begin` precedes each pass.

    rows: of the pass; None if none is requested in it. width: token positions of the pass.
    """

    def __init__(self, requested: RequestedRows, sink: Sink) -> None:
        self.requested, self.sink = requested, sink
        self.rows: BatchRows | None = None
        self.width = 0

    def __call__(self, site: Site, hidden: Tensor) -> None:
        """Hand on the rows of one site's tensor."""
        hidden = self.layout(site, hidden)
        if self.rows is not None:
            self.sink(site, self.rows.destination, self.rows.take(hidden))

    def layout(self, site: Site, hidden: Tensor) -> Tensor:
        """The tensor as `BatchRows.cells` index it."""
        return torch.unflatten(hidden, 0, (-1, self.width)) if hidden.dim() == 2 else hidden  # rows and tokens as one axis


class CollectedRows:
    """A sink that keeps the rows in memory, on their device."""

    def __init__(self) -> None:
        self._parts: dict[Site, list[tuple[Int[np.ndarray, row], Tensor]]] = {}

    def __call__(self, site: Site, destination: Int[np.ndarray, "row"], rows: Tensor) -> None:
        """Keep some rows of a site."""
        self._parts.setdefault(site, []).append((destination, rows.clone()))

    def __getitem__(self, site: Site) -> Float[Tensor, "row *feature"]:
        """All rows of a site, in the order of the result."""
        parts = self._parts[site]
        order = torch.from_numpy(np.argsort(np.concatenate([destination for destination, _ in parts])))
        rows = torch.cat([rows for _, rows in parts])
        return rows[order.to(rows.device)]


def row_offsets(encoded: Encoded, picked: Tokens) -> Int[np.ndarray, "prompt_plus_1"]:
    """First row of each prompt in a result, and the number of rows."""
    counts = encoded.stop - encoded.start if picked.ragged else np.ones(len(encoded.ids), dtype=np.int64)
    return np.asarray(np.concatenate([[0], np.cumsum(counts)]))


def row_positions(encoded: Encoded, picked: Tokens) -> Int[np.ndarray, "row"]:
    """The position of each row in its prompt; for a mean, the position of its last token."""
    if not picked.ragged:
        return encoded.stop - 1
    sizes = encoded.stop - encoded.start
    return np.asarray(np.repeat(encoded.start, sizes) + ranges(sizes))


def ranges(sizes: Int[np.ndarray, "row"]) -> Int[np.ndarray, "position"]:
    """Concatenation of 0…size-1 for each size."""
    ends = np.cumsum(sizes)
    return np.asarray(np.arange(ends[-1]) - np.repeat(ends - sizes, sizes))


def as_float(x: Tensor) -> Float[Tensor, "..."]:
    """Floating values as float32 if numpy lacks their type (bfloat16); float32 and float64 are unchanged."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def padded(rows: Sequence[Int[np.ndarray, "token"]], pad: int) -> tuple[Int[np.ndarray, "row token"], Int[np.ndarray, "row"]]:
    """Token ids padded on the right to the longest, and the original lengths."""
    lengths = np.array([len(r) for r in rows])
    ids = np.full((len(rows), lengths.max()), pad, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, lengths
