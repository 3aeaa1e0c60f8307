"""Latents: sparse activations of a batch of rows, as indices and values per row (compressed sparse rows).

Row i has the latents `indices[starts[i]:starts[i + 1]]`, ascending, with positive `values` at the same places. The statistics of
the rows' normalisation stand beside them, so that `decode` is a function of the latents alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.read.sae.normalization import Statistics, joined


@dataclass(frozen=True, eq=False)
class Latents:
    """Sparse activations (row, latent).

    starts: (row + 1), where each row begins. indices, values: (active), the active latents of all rows. width: number of latents.
    statistics: of each row's normalisation, (row, 1) each.
    """

    starts: Int[Tensor, "row_plus_1"]
    indices: Int[Tensor, "active"]
    values: Float[Tensor, "active"]
    width: int
    statistics: Statistics = ()

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __repr__(self) -> str:
        mean = len(self.values) / max(1, len(self))
        return f"Latents({len(self)} rows × {self.width}, {mean:.1f} active per row)"

    @property
    def l0(self) -> Int[Tensor, "row"]:
        """Number of active latents of each row."""
        return self.starts.diff()

    @property
    def row_of(self) -> Int[Tensor, "active"]:
        """The row of each active latent."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.starts.device), self.l0)

    def dense(self) -> Float[Tensor, "row latent"]:
        """The same as a dense tensor, zero where a latent is not active."""
        out = self.values.new_zeros(len(self), self.width)
        return out.index_put((self.row_of, self.indices), self.values)

    def select(self, latents: Sequence[int] | Int[Tensor, "chosen"]) -> Float[Tensor, "row chosen"]:
        """The activations of some latents, dense.

        Raises
        ------
        UserError
            For a latent that does not exist.
        """
        chosen = torch.as_tensor(latents, dtype=torch.long, device=self.indices.device).flatten()
        check_latents(chosen, self.width)
        unique, place = torch.unique(chosen, return_inverse=True)
        at = torch.full((self.width,), -1, dtype=torch.long, device=chosen.device)
        at[unique] = torch.arange(len(unique), device=chosen.device)
        column = at[self.indices]
        kept = column >= 0
        out = self.values.new_zeros(len(self), len(unique)).index_put((self.row_of[kept], column[kept]), self.values[kept])
        return out[:, place]

    def split(self, rows: int) -> "Iterator[Latents]":
        """Chunks of at most so many rows."""
        for first in range(0, len(self), rows):
            starts = self.starts[first : first + rows + 1]
            part = slice(int(starts[0]), int(starts[-1]))
            statistics = tuple(kind[first : first + rows] for kind in self.statistics)
            yield Latents(starts - starts[0], self.indices[part], self.values[part], self.width, statistics)

    def with_values(self, values: Float[Tensor, "active"]) -> "Latents":
        """The same latents with other values."""
        return replace(self, values=values)

    @classmethod
    def from_mask(cls, mask: Tensor, values: Float[Tensor, "row latent"], statistics: Statistics = ()) -> "Latents":
        """The latents where a mask (row, latent) is true; differentiable in the values."""
        row, index = mask.nonzero(as_tuple=True)
        counts = torch.zeros(len(mask) + 1, dtype=torch.long, device=mask.device)
        counts[1:] = mask.sum(1)
        return cls(counts.cumsum(0), index, values[row, index], mask.shape[1], statistics)

    @classmethod
    def join(cls, parts: Sequence["Latents"]) -> "Latents":
        """Consecutive chunks of rows as one batch."""
        if len(parts) == 1:
            return parts[0]
        counts = torch.cat([parts[0].starts[:1], *(part.l0 for part in parts)])
        return cls(
            counts.cumsum(0),
            torch.cat([part.indices for part in parts]),
            torch.cat([part.values for part in parts]),
            parts[0].width,
            joined([part.statistics for part in parts]),
        )


def check_latents(chosen: Int[Tensor, "chosen"], width: int) -> None:
    """Raise a `UserError` for an index outside 0 … width - 1."""
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < width:
        wrong = next(int(i) for i in chosen if not 0 <= int(i) < width)
        raise UserError(f"There is no latent {wrong}; the autoencoder has {width}, counted from 0.")
