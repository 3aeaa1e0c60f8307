"""Sparse latents of a batch, and the products that training needs of them, without a dense (row, latent) matrix.

With B rows, L latents, d features and N active entries in the batch (N = B k for TopK), a dense training step multiplies five or
six matrices of B × d × L. Only the encoder's product needs all of them, as every pre-activation takes part in the selection. The
others are sums over the N active entries:

| product | dense | here |
|---|---|---|
| reconstruction Z D | B L d | `decode`: N d, one weighted sum of decoder rows per row |
| gradient of active entries, (G Dᵀ) at N entries | B L d | `products_at`: N d, one dot product per entry |
| gradients of D and E, Zᵀ G and (dZ)ᵀ X | 2 B L d | `sums_by_latent`: N d each, over the entries sorted by latent |

Every sum has a fixed order, so that two runs give equal bits.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """Active entries of a batch in compressed rows (CSR).

    starts: (row + 1), where each row's entries begin. latents: (entry), the latent of each entry. values: (entry), its activation.
    width: number of latents.
    """

    starts: Int[Tensor, "row_plus_1"]
    latents: Int[Tensor, "entry"]
    values: Float[Tensor, "entry"]
    width: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1

    @cached_property
    def row_of(self) -> Int[Tensor, "entry"]:
        """The row of each entry."""
        return torch.repeat_interleave(torch.arange(self.rows), self.starts.diff(), output_size=len(self.latents))

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, "entry"], Int[Tensor, "latent"]]:
        """Entries sorted by latent and by row within a latent, and where each latent's entries begin."""
        counts = torch.bincount(self.latents, minlength=self.width)
        return torch.argsort(self.latents, stable=True), counts.cumsum(0) - counts

    @property
    def fired(self) -> Int[Tensor, "latent"]:
        """Number of rows where each latent is positive."""
        return torch.bincount(self.latents[self.values > 0], minlength=self.width)

    def with_values(self, values: Float[Tensor, "entry"]) -> "SparseCodes":
        """The same entries with other values; shares the sorted order."""
        other = SparseCodes(self.starts, self.latents, values, self.width)
        other.__dict__.update({name: self.__dict__[name] for name in ("row_of", "by_latent") if name in self.__dict__})
        return other

    def part(self, first: int, last: int) -> tuple["SparseCodes", Int[Tensor, "some"]]:
        """The entries of latents first … last − 1, numbered from 0, and their indices among all entries."""
        kept = ((self.latents >= first) & (self.latents < last)).nonzero().squeeze(1)
        counts = torch.bincount(self.row_of[kept], minlength=self.rows)
        return SparseCodes(_starts(counts), self.latents[kept] - first, self.values[kept], last - first), kept

    def dense(self) -> Float[Tensor, "row latent"]:
        """All latents as one matrix."""
        full = self.values.new_zeros(self.rows, self.width)
        full[self.row_of, self.latents] = self.values
        return full


def codes_of_equal_rows(latents: Int[Tensor, "row k"], values: Float[Tensor, "row k"], width: int) -> SparseCodes:
    """Codes with k entries in each row."""
    rows, k = latents.shape
    return SparseCodes(torch.arange(0, rows * k + 1, k), latents.reshape(-1), values.reshape(-1), width)


def codes_of_flat(flat: Int[Tensor, "entry"], values: Float[Tensor, "entry"], rows: int, width: int) -> SparseCodes:
    """Codes from entries numbered row · width + latent, in any order."""
    flat, order = flat.sort()
    row = flat.div(width, rounding_mode="floor")
    codes = SparseCodes(_starts(torch.bincount(row, minlength=rows)), flat - row * width, values[order], width)
    codes.__dict__["row_of"] = row
    return codes


def decode(codes: SparseCodes, decoder: Float[Tensor, "latent d"]) -> Float[Tensor, "row d"]:
    """Z D: the weighted sum of decoder rows for each row of the batch."""
    if not len(codes.latents):
        return decoder.new_zeros(codes.rows, decoder.shape[1])
    return embedding_bag(codes.latents, decoder, codes.starts[:-1], per_sample_weights=codes.values, mode="sum")


def products_at(codes: SparseCodes, left: Float[Tensor, "row d"], right: Float[Tensor, "latent d"]) -> Float[Tensor, "entry"]:
    """Dot products left_row · right_latent at the entries of the codes."""
    if not len(codes.latents):
        return codes.values.new_zeros(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        pattern = torch.sparse_csr_tensor(
            codes.starts, codes.latents, torch.zeros_like(codes.values), (codes.rows, codes.width), check_invariants=False
        )
    found: Tensor = torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()
    return found


def sums_by_latent(codes: SparseCodes, rows: Float[Tensor, "row d"]) -> Float[Tensor, "latent d"]:
    """Zᵀ R: the sum of value × row over each latent's entries."""
    order, begins = codes.by_latent
    if not len(order):
        return rows.new_zeros(codes.width, rows.shape[1])
    return embedding_bag(codes.row_of[order], rows, begins, per_sample_weights=codes.values[order], mode="sum")


def _starts(counts: Int[Tensor, "row"]) -> Int[Tensor, "row_plus_1"]:
    starts = counts.new_zeros(len(counts) + 1)
    torch.cumsum(counts, 0, out=starts[1:])
    return starts
