"""Crosscoder: one set of latents that reads and writes several sources, such as two sites or one site of two models.

    z = σ(Σ_s x_s W_enc,s + b_enc)        x̂_s = z W_dec,s + b_dec,s        (Lindsey et al. 2024, Sparse crosscoders)

The norms of a latent's decoder rows say which sources it belongs to: r = ‖W_dec,2‖ / (‖W_dec,1‖ + ‖W_dec,2‖) is near 0 for a
latent of the first source alone, near 1 for one of the second, and near ½ for a shared one. A latent of one source that the
sparsity penalty merely pushed out of the other may look the same, more so with L1 than with BatchTopK (Minder et al. 2025,
arXiv:2504.02922).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from repscope.errors import UserError
from repscope.read.sae.autoencoder import SparseAutoencoder
from repscope.read.sae.latents import Latents


@dataclass(frozen=True, eq=False)
class Crosscoder:
    """A trained crosscoder.

    autoencoder: of the sources side by side. sources: their names, in order. widths: features of each. scales: the factor of each
    source in training; decoder norms count in units of scaled rows, so that sources with larger activations do not look stronger.
    """

    autoencoder: SparseAutoencoder
    sources: tuple[str, ...]
    widths: tuple[int, ...]
    scales: tuple[float, ...]

    def encode(self, rows: Mapping[str, Float[Tensor, "row d"]]) -> Latents:
        """Latents of rows by source.

        Raises
        ------
        UserError
            If a source is missing.
        """
        if missing := [name for name in self.sources if name not in rows]:
            raise UserError(f"The crosscoder reads {', '.join(self.sources)}, and {', '.join(missing)} is missing.")
        return self.autoencoder.encode(torch.cat([rows[name] for name in self.sources], dim=1))

    def decode(self, latents: Latents) -> dict[str, Float[Tensor, "row d"]]:
        """Reconstruction of each source."""
        return dict(zip(self.sources, torch.split(self.autoencoder.decode(latents), list(self.widths), dim=1)))

    def reconstruct(self, rows: Mapping[str, Float[Tensor, "row d"]]) -> dict[str, Float[Tensor, "row d"]]:
        """Reconstruction of rows by source. Errors as `encode`."""
        return self.decode(self.encode(rows))

    def decoder(self, source: str) -> Float[Tensor, "latent d"]:
        """Decoder rows of one source, in raw units.

        Raises
        ------
        UserError
            For an unknown source.
        """
        if source not in self.sources:
            raise UserError(f"There is no source {source!r}; there are {', '.join(self.sources)}.")
        blocks: tuple[Tensor, ...] = torch.split(self.autoencoder.W_dec, list(self.widths), dim=1)
        return blocks[self.sources.index(source)]

    @property
    def decoder_norms(self) -> Float[Tensor, "source latent"]:
        """Norms of each latent's decoder rows, in units of scaled rows."""
        return torch.stack([self.decoder(name).norm(dim=1) * scale for name, scale in zip(self.sources, self.scales)])

    @property
    def relative_norms(self) -> Float[Tensor, "latent"]:
        """r of each latent: the share of the last source in the sum of decoder norms."""
        norms = self.decoder_norms
        return norms[-1] / norms.sum(0)
