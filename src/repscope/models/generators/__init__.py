"""Image generators under study: any module with a latent (a GAN), and diffusion models from diffusers."""

from repscope.models.generators.diffusion import DiffusionGenerator
from repscope.models.generators.latent import LatentGenerator
from repscope.models.generators.pipeline_folder import open_pipeline

__all__ = ["DiffusionGenerator", "LatentGenerator", "open_pipeline"]
