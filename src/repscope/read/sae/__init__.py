"""Sparse autoencoders: open published ones, encode and decode, splice into a model, steer with a latent."""

from repscope.read.sae.activations import BatchTopK, Gated, GroupMax, JumpReLU, ReLU, TopK
from repscope.read.sae.attribution import Attribution, attribute, logit_difference
from repscope.read.sae.autoencoder import SparseAutoencoder
from repscope.read.sae.feature_statistics import FeatureStatistics, feature_statistics
from repscope.read.sae.folding import fold
from repscope.read.sae.latents import Latents
from repscope.read.sae.meaning import logit_effects, nearest_directions
from repscope.read.sae.normalization import ConstantNorm, LayerNorm, Scale, Whitening
from repscope.read.sae.opening import open, save
from repscope.read.sae.splicing import ablate, clamp, splice

__all__ = [
    "Attribution",
    "BatchTopK",
    "ConstantNorm",
    "FeatureStatistics",
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
    "ablate",
    "attribute",
    "clamp",
    "feature_statistics",
    "fold",
    "logit_difference",
    "logit_effects",
    "nearest_directions",
    "open",
    "save",
    "splice",
]
