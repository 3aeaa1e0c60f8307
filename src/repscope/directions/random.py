"""Random unit vectors, the control of every direction."""

import numpy as np
from jaxtyping import Float


def random_units(width: int, count: int, seed: int) -> Float[np.ndarray, "direction feature"]:
    """Unit vectors, uniform on the sphere.

    >>> u = random_units(8, 3, seed=0)
    >>> u.shape, bool(np.allclose((u**2).sum(1), 1))
    ((3, 8), True)
    """
    drawn = np.random.default_rng(seed).standard_normal((count, width))
    units: np.ndarray = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return units


def random_like(rows: Float[np.ndarray, "*row feature"], rng: np.random.Generator) -> Float[np.ndarray, "*row feature"]:
    """For each row a vector of equal norm in a random direction."""
    drawn = rng.standard_normal(rows.shape)
    made: np.ndarray = drawn * (np.linalg.norm(rows, axis=-1, keepdims=True) / np.linalg.norm(drawn, axis=-1, keepdims=True))
    return made
