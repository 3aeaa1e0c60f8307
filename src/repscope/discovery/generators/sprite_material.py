"""Generators of sprites with all that a comparison of methods needs: trained networks, test bed, judge, directions with labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.discovery.generators.beds import Bed, DiffusionBed, LatentBed
from repscope.discovery.generators.closed_form import regressed
from repscope.worlds.sprites import FACTORS, FactorRegressor, cached, drawn_factors, sprites
from repscope.worlds.sprites.diffusion import LEVELS, WORDS, DiffusionSizes, from_patches, patches
from repscope.worlds.sprites.gan import GanSizes

SomeBed = TypeVar("SomeBed", LatentBed, DiffusionBed)

_TINY_REGRESSOR = 20  #: steps
_LABELLED = 4096  #: images from which directions with labels are fitted
_DDIM, _TINY_DDIM = 10, 3  #: steps of sampling


@dataclass(frozen=True)
class SpriteSetting:
    """A generator of sprites and how it is searched.

    kind: `gan` or `diffusion`. site: of a diffusion model. samples: to search on. images: to judge on. scale: of vectors, relative
    to the median norm at the source; None for half of it. tiny: networks for tests.
    """

    kind: Literal["gan", "diffusion"]
    site: str = "conditioning"
    samples: int = 16
    images: int = 64
    scale: float | None = None
    seed: int = 0
    tiny: bool = False

    @property
    def sizes(self) -> GanSizes | DiffusionSizes:
        """Of the generator."""
        if self.kind == "gan":
            return (
                GanSizes(latent=4, width=8, channels=4, batch=8, steps=20, seed=self.seed)
                if self.tiny
                else GanSizes(seed=self.seed)
            )
        if self.tiny:
            return DiffusionSizes(channels=(8, 8), words=8, timesteps=20, batch=8, steps=20, seed=self.seed)
        return DiffusionSizes(seed=self.seed)

    def trained(self, folder: Path | None = None) -> dict[str, np.ndarray]:
        """Tensors of the generator and of two factor regressors, by name. folder: of their files; the user's cache by default."""
        s = self.sizes
        if isinstance(s, GanSizes):
            gan = cached.cached_gan(s, folder)
            held: dict[str, Tensor] = {**gan.generator.state_dict(), "losses": torch.from_numpy(gan.losses)}
        else:
            diffusion = cached.cached_diffusion(s, folder)
            held = {**diffusion.network.state_dict(), "losses": torch.from_numpy(diffusion.losses)}
        arrays = {f"generator/{k}": v.numpy() for k, v in held.items()}
        few = {"steps": _TINY_REGRESSOR} if self.tiny else {}
        for i in range(2):
            one = cached.cached_regressor(2 * self.seed + i, folder=folder, **few)
            arrays |= {f"regressor {i}/{k}": v.numpy() for k, v in {**one.weights, "r2": torch.from_numpy(one.r2)}.items()}
        return arrays


@dataclass(frozen=True, eq=False)
class Judge:
    """Factors read from images by two regressors."""

    first: FactorRegressor
    second: FactorRegressor

    def read(self, images: Float[Tensor, "image pixel"]) -> Float[Tensor, "image factor"]:
        """The mean of what the two read."""
        return (self.first(images) + self.second(images)) / 2


class SpriteMaterial:
    """The generator and the judge, from the arrays of `SpriteSetting.trained`."""

    def __init__(self, setting: SpriteSetting, arrays: Mapping[str, np.ndarray]) -> None:
        self.setting = setting
        self._arrays = arrays
        self.judge = Judge(*(cached.regressor_of(self._part(f"regressor {i}")) for i in range(2)))

    def _part(self, name: str) -> dict[str, Tensor]:
        return {k.partition("/")[2]: torch.from_numpy(v.copy()) for k, v in self._arrays.items() if k.partition("/")[0] == name}

    @cached_property
    def bed(self) -> Bed:
        """The generator with samples to search and to judge on, and the scale."""
        s, sizes, held = self.setting, self.setting.sizes, self._part("generator")
        if isinstance(sizes, GanSizes):
            latent = cached.latent_generator(cached.gan_of(sizes, held), sizes)
            return _scaled(LatentBed(latent, s.samples, s.images, seed=s.seed), s.scale)
        model = cached.diffusion_generator(cached.diffusion_of(sizes, held))
        source = patches(sprites(drawn_factors(s.samples, torch.Generator().manual_seed(s.seed + 11))))
        steps = _TINY_DDIM if s.tiny else _DDIM
        return _scaled(DiffusionBed(model, source, from_patches, s.site, held=s.images, steps=steps, seed=s.seed), s.scale)

    def labelled(self) -> Float[np.ndarray, "factor width"] | None:
        """Directions with labels: a regression on z, or the word for high minus the word for low; None of h."""
        bed = self.bed
        if isinstance(bed, LatentBed):
            z = bed.generator.latents(_LABELLED, self.setting.seed + 91)
            with torch.no_grad():
                factors = self.judge.read(bed.generator.images(z).clamp(0, 1))
            return regressed(z, factors).numpy()
        if self.setting.site != "conditioning":
            return None
        table = self._part("generator")["words.weight"]
        row = {word: i for i, word in enumerate(WORDS)}
        ends = [(row[f"{LEVELS[-1]} {f}"], row[f"{LEVELS[0]} {f}"]) for f in FACTORS]
        return torch.stack([table[high] - table[low] for high, low in ends]).numpy()

    @torch.no_grad()
    def drawn(self, count: int, seed: int) -> Float[Tensor, "image pixel"]:
        """Images of the generator, from 0 to 1."""
        bed = self.bed
        if isinstance(bed, LatentBed):
            return bed.generator.images(bed.generator.latents(count, seed)).clamp(0, 1)
        assert isinstance(bed, DiffusionBed)
        return bed.decode(bed.generator.sample(bed.generator.noise(count, seed), bed.steps))


def _scaled(bed: SomeBed, relative: float | None) -> SomeBed:
    """The bed at a relative scale, where one is given."""
    if relative is not None:
        bed.scale = relative * bed.context.norm
    return bed
