"""Simulated recordings of a known truth: channels of several subjects mix the units of a network, or random signals.

In subject s, repeat r, the response of a channel to condition i is

    z(f_i · a_s) + own · e_si + noise · n_sri          a_s, e, n standard normal; z: mean 0 and variance 1 over conditions

f are the activations that all subjects share, e what is their own and does not change between repeats, n differs in every repeat.
So a perfect model cannot reach a similarity of 1: noise and individual differences set a ceiling. A recording of random signals has
random f: subjects agree with each other, and no network is like them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from repscope.errors import UserError

Recorded = Float[np.ndarray, "subject repeat condition channel"]


@dataclass(frozen=True)
class Simulation:
    """subjects, repeats, channels: numbers. own: size of what is each subject's own. noise: of each repeat's. Signals have size 1.

    Raises a `UserError` for sizes that leave nothing to record.
    """

    subjects: int = 4
    repeats: int = 3
    channels: int = 60
    own: float = 0.5
    noise: float = 1.0

    def __post_init__(self) -> None:
        """Refuse numbers below one, and sizes below zero."""
        if min(self.subjects, self.repeats, self.channels) < 1 or min(self.own, self.noise) < 0:
            raise UserError(f"{self} records nothing: numbers are at least 1, sizes at least 0.")


def simulate(features: Float[np.ndarray, "condition unit"], how: Simulation, rng: np.random.Generator) -> Recorded:
    """Responses of subjects whose channels mix these features.

    Raises
    ------
    UserError
        For features that are the same for all conditions.
    """
    varied = features[:, np.ptp(features, axis=0) > 0]
    if not varied.shape[1]:
        raise UserError("All features are the same for every condition, so they cannot generate a recording.")
    conditions = len(features)
    signal = varied @ rng.normal(size=(how.subjects, 1, varied.shape[1], how.channels))
    signal = signal - signal.mean(2, keepdims=True)
    signal /= signal.std(2, keepdims=True)
    own = how.own * rng.normal(size=(how.subjects, 1, conditions, how.channels))
    found: np.ndarray = signal + own + how.noise * rng.normal(size=(how.subjects, how.repeats, conditions, how.channels))
    return found


def simulate_unrelated(conditions: int, units: int, how: Simulation, rng: np.random.Generator) -> Recorded:
    """Responses of subjects who share random signals that have nothing to do with any network or stimulus."""
    return simulate(rng.normal(size=(conditions, units)), how, rng)
