"""Sparse autoencoders: open published ones, encode and decode, splice into a model, steer with a latent."""

from repscope.read.sae.activations import BatchTopK, Gated, GroupMax, JumpReLU, ReLU, TopK
from repscope.read.sae.autoencoder import SparseAutoencoder
from repscope.read.sae.latents import Latents
from repscope.read.sae.normalization import ConstantNorm, LayerNorm, Scale, Whitening

__all__ = [
    "BatchTopK",
    "ConstantNorm",
    "Gated",
    "GroupMax",
    "JumpReLU",
    "Latents",
    "LayerNorm",
    "ReLU",
    "Scale",
    "SparseAutoencoder",
    "TopK",
    "Whitening",
]
