"""Loss and gradients of the TopK family (TopK, BatchTopK, Matryoshka, with AuxK), on the fast path.

Input: rows x and targets y (equal to x for an autoencoder). With E (latent, d_in), D (latent, d_out), and S the selected entries:

1. S and its activations z from one product x Eᵀ in chunks (`selection`).
2. ŷ_m = Σ_{i < m} z_i D_i + b_dec + x W_skip for each nested dictionary m (one for TopK), and the loss Σ_m ‖y − ŷ_m‖² / B.
3. g_m = 2 (ŷ_m − y) / B. A latent in level h is part of all dictionaries m ≥ h, so it sees G_h = Σ_{m ≥ h} g_m.
4. dz = G Dᵀ at S, zero where z = 0. Then dD = Zᵀ G, dE = dZᵀ (x − b_dec), db_enc = Σ dz, dW_skip = xᵀ G_1.
5. db_dec = Σ_rows G_1 − db_enc E: its second term is what b_dec does through the encoder, a vector-matrix product.
6. AuxK: as 2–4 for the dead latents with target y − ŷ, held constant, and no b_dec, times α.

With `rescale` the selection is by z_i ‖D_i‖, and x̂ = Σ (z_i ‖D_i‖) D_i / ‖D_i‖: the norms cancel, so the gradients are those
above. Equal to autograd on the dense form in float64 (tests).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.read.sae.training.architectures import BatchTopK, TopK
from repscope.read.sae.training.recipe import Recipe
from repscope.read.sae.training.selection import Selector
from repscope.read.sae.training.sparse_codes import SparseCodes, codes_of_equal_rows, decode, products_at, sums_by_latent

_DENSE_DEAD = 12  #: below this many dead latents per selected one, dense products are faster than sparse ones


@dataclass
class StepResult:
    """What a step gives to the optimizer and to the log.

    gradients: by name of the parameter. losses: `squared_error` (‖y − ŷ‖² per row, all latents) and further terms by name.
    fired: (latent), number of rows with each latent active. active: mean number of active latents per row. smallest: the smallest
    selected activation (BatchTopK's threshold).
    """

    gradients: dict[str, Tensor]
    losses: dict[str, float]
    fired: Int[Tensor, "latent"]
    active: float
    smallest: float = float("inf")


class TopKStep:
    """Loss and gradients of one batch. floor: the guess of BatchTopK's threshold, kept from the batch before."""

    def __init__(self, recipe: Recipe, d_out: int, dtype: torch.dtype) -> None:
        if not isinstance(recipe.architecture, TopK):
            raise TypeError(recipe.architecture)
        self.recipe, self.architecture = recipe, recipe.architecture
        aux_k = (self.architecture.aux_k or max(1, d_out // 2)) if self.architecture.aux else 0
        over_batch = isinstance(self.architecture, BatchTopK)
        self.selector = Selector(recipe.latents, self.architecture.k, over_batch, aux_k, dtype)
        self.floor = 0.0

    @torch.no_grad()
    def __call__(
        self,
        p: dict[str, Tensor],
        x: Float[Tensor, "row d_in"],
        y: Float[Tensor, "row d_out"],
        *,
        subtract: bool,
        dead: Int[Tensor, "dead"],
    ) -> StepResult:
        """Gradients at parameters p for rows x and targets y.

        subtract: b_dec is subtracted from x. dead: indices of dead latents.
        """
        encoder, decoder, b_dec = p["encoder"], p["decoder"], p["b_dec"]
        rows = x - b_dec if subtract else x
        scale = torch.linalg.vector_norm(decoder, dim=1) if self.recipe.norm_of_decoder == "rescale" else None
        selected = self.selector.select(rows, encoder, p["b_enc"], scale=scale, dead=dead, floor=self.floor)
        codes = selected.codes
        if self.selector.over_batch and selected.smallest < float("inf"):
            self.floor = 0.5 * selected.smallest
        parts = _parts(codes, self.recipe.levels)
        base = b_dec - y
        if "skip" in p:
            base = base + x @ p["skip"]
        errors, total = [], 0.0
        for (first, last), (part, _) in zip(self.recipe.levels, parts):
            base = decode(part, decoder[first:last]).add_(base)
            errors.append(base)
            total = float(base.square().sum()) / len(x)
        losses = {"squared_error": total}
        if len(errors) > 1:
            losses["prefixes"] = sum(float(e.square().sum()) for e in errors[:-1]) / len(x)
        gradient = torch.zeros_like(base)
        d_values = torch.zeros_like(codes.values)
        d_decoder: list[Tensor] = []
        for (first, last), (part, kept), error in reversed(list(zip(self.recipe.levels, parts, errors))):
            gradient.add_(error, alpha=2 / len(x))
            products = products_at(part, gradient, decoder[first:last]).mul_(part.values > 0)
            d_values = products if kept is None else d_values.index_copy_(0, kept, products)
            d_decoder.insert(0, sums_by_latent(part, gradient))
        gradients = {
            "decoder": d_decoder[0] if len(d_decoder) == 1 else torch.cat(d_decoder),
            "encoder": sums_by_latent(codes.with_values(d_values), rows),
            "b_enc": torch.zeros_like(p["b_enc"]).index_add_(0, codes.latents, d_values),
        }
        if selected.dead is not None:
            losses["aux"] = self._aux(selected.dead, dead, rows, errors[-1], encoder, decoder, gradients)
        gradients["b_dec"] = gradient.sum(0)
        if subtract:
            gradients["b_dec"] -= gradients["b_enc"] @ encoder
        if "skip" in p:
            gradients["skip"] = x.T @ gradient
        active = float((codes.values > 0).sum()) / len(x)
        return StepResult(gradients, losses, codes.fired, active, selected.smallest)

    def _aux(
        self,
        quiet: SparseCodes,
        dead: Int[Tensor, "dead"],
        rows: Tensor,
        error: Tensor,
        encoder: Tensor,
        decoder: Tensor,
        gradients: dict[str, Tensor],
    ) -> float:
        """Add the gradients of AuxK, and return α ‖(y − ŷ) − ê‖² per row."""
        alpha, directions = self.architecture.aux, decoder[dead]
        per_row = len(quiet.latents) // quiet.rows
        d_dec, d_enc = torch.zeros_like(directions), torch.zeros_like(encoder[dead])
        d_bias, total = directions.new_zeros(len(dead)), 0.0
        step = self.selector.chunk
        for start in range(0, len(rows), step):
            take = slice(start, min(start + step, len(rows)))
            entries = slice(take.start * per_row, take.stop * per_row)
            part = codes_of_equal_rows(quiet.latents[entries].view(-1, per_row), quiet.values[entries].view(-1, per_row), len(dead))
            if len(dead) < _DENSE_DEAD * per_row:
                z = part.dense()
                g = (z @ directions).add_(error[take])
                total += float(g.square().sum())
                g.mul_(2 * alpha / len(rows))
                dz = (g @ directions.T).mul_(z > 0)
                d_dec.addmm_(z.T, g)
                d_enc.addmm_(dz.T, rows[take])
                d_bias += dz.sum(0)
            else:
                g = decode(part, directions).add_(error[take])
                total += float(g.square().sum())
                g.mul_(2 * alpha / len(rows))
                dz = products_at(part, g, directions).mul_(part.values > 0)
                d_dec += sums_by_latent(part, g)
                d_enc += sums_by_latent(part.with_values(dz), rows[take])
                d_bias.index_add_(0, part.latents, dz)
        for name, value in (("decoder", d_dec), ("encoder", d_enc), ("b_enc", d_bias)):
            gradients[name].index_add_(0, dead, value)
        return alpha * total / len(rows)


def _parts(codes: SparseCodes, levels: tuple[tuple[int, int], ...]) -> list[tuple[SparseCodes, Int[Tensor, "entry"] | None]]:
    """The codes of each level, and the indices of their entries; None for a single level, which has all."""
    return [(codes, None)] if len(levels) == 1 else [codes.part(first, last) for first, last in levels]
