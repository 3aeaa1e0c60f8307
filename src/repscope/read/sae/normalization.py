"""Normalisation of the rows that a sparse autoencoder reads, undone on what it writes.

    Scale          z = s x                                x = z / s
    ConstantNorm   z = x √d / ‖x‖                         x = z ‖x‖ / √d
    LayerNorm      z = (x - μ) / (σ + ε), σ unbiased      x = z σ + μ       (without ε, as SAELens undoes it)
    Whitening      z = (x - μ) M                          x = z M⁻¹ + μ

The last two columns of ConstantNorm and LayerNorm need statistics of the row, which `Latents` carry along: another encoding in
between changes nothing.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from repscope.errors import UserError

Rows = Float[Tensor, "row d_in"]
Statistics = tuple[Float[Tensor, "row 1"], ...]


@dataclass(frozen=True)
class Scale:
    """One factor for all rows, chosen in training such that their mean norm is √d."""

    factor: float

    def __post_init__(self) -> None:
        """Refuse a factor that is not positive."""
        if not 0 < self.factor < float("inf"):
            raise UserError(f"The scale of the activations is {self.factor}; it must be a positive number.")

    def apply(self, x: Rows) -> tuple[Rows, Statistics]:
        """Normalised rows, and the statistics that undo it."""
        return x * self.factor, ()

    def undo(self, z: Rows, statistics: Statistics) -> Rows:
        """Rows in the units of the site."""
        return z / self.factor

    def vectors(self, w: Float[Tensor, "latent d_in"]) -> Float[Tensor, "latent d_in"]:
        """Decoder vectors in the units of the site."""
        return w / self.factor


@dataclass(frozen=True)
class ConstantNorm:
    """Every row is rescaled to norm √d."""

    def apply(self, x: Rows) -> tuple[Rows, Statistics]:
        """Normalised rows, and the factor of each."""
        norms = x.norm(dim=1, keepdim=True)
        if bool((norms == 0).any()):
            raise UserError(
                f"{int((norms == 0).sum())} of {len(x)} rows are zero and cannot be rescaled to a constant norm; leave them out."
            )
        factor = x.shape[1] ** 0.5 / norms
        return x * factor, (factor,)

    def undo(self, z: Rows, statistics: Statistics) -> Rows:
        """Rows in the units of the site."""
        return z / statistics[0]

    def vectors(self, w: Float[Tensor, "latent d_in"]) -> Float[Tensor, "latent d_in"]:
        """Decoder vectors up to the row's own factor."""
        return w


@dataclass(frozen=True)
class LayerNorm:
    """Every row is centred and divided by its standard deviation."""

    eps: float = 1e-5

    def apply(self, x: Rows) -> tuple[Rows, Statistics]:
        """Normalised rows, and mean and standard deviation of each."""
        mean = x.mean(dim=1, keepdim=True)
        std = (x - mean).std(dim=1, keepdim=True)
        return (x - mean) / (std + self.eps), (mean, std)

    def undo(self, z: Rows, statistics: Statistics) -> Rows:
        """Rows in the units of the site."""
        mean, std = statistics
        return z * std + mean

    def vectors(self, w: Float[Tensor, "latent d_in"]) -> Float[Tensor, "latent d_in"]:
        """Decoder vectors up to the row's own standard deviation."""
        return w


@dataclass(frozen=True, eq=False)
class Whitening:
    """Affine whitening (arXiv:2511.13981): mean (d_in), matrix and inverse (d_in, d_in)."""

    mean: Float[Tensor, "d_in"]
    matrix: Float[Tensor, "d_in d_in"]
    inverse: Float[Tensor, "d_in d_in"]

    def apply(self, x: Rows) -> tuple[Rows, Statistics]:
        """Normalised rows; there are no statistics of a row."""
        return (x - self.mean) @ self.matrix, ()

    def undo(self, z: Rows, statistics: Statistics) -> Rows:
        """Rows in the units of the site."""
        return z @ self.inverse + self.mean

    def vectors(self, w: Float[Tensor, "latent d_in"]) -> Float[Tensor, "latent d_in"]:
        """Decoder vectors in the units of the site."""
        return w @ self.inverse


Normalization = Scale | ConstantNorm | LayerNorm | Whitening


def row_scale(normalization: "Normalization | None", statistics: Statistics) -> Float[Tensor, "row 1"] | None:
    """The factor that undoing the normalisation puts on a row's decoder vectors, beyond `vectors`; None if it is 1 for all."""
    match normalization:
        case ConstantNorm():
            return 1 / statistics[0]
        case LayerNorm():
            return statistics[1]
    return None


def joined(parts: list[Statistics]) -> Statistics:
    """The statistics of consecutive chunks of rows, as one."""
    return tuple(torch.cat(kind) for kind in zip(*parts, strict=True))
