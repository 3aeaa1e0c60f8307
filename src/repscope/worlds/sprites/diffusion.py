"""A small diffusion model of captioned sprites: diffusers' `UNet2DConditionModel` and `DDPMScheduler`, trained in minutes.

1. Captions: two words per image, drawn from those that are true of it. Each factor has three words: low, middle, high. A word is
   replaced by the empty word with probability 0.2, both of a caption with probability 0.3. Words are vectors in a trained table;
   row 0 is the empty word. As in text-to-image models, networks learn what words mean, and directions are sought without them.
2. U-Net: an image is 8 × 8 patches of 2 × 2 pixels, with values from -1 to 1 (`patches`). Residual blocks at 8 × 8 and 4 × 4,
   cross-attention to the words in the middle block. It predicts v (Salimans & Ho 2022), so that sampling can begin at the last time
   of the training, all noise (Lin et al. 2024), where predicted noise says nothing of the image.
3. Adam, linear decay over the second half, exponential moving average of weights. Resumable as `gan`.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from repscope.errors import UserError, unknown
from repscope.models.generators.pipeline_folder import diffusers_package
from repscope.worlds.sprites.drawing import FACTORS, SIDE, drawn_factors, sprites
from repscope.worlds.sprites.training_state import train_averaged

LEVELS = ("low", "middle", "high")
WORDS = ("", *(f"{level} {factor}" for factor in FACTORS for level in LEVELS))  #: the empty word first
CAPTION = 2  #: words
_PATCH = 2
SHAPE = (_PATCH**2, SIDE // _PATCH, SIDE // _PATCH)  #: of an image as the network sees it
_DROP_WORD, _DROP_ALL = 0.2, 0.3


@dataclass(frozen=True)
class DiffusionSizes:
    """Sizes and schedule. channels: per resolution. words: width of a word's vector. timesteps: of the noise schedule. prediction:
    what the network predicts, `v_prediction` or `epsilon`, as in diffusers.

    batch, steps, rate, average, keep, seed: as `GanSizes`.
    """

    channels: tuple[int, ...] = (24, 32)
    words: int = 32
    timesteps: int = 200
    prediction: str = "v_prediction"
    batch: int = 64
    steps: int = 2400
    rate: float = 2e-3
    average: float = 0.995
    keep: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes below one, and rates that train nothing."""
        sizes = (*self.channels, self.words, self.timesteps, self.batch, self.steps, self.keep)
        if not self.channels or min(sizes) < 1 or not self.rate > 0 or not 0 <= self.average < 1:
            raise UserError(f"{self} trains nothing: sizes are at least 1, the rate is above 0.")
        if any(c % 8 for c in self.channels):
            raise UserError(f"The channels {self.channels} are not multiples of 8, the size of a group and of an attention head.")
        if self.prediction not in ("v_prediction", "epsilon"):
            raise unknown("prediction of a diffusion model", self.prediction, ("v_prediction", "epsilon"))


class CaptionedUNet(nn.Module):
    """A U-Net and the vectors of the words that it attends to."""

    def __init__(self, sizes: DiffusionSizes) -> None:
        super().__init__()
        self.unet = _unet(sizes)
        self.words = nn.Embedding(len(WORDS), sizes.words)

    def forward(self, x: Tensor, t: Tensor, caption: Tensor) -> Tensor:
        """What the network predicts of images (row, 4, side / 2, side / 2)."""
        predicted: Tensor = self.unet(x, t, encoder_hidden_states=self.words(caption)).sample
        return predicted


@dataclass(frozen=True, eq=False)
class TrainedDiffusion:
    """network: in evaluation mode. scheduler: its `DDPMScheduler`. losses: per step, mean squared error of
    what it predicts."""

    network: CaptionedUNet
    scheduler: Any
    losses: Float[np.ndarray, "step"]


def captions(factors: Float[Tensor, "image factor"], generator: torch.Generator) -> Int[Tensor, "image word"]:
    """Words that are true of the images, some left out."""
    level = ((factors.clamp(-0.999, 0.999) + 1) * len(LEVELS) / 2).long()
    which = torch.randint(len(FACTORS), (len(factors), CAPTION), generator=generator)
    found = 1 + len(LEVELS) * which + level.gather(1, which)
    left_out = torch.rand(found.shape, generator=generator) < _DROP_WORD
    left_out |= torch.rand(len(found), 1, generator=generator) < _DROP_ALL
    return found.masked_fill(left_out, 0)


def patches(images: Float[Tensor, "image pixel"]) -> Float[Tensor, "image value"]:
    """Images with pixels from 0 to 1 as the network's input, flat: a channel per pixel of a patch, from -1 to 1."""
    return functional.pixel_unshuffle(2 * images.reshape(-1, 1, SIDE, SIDE) - 1, _PATCH).flatten(1)


def from_patches(values: Float[Tensor, "image value"]) -> Float[Tensor, "image pixel"]:
    """The inverse of `patches`; pixels are cut to 0 and 1."""
    return (functional.pixel_shuffle(values.reshape(-1, *SHAPE), _PATCH).flatten(1) / 2 + 0.5).clamp(0, 1)


def train_diffusion(sizes: DiffusionSizes, *, saved: Path | None = None) -> TrainedDiffusion:
    """Train the network.

    Parameters
    ----------
    sizes
        Of network and schedule.
    saved
        File for the state of an interrupted training; removed at the end.

    Raises
    ------
    UserError
        When a loss is not a number.
    """
    s = sizes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        network = CaptionedUNet(s)
    average = deepcopy(network).requires_grad_(False)
    modules: dict[str, nn.Module] = {"network": network, "average": average}
    adam = torch.optim.Adam(network.parameters(), lr=s.rate, betas=(0.9, 0.99), fused=True)
    scheduler = noise_schedule(s)

    def update(step: int) -> Float[np.ndarray, ""]:
        draw = torch.Generator().manual_seed(s.seed * 1_000_003 + step)
        factors = drawn_factors(s.batch, draw)
        x0 = patches(sprites(factors)).reshape(-1, *SHAPE)
        noise = torch.randn(x0.shape, generator=draw)
        t = torch.randint(s.timesteps, (s.batch,), generator=draw)
        predicted = network(scheduler.add_noise(x0, noise, t), t, captions(factors, draw))
        target = noise if s.prediction == "epsilon" else scheduler.get_velocity(x0, noise, t)
        loss = functional.mse_loss(predicted, target)
        if not bool(torch.isfinite(loss)):
            raise UserError(f"The loss of the diffusion model is not a number at step {step}; lower the rate of {s.rate:g}.")
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in adam.param_groups:
            group["lr"] = s.rate * min(1.0, (step + 1) / 50, 2 * (1 - step / s.steps))
        adam.step()
        found: np.ndarray = loss.detach().double().numpy()
        return found

    losses = train_averaged("diffusion model", s, saved, modules, {"network": adam}, update)
    return TrainedDiffusion(average.eval(), scheduler, losses)


def noise_schedule(sizes: DiffusionSizes) -> Any:
    """diffusers' `DDPMScheduler` with a cosine schedule; predicted images are not clipped, so that DDIM can be inverted."""
    return diffusers_package().DDPMScheduler(
        num_train_timesteps=sizes.timesteps,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        prediction_type=sizes.prediction,
        timestep_spacing="leading" if sizes.prediction == "epsilon" else "trailing",
    )


def _unet(sizes: DiffusionSizes) -> Any:
    return diffusers_package().UNet2DConditionModel(
        sample_size=SHAPE[1],
        in_channels=SHAPE[0],
        out_channels=SHAPE[0],
        block_out_channels=sizes.channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * len(sizes.channels),
        up_block_types=("UpBlock2D",) * len(sizes.channels),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=sizes.words,
        attention_head_dim=8,
        norm_num_groups=8,
    )
