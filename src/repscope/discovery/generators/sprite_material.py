"""Generators of sprites with all that a comparison of methods needs: trained networks, test bed, judge, directions with labels."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.discovery.generators.beds import Bed, DiffusionBed, LatentBed
from repscope.discovery.generators.judges import SpriteJudge
from repscope.discovery.generators.material import drawn_from, latents_regressed, part, scaled
from repscope.worlds.sprites import FACTORS, cached, drawn_factors, sprites
from repscope.worlds.sprites.diffusion import LEVELS, WORDS, DiffusionSizes, from_patches, patches
from repscope.worlds.sprites.gan import GanSizes

_TINY_REGRESSOR = 20  #: steps
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

    @property
    def steps(self) -> int:
        """Of the training."""
        return self.sizes.steps

    def is_cached(self) -> bool:
        """Whether the generator is in the user's cache, so that it will not be trained."""
        return cached.is_cached(self.kind, asdict(self.sizes))

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

    def material(self, arrays: Mapping[str, np.ndarray]) -> "SpriteMaterial":
        """The generator and the judge from these arrays."""
        return SpriteMaterial(self, arrays)


class SpriteMaterial:
    """The generator and the judge, from the arrays of `SpriteSetting.trained`."""

    def __init__(self, setting: SpriteSetting, arrays: Mapping[str, np.ndarray]) -> None:
        self.setting = setting
        self._arrays = arrays
        self.judge = SpriteJudge(*(cached.regressor_of(part(arrays, f"regressor {i}")) for i in range(2)))

    @cached_property
    def bed(self) -> Bed:
        """The generator with samples to search and to judge on, and the scale."""
        s, sizes, held = self.setting, self.setting.sizes, part(self._arrays, "generator")
        if isinstance(sizes, GanSizes):
            latent = cached.latent_generator(cached.gan_of(sizes, held), sizes)
            return scaled(LatentBed(latent, s.samples, s.images, seed=s.seed), s.scale)
        model = cached.diffusion_generator(cached.diffusion_of(sizes, held))
        source = patches(sprites(drawn_factors(s.samples, torch.Generator().manual_seed(s.seed + 11))))
        steps = _TINY_DDIM if s.tiny else _DDIM
        return scaled(DiffusionBed(model, source, from_patches, s.site, held=s.images, steps=steps, seed=s.seed), s.scale)

    def labelled(self) -> Float[np.ndarray, "factor width"] | None:
        """Directions with labels: a regression on z, or the word for high minus the word for low; None of h."""
        bed = self.bed
        if isinstance(bed, LatentBed):
            return latents_regressed(bed, self.judge, self.setting.seed + 91)
        if self.setting.site != "conditioning":
            return None
        table = part(self._arrays, "generator")["words.weight"]
        row = {word: i for i, word in enumerate(WORDS)}
        ends = [(row[f"{LEVELS[-1]} {f}"], row[f"{LEVELS[0]} {f}"]) for f in FACTORS]
        return torch.stack([table[high] - table[low] for high, low in ends]).numpy()

    def drawn(self, count: int, seed: int) -> Float[Tensor, "image pixel"]:
        """Images of the generator, from 0 to 1."""
        return drawn_from(self.bed, count, seed)

    def real(self, count: int, seed: int) -> Float[Tensor, "image pixel"]:
        """Fresh sprites."""
        return sprites(drawn_factors(count, torch.Generator().manual_seed(seed)))
