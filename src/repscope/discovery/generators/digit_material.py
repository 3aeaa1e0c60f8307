"""A GAN of scikit-learn's digits with all that a comparison of methods needs: classifiers as the judge, test bed, labels."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.discovery.generators.beds import Bed, LatentBed
from repscope.discovery.generators.judges import DigitJudge
from repscope.discovery.generators.material import drawn_from, latents_regressed, part, scaled
from repscope.worlds.digit_classifier import held_out_digits
from repscope.worlds.sprites import cached
from repscope.worlds.sprites.gan import GanSizes

_TINY_CLASSIFIER = 20  #: steps


@dataclass(frozen=True)
class DigitSetting:
    """As `SpriteSetting`, of a GAN of digits."""

    samples: int = 16
    images: int = 64
    scale: float | None = None
    seed: int = 0
    tiny: bool = False

    @property
    def sizes(self) -> GanSizes:
        """Of the generator."""
        if self.tiny:
            return GanSizes(latent=4, width=8, channels=4, batch=8, steps=20, seed=self.seed)
        return GanSizes(latent=16, seed=self.seed)

    @property
    def steps(self) -> int:
        """Of the training."""
        return self.sizes.steps

    def is_cached(self) -> bool:
        """As `Setting`."""
        return cached.is_cached(cached.DIGITS.name, asdict(self.sizes))

    def trained(self, folder: Path | None = None) -> dict[str, np.ndarray]:
        """As `Setting`."""
        gan = cached.cached_gan(self.sizes, folder, cached.DIGITS)
        held = {**gan.generator.state_dict(), "losses": torch.from_numpy(gan.losses)}
        arrays = {f"generator/{k}": v.numpy() for k, v in held.items()}
        few = {"steps": _TINY_CLASSIFIER} if self.tiny else {}
        for i in range(2):
            one = cached.cached_classifier(2 * self.seed + i, folder=folder, **few)
            arrays |= {f"classifier {i}/{k}": v.numpy() for k, v in one.weights.items()} | {
                f"classifier {i}/accuracy": one.accuracy
            }
        return arrays

    def material(self, arrays: Mapping[str, np.ndarray]) -> "DigitMaterial":
        """As `Setting`."""
        return DigitMaterial(self, arrays)


class DigitMaterial:
    """The generator and the judge, from the arrays of `DigitSetting.trained`."""

    def __init__(self, setting: DigitSetting, arrays: Mapping[str, np.ndarray]) -> None:
        self.setting = setting
        self._arrays = arrays
        self.judge = DigitJudge(*(cached.classifier_of(part(arrays, f"classifier {i}")) for i in range(2)))

    @cached_property
    def bed(self) -> Bed:
        """As `Material`."""
        return self._latent_bed

    @cached_property
    def _latent_bed(self) -> LatentBed:
        s = self.setting
        gan = cached.gan_of(s.sizes, part(self._arrays, "generator"), cached.DIGITS)
        return scaled(LatentBed(cached.latent_generator(gan, s.sizes, "GAN on digits"), s.samples, s.images, seed=s.seed), s.scale)

    def labelled(self) -> Float[np.ndarray, "class latent"]:
        """A regression of the probabilities of classes on z."""
        return latents_regressed(self._latent_bed, self.judge, self.setting.seed + 91)

    def drawn(self, count: int, seed: int) -> Float[Tensor, "image pixel"]:
        """As `Material`."""
        return drawn_from(self.bed, count, seed)

    def real(self, count: int, seed: int) -> Float[Tensor, "image pixel"]:
        """Test digits."""
        return held_out_digits(count, seed)
