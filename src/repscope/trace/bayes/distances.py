"""Distances between next-symbol distributions, in nats and as total variation."""

import numpy as np
from jaxtyping import Float

_LEAST = 1e-12


def kl(p: Float[np.ndarray, "*n symbol"], q: Float[np.ndarray, "*n symbol"]) -> Float[np.ndarray, "*n"]:
    """KL(p ‖ q) in nats; probabilities of q below 1e-12 count as 1e-12."""
    found: np.ndarray = np.where(p > 0, p * (np.log(np.maximum(p, _LEAST)) - np.log(np.maximum(q, _LEAST))), 0.0).sum(-1)
    return found


def total_variation(p: Float[np.ndarray, "*n symbol"], q: Float[np.ndarray, "*n symbol"]) -> Float[np.ndarray, "*n"]:
    """Half the sum of absolute differences, in [0, 1]."""
    found: np.ndarray = 0.5 * np.abs(p - q).sum(-1)
    return found
