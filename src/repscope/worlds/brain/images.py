"""Images of handwritten digits that come with scikit-learn: 1,797 of 8 × 8 pixels, cut into training images and stimuli.

Values are from 0 to 1, minus the mean training image. Stimuli are images that no network was trained on.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int

SIDE = 8  #: pixels
PIXELS = SIDE * SIDE
_TRAINING = 1200


@dataclass(frozen=True, eq=False)
class Digits:
    """train, labels: to train on. stimuli, stimulus_labels: held out. mean: image that was subtracted from all."""

    train: Float[np.ndarray, "image pixel"]
    labels: Int[np.ndarray, "image"]
    stimuli: Float[np.ndarray, "image pixel"]
    stimulus_labels: Int[np.ndarray, "image"]
    mean: Float[np.ndarray, "pixel"]


@cache
def digits() -> Digits:
    """The images, in a fixed random order."""
    from sklearn.datasets import load_digits

    given = load_digits()
    order = np.random.default_rng(0).permutation(len(given.data))
    x, y = given.data[order].astype(np.float32) / 16, given.target[order].astype(np.int64)
    mean = x[:_TRAINING].mean(0)
    x = x - mean
    return Digits(x[:_TRAINING], y[:_TRAINING], x[_TRAINING:], y[_TRAINING:], mean)


def shifted(images: Float[np.ndarray, "image pixel"]) -> Float[np.ndarray, "shift image pixel"]:
    """Images moved by up to one pixel in each direction: 9 versions, the empty border filled with the image's edge."""
    padded = np.pad(images.reshape(-1, SIDE, SIDE), ((0, 0), (1, 1), (1, 1)), mode="edge")
    return np.stack([padded[:, i : i + SIDE, j : j + SIDE].reshape(len(images), PIXELS) for i in range(3) for j in range(3)])
