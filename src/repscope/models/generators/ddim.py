"""DDIM: one step between two noise levels, and the noise levels of a number of steps (Song, Meng & Ermon 2021).

    x_s = sqrt(abar_s) P(eps~) + sqrt(1 - abar_s) eps,     P(eps~) = (x_t - sqrt(1 - abar_t) eps~) / sqrt(abar_t)

Sampling goes from larger t to smaller ones, inversion the other way with the noise predicted at the level that is left. With
eps~ = eps this is DDIM; Asyrp (Kwon, Jeong & Uh 2023) edits eps~ alone. Where the scheduler clips predicted images, sampling does
so too; inversion never does, and its round trip is not exact there.
"""

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from repscope.errors import UserError

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def noise_levels(scheduler: Any) -> Float[Tensor, "time"]:
    """abar_t of a scheduler's training.

    Raises
    ------
    UserError
        If the scheduler has none, as those of flow matching: DDIM cannot be inverted there; and for dynamic thresholding.
    """
    name = type(scheduler).__name__
    if getattr(getattr(scheduler, "config", None), "thresholding", False):
        raise UserError(f"The scheduler {name} has dynamic thresholding, which is not made here; set thresholding=False.")
    levels = getattr(scheduler, "alphas_cumprod", None)
    prediction = getattr(getattr(scheduler, "config", None), "prediction_type", None)
    if not isinstance(levels, Tensor) or prediction not in PREDICTIONS:
        raise UserError(f"The scheduler {name} has no DDIM inversion; open a pipeline with a DDPMScheduler or a DDIMScheduler.")
    return levels.float()


def descending(levels: Float[Tensor, "time"], steps: int, spacing: str = "leading") -> list[tuple[int, int]]:
    """Pairs (t, next smaller t) of equally spaced steps, from noise to image; -1 is the image (abar = 1).

    spacing: diffusers' `timestep_spacing`. `trailing` begins at the last time of the training, all noise, as samples do (Lin et al.
    2024); every other value is taken as `leading`, which ends at time 0.

    Raises
    ------
    UserError
        For fewer than one step, or more than the training had.
    """
    if not 1 <= steps <= len(levels):
        raise UserError(f"{steps} steps of sampling are asked for; take 1 to {len(levels)}.")
    if spacing == "trailing":
        return list(pairwise([*(round(len(levels) * (1 - i / steps)) - 1 for i in range(steps)), -1]))
    ratio = len(levels) // steps
    return list(pairwise([*range(ratio * (steps - 1), -1, -ratio), -1]))


def epsilon(prediction: str, output: Tensor, x: Tensor, level: Tensor) -> Tensor:
    """The noise that a network's output stands for, at abar `level`."""
    if prediction == "epsilon":
        return output
    if prediction == "v_prediction":
        return level.sqrt() * output + (1 - level).sqrt() * x
    return (x - level.sqrt() * output) / (1 - level).sqrt()


def predicted_image(prediction: str, output: Tensor, x: Tensor, level: Tensor) -> Tensor:
    """The image that a network's output stands for, at abar `level`."""
    if prediction == "epsilon":
        return (x - (1 - level).sqrt() * output) / level.sqrt()
    if prediction == "v_prediction":
        return level.sqrt() * x - (1 - level).sqrt() * output
    return output


def moved(image: Tensor, eps: Tensor, to: Tensor) -> Tensor:
    """x at another noise level, from the predicted image and the noise that points to x."""
    return to.sqrt() * image + (1 - to).sqrt() * eps


def level_at(levels: Float[Tensor, "time"], t: int) -> Tensor:
    """abar at a time; 1 for the image itself, t = -1."""
    return levels[t] if t >= 0 else torch.ones(())
