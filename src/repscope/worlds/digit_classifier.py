"""Classifiers of scikit-learn's digits, by which images of a generator of digits are read.

1. Training: a small convolutional network on one half of the 1,200 training digits (`worlds.digits`); classifiers of even and odd
   seeds learn from different halves. Cross-entropy, Adam with linear decay; noise, blur and shifts by up to half a pixel are added,
   as images of generators are not as clean as digits.
2. Accuracy per class on the 597 test digits, which neither classifiers nor generators are trained on.
3. Images of a generator have no labels. Two numbers tell whether they are digits:
   `same_class`, the share of images that two classifiers read as the same class, and
   `explained_by_digits`, the share of the images' variance (over images, per pixel) that the nearest training digit explains.
Both are to be compared with those of test digits, and of test digits whose pixels were permuted.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from repscope.arrays import as_tensor
from repscope.errors import UserError
from repscope.models.loading.stacked_weights import State
from repscope.worlds.digits import CLASSES, Images, digits
from repscope.worlds.image_reader import BATCH, blurred, first_weights, read_images, trained, unexplained

SIDE = 8  #: pixels
PIXELS = SIDE * SIDE
CLASS_NAMES = tuple(f"digit {c}" for c in range(CLASSES))
STEPS = 600
_NOISE, _BLUR, _SHIFT = 0.05, 0.2, 0.5
_AT_ONCE = 4096  #: images whose nearest digits are found at once

_SHAPES = {"first": (24, 1, 3, 3), "second": (48, 24, 3, 3), "third": (128, 48 * 4), "last": (CLASSES, 128)}


@dataclass(frozen=True, eq=False)
class DigitClassifier:
    """weights: by name. accuracy: share of the test digits of each class that it recognises."""

    weights: State
    accuracy: Float[np.ndarray, "class"]

    def __call__(self, images: Float[Tensor, "image pixel"]) -> Float[Tensor, "image class"]:
        """Probabilities of classes, of images with values from 0 to 1.

        Raises
        ------
        UserError
            For images of another size, or that are not finite.
        """
        return read_images(images, PIXELS, "digits", lambda some: _logits(self.weights, some).softmax(-1))


def digit_batch(count: int, seed: int) -> Float[Tensor, "image pixel"]:
    """Training digits, drawn with replacement."""
    held = _digits()
    drawn = torch.randint(len(held.train), (count,), generator=torch.Generator().manual_seed(seed))
    return held.inputs[held.train[drawn]]


def held_out_digits(count: int, seed: int) -> Float[Tensor, "image pixel"]:
    """Test digits, each at most once; all of them, in another order, if fewer are there than are asked for."""
    held = _digits()
    order = torch.randperm(len(held.test), generator=torch.Generator().manual_seed(seed))[:count]
    return held.inputs[held.test[order]]


def train_classifier(seed: int = 0, steps: int = STEPS) -> DigitClassifier:
    """Train a classifier and measure its accuracy on test digits.

    Raises
    ------
    UserError
        For fewer than one step.
    """
    held = _digits()
    own = held.train[seed % 2 :: 2]
    generator = torch.Generator().manual_seed(2 * seed + 1)

    def loss(weights: State) -> Tensor:
        drawn = own[torch.randint(len(own), (BATCH,), generator=generator)]
        return functional.cross_entropy(_logits(weights, _varied(held.inputs[drawn], generator)), held.labels[drawn])

    found = trained("classifier of digits", first_weights(_SHAPES, generator), steps, loss)
    read = DigitClassifier(found, np.zeros(CLASSES))(held.inputs[held.test]).argmax(-1)
    return DigitClassifier(found, class_accuracy(read.numpy(), held.labels[held.test].numpy()))


def class_accuracy(read: Int[np.ndarray, "image"], labels: Int[np.ndarray, "image"]) -> Float[np.ndarray, "class"]:
    """Share of the images of each class that are read as it.

    Raises
    ------
    UserError
        If a class has no image.
    """
    if len(missing := sorted(set(range(CLASSES)) - set(labels.tolist()))):
        raise UserError(f"No image is of the class {missing[0]}; its accuracy needs one.")
    return np.array([float((read[labels == c] == c).mean()) for c in range(CLASSES)])


def same_class(images: Float[Tensor, "image pixel"], first: DigitClassifier, second: DigitClassifier) -> Bool[np.ndarray, "image"]:
    """Whether two classifiers read the same class from an image."""
    found: np.ndarray = (first(images).argmax(-1) == second(images).argmax(-1)).numpy()
    return found


def explained_by_digits(images: Float[Tensor, "image pixel"]) -> float:
    """Share of the variance of images over images that the nearest training digit of each explains; 1 if all are training digits.

    Raises
    ------
    UserError
        If all images are the same.
    """
    held, images = _digits(), as_tensor(images, "images", "image pixel")
    distances = torch.cat([torch.cdist(some, held.inputs[held.train]).amin(1) for some in torch.split(images, _AT_ONCE)])
    return 1 - unexplained(images, float(distances.square().sum()))


@cache
def _digits() -> Images:
    return digits()


def _logits(w: State, images: Tensor) -> Tensor:
    x = images.reshape(-1, 1, SIDE, SIDE)
    x = functional.max_pool2d(functional.relu(functional.conv2d(x, w["first.weight"], w["first.bias"], padding=1)), 2)
    x = functional.max_pool2d(functional.relu(functional.conv2d(x, w["second.weight"], w["second.bias"], padding=1)), 2)
    x = functional.relu(functional.linear(x.flatten(1), w["third.weight"], w["third.bias"]))
    return functional.linear(x, w["last.weight"], w["last.bias"])


def _varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moved by up to half a pixel, blurred by a random share, with noise."""
    square = images.reshape(-1, 1, SIDE, SIDE)
    move = _SHIFT * (2 * torch.rand(len(square), 2, 1, generator=generator) - 1) * 2 / SIDE
    still = torch.eye(2).expand(len(square), 2, 2)
    grid = functional.affine_grid(torch.cat([still, move], 2), list(square.shape), align_corners=False)
    moved = functional.grid_sample(square, grid, align_corners=False)
    mixed = blurred(moved, _BLUR, generator)
    return mixed + _NOISE * torch.randn(mixed.shape, generator=generator)
