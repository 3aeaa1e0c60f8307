"""Token positions read from a batch, and the result rows they are written to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.models.prompts import Encoded
from repscope.models.sites import Tokens


@dataclass(frozen=True)
class Wanted:
    """Positions read from one batch, and their destination.

    cells: (row) and (token) in the batch, or the index in a pack. segment: (position), output row of each, None if each is its own
    row. sizes: (row), positions averaged per row. destination: (row), rows of the result.
    """

    cells: tuple[Tensor, ...]
    segment: Tensor | None
    sizes: Tensor
    destination: Int[np.ndarray, "row"]

    @classmethod
    def of(
        cls,
        batch: Int[np.ndarray, "row"],
        users: "Users",
        encoded: Encoded,
        picked: Tokens,
        offsets: Int[np.ndarray, "n"],
        device: torch.device,
        place: Callable[..., tuple[Int[np.ndarray, "position"], ...]],
    ) -> "Wanted":
        """For one batch of distinct prompts and the prompts that are them.

        `place` is given, for each position wanted, the row of the batch, the distinct prompt and the position in it.
        """
        counts = users.counts[batch]
        prompts = users.of(batch)
        rows = np.repeat(np.arange(len(batch)), counts)
        starts, sizes = encoded.start[prompts], encoded.stop[prompts] - encoded.start[prompts]
        within = ranges(sizes)
        if picked.pooled:
            destination = prompts
            segment = torch.from_numpy(np.repeat(np.arange(len(prompts)), sizes)).to(device)
        else:
            destination = np.repeat(offsets[prompts], sizes) + within
            segment = None
        row = np.repeat(rows, sizes)
        cells = place(row, batch[row], np.repeat(starts, sizes) + within)
        on_device = tuple(torch.from_numpy(cell).to(device) for cell in cells)
        return cls(on_device, segment, torch.from_numpy(sizes).to(device), destination)

    def take(self, hidden: Float[Tensor, "row token feature"]) -> Float[Tensor, "out feature"]:
        """The requested rows, with averages in float32 or wider."""
        picked = hidden[self.cells]
        if self.segment is None:
            return picked
        wide = as_float(picked)
        sums = torch.zeros(len(self.sizes), *wide.shape[1:], dtype=wide.dtype, device=wide.device)
        return sums.index_add_(0, self.segment, wide) / self.sizes.view(-1, *[1] * (wide.dim() - 1)).to(wide.dtype)


@dataclass(frozen=True)
class Users:
    """Mapping from distinct prompts to all their duplicates.

    order: the prompts, grouped by distinct prompt. starts: (distinct + 1), start of each group.
    """

    order: Int[np.ndarray, "prompt"]
    starts: Int[np.ndarray, "distinct_plus_1"]

    @classmethod
    def by(cls, inverse: Int[np.ndarray, "prompt"]) -> "Users":
        """From the index of each prompt's distinct prompt."""
        counts = np.bincount(inverse)
        return cls(np.argsort(inverse, kind="stable"), np.concatenate([[0], np.cumsum(counts)]))

    @cached_property
    def counts(self) -> Int[np.ndarray, "distinct"]:
        """Number of duplicates of each distinct prompt."""
        counts: np.ndarray = np.diff(self.starts)
        return counts

    @property
    def first(self) -> Int[np.ndarray, "distinct"]:
        """First occurrence of each distinct prompt."""
        first: np.ndarray = self.order[self.starts[:-1]]
        return first

    def of(self, distinct: Int[np.ndarray, "row"]) -> Int[np.ndarray, "prompt"]:
        """Indices of all duplicates of the given distinct prompts, grouped by prompt."""
        sizes = self.counts[distinct]
        found: np.ndarray = self.order[np.repeat(self.starts[distinct], sizes) + ranges(sizes)]
        return found


def ranges(sizes: Int[np.ndarray, "row"]) -> Int[np.ndarray, "position"]:
    """Concatenation of 0…size-1 for each size."""
    ends = np.cumsum(sizes)
    within: np.ndarray = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
    return within


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
