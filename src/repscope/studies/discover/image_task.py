"""What the steps of `discover` on image generators share: the generator, the factor regressors, and the test bed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.discovery.generators import Bed, DiffusionBed, LatentBed, regressed
from repscope.discovery.generators.comparison import DIFFUSION_ONLY, GAN_ONLY, LABELLED, METHODS
from repscope.errors import UserError, unknown
from repscope.studies.discover import image_names as names
from repscope.studies.discover.options import DiscoverOptions
from repscope.worlds.sprites import FACTORS, FactorRegressor, cached, drawn_factors, sprites
from repscope.worlds.sprites.diffusion import LEVELS, WORDS, DiffusionSizes, from_patches, patches
from repscope.worlds.sprites.gan import GanSizes

_TINY_REGRESSOR = 20
_LABELLED = 4096  #: images from which directions with labels are fitted


@dataclass(frozen=True)
class ImageTask:
    """The options of a run and what its steps make of them."""

    options: DiscoverOptions

    @property
    def gan(self) -> bool:
        """Whether the generator is the GAN."""
        return self.options.subject == names.GAN

    @property
    def methods(self) -> list[str]:
        """The methods, each once.

        Raises
        ------
        UserError
            For an unknown method, or one of the other kind of generator.
        """
        found = list(dict.fromkeys(self.options.methods))
        for name in found:
            if name not in METHODS:
                raise unknown("method", name, METHODS)
            if name in (DIFFUSION_ONLY if self.gan else GAN_ONLY):
                raise UserError(
                    f"{name} does not run on {'a GAN' if self.gan else 'a diffusion model'}; leave it out of --methods."
                )
            if name == LABELLED and self.options.site == "h" and not self.gan:
                raise UserError(f"{name} needs words or a latent, which h has not; leave it out of --methods.")
        return found

    @property
    def sizes(self) -> GanSizes | DiffusionSizes:
        """Of the generator."""
        o = self.options
        if self.gan:
            return GanSizes(latent=4, width=8, channels=4, batch=8, steps=20, seed=o.seed) if o.tiny else GanSizes(seed=o.seed)
        if o.tiny:
            return DiffusionSizes(channels=(8, 8), words=8, timesteps=20, batch=8, steps=20, seed=o.seed)
        return DiffusionSizes(seed=o.seed)

    def trained(self, folder: Path | None) -> dict[str, np.ndarray]:
        """Tensors of the generator and of two factor regressors, by name. folder: of their files; the user's cache by default."""
        s = self.sizes
        if isinstance(s, GanSizes):
            gan = cached.cached_gan(s, folder)
            held: dict[str, Tensor] = {**gan.generator.state_dict(), "losses": torch.from_numpy(gan.losses)}
        else:
            diffusion = cached.cached_diffusion(s, folder)
            held = {**diffusion.network.state_dict(), "losses": torch.from_numpy(diffusion.losses)}
        arrays = {f"generator/{k}": v.numpy() for k, v in held.items()}
        for i in range(2):
            one = cached.cached_regressor(
                2 * self.options.seed + i, *([_TINY_REGRESSOR] if self.options.tiny else []), folder=folder
            )
            arrays |= {f"regressor {i}/{k}": v.numpy() for k, v in {**one.weights, "r2": torch.from_numpy(one.r2)}.items()}
        return arrays


@dataclass(frozen=True, eq=False)
class Judge:
    """Factors read from images, and images drawn from factors."""

    first: FactorRegressor
    second: FactorRegressor

    def read(self, images: Float[Tensor, "image pixel"]) -> Float[Tensor, "image factor"]:
        """Factors, by the mean of the two regressors."""
        return (self.first(images) + self.second(images)) / 2


class Material:
    """The generator and the judge, from the arrays of the step that trained them."""

    def __init__(self, task: ImageTask, arrays: Mapping[str, np.ndarray]) -> None:
        self.task = task
        self._arrays = arrays
        self.judge = Judge(*(cached.regressor_of(self._part(f"regressor {i}")) for i in range(2)))

    def _part(self, name: str) -> dict[str, Tensor]:
        return {k.partition("/")[2]: torch.from_numpy(v.copy()) for k, v in self._arrays.items() if k.partition("/")[0] == name}

    @cached_property
    def bed(self) -> Bed:
        """The generator with samples to search and to judge on, and the scale."""
        o, sizes, held = self.task.options, self.task.sizes, self._part("generator")
        if isinstance(sizes, GanSizes):
            latent = cached.latent_generator(cached.gan_of(sizes, held), sizes)
            return _scaled(LatentBed(latent, o.samples, o.images, seed=o.seed), o.scale)
        trained = cached.diffusion_of(sizes, held)
        factors = drawn_factors(o.samples, torch.Generator().manual_seed(o.seed + 11))
        bed = DiffusionBed(
            cached.diffusion_generator(trained),
            patches(sprites(factors)),
            from_patches,
            o.site,
            held=o.images,
            steps=min(10, sizes.timesteps),
            seed=o.seed,
        )
        return _scaled(bed, o.scale)

    def labelled(self) -> Float[np.ndarray, "factor width"] | None:
        """Directions with labels: a regression on z, or the word for high minus the word for low."""
        bed = self.bed
        if isinstance(bed, LatentBed):
            z = bed.generator.latents(_LABELLED, self.task.options.seed + 91)
            with torch.no_grad():
                factors = self.judge.read(bed.generator.images(z).clamp(0, 1))
            return regressed(z, factors).numpy()
        if self.task.options.site != "conditioning":
            return None
        table = self._part("generator")["words.weight"]
        row = {word: i for i, word in enumerate(WORDS)}
        ends = [(row[f"{LEVELS[-1]} {f}"], row[f"{LEVELS[0]} {f}"]) for f in FACTORS]
        return torch.stack([table[high] - table[low] for high, low in ends]).numpy()

    @torch.no_grad()
    def samples(self, count: int, seed: int) -> Float[Tensor, "image pixel"]:
        """Images of the generator, from 0 to 1."""
        bed = self.bed
        if isinstance(bed, LatentBed):
            return bed.generator.images(bed.generator.latents(count, seed)).clamp(0, 1)
        assert isinstance(bed, DiffusionBed)
        return bed.decode(bed.generator.sample(bed.generator.noise(count, seed), bed.steps))


def _scaled(bed: Any, relative: float | None) -> Any:
    """The bed at a relative scale, where one is given."""
    if relative is not None:
        bed.scale = relative * bed.context.norm
    return bed
