"""Which positions of a batch are read, and where they go. Takes token positions and hidden states; knows no module."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.models.prompts import Encoded
from repscope.models.sites import Tokens


@dataclass(frozen=True)
class Wanted:
    """Which positions of one batch are read, and where they go.

    flat: (position), index into the batch's (row × token) positions. segment: (position), which output row each belongs to,
    None where each is a row by itself. sizes: (row), positions a row averages. destination: (row), rows of the result.
    """

    cells: tuple[Tensor, Tensor]
    segment: Tensor | None
    sizes: Tensor
    destination: Int[np.ndarray, "row"]

    @classmethod
    def of(
        cls, batch: Int[np.ndarray, "row"], users: Mapping[int, Int[np.ndarray, "prompt"]], encoded: Encoded, picked: Tokens,
        offsets: Int[np.ndarray, "n"], shift: int, device: torch.device,
    ) -> "Wanted":  # fmt: skip
        """For one batch of distinct prompts and the prompts that are them; positions count from `shift`."""
        prompts = np.concatenate([users[int(i)] for i in batch])
        rows = np.repeat(np.arange(len(batch)), [len(users[int(i)]) for i in batch])
        starts, sizes = encoded.start[prompts], encoded.stop[prompts] - encoded.start[prompts]
        within = _ranges(sizes)
        position = np.repeat(starts, sizes) + within - shift
        if picked.pooled:
            destination = prompts
            segment = torch.from_numpy(np.repeat(np.arange(len(prompts)), sizes)).to(device)
        else:
            destination = np.repeat(offsets[prompts], sizes) + within
            segment = None
        cells = (torch.from_numpy(np.repeat(rows, sizes)).to(device), torch.from_numpy(position).to(device))
        return cls(cells, segment, torch.from_numpy(sizes).to(device), destination)

    def take(self, hidden: Float[Tensor, "row token feature"]) -> Float[Tensor, "out feature"]:
        """The rows wanted, averages in float32 or wider."""
        picked = hidden[self.cells]
        if self.segment is None:
            return picked
        wide = picked if picked.dtype in (torch.float32, torch.float64) else picked.float()
        sums = torch.zeros(len(self.sizes), *wide.shape[1:], dtype=wide.dtype, device=wide.device)
        return sums.index_add_(0, self.segment, wide) / self.sizes.view(-1, *[1] * (wide.dim() - 1)).to(wide.dtype)


def users_of(inverse: Int[np.ndarray, "prompt"]) -> dict[int, Int[np.ndarray, "prompt"]]:
    """For each distinct prompt, the prompts that are it."""
    order = np.argsort(inverse, kind="stable")
    cuts = np.flatnonzero(np.diff(inverse[order])) + 1
    return {int(inverse[group[0]]): group for group in np.split(order, cuts)}


def _ranges(sizes: Int[np.ndarray, "row"]) -> Int[np.ndarray, "position"]:
    """0…size-1 for each size, one after the other."""
    ends = np.cumsum(sizes)
    within: np.ndarray = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
    return within


def padded(
    rows: Sequence[Int[np.ndarray, "token"]], pad: int
) -> tuple[Int[np.ndarray, "row token"], Int[np.ndarray, "row"]]:
    """Token ids padded on the right to the longest, and the lengths they had."""
    lengths = np.array([len(r) for r in rows])
    ids = np.full((len(rows), lengths.max()), pad, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, lengths
