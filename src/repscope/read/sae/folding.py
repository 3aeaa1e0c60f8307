"""Folding of normalisation and decoder norms into the weights: the same latents and reconstructions from plain rows.

`fold` makes an autoencoder without `Scale`, `Whitening` and `rescale_by_decoder_norm`, computed in float64:

    decoder norms n   W_enc ← W_enc n    b_enc ← b_enc n     W_dec ← W_dec / n
    Scale s           W_enc ← s W_enc    W_dec ← W_dec / s   b_dec ← b_dec / s
    Whitening         W_enc ← M W_enc    W_dec ← W_dec M⁻¹   b_dec ← b_dec M⁻¹ + μ   b_enc ← b_enc - μ M W_enc
                      (the last only if b_dec is not subtracted from the input, else b_dec carries μ)

Of a transcoder only the encoder changes, as its output is not denormalised. `ConstantNorm` and `LayerNorm` depend on the row and
stay as they are.
"""

from dataclasses import replace

import torch

from repscope.read.sae.activations import BatchTopK, Gated, JumpReLU
from repscope.read.sae.autoencoder import SparseAutoencoder
from repscope.read.sae.normalization import Scale, Whitening


def fold(sae: SparseAutoencoder) -> SparseAutoencoder:
    """The equivalent autoencoder with `Scale`, `Whitening` and decoder norms folded into its weights."""
    wide = sae.to(dtype=torch.float64)
    wide = _without_norms(wide) if wide.rescale_by_decoder_norm else wide
    match wide.normalization:
        case Scale(factor):
            wide = replace(wide, W_enc=wide.W_enc * factor, normalization=None)
            if not wide.transcoder:
                wide = replace(wide, W_dec=wide.W_dec / factor, b_dec=wide.b_dec / factor)
        case Whitening() as white:
            wide = _without_whitening(wide, white)
    return wide.to(dtype=sae.dtype)


def _without_norms(sae: SparseAutoencoder) -> SparseAutoencoder:
    # A latent without decoder writes nothing: its norm of 0 closes it for good, so it may keep a decoder of zeros.
    norms = sae.decoder_norms
    divisor = torch.where(norms > 0, norms, 1)
    # The thresholds and biases of an activation act on rescaled pre-activations already.
    return replace(
        sae, W_enc=sae.W_enc * norms, b_enc=sae.b_enc * norms, W_dec=sae.W_dec / divisor[:, None], rescale_by_decoder_norm=False
    )


def _without_whitening(sae: SparseAutoencoder, white: Whitening) -> SparseAutoencoder:
    encoder = white.matrix @ sae.W_enc
    folded = replace(sae, W_enc=encoder, normalization=None)
    if not sae.transcoder:
        folded = replace(folded, W_dec=sae.W_dec @ white.inverse, b_dec=sae.b_dec @ white.inverse + white.mean)
    return folded if sae.subtract_b_dec else shifted(folded, -white.mean @ encoder)


def shifted(sae: SparseAutoencoder, by: torch.Tensor) -> SparseAutoencoder:
    """The autoencoder whose pre-activations are shifted by (d_sae), through the biases that its activation reads."""
    if isinstance(sae.activation, Gated):
        gates = sae.activation
        return replace(sae, activation=replace(gates, b_gate=gates.b_gate + by, b_mag=gates.b_mag + gates.r_mag.exp() * by))
    return replace(sae, b_enc=sae.b_enc + by)


def as_jumprelu(sae: SparseAutoencoder) -> SparseAutoencoder:
    """BatchTopK as JumpReLU with one equal threshold per latent; any other autoencoder unchanged."""
    if not isinstance(sae.activation, BatchTopK):
        return sae
    return replace(sae, activation=JumpReLU(torch.full_like(sae.b_enc, sae.activation.threshold)))
