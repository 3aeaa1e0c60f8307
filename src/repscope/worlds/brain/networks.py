"""Families of small networks with one architecture and different objectives, stacked along an axis of networks.

Two hidden layers of rectified units read an image. What is on top, and is left out afterwards, makes the family:

    supervised     ten classes, cross-entropy
    autoencoder    a decoder of the same sizes, squared error of pixels
    contrastive    a projection; the other view of an image must be nearer than all other images (NT-Xent, Chen et al. 2020). A view
                   is the image moved by up to a pixel, with noise
    untrained      nothing: the weights before training

Networks of all families start from the same distribution, of small weights: from larger ones hidden layers change little, and seeds
of one family agree no more than seeds of different ones. All are trained on the same images, each in its own order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from repscope.errors import UserError, unknown
from repscope.models.loading.stacked_weights import State, runs_of
from repscope.worlds.brain.images import PIXELS, digits, shifted

FAMILIES = ("supervised", "autoencoder", "contrastive", "untrained")
LAYERS = ("layer 1", "layer 2")
_CLASSES, _PROJECTION = 10, 16
_TEMPERATURE, _NOISE = 0.5, 0.2
_SCALE = 0.1  #: of initial weights, in units of √(2 / inputs)


@dataclass(frozen=True)
class Shape:
    """Widths of the two hidden layers.

    Raises a `UserError` for a width below one.
    """

    first: int = 64
    second: int = 32

    def __post_init__(self) -> None:
        """Refuse widths below one."""
        if min(self.first, self.second) < 1:
            raise UserError(f"{self} is no network: every width is at least 1.")


def initial(shape: Shape, family: str, seeds: list[int]) -> State:
    """Random weights, normal with standard deviation 0.1 √(2 / inputs); one network per seed."""
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    sizes = {"layer.0": (PIXELS, shape.first), "layer.1": (shape.first, shape.second)}
    if family == "supervised":
        sizes["head"] = (shape.second, _CLASSES)
    elif family == "contrastive":
        sizes["head"] = (shape.second, _PROJECTION)
    elif family == "autoencoder":
        sizes |= {"decoder.0": (shape.second, shape.first), "decoder.1": (shape.first, PIXELS)}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    state: State = {}
    for name, (inputs, outputs) in sizes.items():
        scale = _SCALE * sqrt(2 / inputs)
        state[f"{name}.weight"] = scale * torch.stack([torch.randn(inputs, outputs, generator=g) for g in generators])
        state[f"{name}.bias"] = torch.zeros(len(seeds), outputs)
    return state


def hidden(state: State, x: Float[Tensor, "network image pixel"]) -> list[Tensor]:
    """Activations (network, image, unit) of both layers. Differentiable."""
    first = _linear(state, "layer.0", x).relu()
    return [first, _linear(state, "layer.1", first).relu()]


@torch.no_grad()
def features(state: State, images: Float[np.ndarray, "image pixel"]) -> list[Float[np.ndarray, "network image unit"]]:
    """Activations of both layers for the same images."""
    x = torch.from_numpy(np.asarray(images, dtype=np.float32)).expand(runs_of(state), -1, -1)
    return [layer.double().numpy() for layer in hidden(state, x)]


def loss_of(family: str, batch: int, seed: int) -> Callable[[State, int], Float[Tensor, "network"]]:
    """(weights, step) → each network's mean loss on a batch of its own."""
    held = digits()
    images, labels = torch.from_numpy(held.train), torch.from_numpy(held.labels)
    views = torch.from_numpy(shifted(held.train))

    def drawn(state: State, step: int) -> tuple[Tensor, torch.Generator]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        return torch.randint(len(images), (runs_of(state), batch), generator=generator), generator

    def supervised(state: State, step: int) -> Tensor:
        index, _ = drawn(state, step)
        logits = _linear(state, "head", hidden(state, images[index])[-1])
        losses = functional.cross_entropy(logits.flatten(0, 1), labels[index].flatten(), reduction="none")
        return losses.view(len(index), -1).mean(1)

    def autoencoder(state: State, step: int) -> Tensor:
        index, _ = drawn(state, step)
        inside = _linear(state, "decoder.0", hidden(state, images[index])[-1]).relu()
        return (_linear(state, "decoder.1", inside) - images[index]).square().mean((1, 2))

    def contrastive(state: State, step: int) -> Tensor:
        index, generator = drawn(state, step)
        both = []
        for _ in range(2):
            which = torch.randint(len(views), index.shape, generator=generator)
            view = views[which, index]
            both.append(view + _NOISE * torch.randn(view.shape, generator=generator))
        z = functional.normalize(_linear(state, "head", hidden(state, torch.cat(both, 1))[-1]), dim=-1)
        near = torch.bmm(z, z.mT) / _TEMPERATURE
        near = near.masked_fill(torch.eye(2 * batch, dtype=torch.bool), -1e9)
        other = torch.arange(2 * batch).roll(batch).expand(len(z), -1)
        losses = functional.cross_entropy(near.flatten(0, 1), other.flatten(), reduction="none")
        return losses.view(len(z), -1).mean(1)

    known = {"supervised": supervised, "autoencoder": autoencoder, "contrastive": contrastive}
    if family not in known:
        raise unknown("family that is trained", family, known)
    return known[family]


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return torch.baddbmm(state[f"{name}.bias"][:, None], x, state[f"{name}.weight"])
