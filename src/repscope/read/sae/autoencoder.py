"""`SparseAutoencoder`: encoder, activation, decoder and normalisation of a trained sparse autoencoder or transcoder.

For rows x (row, d_in), with N the normalisation, σ the activation, and n the norms of the decoder's rows:

1. z = N(x), minus b_dec with `subtract_b_dec`
2. h = z W_enc + b_enc, times n with `rescale_by_decoder_norm`
3. a = σ(h), sparse (`Latents`)
4. y = N⁻¹((a / n) W_dec + b_dec); a is not divided without `rescale_by_decoder_norm`, N is not undone for a transcoder
5. `reconstruct` adds x W_skip, if there is one.

Rows are taken in chunks, so that no more than 32 MB of pre-activations (row, latent) exist at a time. Everything is differentiable
in x. Arithmetic is that of the weights, float32 or float64.

Does not know how it was trained, nor what a latent means.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from repscope.directions.direction import Direction
from repscope.directions.sets import DirectionSet
from repscope.errors import UserError
from repscope.models.sites import Site
from repscope.read.sae.activations import ELEMENTWISE, TENSORS, Activation, Gated, GroupMax, ReLU, TopK, with_tensors
from repscope.read.sae.latents import Latents, check_latents
from repscope.read.sae.normalization import Normalization, Whitening, row_scale

_CHUNK = 1 << 23  #: pre-activations at a time
_DENSE = 0.08  #: share of active latents above which a dense product is faster than a sum of rows
Rows = Float[Tensor, "row d_in"] | Float[np.ndarray, "row d_in"]
Chosen = Sequence[int] | Int[Tensor, "chosen"] | Int[np.ndarray, "chosen"]


@dataclass(frozen=True, eq=False, repr=False)
class SparseAutoencoder:
    """A sparse autoencoder (or a transcoder) of one site.

    W_enc: (d_in, d_sae). b_enc: (d_sae), zero for `Gated`, which has biases of its own. W_dec: (d_sae, d_out). b_dec: (d_out), in
    normalised units. subtract_b_dec: whether b_dec is subtracted before encoding. rescale_by_decoder_norm: whether latents count in
    units of their decoder row's norm. W_skip: (d_in, d_out). transcoder: whether it reconstructs another site (`site_out`) from
    `site`. site, site_out: None if the file does not say. source: where it comes from. metadata: what the file says besides.

    Raises
    ------
    UserError
        If shapes or precisions do not fit each other.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, "d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, "d_out"]
    activation: Activation = field(default_factory=ReLU)
    normalization: Normalization | None = None
    subtract_b_dec: bool = False
    rescale_by_decoder_norm: bool = False
    W_skip: Float[Tensor, "d_in d_out"] | None = None
    transcoder: bool = False
    site: Site | None = None
    site_out: Site | None = None
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check shapes, precisions and devices."""
        for name in ("site", "site_out"):
            if isinstance(site := getattr(self, name), str):
                object.__setattr__(self, name, Site.parse(site))
        if self.W_enc.dim() != 2 or self.W_dec.dim() != 2:
            raise UserError(
                f"W_enc has the shape {tuple(self.W_enc.shape)} and W_dec {tuple(self.W_dec.shape)}; "
                "they must be (d_in, d_sae) and (d_sae, d_out)."
            )
        expected = {"W_enc": (self.d_in, self.d_sae), "b_enc": (self.d_sae,), "W_dec": (self.d_sae, self.d_out)}
        expected |= {"b_dec": (self.d_out,), "W_skip": (self.d_in, self.d_out)}
        expected |= dict.fromkeys(TENSORS.get(type(self.activation), ()), (self.d_sae,))
        expected |= {"mean": (self.d_in,), "matrix": (self.d_in, self.d_in), "inverse": (self.d_in, self.d_in)}
        for name, tensor in self.tensors().items():
            if tuple(tensor.shape) != expected[name]:
                raise UserError(
                    f"{name} has the shape {tuple(tensor.shape)}; with W_enc (d_in, d_sae) it must be {expected[name]}."
                )
            if tensor.dtype != self.dtype or tensor.device != self.device:
                raise UserError(
                    f"{name} is {tensor.dtype} on {tensor.device} and W_enc {self.dtype} on {self.device}; convert all to one."
                )
            if not bool(torch.isfinite(tensor).all()):
                raise UserError(f"{name} has entries that are not finite; the file is damaged or the training diverged.")
        if self.dtype not in (torch.float32, torch.float64):
            raise UserError(f"The weights are {self.dtype}; arithmetic needs float32 or float64: convert them, which is exact.")
        if not self.transcoder and self.d_in != self.d_out:
            raise UserError(f"The autoencoder reads {self.d_in} features and writes {self.d_out}; only a transcoder may.")
        if self.transcoder and self.subtract_b_dec:
            raise UserError("A transcoder's b_dec belongs to its output, so it cannot be subtracted from the input.")
        if isinstance(self.activation, Gated) and bool(self.b_enc.any()):
            raise UserError("A gated autoencoder has b_gate and b_mag instead of b_enc; b_enc must be zero.")
        if isinstance(self.activation, TopK) and self.activation.k > self.d_sae:
            raise UserError(f"TopK keeps k={self.activation.k} latents, but there are only {self.d_sae}.")
        if isinstance(self.activation, GroupMax) and self.d_sae % self.activation.k:
            raise UserError(f"GroupMax has {self.activation.k} groups, which do not divide {self.d_sae} latents.")

    def __repr__(self) -> str:
        kind = "transcoder" if self.transcoder else "autoencoder"
        at = f" at {self.site}" if self.site else ""
        name = type(self.activation).__name__
        return f"SparseAutoencoder({name} {kind}, {self.d_in} → {self.d_sae} → {self.d_out}{at})"

    @property
    def d_in(self) -> int:
        """Features read."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Latents."""
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Features written."""
        return self.W_dec.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of weights and arithmetic."""
        kind: torch.dtype = self.W_enc.dtype
        return kind

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        where: torch.device = self.W_enc.device
        return where

    @cached_property
    def decoder_norms(self) -> Float[Tensor, "d_sae"]:
        """Norms of the decoder's rows, in normalised units."""
        norms: Tensor = torch.linalg.vector_norm(self.W_dec, dim=1)
        return norms

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name: weights, and those of the activation and the normalisation."""
        weights = {name: getattr(self, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")}
        weights |= {name: getattr(self.activation, name) for name in TENSORS.get(type(self.activation), ())}
        if isinstance(self.normalization, Whitening):
            weights |= {f.name: getattr(self.normalization, f.name) for f in fields(self.normalization)}
        return {name: tensor for name, tensor in weights.items() if tensor is not None}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "SparseAutoencoder":
        """The same on another device or in another precision."""
        if (device is None or torch.device(device) == self.device) and (dtype is None or dtype == self.dtype):
            return self

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype)

        white = self.normalization
        return replace(
            self,
            W_enc=moved(self.W_enc),
            b_enc=moved(self.b_enc),
            W_dec=moved(self.W_dec),
            b_dec=moved(self.b_dec),
            W_skip=None if self.W_skip is None else moved(self.W_skip),
            activation=with_tensors(self.activation, moved),
            normalization=Whitening(moved(white.mean), moved(white.matrix), moved(white.inverse))
            if isinstance(white, Whitening)
            else white,
        )

    def columns(self, latents: Chosen) -> "SparseAutoencoder":
        """The autoencoder of some latents alone, in that order; each has the activation it has among all.

        Raises
        ------
        UserError
            For a latent that does not exist, and for TopK and GroupMax, where latents compete.
        """
        chosen = self._chosen(latents)
        if not isinstance(self.activation, ELEMENTWISE):
            raise UserError(f"The latents of {type(self.activation).__name__} compete with each other; encode them all.")
        activation = with_tensors(self.activation, lambda tensor: tensor[chosen])
        return replace(self, W_enc=self.W_enc[:, chosen], b_enc=self.b_enc[chosen], W_dec=self.W_dec[chosen], activation=activation)

    def encode(self, x: Rows) -> Latents:
        """Latents of rows (row, d_in); a site with several feature axes, such as heads, is flattened.

        Raises
        ------
        UserError
            For rows of another width, that are not finite, or zero rows under a constant norm.
        """
        return Latents.join([self._encoded(chunk) for chunk in self._chunks(self._rows(x))])

    def activations(self, x: Rows, latents: Chosen) -> Float[Tensor, "row chosen"]:
        """Activations of some latents, dense. Computes those alone if the activation allows (it does not for TopK).

        Raises
        ------
        UserError
            As `encode`; for a latent that does not exist.
        """
        if not isinstance(self.activation, ELEMENTWISE):
            return self.encode(x).select(self._chosen(latents))
        return self.columns(latents).encode(x).dense()

    def decode(self, latents: Latents) -> Float[Tensor, "row d_out"]:
        """Reconstruction from latents, in the units of the site; without `W_skip`, which needs the rows.

        Raises
        ------
        UserError
            For latents of an autoencoder of another width, or without the statistics of its normalisation.
        """
        if latents.width != self.d_sae:
            raise UserError(f"The latents are {latents.width} wide, but the autoencoder has {self.d_sae}; decode with their own.")
        values = latents.values / self.decoder_norms[latents.indices] if self.rescale_by_decoder_norm else latents.values
        scaled = latents.with_values(values.to(self.dtype))
        if len(values) > _DENSE * len(latents) * self.d_sae:
            y = torch.cat([part.dense() @ self.W_dec for part in scaled.split(max(1, _CHUNK // self.d_sae))])
        else:
            starts, weights = latents.starts, scaled.values
            y = functional.embedding_bag(
                latents.indices, self.W_dec, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
            )
        return self._denormalized(y + self.b_dec, latents.statistics)

    def reconstruct(self, x: Rows) -> Float[Tensor, "row d_out"]:
        """Reconstruction of rows: decode(encode(x)), plus x W_skip.

        Raises
        ------
        UserError
            As `encode`.
        """
        out = []
        for chunk in self._chunks(self._rows(x)):
            y = self.decode(self._encoded(chunk))
            out.append(y if self.W_skip is None else y + chunk @ self.W_skip)
        return torch.cat(out)

    def decoder_vectors(self, latents: Chosen | None = None) -> Float[Tensor, "chosen d_out"]:
        """What one unit of each latent adds to the site; under `ConstantNorm` and `LayerNorm` up to the row's own scale.

        Raises
        ------
        UserError
            For a latent that does not exist.
        """
        chosen = torch.arange(self.d_sae, device=self.device) if latents is None else self._chosen(latents)
        w = self.W_dec[chosen]
        w = w / self.decoder_norms[chosen][:, None] if self.rescale_by_decoder_norm else w
        return w if self.normalization is None or self.transcoder else self.normalization.vectors(w)

    def row_scale(self, latents: Latents) -> Float[Tensor, "row 1"] | None:
        """The row's own scale that `decoder_vectors` leaves out; None if it is 1 for all rows."""
        return None if self.transcoder else row_scale(self.normalization, latents.statistics)

    def directions(self, latents: Chosen | None = None, *, site: str | Site | None = None, model: str = "") -> DirectionSet:
        """Decoder vectors of latents as directions; one unit of a latent adds `scale` times the direction.

        Parameters
        ----------
        latents
            Their indices; by default all.
        site
            Where they apply; by default the site that the autoencoder writes.
        model
            Fingerprint of the network (`lm.fingerprint`), so that another one refuses them.

        Raises
        ------
        UserError
            If the site is unknown, a latent does not exist, or a decoder vector is zero.
        """
        at = str(self.written_site if site is None else Site.parse(site))
        chosen = torch.arange(self.d_sae) if latents is None else self._chosen(latents)
        vectors = self.decoder_vectors(chosen).detach().double().cpu().numpy()
        found = f"decoder of a sparse autoencoder ({self.source or type(self.activation).__name__})"
        made = [Direction.of(v, at, f"latent {int(i)}", found_by=found) for i, v in zip(chosen, vectors)]
        return DirectionSet.of(*made, model=model, note=self.source)

    @property
    def written_site(self) -> Site:
        """The site of the reconstruction.

        Raises
        ------
        UserError
            If it is unknown.
        """
        site = self.site_out if self.transcoder else self.site
        if site is None:
            name = "site_out" if self.transcoder else "site"
            raise UserError(
                f"Nothing says where this {'transcoder writes' if self.transcoder else 'autoencoder is'}; give {name}=."
            )
        return site

    def _chosen(self, latents: Chosen) -> Int[Tensor, "chosen"]:
        chosen = torch.as_tensor(latents, dtype=torch.long, device=self.device).flatten()
        check_latents(chosen, self.d_sae)
        return chosen

    def _rows(self, x: Rows) -> Float[Tensor, "row d_in"]:
        rows = torch.as_tensor(x).to(device=self.device, dtype=self.dtype)
        rows = rows.flatten(1) if rows.dim() > 2 else rows
        if rows.dim() != 2 or rows.shape[1] != self.d_in:
            raise UserError(f"The rows have the shape {tuple(torch.as_tensor(x).shape)}; they must be (row, {self.d_in}).")
        if not bool(torch.isfinite(rows).all()):
            raise UserError("The rows to encode are not finite; leave those with nan or infinity out.")
        return rows

    def _chunks(self, x: Float[Tensor, "row d_in"]) -> Iterator[Float[Tensor, "row d_in"]]:
        yield from torch.split(x, max(1, _CHUNK // self.d_sae)) if len(x) else [x]

    def _normalized(self, x: Float[Tensor, "row d_in"]) -> tuple[Tensor, tuple[Tensor, ...]]:
        z, statistics = (x, ()) if self.normalization is None else self.normalization.apply(x)
        return (z - self.b_dec if self.subtract_b_dec else z), statistics

    def _pre(self, z: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_sae"]:
        h = torch.addmm(self.b_enc, z, self.W_enc)
        return h * self.decoder_norms if self.rescale_by_decoder_norm else h

    def _encoded(self, x: Float[Tensor, "row d_in"]) -> Latents:
        z, statistics = self._normalized(x)
        return Latents.from_mask(*self.activation(self._pre(z)), statistics)

    def _denormalized(self, y: Float[Tensor, "row d_out"], statistics: tuple[Tensor, ...]) -> Float[Tensor, "row d_out"]:
        if self.normalization is None or self.transcoder:
            return y
        if statistics and len(statistics[0]) != len(y):
            raise UserError(f"There are statistics of {len(statistics[0])} rows for {len(y)}; decode what `encode` gave.")
        return self.normalization.undo(y, statistics)
