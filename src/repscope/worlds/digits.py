"""Handwritten digits (scikit-learn's 1,797 images of 8 × 8) and small classifiers of four kinds, stacked along an axis of networks.

1. 1,200 images train, 597 test. Networks of one kind differ in initial weights and in the order of data.
2. SGD with momentum, one loss per network: each trains as if alone. Every few steps all networks classify the evaluation images.
3. Controls: labels drawn once for all networks; labels drawn for each network; one orthogonal input per example, with ten classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import prod, sqrt

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from repscope.errors import UserError, unknown
from repscope.worlds.hans.stacked import one_thread

CLASSES = 10
TRAINING = 1200  #: images
Weights = list[Tensor]
Forward = Callable[[Weights, Tensor], Tensor]


@dataclass(frozen=True)
class Kind:
    """One architecture. shapes: of its weights, biases included, for inputs of a size. forward: weights and inputs (network,
    example, feature) to logits."""

    shapes: Callable[[int], list[tuple[int, ...]]]
    forward: Forward


def _dense(weights: Weights, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    for i in range(0, len(weights), 2):
        x = torch.baddbmm(weights[i + 1][:, None], x, weights[i])
        x = activation(x) if i + 2 < len(weights) else x
    return x


def _layers(*widths: int) -> Callable[[int], list[tuple[int, ...]]]:
    def shapes(inputs: int) -> list[tuple[int, ...]]:
        sizes = (inputs, *widths, CLASSES)
        return [shape for a, b in pairwise(sizes) for shape in ((a, b), (b,))]

    return shapes


def _convolved(weights: Weights, x: Tensor) -> Tensor:
    n, b, _ = x.shape
    x = x.transpose(0, 1).reshape(b, n, 8, 8)  # networks are groups of channels
    for w, b_ in ((weights[0], weights[1]), (weights[2], weights[3])):
        x = functional.relu(functional.conv2d(x, w.flatten(0, 1), b_.flatten(), padding=1, groups=n))
        x = functional.max_pool2d(x, 2)
    return torch.baddbmm(weights[5][:, None], x.view(b, n, -1).transpose(0, 1), weights[4])


KINDS: dict[str, Kind] = {
    "MLP 64": Kind(_layers(64), lambda w, x: _dense(w, x, functional.relu)),
    "MLP 16": Kind(_layers(16), lambda w, x: _dense(w, x, functional.relu)),
    "tanh 48 × 48": Kind(_layers(48, 48), lambda w, x: _dense(w, x, torch.tanh)),
    "CNN": Kind(lambda _: [(8, 1, 3, 3), (8,), (16, 8, 3, 3), (16,), (64, CLASSES), (CLASSES,)], _convolved),
}


@dataclass(frozen=True, eq=False)
class Images:
    """inputs: (example, feature). labels: (example) or one row per network. train, test: indices of examples."""

    inputs: Float[Tensor, "example feature"]
    labels: Int[Tensor, "..."]
    train: Int[Tensor, "train"]
    test: Int[Tensor, "test"]


@dataclass(frozen=True, eq=False)
class Learned:
    """What networks predicted as they learned. predicted, correct: of the evaluation examples. labels: of the first network."""

    predicted: Int[np.ndarray, "network step example"]
    correct: Bool[np.ndarray, "network step example"]
    labels: Int[np.ndarray, "example"]


def digits(seed: int = 0) -> Images:
    """The images, values from 0 to 1, split at random."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return Images(torch.tensor(x / 16.0, dtype=torch.float32), torch.tensor(y), order[:TRAINING], order[TRAINING:])


def shared_random_labels(images: Images, examples: int, seed: int) -> Images:
    """Permuted labels, equal for all networks, on some training images, evaluated on these: the control that is not valid."""
    order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(seed))
    some = images.train[:examples]
    return Images(images.inputs, images.labels[order], some, some)


def own_random_labels(images: Images, examples: int, networks: int, seed: int) -> Images:
    """Permuted labels, drawn for each network, on some training images, which are evaluated too."""
    orders = [torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(seed + i)) for i in range(networks)]
    some = images.train[:examples]
    return Images(images.inputs, torch.stack([images.labels[order] for order in orders]), some, some)


def orthogonal(examples: int) -> Images:
    """One-hot inputs of norm 3, ten classes in turn: nothing makes one example easier than another."""
    every = torch.arange(examples)
    return Images(3 * torch.eye(examples), every % CLASSES, every, every)


def learn(
    kind: str,
    images: Images,
    networks: int,
    *,
    steps: int = 240,
    every: int = 6,
    rate: float = 0.05,
    batch: int = 32,
    seed: int = 0,
) -> Learned:
    """Train networks of one kind and evaluate them every few steps, before each update.

    Raises
    ------
    UserError
        For an unknown kind, a single network, or a CNN on inputs that are no images.
    """
    if kind not in KINDS:
        raise unknown("kind of network", kind, KINDS)
    if networks < 2:
        raise UserError(f"{networks} network has no order to share; train at least 2.")
    features = images.inputs.shape[1]
    if kind == "CNN" and features != 64:
        raise UserError(f"A CNN reads images of 64 values, and the inputs have {features}; take another kind.")
    generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(networks)]
    weights = [w.requires_grad_() for w in _initial(KINDS[kind].shapes(features), generators)]
    sgd = torch.optim.SGD(weights, lr=rate, momentum=0.5)
    labels = images.labels.expand(networks, -1) if images.labels.dim() == 1 else images.labels
    shown, wanted = images.inputs[images.test].expand(networks, -1, -1), labels[:, images.test]
    predicted = []
    with one_thread():
        for step in range(steps):
            if step % every == 0:
                with torch.no_grad():
                    predicted.append(KINDS[kind].forward(weights, shown).argmax(-1))
            drawn = torch.stack([images.train[torch.randint(len(images.train), (batch,), generator=g)] for g in generators])
            logits = KINDS[kind].forward(weights, images.inputs[drawn])
            loss = functional.cross_entropy(logits.flatten(0, 1), labels.gather(1, drawn).flatten(), reduction="none")
            sgd.zero_grad()
            loss.view(networks, -1).mean(1).sum().backward()  # type: ignore[no-untyped-call]
            sgd.step()
    given = torch.stack(predicted, 1)
    return Learned(given.numpy(), (given == wanted[:, None]).numpy(), wanted[0].numpy())


def _initial(shapes: list[tuple[int, ...]], generators: list[torch.Generator]) -> Weights:
    """Uniform within ± 1 / √inputs as torch's layers, biases with the bound of their weights."""
    found = []
    for i, shape in enumerate(shapes):
        weight = shapes[i - i % 2]
        inputs = weight[0] if len(weight) == 2 else prod(weight[1:])
        found.append(torch.stack([(2 * torch.rand(shape, generator=g) - 1) / sqrt(inputs) for g in generators]))
    return found
