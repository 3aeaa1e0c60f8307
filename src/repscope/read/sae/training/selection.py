"""Selection of active latents: one product of rows and encoder in chunks, and what is kept of each chunk.

The pre-activations of one chunk of rows are in memory at a time, in one reused buffer. Of them are kept: the k largest of each row
(TopK), or those that are among the k · B largest of the batch (BatchTopK), and the `aux_k` largest of the dead latents of each row.

BatchTopK keeps every entry above a floor. The floor is raised to the (k · B)-th largest entry so far whenever more than 2 k B
entries are held, so at no time are there more than 2 k B and those of one chunk. A guess of the floor from the batch before saves
most of the work; if it was too high, too few entries are held at the end and the batch is selected again from zero. So the result
does not depend on the guess.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.read.sae.training.sparse_codes import SparseCodes, codes_of_equal_rows, codes_of_flat

BUFFER = 14_500_000  #: pre-activations in memory at a time, 58 MB; smaller chunks read the encoder more often


@dataclass(frozen=True, eq=False)
class Selected:
    """codes: the active latents, values after ReLU, not in units of `scale`. dead: of the dead latents of each row (numbered among
    the dead), if any. smallest: the smallest positive selected activation, in units of `scale`; infinite if there is none.
    """

    codes: SparseCodes
    dead: SparseCodes | None
    smallest: float


class Selector:
    """Selects the active latents of batches; owns the buffer of pre-activations.

    k: active latents per row. over_batch: BatchTopK. aux_k: largest number of dead latents per row, 0 for none.
    """

    def __init__(self, latents: int, k: int, over_batch: bool, aux_k: int, dtype: torch.dtype, chunk: int | None = None) -> None:
        self.latents, self.k, self.over_batch, self.aux_k = latents, k, over_batch, aux_k
        self.chunk = chunk or max(16, BUFFER // latents)
        self._buffer = torch.empty(0, latents, dtype=dtype)

    def select(
        self,
        x: Float[Tensor, "row d"],
        encoder: Float[Tensor, "latent d"],
        bias: Float[Tensor, "latent"],
        *,
        scale: Float[Tensor, "latent"] | None = None,
        dead: Int[Tensor, "dead"] | None = None,
        floor: float = 0.0,
    ) -> Selected:
        """Select by (x Eᵀ + b) · scale, for the dead latents too.

        scale: norms of the decoder's rows, or None for 1. dead: indices of dead latents. floor: a guess of BatchTopK's threshold.
        """
        aux = self.aux_k and dead is not None and len(dead)
        kept_dead: list[tuple[Tensor, Tensor]] = []
        if scale is not None:  # of the encoder, which is smaller than the pre-activations
            encoder, bias = encoder * scale.unsqueeze(1), bias * scale

        def chunks() -> Iterator[tuple[int, Tensor]]:
            for start, h in self._pre_activations(x, encoder, bias):
                if aux and dead is not None:
                    top = h.index_select(1, dead).topk(min(self.aux_k, len(dead)), dim=1, sorted=False)
                    kept_dead.append((top.values.relu_(), top.indices))
                yield start, h

        flat, values = self._of_batch(chunks(), len(x), floor) if self.over_batch else self._of_rows(chunks(), len(x))
        if self.over_batch and len(values) < self.k * len(x) and floor > 0:  # the guess was too high
            kept_dead.clear()
            flat, values = self._of_batch(chunks(), len(x), 0.0)
        positive = values[values > 0]
        smallest = float(positive.min()) if len(positive) else float("inf")
        if self.over_batch:
            codes = codes_of_flat(flat, values, len(x), self.latents)
        else:
            codes = codes_of_equal_rows(flat, values, self.latents)
        if scale is not None:
            codes = codes.with_values(codes.values / scale[codes.latents])
        quiet = None
        if aux and dead is not None:
            quiet = codes_of_equal_rows(torch.cat([i for _, i in kept_dead]), torch.cat([v for v, _ in kept_dead]), len(dead))
            if scale is not None:
                quiet = quiet.with_values(quiet.values / scale[dead][quiet.latents])
        return Selected(codes, quiet, smallest)

    def _pre_activations(
        self, x: Float[Tensor, "row d"], encoder: Float[Tensor, "latent d"], bias: Float[Tensor, "latent"]
    ) -> Iterator[tuple[int, Float[Tensor, "chunk latent"]]]:
        if len(self._buffer) < min(self.chunk, len(x)):
            self._buffer = self._buffer.new_empty(min(self.chunk, len(x)), self.latents)
        for start in range(0, len(x), self.chunk):
            rows = x[start : start + self.chunk]
            yield start, torch.addmm(bias, rows, encoder.T, out=self._buffer[: len(rows)])

    def _of_rows(self, chunks: Iterator[tuple[int, Tensor]], rows: int) -> tuple[Int[Tensor, "row k"], Float[Tensor, "row k"]]:
        values = self._buffer.new_empty(rows, self.k)
        latents = torch.empty(rows, self.k, dtype=torch.long)
        for start, h in chunks:
            top = h.topk(self.k, dim=1, sorted=False)
            values[start : start + len(h)], latents[start : start + len(h)] = top.values, top.indices
        return latents, values.relu_()

    def _of_batch(
        self, chunks: Iterator[tuple[int, Tensor]], rows: int, floor: float
    ) -> tuple[Int[Tensor, "entry"], Float[Tensor, "entry"]]:
        wanted = self.k * rows
        flat, values = torch.empty(0, dtype=torch.long), self._buffer.new_empty(0)
        for start, h in chunks:
            entries = (h.view(-1) > floor).nonzero().squeeze(1)
            flat = torch.cat([flat, entries + start * self.latents])
            values = torch.cat([values, h.view(-1)[entries]])
            if len(values) > 2 * wanted:
                flat, values = _largest(flat, values, wanted)
                floor = max(floor, float(values.min()))
        return _largest(flat, values, wanted)


def _largest(
    flat: Int[Tensor, "entry"], values: Float[Tensor, "entry"], wanted: int
) -> tuple[Int[Tensor, "some"], Float[Tensor, "some"]]:
    """The `wanted` largest entries; of equal ones the first."""
    if len(values) <= wanted:
        return flat, values
    least = values.topk(wanted, sorted=True).values[-1]
    above, equal = (values > least).nonzero().squeeze(1), (values == least).nonzero().squeeze(1)
    kept = torch.cat([above, equal[: wanted - len(above)]])
    return flat[kept], values[kept]
