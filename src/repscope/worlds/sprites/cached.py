"""Networks on sprites or digits that are trained once and stay in the user's cache folder: generators, and what reads their images.

A file is named by a hash of its sizes and of `VERSION`. A training that is killed goes on where its last saved state was.
"""

import hashlib
import json
import os
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
from repscope.worlds import digit_classifier
from repscope.worlds.digit_classifier import DigitClassifier
from repscope.worlds.sprites.diffusion import CaptionedUNet, DiffusionSizes, TrainedDiffusion, noise_schedule, train_diffusion
from repscope.worlds.sprites.gan import FEATURES, SPRITES, GanImages, GanSizes, SpriteGenerator, TrainedGan, train_gan
from repscope.worlds.sprites.regressor import STEPS, FactorRegressor, train_regressor

VERSION = 1  #: raised when the same sizes give other weights
DIGITS = GanImages("gan-of-digits", digit_classifier.SIDE, digit_classifier.digit_batch)
Tensors = Mapping[str, Tensor]


def cached_gan(sizes: GanSizes, folder: Path | None = None, images: GanImages = SPRITES) -> TrainedGan:
    """The trained GAN. folder: of the files; the user's cache by default. images: what it draws."""

    def make(saved: Path | None) -> dict[str, Tensor]:
        found = train_gan(sizes, saved=saved, images=images)
        return {**found.generator.state_dict(), "losses": torch.from_numpy(found.losses)}

    return gan_of(sizes, _remembered(images.name, asdict(sizes), make, folder), images)


def gan_of(sizes: GanSizes, held: Tensors, images: GanImages = SPRITES) -> TrainedGan:
    """A trained GAN from its tensors."""
    generator = SpriteGenerator(sizes.latent, sizes.width, images.side**2)
    generator.load_state_dict({k: v for k, v in held.items() if k != "losses"})
    return TrainedGan(generator.eval().requires_grad_(False), held["losses"].numpy())


def cached_diffusion(sizes: DiffusionSizes, folder: Path | None = None) -> TrainedDiffusion:
    """The trained diffusion model. folder: of the files; the user's cache by default."""

    def make(saved: Path | None) -> dict[str, Tensor]:
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

    def make(saved: Path | None) -> dict[str, Tensor]:
        found = train_regressor(seed, steps)
        return {**found.weights, "r2": torch.from_numpy(found.r2)}

    return regressor_of(_remembered("regressor", {"seed": seed, "steps": steps}, make, folder))


def regressor_of(held: Tensors) -> FactorRegressor:
    """A factor regressor from its tensors."""
    return FactorRegressor({k: v for k, v in held.items() if k != "r2"}, held["r2"].numpy())


def cached_classifier(seed: int = 0, steps: int = digit_classifier.STEPS, folder: Path | None = None) -> DigitClassifier:
    """A trained classifier of digits. folder: of the files; the user's cache by default."""

    def make(saved: Path | None) -> dict[str, Tensor]:
        found = digit_classifier.train_classifier(seed, steps)
        return {**found.weights, "accuracy": torch.from_numpy(found.accuracy)}

    return classifier_of(_remembered("digit-classifier", {"seed": seed, "steps": steps}, make, folder))


def classifier_of(held: Tensors) -> DigitClassifier:
    """A classifier of digits from its tensors."""
    return DigitClassifier({k: v for k, v in held.items() if k != "accuracy"}, held["accuracy"].numpy())


def latent_generator(trained: TrainedGan, sizes: GanSizes, name: str = "GAN on sprites") -> LatentGenerator:
    """The GAN as a subject of studies, with the features that LatentCLR compares."""
    return LatentGenerator(trained.generator, sizes.latent, FEATURES, name=name)


def diffusion_generator(trained: TrainedDiffusion) -> DiffusionGenerator:
    """The diffusion model as a subject of studies; its empty prompt is the empty word alone."""
    empty = trained.network.words.weight[:1].detach()
    return DiffusionGenerator(trained.network.unet, trained.scheduler, empty, name="diffusion model on sprites")


def _remembered(
    name: str, settings: Mapping[str, Any], make: Callable[[Path | None], dict[str, Tensor]], folder: Path | None
) -> dict[str, Tensor]:
    """Tensors from the file of these settings; made, and written, if it is absent, damaged or that of other settings."""
    text, home = _file_of(name, settings, folder)
    if home.is_file() and manifest.sealed(home) is not False:
        with suppress(SafetensorError, OSError, KeyError), safe_open(home, "pt") as file:
            if (file.metadata() or {}).get("settings") == text:
                return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    saved = home.with_suffix(".partial") if _writable(home.parent) else None
    held = {k: v.detach().clone().contiguous() for k, v in make(saved).items()}
    # a cache that cannot be written costs time, not the result
    with suppress(UserError, OSError), whole_file(home) as partial:
        save_file(held, partial, metadata={"settings": text, "seal": manifest.UNSEALED})
        manifest.seal(partial)
    if saved is not None:
        saved.unlink(missing_ok=True)
    return held


def is_cached(name: str, settings: Mapping[str, Any], folder: Path | None = None) -> bool:
    """Whether the network of these settings is there, so that it will not be trained. name: `diffusion`, or that of `GanImages`."""
    return _file_of(name, settings, folder)[1].is_file()


def _file_of(name: str, settings: Mapping[str, Any], folder: Path | None) -> tuple[str, Path]:
    """The settings as text, and the file of the network."""
    text = json.dumps({"version": VERSION, "name": name, **settings}, sort_keys=True)
    return text, (folder or cache_home() / "sprites") / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"


def _writable(folder: Path) -> bool:
    """Whether files can be written in a folder, which is made if it is absent."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK)
    return False
