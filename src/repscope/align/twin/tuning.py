"""In-silico experiments on a twin: receptive fields, orientation tuning and signal correlations that nobody recorded.

1. `receptive_fields`: mean over images of the squared gradient of a neuron's rate in each pixel; its centre is the centre of mass
   of what exceeds half of the maximum. Works for cells whose mean filter is zero (complex cells).
2. `grating_tuning`: gratings of several orientations, frequencies and phases over the whole image. A neuron's tuning is the mean
   over phases at its best frequency; preferred orientation and selectivity are those of the sum on the circle of double angles.
3. `signal_correlation`: correlation of predicted rates over stimuli. The same stimuli for all neurons, also of different
   recordings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from repscope.align.twin.fitting import Fitted
from repscope.errors import UserError

ORIENTATIONS, PHASES = 12, 8
FREQUENCIES = (0.08, 0.125, 0.2)  #: cycles per pixel


@dataclass(frozen=True, eq=False)
class ReceptiveFields:
    """maps: (neuron, height, width), sensitivity. centres: (neuron, 2), row and column in pixels."""

    maps: Float[np.ndarray, "neuron height width"]
    centres: Float[np.ndarray, "neuron 2"]


@dataclass(frozen=True, eq=False)
class Tuning:
    """responses: (neuron, orientation) at the best frequency. preferred: in radians, 0 to π. selectivity: 0 (none) to 1."""

    orientations: Float[np.ndarray, "orientation"]
    responses: Float[np.ndarray, "neuron orientation"]
    preferred: Float[np.ndarray, "neuron"]
    selectivity: Float[np.ndarray, "neuron"]


def receptive_fields(model: nn.Module, images: Any, *, neurons: Sequence[int] | None = None) -> ReceptiveFields:
    """Receptive fields of a twin of images, from its gradients at these images (image, channel, height, width).

    Raises
    ------
    UserError
        For anything but images.
    """
    x = torch.as_tensor(np.asarray(images), dtype=torch.float32)
    x = x[:, None] if x.ndim == 3 else x
    if x.ndim != 4:
        raise UserError(f"Receptive fields are of images (image, channel, height, width); these have the shape {tuple(x.shape)}.")
    model.eval()
    x = x.clone().requires_grad_(True)
    rates = model(x)
    maps = []
    for n in range(rates.shape[1]) if neurons is None else neurons:
        (gradient,) = torch.autograd.grad(rates[:, n].sum(), x, retain_graph=True)
        maps.append(gradient.square().sum(1).mean(0).numpy())
    found = np.stack(maps).astype(np.float64)
    return ReceptiveFields(found, _centres(found))


def grating_tuning(
    fitted: Fitted, size: tuple[int, int], *, frequencies: Sequence[float] = FREQUENCIES, contrast: float = 1.5
) -> Tuning:
    """Orientation tuning of each neuron to gratings of `contrast` (in units of the stimuli) over an image of that size."""
    angles = np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS
    phases = np.arange(PHASES) * 2 * np.pi / PHASES
    rows, columns = np.mgrid[: size[0], : size[1]]
    found = []
    for frequency in frequencies:
        waves = 2 * np.pi * frequency * (np.cos(angles)[:, None, None] * columns + np.sin(angles)[:, None, None] * rows)
        images = contrast * np.cos(waves[:, None] + phases[:, None, None])
        rates = fitted.predict(images.reshape(-1, *size))
        found.append(rates.reshape(ORIENTATIONS, PHASES, -1).mean(1).T)
    at = np.stack(found)  # frequency, neuron, orientation
    best = at.max(2).argmax(0)
    responses = at[best, np.arange(at.shape[1])]
    vector = (responses * np.exp(2j * angles)).sum(1) / responses.sum(1)
    return Tuning(angles, responses, np.angle(vector) / 2 % np.pi, np.abs(vector))


def signal_correlation(rates: Float[np.ndarray, "stimulus neuron"]) -> Float[np.ndarray, "neuron neuron"]:
    """Correlation of neurons over stimuli; NaN for a neuron whose rate is constant."""
    x = np.asarray(rates, dtype=np.float64)
    x = x - x.mean(0)
    norm = np.linalg.norm(x, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = x.T @ x / np.outer(norm, norm)
    found[~np.isfinite(found)] = np.nan
    return np.asarray(np.clip(found, -1, 1))


def _centres(maps: Float[np.ndarray, "neuron height width"]) -> Float[np.ndarray, "neuron 2"]:
    rows, columns = np.mgrid[: maps.shape[1], : maps.shape[2]]
    top = maps.max((1, 2), keepdims=True)
    kept = np.where(maps >= top / 2, maps, 0.0)
    total = kept.sum((1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([(kept * axis).sum((1, 2)) / total for axis in (rows, columns)], 1)
