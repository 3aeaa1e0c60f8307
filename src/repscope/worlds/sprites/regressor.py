"""Regressors of a sprite's factors from its image: a small convolutional network trained on fresh sprites, with held-out R².

1. Training: sprites that no other step draws, squared error of the six factors, Adam with linear decay. A little noise and blur are
   added, as images of generators are not as sharp as sprites.
2. Held-out R² per factor, on sprites of another seed.
3. Images of a generator have no known factors. Two numbers tell how well a regressor reads them:
   `agreement`, R² between the factors that two regressors of different seeds read from the same images, and
   `explained`, the share of the images' variance (over images, per pixel) that the sprites of the factors read leave unexplained,
   taken from 1: an image that is no sprite is not explained.
4. `coverage`: per factor, the share of ten equal bins of [-1, 1] that hold at least one percent of the images (a tenth of what a
   uniform factor puts there).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from repscope.arrays import as_tensor
from repscope.errors import UserError
from repscope.models.loading.stacked_weights import State
from repscope.worlds.image_reader import BATCH, blurred, first_weights, read_images, trained, unexplained
from repscope.worlds.sprites.drawing import FACTORS, PIXELS, SIDE, drawn_factors, sprites

_NOISE, _BLUR, _HELD_OUT = 0.03, 0.3, 2048
STEPS = 1200
_BINS, _LEAST = 10, 0.01
_SHAPES = {"first": (24, 1, 3, 3), "second": (48, 24, 3, 3), "third": (128, 48 * 16), "last": (len(FACTORS), 128)}


@dataclass(frozen=True, eq=False)
class FactorRegressor:
    """weights: by name. r2: held-out R² per factor, in the order of `FACTORS`."""

    weights: State
    r2: Float[np.ndarray, "factor"]

    def __call__(self, images: Float[Tensor, "image pixel"]) -> Float[Tensor, "image factor"]:
        """Factors read from images with values from 0 to 1.

        Raises
        ------
        UserError
            For images of another size, or that are not finite.
        """
        return read_images(images, PIXELS, "factors", lambda some: _forward(self.weights, some))


def train_regressor(seed: int = 0, steps: int = STEPS) -> FactorRegressor:
    """Train a regressor and measure its R² on held-out sprites.

    Raises
    ------
    UserError
        For fewer than one step.
    """
    generator = torch.Generator().manual_seed(2 * seed + 1)

    def loss(weights: State) -> Tensor:
        factors = drawn_factors(BATCH, generator)
        return functional.mse_loss(_forward(weights, _roughened(sprites(factors), generator)), factors)

    found = trained("factor regressor", first_weights(_SHAPES, generator), steps, loss)
    held = drawn_factors(_HELD_OUT, torch.Generator().manual_seed(2 * seed))
    regressor = FactorRegressor(found, np.zeros(len(FACTORS)))
    return FactorRegressor(found, r2(held.numpy(), regressor(sprites(held)).numpy()))


def r2(truth: Float[np.ndarray, "image factor"], read: Float[np.ndarray, "image factor"]) -> Float[np.ndarray, "factor"]:
    """R² of each factor.

    Raises
    ------
    UserError
        If a factor is the same in all images.
    """
    spread = truth.astype(np.float64).var(0)
    if not (spread > 0).all():
        raise UserError("A factor is the same in all images, so R² is not defined.")
    found: np.ndarray = 1 - ((truth.astype(np.float64) - read) ** 2).mean(0) / spread
    return found


def agreement(images: Float[Tensor, "image pixel"], first: FactorRegressor, second: FactorRegressor) -> Float[np.ndarray, "factor"]:
    """R² per factor between what two regressors read from the same images."""
    return r2(first(images).numpy(), second(images).numpy())


def explained(images: Float[Tensor, "image pixel"], regressor: FactorRegressor) -> float:
    """Share of the variance of images over images that the sprites of the factors read explain; 1 if all are sprites."""
    images = as_tensor(images, "images")
    again = sprites(regressor(images).clamp(-1.2, 1.2))
    return 1 - unexplained(images, float((images - again).square().sum()))


def coverage(factors: Float[np.ndarray, "image factor"]) -> Float[np.ndarray, "factor"]:
    """Per factor, the share of ten bins of [-1, 1] that hold at least one percent of the images."""
    edges = np.linspace(-1, 1, _BINS + 1)
    edges[0], edges[-1] = -np.inf, np.inf
    counts = np.stack([np.histogram(of, edges)[0] for of in factors.T])
    found: np.ndarray = (counts >= _LEAST * len(factors)).mean(1)
    return found


def _forward(w: State, images: Tensor) -> Tensor:
    x = images.reshape(-1, 1, SIDE, SIDE)
    x = functional.relu(functional.conv2d(x, w["first.weight"], w["first.bias"], stride=2, padding=1))
    x = functional.relu(functional.conv2d(x, w["second.weight"], w["second.bias"], stride=2, padding=1)).flatten(1)
    x = functional.relu(functional.linear(x, w["third.weight"], w["third.bias"]))
    return functional.linear(x, w["last.weight"], w["last.bias"])


def _roughened(images: Tensor, generator: torch.Generator) -> Tensor:
    """With noise, and a blur of random strength per image."""
    mixed = blurred(images.reshape(-1, 1, SIDE, SIDE), _BLUR, generator)
    return mixed + _NOISE * torch.randn(mixed.shape, generator=generator)
