"""Sprites: images of 16 × 16 pixels of one bright shape on black, drawn from six known factors.

Each factor is uniform on [-1, 1], independent of the others:

    x, y         centre of the shape, from -0.35 to 0.35 of half the image's side
    size         half the height of the shape, from 0.3 to 0.6 of half the side; its width is half its height
    rotation     from -60° to 60°
    shape        from a rectangle (-1) over trapezoids to a triangle (1), which is as wide at its base as the rectangle is
    brightness   of the shape, from 0.4 to 1; the background is 0

Edges are blurred over one pixel: an image is a continuous function of its factors. All images of a batch are drawn at once.
"""

from math import pi

import torch
from jaxtyping import Float
from torch import Tensor

from repscope.errors import UserError

FACTORS = ("x", "y", "size", "rotation", "shape", "brightness")
SIDE = 16  #: pixels
PIXELS = SIDE * SIDE
_REACH, _SIZES, _BRIGHT, _TURN = 0.35, (0.3, 0.6), (0.4, 1.0), pi / 3


def drawn_factors(count: int, generator: torch.Generator) -> Float[Tensor, "image factor"]:
    """Factors of images, uniform on [-1, 1]."""
    return 2 * torch.rand(count, len(FACTORS), generator=generator) - 1


def sprites(factors: Float[Tensor, "image factor"]) -> Float[Tensor, "image pixel"]:
    """Images of these factors, values from 0 to 1, row by row from the top.

    Factors outside [-1, 1] are drawn as they are, which leaves the data's distribution.

    Raises
    ------
    UserError
        For another number of factors, or factors that are not finite.
    """
    if factors.dim() != 2 or factors.shape[1] != len(FACTORS):
        raise UserError(f"The factors have the shape {tuple(factors.shape)}; give (image, {len(FACTORS)}): {', '.join(FACTORS)}.")
    if not bool(torch.isfinite(factors).all()):
        raise UserError("Some factors are not finite; give values from -1 to 1.")
    x, y, size, rotation, shape, brightness = (f[:, None] for f in factors.T)
    across, down = _grid().to(factors)
    right, up = across - _REACH * x, -down - _REACH * y
    cos, sin = torch.cos(_TURN * rotation), torch.sin(_TURN * rotation)
    u, v = cos * right + sin * up, cos * up - sin * right  # in the frame of the shape
    half = _between(size, _SIZES)
    taper = (shape + 1) / 2
    width = half / 2 * (1 - taper * (v / half + 1) / 2)  # half of it, at the height v
    slant = torch.sqrt(1 + (taper / 4) ** 2)  # the sides of a trapezoid lean
    inside = torch.minimum((width - u.abs()) / slant, half - v.abs())
    covered = (inside * SIDE / 2 + 0.5).clamp(0, 1)
    return _between(brightness, _BRIGHT) * covered


def _between(factor: Tensor, ends: tuple[float, float]) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * (factor + 1) / 2


def _grid() -> Float[Tensor, "axis pixel"]:
    """Centres of pixels, from -1 to 1: to the right, and down."""
    at = (torch.arange(SIDE) + 0.5) * 2 / SIDE - 1
    down, across = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([across.flatten(), down.flatten()])
