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

from repscope.errors import UserError
from repscope.models.loading.stacked_weights import State
from repscope.progress import progress
from repscope.worlds.digits import CLASSES, Images, digits
from repscope.worlds.hans.stacked import one_thread

SIDE = 8  #: pixels
PIXELS = SIDE * SIDE
CLASS_NAMES = tuple(f"digit {c}" for c in range(CLASSES))
STEPS = 600
_BATCH, _RATE, _NOISE, _SHIFT = 128, 3e-3, 0.05, 0.5
_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class DigitClassifier:
    """weights: by name. accuracy: share of the test digits of each class that it recognises."""

    weights: State
    accuracy: Float[np.ndarray, "class"]

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "image pixel"]) -> Float[Tensor, "image class"]:
        """Probabilities of classes, of images with values from 0 to 1.

        Raises
        ------
        UserError
            For images of another size, or that are not finite.
        """
        if images.dim() != 2 or images.shape[1] != PIXELS:
            raise UserError(f"The images have the shape {tuple(images.shape)}; give (image, {PIXELS}), pixels from 0 to 1.")
        if not bool(torch.isfinite(images).all()):
            raise UserError("Some images are not finite, so no digits can be read from them.")
        return torch.cat([_logits(self.weights, some).softmax(-1) for some in torch.split(images, _AT_ONCE)])


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
    if steps < 1:
        raise UserError(f"{steps} steps train nothing; take at least 1.")
    held = _digits()
    own = held.train[seed % 2 :: 2]
    generator = torch.Generator().manual_seed(2 * seed + 1)
    weights = {name: w.requires_grad_() for name, w in _initial(generator).items()}
    adam = torch.optim.Adam(list(weights.values()), lr=_RATE)
    with progress("classifier of digits", steps) as advance, one_thread(), torch.enable_grad():
        for step in range(steps):
            drawn = own[torch.randint(len(own), (_BATCH,), generator=generator)]
            loss = functional.cross_entropy(_logits(weights, _varied(held.inputs[drawn], generator)), held.labels[drawn])
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for group in adam.param_groups:
                group["lr"] = _RATE * (1 - step / steps)
            adam.step()
            advance(1)
    found = {name: w.detach() for name, w in weights.items()}
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
    held = _digits()
    spread = float((images - images.mean(0)).square().sum())
    if not spread > 0:
        raise UserError("All images are the same, so no share of their variance is defined.")
    distances = torch.cat([torch.cdist(some, held.inputs[held.train]).amin(1) for some in torch.split(images, _AT_ONCE)])
    return 1 - float(distances.square().sum()) / spread


@cache
def _digits() -> Images:
    return digits()


def _initial(generator: torch.Generator) -> State:
    shapes = {"first": (24, 1, 3, 3), "second": (48, 24, 3, 3), "third": (128, 48 * 4), "last": (CLASSES, 128)}
    state: State = {}
    for name, shape in shapes.items():
        inputs = int(np.prod(shape[1:]))
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / inputs) ** 0.5
        state[f"{name}.bias"] = torch.zeros(shape[0])
    return state


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
    share = 0.2 * torch.rand(len(square), 1, 1, 1, generator=generator)
    mixed = ((1 - share) * moved + share * functional.avg_pool2d(moved, 3, 1, 1)).flatten(1)
    return mixed + _NOISE * torch.randn(mixed.shape, generator=generator)
