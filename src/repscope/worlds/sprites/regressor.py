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

from repscope.errors import UserError
from repscope.models.loading.stacked_weights import State
from repscope.progress import progress
from repscope.worlds.hans.stacked import one_thread
from repscope.worlds.sprites.drawing import FACTORS, PIXELS, SIDE, drawn_factors, sprites

_BATCH, _RATE, _NOISE, _HELD_OUT = 128, 3e-3, 0.03, 2048
STEPS = 1200
_BINS, _LEAST = 10, 0.01
_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class FactorRegressor:
    """weights: by name. r2: held-out R² per factor, in the order of `FACTORS`."""

    weights: State
    r2: Float[np.ndarray, "factor"]

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "image pixel"]) -> Float[Tensor, "image factor"]:
        """Factors read from images with values from 0 to 1.

        Raises
        ------
        UserError
            For images of another size, or that are not finite.
        """
        if images.dim() != 2 or images.shape[1] != PIXELS:
            raise UserError(f"The images have the shape {tuple(images.shape)}; give (image, {PIXELS}), pixels from 0 to 1.")
        if not bool(torch.isfinite(images).all()):
            raise UserError("Some images are not finite, so no factors can be read from them.")
        return torch.cat([_forward(self.weights, some) for some in torch.split(images, _AT_ONCE)])


def train_regressor(seed: int = 0, steps: int = STEPS) -> FactorRegressor:
    """Train a regressor and measure its R² on held-out sprites.

    Raises
    ------
    UserError
        For fewer than one step.
    """
    if steps < 1:
        raise UserError(f"{steps} steps train nothing; take at least 1.")
    generator = torch.Generator().manual_seed(2 * seed + 1)
    weights = {name: w.requires_grad_() for name, w in _initial(generator).items()}
    adam = torch.optim.Adam(list(weights.values()), lr=_RATE)
    with progress("factor regressor", steps) as advance, one_thread(), torch.enable_grad():
        for step in range(steps):
            factors = drawn_factors(_BATCH, generator)
            images = _roughened(sprites(factors), generator)
            loss = functional.mse_loss(_forward(weights, images), factors)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for group in adam.param_groups:
                group["lr"] = _RATE * (1 - step / steps)
            adam.step()
            advance(1)
    held = drawn_factors(_HELD_OUT, torch.Generator().manual_seed(2 * seed))
    found = {name: w.detach() for name, w in weights.items()}
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
    again = sprites(regressor(images).clamp(-1.2, 1.2))
    spread = float((images - images.mean(0)).square().sum())
    if not spread > 0:
        raise UserError("All images are the same, so no share of their variance is defined.")
    return 1 - float((images - again).square().sum()) / spread


def coverage(factors: Float[np.ndarray, "image factor"]) -> Float[np.ndarray, "factor"]:
    """Per factor, the share of ten bins of [-1, 1] that hold at least one percent of the images."""
    edges = np.linspace(-1, 1, _BINS + 1)
    edges[0], edges[-1] = -np.inf, np.inf
    counts = np.stack([np.histogram(of, edges)[0] for of in factors.T])
    found: np.ndarray = (counts >= _LEAST * len(factors)).mean(1)
    return found


def _initial(generator: torch.Generator) -> State:
    shapes = {"first": (24, 1, 3, 3), "second": (48, 24, 3, 3), "third": (128, 48 * 16), "last": (len(FACTORS), 128)}
    state: State = {}
    for name, shape in shapes.items():
        inputs = int(np.prod(shape[1:]))
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / inputs) ** 0.5
        state[f"{name}.bias"] = torch.zeros(shape[0])
    return state


def _forward(w: State, images: Tensor) -> Tensor:
    x = images.reshape(-1, 1, SIDE, SIDE)
    x = functional.relu(functional.conv2d(x, w["first.weight"], w["first.bias"], stride=2, padding=1))
    x = functional.relu(functional.conv2d(x, w["second.weight"], w["second.bias"], stride=2, padding=1)).flatten(1)
    x = functional.relu(functional.linear(x, w["third.weight"], w["third.bias"]))
    return functional.linear(x, w["last.weight"], w["last.bias"])


def _roughened(images: Tensor, generator: torch.Generator) -> Tensor:
    """With noise, and a blur of random strength per image."""
    square = images.reshape(-1, 1, SIDE, SIDE)
    share = 0.3 * torch.rand(len(square), 1, 1, 1, generator=generator)
    blurred = functional.avg_pool2d(square, 3, 1, 1)
    mixed = ((1 - share) * square + share * blurred).flatten(1)
    return mixed + _NOISE * torch.randn(mixed.shape, generator=generator)
