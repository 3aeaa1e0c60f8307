"""Sprites with known factors, networks that generate them, and regressors that read the factors back from images."""

from repscope.worlds.sprites.drawing import FACTORS, PIXELS, SIDE, drawn_factors, sprites
from repscope.worlds.sprites.regressor import FactorRegressor, agreement, coverage, explained, train_regressor

__all__ = [
    "FACTORS",
    "PIXELS",
    "SIDE",
    "FactorRegressor",
    "agreement",
    "coverage",
    "drawn_factors",
    "explained",
    "sprites",
    "train_regressor",
]
