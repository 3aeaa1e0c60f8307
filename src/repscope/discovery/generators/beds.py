"""Test beds: generators with the samples that directions are found on, other samples for their evaluation, and one scale.

A bed gives images from 0 to 1 for vectors that are added, one per direction and sample, which covers directions that depend on z.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.arrays import as_tensor
from repscope.discovery.generators.subjects import DiffusionSubject, NoisyImages, latent_subject, noisy_images
from repscope.discovery.subject import Context, Subject
from repscope.errors import UserError
from repscope.models.generators import DiffusionGenerator, LatentGenerator
from repscope.models.generators.ddim import descending

TIMES = (0.3, 0.5, 0.7)  #: at which a diffusion model is searched, as shares of the noise schedule
_ROWS = 512
_MOST = 20.0  #: median size of values of a model: those of latents are a few, those of bytes a hundred


def _shifted(values: Float[Tensor, "row value"]) -> Float[Tensor, "row pixel"]:
    """Values from -1 to 1 as pixels."""
    return ((values + 1) / 2).clamp(0, 1)


class Bed(ABC):
    """What is searched and judged.

    subject, context: for the search. scale: norm of every vector. held: number of images to judge.
    """

    subject: Subject
    context: Context
    scale: float
    held: int

    @abstractmethod
    def images(self, vectors: Float[Tensor, "direction image width"]) -> Float[Tensor, "direction image pixel"]:
        """The held-out images with these vectors added."""

    def dosed(
        self, unit: Float[Tensor, "direction image width"], doses: tuple[float, ...]
    ) -> Float[Tensor, "dose direction image pixel"]:
        """The held-out images with multiples of unit vectors at the scale. The dose 0 is computed once for all directions.

        Raises
        ------
        UserError
            For vectors that are not one per direction and held-out image.
        """
        unit = self._fitting(unit)
        count = len(unit)
        plain = self.images(torch.zeros_like(unit[:1])).expand(count, -1, -1)
        return torch.stack([plain if dose == 0 else self.images(dose * self.scale * unit) for dose in doses])

    def every(self, unit: Float[np.ndarray, "direction width"]) -> Float[Tensor, "direction image width"]:
        """The same vector for every image."""
        return as_tensor(unit, "directions", "direction width").detach().float()[:, None].expand(-1, self.held, -1)

    def _fitting(self, vectors: Float[Tensor, "direction image width"]) -> Float[Tensor, "direction image width"]:
        vectors, width = as_tensor(vectors, "vectors", "direction image width"), self.context.width
        if vectors.shape[1:] != (self.held, width):
            raise UserError(
                f"The vectors have the shape {tuple(vectors.shape)}; give (direction, {self.held}, {width}), as `every` does."
            )
        return vectors

    def _need_sizes(self) -> None:
        if self.held < 1:
            raise UserError(f"{self.held} held-out images are asked for; ask for at least 1.")
        if not 0 <= self.scale < float("inf"):
            raise UserError(f"The scale is {self.scale}; it must be finite and above 0, or 0 for half the median norm.")


@dataclass(eq=False)
class LatentBed(Bed):
    """A generator with a latent. samples: latents of the search. held: latents to judge. scale: 0 for half the median norm of z."""

    generator: LatentGenerator
    samples: int = 16
    held: int = 64
    scale: float = 0.0
    seed: int = 0
    subject: Subject = field(init=False)
    context: Context = field(init=False)

    def __post_init__(self) -> None:
        self._need_sizes()
        self.subject = latent_subject(self.generator)
        self.context = self.subject.context(self.generator.latents(self.samples, 2 * self.seed + 1))
        self.z = self.generator.latents(self.held, 2 * self.seed + 2)
        self.scale = self.scale or self.context.norm / 2

    @torch.no_grad()
    def images(self, vectors: Float[Tensor, "direction image width"]) -> Float[Tensor, "direction image pixel"]:
        """As `Bed`."""
        found = [self.generator.images(some) for some in torch.split((self.z + self._fitting(vectors)).flatten(0, 1), _ROWS * 8)]
        return torch.unflatten(torch.cat(found), 0, vectors.shape[:2]).clamp(0, 1)


@dataclass(eq=False)
class DiffusionBed(Bed):
    """A diffusion model.

    source: images of the search, one row each, in the model's values (mostly from -1 to 1). decode: its values to pixels from 0 to
    1. site: where vectors are added. target: where effects are read. scale: norm; 0 for half the median norm of the source states.
    steps: of DDIM. held: noises to judge.

    Raises a `UserError` for images of another shape or with values that are none of the model's, and for impossible numbers.
    """

    generator: DiffusionGenerator
    source: Float[Tensor, "image pixel"] = field(repr=False)
    decode: Callable[[Tensor], Tensor] = _shifted
    site: str = "conditioning"
    target: str = "noise"
    held: int = 24
    steps: int = 10
    scale: float = 0.0
    seed: int = 0
    subject: Subject = field(init=False)
    context: Context = field(init=False)

    def __post_init__(self) -> None:
        pixels = self.generator.pixels
        self.source = as_tensor(self.source, "images")
        if self.source.dim() != 2 or self.source.shape[1] != pixels:
            raise UserError(
                f"The images have the shape {tuple(self.source.shape)}; give (image, {pixels}), channels, rows and columns in one."
            )
        if not torch.isfinite(self.source).all() or float(self.source.abs().median()) > _MOST:
            raise UserError(
                "The images are not numbers near those that the model draws; give values as it has them, mostly from -1 to 1."
            )
        self._need_sizes()
        descending(self.generator.levels, self.steps)
        self.subject = DiffusionSubject(self.generator, self.site, self.target)
        self.context = self.subject.context(self.noisy)
        self.scale = self.scale or self.context.norm / 2
        self.start = self.generator.noise(self.held, 2 * self.seed + 2)

    @property
    def noisy(self) -> NoisyImages:
        """Noisy images of the search: every image at every time."""
        return noisy_images(self.generator, self.source, TIMES, 2 * self.seed + 1)

    def images(self, vectors: Float[Tensor, "direction image width"]) -> Float[Tensor, "direction image pixel"]:
        """As `Bed`."""
        vectors = self._fitting(vectors)
        noise = self.start.expand(len(vectors), -1, -1).flatten(0, 1)
        added = vectors.flatten(0, 1)
        found = [
            self.generator.sample(some, self.steps, self.site, with_)
            for some, with_ in zip(torch.split(noise, _ROWS), torch.split(added, _ROWS))
        ]
        return torch.unflatten(self.decode(torch.cat(found)), 0, vectors.shape[:2])
