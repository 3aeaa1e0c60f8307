"""Ceilings of single channels (neurons, voxels) from repeated presentations of the same conditions.

With y_r the responses (condition) in repeat r of R, ȳ their mean, and variances over conditions:

    split-half   2 r / (1 + r), r = corr(mean of one half of the repeats, mean of the other); Spearman & Brown; mean over splits.
                 It estimates the share of the variance of ȳ that is signal: a squared correlation.
    CCmax        √(SP / Var(ȳ)), signal power SP = (R Var(ȳ) - mean_r Var(y_r)) / (R - 1); Schoppe et al. (2016). It is the largest
                 correlation with ȳ that a model can have, so CCmax² is what split-half estimates.
    r²/ceiling   r² of a model with ȳ, over the split-half ceiling: the share of the signal's variance, as Brain-Score has it.
                 A negative r counts as -r², so that a model of noise scores 0 on average. It is not clipped and can exceed 1.

A channel whose ceiling is not above 0 has no reliable signal: NaN, never a number. Variances are unbiased throughout (the published
code of CCmax mixes divisors).
"""

import numpy as np
from jaxtyping import Float

from repscope.errors import UserError

Repeats = Float[np.ndarray, "repeat condition channel"]


def split_half(responses: Repeats, *, splits: int = 10, seed: int = 0) -> Float[np.ndarray, "channel"]:
    """Reliability of the mean over all repeats, per channel; 0 or less where the repeats do not agree.

    Raises
    ------
    UserError
        For fewer than 2 repeats or 3 conditions, or values that are not finite.

    >>> y = np.random.default_rng(0).normal(size=(50, 2))
    >>> split_half(np.stack([y, y])).round(6)
    array([1., 1.])
    """
    x = _repeats(responses)
    rng, found = np.random.default_rng(seed), np.zeros(x.shape[2])
    for _ in range(splits):
        order = rng.permutation(len(x))
        r = correlations(x[order[: len(x) // 2]].mean(0), x[order[len(x) // 2 :]].mean(0))
        found += 2 * r / (1 + r.clip(-0.99)) / splits  # r = -1 is possible with two repeats, and its pole says no more than -199
    return found


def cc_max(responses: Repeats) -> Float[np.ndarray, "channel"]:
    """Largest correlation with the mean over repeats that a model can have, per channel; NaN without signal power.

    Raises
    ------
    UserError
        As `split_half`.
    """
    x = _repeats(responses)
    n, of_mean, total = len(x), x.mean(0).var(0, ddof=1), x.var(1, ddof=1).mean(0)
    power = (n * of_mean - total) / (n - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(np.where(power > 0, power / of_mean, np.nan)).clip(max=1.0)


def over_ceiling(r: Float[np.ndarray, "... channel"], ceiling: Float[np.ndarray, "channel"]) -> Float[np.ndarray, "... channel"]:
    """r²/ceiling with the sign of r; NaN where the ceiling is not above 0.

    Raises
    ------
    UserError
        When no ceiling is above 0.

    >>> over_ceiling(np.array([0.5, -0.5, 0.5]), np.array([0.5, 0.5, -0.1]))
    array([ 0.5, -0.5,  nan])
    """
    if not (ceiling > 0).any():
        raise UserError(
            f"The ceiling of all {len(ceiling)} channels is below zero, as repeats of a condition do not agree; check that repeats "
            "are aligned, or leave this region out."
        )
    found: np.ndarray = np.sign(r) * r**2 / np.where(ceiling > 0, ceiling, np.nan)
    return found


def correlations(
    a: Float[np.ndarray, "condition channel"], b: Float[np.ndarray, "condition channel"]
) -> Float[np.ndarray, "channel"]:
    """Pearson's r over conditions, per channel; NaN where one side is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.asarray(np.divide((a * b).sum(0), scale, out=np.full(a.shape[1], np.nan), where=scale > 0))


def _repeats(responses: Repeats) -> Repeats:
    x = np.asarray(responses, dtype=np.float64)
    if x.ndim != 3 or len(x) < 2 or x.shape[1] < 3:
        raise UserError(
            f"The responses have shape {x.shape}; a ceiling needs (repeat, condition, channel), 2 repeats and 3 conditions."
        )
    if not np.isfinite(x).all():
        raise UserError(f"{int((~np.isfinite(x)).sum())} of the responses are not finite; leave those conditions or channels out.")
    constant = np.ptp(x, axis=(0, 1)) == 0
    if constant.any():
        raise UserError(f"Channel {int(constant.argmax())} has the same response to every condition; leave it out.")
    return x
