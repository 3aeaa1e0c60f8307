"""A small generative adversarial network on sprites or other small images, trained on one core in minutes.

1. Generator: z ~ N(0, I) to an image by dense layers (`layers.0` is the projection whose weight SeFa reads; LatentCLR's features
   are the output of `layers.3`). Discriminator: two convolutions with stride and two dense layers.
2. Non-saturating logistic loss (Goodfellow et al. 2014) with the R1 penalty on real images (Mescheder, Geiger & Nowozin 2018),
   taken every eighth step at eightfold weight (Karras et al. 2020). Adam, betas (0, 0.99).
3. The result is the exponential moving average of the generator's weights.
Every step draws its images from the seed and its own number, so a resumed training ends with the same weights.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from repscope.errors import UserError
from repscope.worlds.sprites.drawing import PIXELS, SIDE, drawn_factors, sprites
from repscope.worlds.sprites.training_state import train_averaged

FEATURES = "layers.3"  #: module whose output LatentCLR compares
_LAZY = 8  #: steps between two penalties


@dataclass(frozen=True)
class GanSizes:
    """Sizes and schedule. latent: width of z. width: of the generator. channels: of the discriminator's first convolution.

    batch: images per step. steps: updates of each network. rate: of Adam. penalty: weight of R1. average: share of the old average
    per step. keep: steps between saved states.
    """

    latent: int = 12
    width: int = 256
    channels: int = 16
    batch: int = 64
    steps: int = 4000
    rate: float = 1e-3
    penalty: float = 0.5
    average: float = 0.998
    keep: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes below one, and rates that train nothing."""
        sizes = (self.latent, self.width, self.channels, self.batch, self.steps, self.keep)
        if min(sizes) < 1 or not self.rate > 0 or self.penalty < 0 or not 0 <= self.average < 1:
            raise UserError(f"{self} trains nothing: sizes are at least 1, the rate is above 0.")


class SpriteGenerator(nn.Module):
    """z (row, latent) to images (row, pixel) with values from 0 to 1."""

    def __init__(self, latent: int, width: int, pixels: int = PIXELS) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Linear(2 * width, pixels),
        )

    def forward(self, z: Float[Tensor, "row latent"]) -> Float[Tensor, "row pixel"]:
        """Images."""
        images: Tensor = torch.sigmoid(self.layers(z))
        return images


class SpriteDiscriminator(nn.Module):
    """Images (row, pixel) to one logit per row: above 0 for real."""

    def __init__(self, channels: int, side: int = SIDE) -> None:
        super().__init__()
        self.side = side
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 2 * channels, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(2 * channels * (side // 4) ** 2, 128),
            nn.LeakyReLU(0.2),
            nn.Linear(128, 1),
        )

    def forward(self, images: Float[Tensor, "row pixel"]) -> Float[Tensor, "row"]:
        """Logits."""
        logits: Tensor = self.layers(2 * images.reshape(-1, 1, self.side, self.side) - 1)[:, 0]
        return logits


@dataclass(frozen=True, eq=False)
class TrainedGan:
    """generator: in evaluation mode. losses: of generator and discriminator, per step."""

    generator: SpriteGenerator
    losses: Float[np.ndarray, "step network"]


def sprite_batch(count: int, seed: int) -> Float[Tensor, "image pixel"]:
    """Fresh sprites."""
    return sprites(drawn_factors(count, torch.Generator().manual_seed(seed)))


@dataclass(frozen=True)
class GanImages:
    """Images that a GAN learns to draw.

    name: of its file in the cache. side: pixels, a multiple of 4. batch: (count, seed) → images with values from 0 to 1.
    """

    name: str
    side: int
    batch: Callable[[int, int], Float[Tensor, "image pixel"]]


SPRITES = GanImages("gan", SIDE, sprite_batch)


def train_gan(sizes: GanSizes, *, saved: Path | None = None, images: GanImages = SPRITES) -> TrainedGan:
    """Train the two networks.

    Parameters
    ----------
    sizes
        Of networks and schedule.
    saved
        File for the state of an interrupted training; removed at the end.
    images
        The real images.

    Raises
    ------
    UserError
        When a loss is not a number.
    """
    s = sizes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        generator = SpriteGenerator(s.latent, s.width, images.side**2)
        discriminator = SpriteDiscriminator(s.channels, images.side)
    average = deepcopy(generator).requires_grad_(False)
    modules = {"generator": generator, "discriminator": discriminator, "average": average}
    trained = {k: modules[k] for k in ("generator", "discriminator")}
    adams = {k: torch.optim.Adam(m.parameters(), lr=s.rate, betas=(0.0, 0.99), fused=True) for k, m in trained.items()}

    def update(step: int) -> Float[np.ndarray, "network"]:
        for adam in adams.values():
            for group in adam.param_groups:
                group["lr"] = s.rate * min(1.0, 2 * (1 - step / s.steps))
        return _step(s, step, modules, adams, images.batch(s.batch, s.seed * 1_000_003 + step))

    return TrainedGan(average.eval(), train_averaged("GAN", s, saved, modules, adams, update))


def _step(
    s: GanSizes, step: int, modules: dict[str, nn.Module], adams: dict[str, torch.optim.Adam], real: Tensor
) -> Float[np.ndarray, "network"]:
    """One update of the discriminator, then one of the generator; their losses."""
    generator, discriminator = modules["generator"], modules["discriminator"]
    draw = torch.Generator().manual_seed((s.seed + 7) * 1_000_003 + step)
    with torch.no_grad():
        fake = generator(torch.randn(s.batch, s.latent, generator=draw))
    lazy = s.penalty > 0 and step % _LAZY == 0
    real = real.requires_grad_(lazy)
    on_real = discriminator(real)
    loss = functional.softplus(-on_real).mean() + functional.softplus(discriminator(fake)).mean()
    shown = loss.detach()
    if lazy:
        (slope,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
        loss = loss + _LAZY * s.penalty / 2 * slope.square().sum(1).mean()
    adams["discriminator"].zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    adams["discriminator"].step()
    discriminator.requires_grad_(False)
    other = functional.softplus(-discriminator(generator(torch.randn(s.batch, s.latent, generator=draw)))).mean()
    adams["generator"].zero_grad()
    other.backward()  # type: ignore[no-untyped-call]
    adams["generator"].step()
    discriminator.requires_grad_(True)
    both = torch.stack([other.detach(), shown])
    if not bool(torch.isfinite(both).all()):
        raise UserError(f"The loss of the GAN is not a number at step {step}; lower the rate of {s.rate:g}.")
    found: np.ndarray = both.double().numpy()
    return found
