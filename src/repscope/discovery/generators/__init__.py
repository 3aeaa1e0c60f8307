"""Discovery of directions in image generators: subjects, published losses and trainings, closed forms, judging by known factors."""

from repscope.discovery.generators.beds import Bed, DiffusionBed, LatentBed
from repscope.discovery.generators.closed_form import ganspace, orthogonalised, regressed, sefa
from repscope.discovery.generators.factor_changes import FactorChanges, factor_changes
from repscope.discovery.generators.latent_directions import LatentDirections
from repscope.discovery.generators.published_losses import latent_clr, noise_clr
from repscope.discovery.generators.published_training import PublishedResult, train_latent_clr, train_noise_clr
from repscope.discovery.generators.subjects import DiffusionSubject, NoisyImages, latent_subject, noisy_images

__all__ = [
    "Bed",
    "DiffusionBed",
    "DiffusionSubject",
    "FactorChanges",
    "LatentBed",
    "LatentDirections",
    "NoisyImages",
    "PublishedResult",
    "factor_changes",
    "ganspace",
    "latent_clr",
    "latent_subject",
    "noise_clr",
    "noisy_images",
    "orthogonalised",
    "regressed",
    "sefa",
    "train_latent_clr",
    "train_noise_clr",
]
