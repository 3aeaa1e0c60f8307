"""Networks on sprites that are trained once: the GAN, the diffusion model and two factor regressors, in the user's cache folder.

A file is named by a hash of its sizes and of `VERSION`. A training that is killed goes on where its last saved state was.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from repscope import manifest
from repscope.disk import cache_home, whole_file
from repscope.errors import UserError
from repscope.models.generators import DiffusionGenerator, LatentGenerator
from repscope.worlds.sprites.diffusion import CaptionedUNet, DiffusionSizes, TrainedDiffusion, noise_schedule, train_diffusion
from repscope.worlds.sprites.gan import FEATURES, GanSizes, SpriteGenerator, TrainedGan, train_gan
from repscope.worlds.sprites.regressor import STEPS, FactorRegressor, train_regressor

VERSION = 1  #: raised when the same sizes give other weights
Tensors = Mapping[str, Tensor]


def cached_gan(sizes: GanSizes, folder: Path | None = None) -> TrainedGan:
    """The trained GAN. folder: of the files; the user's cache by default."""

    def make(saved: Path) -> dict[str, Tensor]:
        found = train_gan(sizes, saved=saved)
        return {**found.generator.state_dict(), "losses": torch.from_numpy(found.losses)}

    return gan_of(sizes, _remembered("gan", asdict(sizes), make, folder))


def gan_of(sizes: GanSizes, held: Tensors) -> TrainedGan:
    """A trained GAN from its tensors."""
    generator = SpriteGenerator(sizes.latent, sizes.width)
    generator.load_state_dict({k: v for k, v in held.items() if k != "losses"})
    return TrainedGan(generator.eval().requires_grad_(False), held["losses"].numpy())


def cached_diffusion(sizes: DiffusionSizes, folder: Path | None = None) -> TrainedDiffusion:
    """The trained diffusion model. folder: of the files; the user's cache by default."""

    def make(saved: Path) -> dict[str, Tensor]:
        found = train_diffusion(sizes, saved=saved)
        return {**found.network.state_dict(), "losses": torch.from_numpy(found.losses)}

    return diffusion_of(sizes, _remembered("diffusion", asdict(sizes), make, folder))


def diffusion_of(sizes: DiffusionSizes, held: Tensors) -> TrainedDiffusion:
    """A trained diffusion model from its tensors."""
    network = CaptionedUNet(sizes)
    network.load_state_dict({k: v for k, v in held.items() if k != "losses"})
    return TrainedDiffusion(network.eval().requires_grad_(False), noise_schedule(sizes), held["losses"].numpy())


def cached_regressor(seed: int = 0, steps: int = STEPS, folder: Path | None = None) -> FactorRegressor:
    """A trained factor regressor. folder: of the files; the user's cache by default."""

    def make(saved: Path) -> dict[str, Tensor]:
        found = train_regressor(seed, steps)
        return {**found.weights, "r2": torch.from_numpy(found.r2)}

    return regressor_of(_remembered("regressor", {"seed": seed, "steps": steps}, make, folder))


def regressor_of(held: Tensors) -> FactorRegressor:
    """A factor regressor from its tensors."""
    return FactorRegressor({k: v for k, v in held.items() if k != "r2"}, held["r2"].numpy())


def latent_generator(trained: TrainedGan, sizes: GanSizes) -> LatentGenerator:
    """The GAN as a subject of studies, with the features that LatentCLR compares."""
    return LatentGenerator(trained.generator, sizes.latent, FEATURES, name="GAN on sprites")


def diffusion_generator(trained: TrainedDiffusion) -> DiffusionGenerator:
    """The diffusion model as a subject of studies; its empty prompt is the empty word alone."""
    empty = trained.network.words.weight[:1].detach()
    return DiffusionGenerator(trained.network.unet, trained.scheduler, empty, name="diffusion model on sprites")


def _remembered(
    name: str, settings: Mapping[str, Any], make: Callable[[Path], dict[str, Tensor]], folder: Path | None
) -> dict[str, Tensor]:
    """Tensors from the file of these settings; made, and written, if it is absent or damaged."""
    text = json.dumps({"version": VERSION, "name": name, **settings}, sort_keys=True)
    home = (folder or cache_home() / "sprites") / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"
    if home.is_file() and manifest.sealed(home) is not False:
        with suppress(SafetensorError, OSError, KeyError), safe_open(home, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    saved = home.with_suffix(".partial")
    held = {k: v.detach().clone().contiguous() for k, v in make(saved).items()}
    # a cache that cannot be written costs time, not the result
    with suppress(UserError, OSError), whole_file(home) as partial:
        save_file(held, partial, metadata={"settings": text, "seal": manifest.UNSEALED})
        manifest.seal(partial)
    saved.unlink(missing_ok=True)
    return held
