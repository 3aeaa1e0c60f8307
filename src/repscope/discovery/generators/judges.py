"""Judges of image generators: what is read from images, and whether images are such that it can be read.

`Known` says what is known of a kind of images: sprites have six factors, digits have probabilities of ten classes. A `Judge` reads
them by two networks that were trained apart. Probabilities sum to one, so that a change of one class changes others by as much in
total; sums of their changes count half.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.conditions import ESTIMATE, PERMUTED_PIXELS, REAL_IMAGES
from repscope.discovery.generators.factor_changes import DOSES, SPREAD
from repscope.discovery.generators.judge_ceiling import judge_ceiling
from repscope.worlds.digit_classifier import CLASS_NAMES, DigitClassifier, explained_by_digits, same_class
from repscope.worlds.digit_classifier import SIDE as DIGIT_SIDE
from repscope.worlds.sprites import FACTORS, SIDE, FactorRegressor, agreement, coverage, drawn_factors, explained, sprites

_GROUPS = 16  #: of images, that intervals on the generator are over
_CEILINGS = 8  #: groups of sprites that the ceiling of the judge is over

#: metric → what it is
GENERATOR_METRICS: dict[str, str] = {
    "factor R²": "R² of the factor regressor on held-out sprites",
    "factor agreement": "R² between the factors that two regressors of different seeds read from the generator's images",
    "selectivity of sprites": "selectivity that the judge reads from sprites of which this factor alone changes, by one standard "
    "deviation: the most that a direction can reach",
    "coverage": "share of ten bins of a factor's range that hold at least one percent of the generator's images",
    "sprites explained": "share of the variance of the generator's images that the sprites of the factors read explain",
    "class accuracy": "share of the test digits of a class that a classifier recognises",
    "digit share": "share of the generator's images that are read as the class",
    "same digit": "share of images that two classifiers, trained on different digits, read as the same class",
    "digits explained": "share of the variance of the generator's images that the nearest training digit explains",
}


@dataclass(frozen=True)
class Known:
    """What is known of a kind of images.

    data: its name. properties: that are read from an image. side: pixels. spread: standard deviation of a property in the data.
    exclusive: whether properties are probabilities of classes. each: metrics of `GENERATOR_METRICS` per property. whole: those of
    all images, with controls; the first tells whether properties can be read.
    """

    data: str
    properties: tuple[str, ...]
    side: int
    spread: float
    exclusive: bool
    each: tuple[str, ...]
    whole: tuple[str, ...]

    @property
    def readable(self) -> str:
        """The metric that tells whether properties can be read."""
        return self.whole[0]


KNOWN: dict[str, Known] = {
    known.data: known
    for known in (
        Known(
            "sprites",
            FACTORS,
            SIDE,
            SPREAD,
            False,
            ("factor R²", "factor agreement", "coverage", "selectivity of sprites"),
            ("sprites explained",),
        ),
        Known(
            "digits",
            CLASS_NAMES,
            DIGIT_SIDE,
            float(np.sqrt(0.09)),  # of membership in one of ten equal classes
            True,
            ("class accuracy", "digit share"),
            ("digits explained", "same digit"),
        ),
    )
}


@dataclass(frozen=True, eq=False)
class Quality:
    """One number on the generator. values: one per unit; a single value has no interval. count: of units, where it is single."""

    metric: str
    item: str
    values: Float[np.ndarray, "unit"]
    unit: str
    condition: str = ESTIMATE
    count: int = 0


class Judge(Protocol):
    """Reads known properties from images."""

    @property
    def known(self) -> Known:
        """What is read."""

    def read(self, images: Float[Tensor, "image pixel"]) -> Float[Tensor, "image property"]:
        """Properties of images with values from 0 to 1."""

    def explained(self, images: Float[Tensor, "image pixel"]) -> float:
        """Share of the variance of images that images of the known kind explain. Raises a `UserError` if all are the same."""

    def quality(self, images: Float[Tensor, "image pixel"], real: Float[Tensor, "image pixel"], seed: int) -> list[Quality]:
        """Numbers on the generator: of its images, and of held-out images of the data as they are and with permuted pixels."""


@dataclass(frozen=True, eq=False)
class SpriteJudge:
    """Factors of sprites, read by two regressors."""

    first: FactorRegressor
    second: FactorRegressor
    known: Known = field(default=KNOWN["sprites"], init=False)

    def read(self, images: Float[Tensor, "image pixel"]) -> Float[Tensor, "image factor"]:
        """The mean of what the two read."""
        return (self.first(images) + self.second(images)) / 2

    def explained(self, images: Float[Tensor, "image pixel"]) -> float:
        """Share explained by the sprites of the factors read."""
        spread = float((images - images.mean(0)).square().sum())
        again = sprites(self.read(images).clamp(-1.2, 1.2))
        return 1 - float((images - again).square().sum()) / spread if spread > 0 else float("nan")

    def quality(self, images: Float[Tensor, "image pixel"], real: Float[Tensor, "image pixel"], seed: int) -> list[Quality]:
        """As `Judge`."""
        covered = coverage(self.read(images).numpy())
        agreed = grouped(lambda x: agreement(x, self.first, self.second), images)
        alone = drawn_factors(len(real), torch.Generator().manual_seed(3000 + seed)).chunk(_CEILINGS)
        most = np.stack([judge_ceiling(self.read, sprites, some, DOSES).selectivity for some in alone])
        found = []
        for j, factor in enumerate(FACTORS):
            both = np.array([self.first.r2[j], self.second.r2[j]])
            found.append(Quality("factor R²", factor, both, "regressor"))
            found.append(Quality("factor agreement", factor, agreed[:, j], "group of images"))
            found.append(Quality("selectivity of sprites", factor, most[:, j], "group of images", REAL_IMAGES))
            found.append(Quality("coverage", factor, covered[j : j + 1], "image", count=len(images)))
        return found + _beside_controls("sprites explained", lambda x: explained(x, self.first), images, real, "sprites", seed)


@dataclass(frozen=True, eq=False)
class DigitJudge:
    """Probabilities of the ten digits, read by two classifiers."""

    first: DigitClassifier
    second: DigitClassifier
    known: Known = field(default=KNOWN["digits"], init=False)

    def read(self, images: Float[Tensor, "image pixel"]) -> Float[Tensor, "image class"]:
        """The mean of what the two read."""
        return (self.first(images) + self.second(images)) / 2

    def explained(self, images: Float[Tensor, "image pixel"]) -> float:
        """Share explained by the nearest training digit."""
        return explained_by_digits(images) if bool((images != images[:1]).any()) else float("nan")

    def quality(self, images: Float[Tensor, "image pixel"], real: Float[Tensor, "image pixel"], seed: int) -> list[Quality]:
        """As `Judge`."""
        read = self.read(images).argmax(-1).numpy()
        found = []
        for j, name in enumerate(CLASS_NAMES):
            both = np.array([self.first.accuracy[j], self.second.accuracy[j]])
            found.append(Quality("class accuracy", name, both, "classifier"))
            found.append(Quality("digit share", name, np.array([(read == j).mean()]), "image", count=len(images)))
        found += _beside_controls("digits explained", explained_by_digits, images, real, "digits", seed)
        same = lambda x: float(same_class(x, self.first, self.second).mean())  # noqa: E731
        return found + _beside_controls("same digit", same, images, real, "digits", seed)


def grouped(measure: Callable[[Tensor], np.ndarray], images: Float[Tensor, "image pixel"]) -> Float[np.ndarray, "group ..."]:
    """A measure of each of some groups of images."""
    return np.stack([measure(some) for some in images.chunk(_GROUPS if len(images) >= 16 * _GROUPS else 2)])


def _beside_controls(
    metric: str, measure: Callable[[Tensor], float], images: Tensor, real: Tensor, data: str, seed: int
) -> list[Quality]:
    """A measure of the generator's images, of images of the data, and of these with their pixels permuted."""
    permuted = real[:, torch.randperm(real.shape[1], generator=torch.Generator().manual_seed(seed))]
    return [
        Quality(metric, item, grouped(lambda x: np.array(measure(x)), some), "group of images", condition)
        for item, condition, some in (
            ("generator", ESTIMATE, images),
            (data, REAL_IMAGES, real),
            ("permuted pixels", PERMUTED_PIXELS, permuted),
        )
    ]
