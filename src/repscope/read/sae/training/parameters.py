"""Parameters of a training: their initial values, and the autoencoder that they are at the end.

In training the encoder has one row per latent, as the decoder has, and rows of the source are scaled to a mean norm of √d (s
below). Sources of a crosscoder stand side by side in one row, each scaled by itself.

Initial values: decoder rows are random directions, of norm 1 with `unit` and of norm 0.1 otherwise; the encoder is their transpose
(Gao et al. 2024; Conerly et al. 2024). b_dec is the geometric median or the mean of the target. A transcoder reads another space
than it writes, so its encoder rows are other random directions, and b_enc centres the input (Dunefsky et al. 2024). The sources of
a crosscoder start with equal directions (Minder et al. 2025), so that a latent belongs to all sources unless training parts them.

At the end the scales are folded into the weights, so that the autoencoder takes and gives raw rows. For one output with scale
s_out, latents are expressed in raw units (c = 1 / s_out), for a crosscoder in scaled units (c = 1):
    W_enc ← s_in W_enc c        b_enc ← b_enc c          θ ← θ c
    W_dec ← W_dec / (s_out c)   b_dec ← b_dec / s_out    W_skip ← W_skip s_in / s_out
TopK and BatchTopK select the same entries, as all latents of a row change by one factor.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from repscope.errors import UserError
from repscope.read.sae import activations
from repscope.read.sae.autoencoder import SparseAutoencoder
from repscope.read.sae.training.architectures import BatchTopK, Gated, JumpReLU, ReLU, TopK
from repscope.read.sae.training.layout import Layout
from repscope.read.sae.training.recipe import Recipe

_INITIAL_NORM = 0.1  #: of decoder rows that are not constrained (Conerly et al. 2024)


def initial(recipe: Recipe, layout: Layout, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"]) -> dict[str, Tensor]:
    """Initial parameters; x, y: scaled rows of the first batches."""
    generator = torch.Generator().manual_seed(recipe.seed)
    p: dict[str, Tensor] = {}

    def directions(widths: tuple[int, ...]) -> Float[Tensor, "latent d"]:
        if len(set(widths)) == 1:
            one = torch.randn(recipe.latents, widths[0], generator=generator, dtype=torch.float32)
            return normalize(one.repeat(1, len(widths)), dim=1).to(y.dtype)
        return normalize(torch.randn(recipe.latents, sum(widths), generator=generator), dim=1).to(y.dtype)

    unit = directions(layout.widths_out)
    p["decoder"] = unit * (1.0 if recipe.norm_of_decoder == "unit" else _INITIAL_NORM)
    p["encoder"] = directions(layout.widths_in) if layout.transcoder else p["decoder"].clone()
    p["b_enc"] = y.new_zeros(recipe.latents)
    starts: dict[str, Callable[[Tensor], Tensor]] = {
        "median": geometric_median,
        "mean": lambda rows: rows.mean(0),
        "zero": lambda rows: torch.zeros_like(rows[0]),
    }
    p["b_dec"] = starts[recipe.bias](y)
    if not layout.subtract_b_dec:
        p["b_enc"] = -p["encoder"] @ x.mean(0)
    if recipe.skip:
        p["skip"] = y.new_zeros(layout.d_in, layout.d_out)
    if isinstance(recipe.architecture, JumpReLU):
        p["log_threshold"] = torch.full_like(p["b_enc"], recipe.architecture.threshold).log()
    if isinstance(recipe.architecture, Gated):
        p["b_gate"] = p.pop("b_enc")
        p["b_mag"], p["r_mag"] = p["b_gate"].clone(), torch.zeros_like(p["b_gate"])
    return p


def geometric_median(rows: Float[Tensor, "row d"], steps: int = 100, tolerance: float = 1e-5) -> Float[Tensor, "d"]:
    """The point with the smallest sum of distances to the rows (Weiszfeld's iteration)."""
    guess = rows.mean(0)
    for _ in range(steps):
        weights = 1 / torch.linalg.vector_norm(rows - guess, dim=1).clamp(min=1e-12)
        before, guess = guess, (weights / weights.sum()) @ rows
        if float(torch.linalg.vector_norm(guess - before)) < tolerance * float(torch.linalg.vector_norm(guess)):
            break
    return guess


def autoencoder(
    recipe: Recipe, layout: Layout, p: Mapping[str, Tensor], threshold: float, metadata: Mapping[str, object]
) -> SparseAutoencoder:
    """The autoencoder of raw rows. threshold: BatchTopK's, in scaled units.

    Raises
    ------
    UserError
        If a BatchTopK has no threshold, as no latent was ever active.
    """
    per_latent = torch.ones_like(p["decoder"][:, 0])
    if recipe.norm_of_decoder == "rescale":
        per_latent = torch.linalg.vector_norm(p["decoder"], dim=1)
    c = 1.0 if len(layout.scales_out) > 1 else 1 / layout.scales_out[0]
    s_in, s_out = layout.columns_in(p["encoder"].dtype), layout.columns_out(p["decoder"].dtype)
    w_enc = ((p["encoder"] * per_latent[:, None]).T * (s_in[:, None] * c)).contiguous()
    w_dec = p["decoder"] / per_latent[:, None] / (s_out * c)
    b_enc = p["b_enc"] * per_latent * c if "b_enc" in p else torch.zeros_like(per_latent)
    return SparseAutoencoder(
        W_enc=w_enc,
        b_enc=b_enc,
        W_dec=w_dec.contiguous(),
        b_dec=p["b_dec"] / s_out,
        activation=_activation(recipe, p, threshold, c),
        subtract_b_dec=layout.subtract_b_dec,
        W_skip=p["skip"] * s_in[:, None] / s_out if "skip" in p else None,
        transcoder=layout.transcoder,
        site=layout.site(layout.sites_in),
        site_out=layout.site(layout.sites_out) if layout.transcoder else None,
        source="repscope",
        metadata=metadata,
    )


def _activation(recipe: Recipe, p: Mapping[str, Tensor], threshold: float, c: float) -> activations.Activation:
    match recipe.architecture:
        case BatchTopK(k=k):
            if not threshold < float("inf"):
                raise UserError("No latent was ever active in this training, so BatchTopK has no threshold; train for more steps.")
            return activations.BatchTopK(k, threshold * c)
        case TopK(k=k):
            return activations.TopK(k)
        case JumpReLU():
            return activations.JumpReLU(p["log_threshold"].exp() * c)
        case Gated():
            return activations.Gated(p["b_gate"] * c, p["b_mag"] * c, p["r_mag"].clone())
        case ReLU():
            return activations.ReLU()
