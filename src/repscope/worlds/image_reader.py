"""What the networks that read small images share (digits, factors of sprites): first weights, training, blur, reading in parts."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from repscope.arrays import as_tensor
from repscope.errors import UserError
from repscope.models.loading.stacked_weights import State
from repscope.progress import progress
from repscope.worlds.hans.stacked import one_thread

BATCH = 128  #: images per update
_RATE, _AT_ONCE = 3e-3, 4096


def first_weights(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> State:
    """Weights and biases of layers, by name: He's initialisation."""
    state: State = {}
    for name, shape in shapes.items():
        inputs = int(np.prod(shape[1:]))
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / inputs) ** 0.5
        state[f"{name}.bias"] = torch.zeros(shape[0])
    return state


def trained(title: str, first: State, steps: int, loss: Callable[[State], Tensor]) -> State:
    """Weights after Adam with linear decay on a loss that draws its images itself.

    Raises
    ------
    UserError
        For fewer than one step.
    """
    if steps < 1:
        raise UserError(f"{steps} steps train nothing; take at least 1.")
    weights = {name: w.requires_grad_() for name, w in first.items()}
    adam = torch.optim.Adam(list(weights.values()), lr=_RATE)
    with progress(title, steps) as advance, one_thread(), torch.enable_grad():
        for step in range(steps):
            value = loss(weights)
            adam.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            for group in adam.param_groups:
                group["lr"] = _RATE * (1 - step / steps)
            adam.step()
            advance(1)
    return {name: w.detach() for name, w in weights.items()}


def blurred(square: Float[Tensor, "image 1 row column"], most: float, generator: torch.Generator) -> Float[Tensor, "image pixel"]:
    """Images mixed with their blurred copies, by a random share of at most `most` per image."""
    share = most * torch.rand(len(square), 1, 1, 1, generator=generator)
    return ((1 - share) * square + share * functional.avg_pool2d(square, 3, 1, 1)).flatten(1)


@torch.no_grad()
def read_images(
    images: Float[Tensor, "image pixel"], pixels: int, what: str, read: Callable[[Tensor], Tensor]
) -> Float[Tensor, "image value"]:
    """What a network reads from images with values from 0 to 1, in parts. what: of it, for messages.

    Raises
    ------
    UserError
        For images of another size, or that are not finite.
    """
    images = as_tensor(images, "images")
    if images.dim() != 2 or images.shape[1] != pixels:
        raise UserError(f"The images have the shape {tuple(images.shape)}; give (image, {pixels}), pixels from 0 to 1.")
    if not bool(torch.isfinite(images).all()):
        raise UserError(f"Some images are not finite, so no {what} can be read from them.")
    return torch.cat([read(some) for some in torch.split(images, _AT_ONCE)])


def unexplained(images: Float[Tensor, "image pixel"], errors: float) -> float:
    """Squared errors as a share of the variance of images over images.

    Raises
    ------
    UserError
        If all images are the same.
    """
    spread = float((images - images.mean(0)).square().sum())
    if not spread > 0:
        raise UserError("All images are the same, so no share of their variance is defined.")
    return errors / spread
