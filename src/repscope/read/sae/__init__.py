"""Sparse autoencoders: open published ones, encode and decode, splice into a model, steer with a latent."""

from repscope.read.sae.activations import BatchTopK, Gated, GroupMax, JumpReLU, ReLU, TopK
from repscope.read.sae.autoencoder import SparseAutoencoder
from repscope.read.sae.folding import fold
from repscope.read.sae.latents import Latents
from repscope.read.sae.normalization import ConstantNorm, LayerNorm, Scale, Whitening
from repscope.read.sae.opening import open, save

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
    "fold",
    "open",
    "save",
]
