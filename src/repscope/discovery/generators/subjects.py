"""Generators as subjects of discovery: every objective and solver of `repscope.discovery` runs on them.

1. A generator with a latent: vectors are added to z, effects are those on its features, flat. With `unit_features` features have
   unit norm before the difference is taken, as LatentCLR does.
2. A diffusion model: vectors are added at a site (`conditioning`, `h`, `x_t`) at noisy images of several times; effects are those
   on the predicted noise, or on the bottleneck (`h`), which gives the pullback of Park et al. (2023) with the solver `jacobian`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from repscope.arrays import as_tensor
from repscope.discovery.generators.shared_reads import SharedReads
from repscope.discovery.subject import Context, FunctionSubject, Subject
from repscope.errors import UserError, unknown
from repscope.models.generators import DiffusionGenerator, LatentGenerator
from repscope.models.generators.diffusion import SITES
from repscope.models.generators.latent import LATENT_SITE
from repscope.models.variants.block_replay import Part

PASS_ROWS = 512  #: rows of noisy images per pass of a U-Net
TARGETS = ("noise", "h")


@dataclass(frozen=True, eq=False)
class NoisyImages:
    """Noisy images and their times. x: (row, pixel). t: (row)."""

    x: Float[Tensor, "row pixel"]
    t: Int[Tensor, "row"]


def latent_subject(generator: LatentGenerator, *, unit_features: bool = False) -> FunctionSubject:
    """Vectors are added to z; effects on the features."""

    def features(z: Tensor) -> Tensor:
        found = generator.features(z)
        return functional.normalize(found, dim=-1) if unit_features else found

    return FunctionSubject(features, LATENT_SITE, generator.model)


def noisy_images(
    generator: DiffusionGenerator, images: Float[Tensor, "row pixel"], times: tuple[float, ...], seed: int
) -> NoisyImages:
    """Each image at each time. times: as shares of the training's times, from 0 (image) to 1 (noise).

    Raises
    ------
    UserError
        For times outside [0, 1], without an image, and for images of another size.
    """
    images, times = as_tensor(images, "images", "image pixel"), tuple(times)
    if images.shape[1] != generator.pixels:
        raise UserError(f"The images have {images.shape[1]} pixels; this U-Net takes {generator.pixels}.")
    if not times or not all(0 <= time <= 1 for time in times):
        raise UserError(f"The times are {times}; give shares from 0 to 1 of the noise schedule.")
    if not len(images):
        raise UserError("There is no image to add noise to; give at least one.")
    last = len(generator.levels) - 1
    t = torch.tensor([round(time * last) for time in times]).repeat_interleave(len(images))
    noise = torch.randn(len(t), images.shape[1], generator=torch.Generator().manual_seed(seed))
    return NoisyImages(generator.noised(images.repeat(len(times), 1), noise, t), t)


class DiffusionSubject(Subject):
    """A diffusion model.

    Parameters
    ----------
    generator
        The model.
    site
        Where vectors are added: `conditioning`, `h` or `x_t`.
    target
        Where effects are read: `noise`, the predicted noise, or `h`, the bottleneck.
    share
        Whether what does not depend on the vectors runs once per noisy image (`shared_reads`); False for whole passes.
    """

    def __init__(
        self, generator: DiffusionGenerator, site: str = "conditioning", target: str = "noise", *, share: bool = True
    ) -> None:
        if target not in TARGETS:
            raise unknown("target of a diffusion model", target, TARGETS)
        if site == "h" and target == "h":
            raise UserError("A vector added at h moves h by itself; take the target noise.")
        self.generator, self.place, self.target, self.share = generator, site, target, share
        self.width = generator.width(site)
        self.site, self.model = SITES[site], generator.model

    def context(self, prompts: NoisyImages) -> Context:
        """Cache what the network makes of the noisy images without a vector. Every noisy image counts as a prompt.

        Raises
        ------
        UserError
            For what are no `NoisyImages`.
        """
        if not isinstance(prompts, NoisyImages):
            raise UserError(
                f"A diffusion model is searched on noisy images, and these are {type(prompts).__name__}; make noisy_images."
            )
        x, t = as_tensor(prompts.x, "noisy images", "row pixel"), torch.as_tensor(prompts.t)
        states = self._states(x, t)
        norm = float(states.norm(dim=-1).median()) or 1.0
        reads = SharedReads(self.generator, self._read, self.width, norm, share=self.share)
        base, moved = reads.at(x, t)

        def run(vectors: Tensor) -> Tensor:
            return moved(vectors[:, None].expand(-1, len(x), -1)) - base

        rows = torch.arange(len(x))
        part = Part(len(x), rows, len(x), run)
        spread = base.std(0, correction=0)
        graph = 4.0 * 200 * self.generator.pixels  # bytes per row, roughly; a small U-Net keeps about so many maps of its input
        return Context([part], rows, len(x), self.width, base.shape[1], states, spread, PASS_ROWS, graph, reads.why)

    @torch.no_grad()
    def _states(self, x: Tensor, t: Tensor) -> Float[Tensor, "state width"]:
        """Source states: the unit of relative scales."""
        if self.place == "x_t":
            return x
        if self.place == "h":
            return self.generator.bottleneck(x, t)
        assert self.generator.empty is not None
        return self.generator.empty.float()

    def _read(self, x: Tensor, t: Tensor, vectors: Tensor | None) -> Tensor:
        site = "" if vectors is None else self.place
        if self.target == "h":
            return self.generator.bottleneck(x, t, site, vectors)
        return self.generator.predicted(x, t, site, vectors)
