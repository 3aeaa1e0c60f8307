"""Material of a comparison of methods: a trained generator as a test bed, a judge, directions with labels; what all kinds share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.discovery.generators.beds import Bed, DiffusionBed, LatentBed
from repscope.discovery.generators.closed_form import regressed
from repscope.discovery.generators.judges import Judge

SomeBed = TypeVar("SomeBed", LatentBed, DiffusionBed)
_LABELLED = 4096  #: images from which directions with labels are fitted


class Material(Protocol):
    """A generator with its judge, from the arrays of `Setting.trained`."""

    @property
    def judge(self) -> Judge:
        """Reads known properties from images."""

    @property
    def bed(self) -> Bed:
        """The generator with samples to search and to judge on, and the scale."""

    def labelled(self) -> Float[np.ndarray, "property width"] | None:
        """Directions with labels; None where there are none."""

    def drawn(self, count: int, seed: int) -> Float[Tensor, "image pixel"]:
        """Images of the generator, from 0 to 1."""

    def real(self, count: int, seed: int) -> Float[Tensor, "image pixel"]:
        """Images of the data that nothing was trained on."""


class Setting(Protocol):
    """A generator and how it is searched."""

    @property
    def steps(self) -> int:
        """Of its training."""

    def trained(self, folder: Path | None = None) -> dict[str, np.ndarray]:
        """Tensors of the generator and of what reads its images, by name. folder: of their files; the user's cache by default."""

    def is_cached(self) -> bool:
        """Whether the generator is in the user's cache, so that it will not be trained."""

    def material(self, arrays: Mapping[str, np.ndarray]) -> Material:
        """The generator and the judge from these arrays."""


def part(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, Tensor]:
    """The tensors of one network."""
    return {k.partition("/")[2]: torch.from_numpy(v.copy()) for k, v in arrays.items() if k.partition("/")[0] == name}


def scaled(bed: SomeBed, relative: float | None) -> SomeBed:
    """The bed at a relative scale, where one is given."""
    if relative is not None:
        bed.scale = relative * bed.context.norm
    return bed


@torch.no_grad()
def drawn_from(bed: Bed, count: int, seed: int) -> Float[Tensor, "image pixel"]:
    """Images of the generator, from 0 to 1."""
    if isinstance(bed, LatentBed):
        return bed.generator.images(bed.generator.latents(count, seed)).clamp(0, 1)
    assert isinstance(bed, DiffusionBed)
    return bed.decode(bed.generator.sample(bed.generator.noise(count, seed), bed.steps))


def latents_regressed(bed: LatentBed, judge: Judge, seed: int) -> Float[np.ndarray, "property latent"]:
    """Directions with labels: a regression of what is read from images on z."""
    z = bed.generator.latents(_LABELLED, seed)
    with torch.no_grad():
        read = judge.read(bed.generator.images(z).clamp(0, 1))
    return regressed(z, read).numpy()
