"""Effective compute: as how many times the pre-training compute does an enhancement count?

1. A *ladder*: networks without the enhancement, trained with several amounts of compute C, and their losses L.
2. The law L = E + a C^-b is fitted by Huber's loss on log L (Hoffmann et al. 2022, equation 3, delta 1e-3): Levenberg-Marquardt on
   reweighted squares, all starts and all resamples at once.
3. A network with the enhancement had the compute C and has the loss L'. Its equivalent compute C* solves L' = E + a C*^-b, and the
   compute-equivalent gain is C* / C (Davidson et al. 2023).
4. Interval: where ladder and enhancement share units (worlds, seeds), the jackknife over units of the logarithm of the gain, with
   Student's t of n − 1 degrees of freedom: units are few, and resamples of few are too narrow. Otherwise the bootstrap is
   parametric: the fitted law with normal noise of the residuals' size on log L, and noise of its own on the enhanced loss;
   deviations are stretched by the ratio of Student's t to the normal quantile. Where a leave-one-out gain is infinite, units are
   resampled with the same stretching. `benchmarks/effective_compute.py` measures the coverage.
5. No gain is given, but a reason, where the law cannot say one: L' at or below the floor E, C* more than one decade outside the
   ladder, a ladder that does not fall. An interval whose upper end is there is open: its upper end is infinity.
Takes numbers, never a network. Losses are positive and fall with compute; of a score between 0 and 1 give 1 − score.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from math import exp, log, sqrt
from statistics import NormalDist

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from repscope import stats
from repscope.errors import UserError
from repscope.stats import Estimate

DELTA = 1e-3  #: of Huber's loss, on log L
DECADES = 1.0  #: how far outside the ladder an equivalent compute may lie
LEVEL = 0.9
DRAWS = 1000
RUNGS = 4  #: least amounts of compute: one more than the law has parameters
_PARAMETERS, _ITERATIONS = 3, 80
_FLAT = 1e-3  #: of log L over the ladder: a fall that the fit cannot tell from none


@dataclass(frozen=True, eq=False)
class Law:
    """L = E + a C^-b. floor: E. scale: a. exponent: b."""

    floor: float
    scale: float
    exponent: float

    def loss(self, compute: Float[ArrayLike, "*point"]) -> Float[np.ndarray, "*point"]:
        """Loss at these amounts of compute."""
        return np.asarray(self.floor + self.scale * np.asarray(compute, dtype=np.float64) ** -self.exponent)

    def compute(self, loss: Float[ArrayLike, "*point"]) -> Float[np.ndarray, "*point"]:
        """Compute at which the law has these losses; infinite at or below the floor."""
        above = np.asarray(loss, dtype=np.float64) - self.floor
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = (np.where(above > 0, above, np.nan) / self.scale) ** (-1 / self.exponent)
        return np.where(above > 0, found, np.inf)


@dataclass(frozen=True, eq=False)
class Ladder:
    """Networks without the enhancement.

    compute: of each rung, in any unit. loss: of each rung (rows) and unit (columns: worlds or seeds; one if there are none).

    Raises a `UserError` for numbers that are missing or not positive, fewer than four different amounts of compute or five
    networks.
    """

    compute: Float[np.ndarray, "rung"]
    loss: Float[np.ndarray, "rung unit"]
    shared: bool = field(init=False)

    def __post_init__(self) -> None:
        """Refuse what no law can be fitted to."""
        compute, loss = np.asarray(self.compute, dtype=np.float64), np.asarray(self.loss, dtype=np.float64)
        loss = loss[:, None] if loss.ndim == 1 else loss
        if compute.ndim != 1 or loss.shape[0] != len(compute):
            raise UserError(
                f"The ladder has {compute.shape} amounts of compute and losses of shape {loss.shape}; give one row per rung."
            )
        for name, values in (("compute", compute), ("loss", loss)):
            if not np.isfinite(values).all() or (values <= 0).any():
                raise UserError(f"The ladder has a {name} that is missing, infinite or not above 0; leave that network out.")
        if (rungs := len(np.unique(compute))) < RUNGS or loss.size <= RUNGS:
            raise UserError(
                f"The ladder has {loss.size} networks at {rungs} amounts of compute; the law has three parameters: give at least "
                f"{RUNGS} amounts and {RUNGS + 1} networks."
            )
        order = np.argsort(compute, kind="stable")
        object.__setattr__(self, "compute", compute[order])
        object.__setattr__(self, "loss", loss[order])
        object.__setattr__(self, "shared", loss.shape[1] > 1)

    @cached_property
    def law(self) -> Law:
        """The law of the mean loss over units."""
        return _laws(self.compute, self.loss.mean(1)[None])[0]

    @cached_property
    def noise(self) -> float:
        """Standard deviation of log L around the law, of the mean loss over units."""
        residuals = np.log(self.loss.mean(1)) - np.log(self.law.loss(self.compute))
        return sqrt(float(np.square(residuals).sum()) / max(1, len(residuals) - _PARAMETERS))

    def refusal(self) -> str:
        """Why this ladder has no law that can be inverted, in one sentence; "" if it has one."""
        first, last = np.log(self.law.loss(self.compute[[0, -1]]))
        if first - last <= max(2 * self.noise, _FLAT):
            return "The loss of the ladder does not fall with compute, so that no amount of it equals the enhancement."
        return ""


@dataclass(frozen=True)
class Gain:
    """A compute-equivalent gain, or why there is none.

    estimate: C* / C with its interval, whose upper end is infinite where the ladder does not bound it. refusal: one sentence, ""
    where there is an estimate. equivalent: C*, NaN where refused.
    """

    estimate: Estimate | None
    refusal: str = ""
    equivalent: float = float("nan")

    @property
    def open(self) -> bool:
        """Whether the interval has no upper end."""
        return self.estimate is not None and np.isinf(self.estimate.hi)


def gain(
    ladder: Ladder, compute: float, loss: Float[ArrayLike, "unit"], *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> Gain:
    """The compute-equivalent gain of an enhancement.

    Parameters
    ----------
    ladder
        Networks without the enhancement.
    compute
        Pre-training compute of the enhanced network, in the ladder's unit.
    loss
        Its loss: one per unit of the ladder, in the same order, where the ladder has several; otherwise one or more networks.
    level, draws, seed
        Of the interval.

    Raises
    ------
    UserError
        For numbers that are missing or not positive, or losses of other units than the ladder's.
    """
    enhanced = np.atleast_1d(np.asarray(loss, dtype=np.float64))
    if not np.isfinite(enhanced).all() or (enhanced <= 0).any() or not (np.isfinite(compute) and compute > 0):
        raise UserError("The enhanced network has a compute or a loss that is missing, infinite or not above 0; leave it out.")
    if ladder.shared and len(enhanced) != ladder.loss.shape[1]:
        raise UserError(
            f"The enhancement has {len(enhanced)} losses and the ladder {ladder.loss.shape[1]} units; give one loss per unit."
        )
    if reason := ladder.refusal() or _outside(ladder, float(enhanced.mean())):
        return Gain(None, reason)
    equivalent = float(ladder.law.compute(enhanced.mean()))
    value = float(equivalent / compute)
    if ladder.shared and np.isfinite(each := _left_out(ladder, enhanced)).all():
        return Gain(_jackknifed(value, np.log(each / compute), ladder.compute[-1] * 10**DECADES / compute, level), "", equivalent)
    sampled, degrees, n = _resampled(ladder, enhanced, draws, seed)
    factor = _stretch(n if ladder.shared else degrees, degrees, level)
    with np.errstate(divide="ignore", over="ignore"):
        logs = log(value) + factor * (np.log(sampled / compute) - log(value))
        most = ladder.compute[-1] * 10**DECADES / compute
        stretched = np.where(np.exp(logs) > most, np.inf, np.exp(logs))
    unit = "unit" if ladder.shared else "network"
    return Gain(stats.of_draws(value, stretched, unit=unit, n=n, level=level), "", equivalent)


def law_intervals(ladder: Ladder, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> dict[str, Estimate]:
    """Floor and exponent of the law, with intervals from the same resamples as those of gains."""
    laws = _law_draws(ladder, draws, seed)
    n = ladder.loss.shape[1] if ladder.shared else len(ladder.compute)
    unit = "unit" if ladder.shared else "network"
    return {
        name: stats.of_draws(getattr(ladder.law, name), [getattr(one, name) for one in laws], unit=unit, n=n, level=level)
        for name in ("floor", "exponent")
    }


def _outside(ladder: Ladder, loss: float) -> str:
    """Why the law says nothing of this loss; "" if it does."""
    law, lowest, highest = ladder.law, float(ladder.compute[0]), float(ladder.compute[-1])
    if loss <= law.floor:
        return f"Its loss of {loss:.4g} is not above the floor of the ladder, {law.floor:.4g}, which no amount of compute reaches."
    equivalent = float(law.compute(loss))
    if equivalent > highest * 10**DECADES:
        return f"Its loss of {loss:.4g} needs more than ten times the compute of the highest rung, where the law is not tested."
    if equivalent < lowest / 10**DECADES:
        return f"Its loss of {loss:.4g} needs less than a tenth of the compute of the lowest rung, where the law is not tested."
    return ""


def _left_out(ladder: Ladder, enhanced: Float[np.ndarray, "unit"]) -> Float[np.ndarray, "unit"]:
    """Equivalent compute without each unit in turn; infinite at or below the floor."""
    units = len(enhanced)
    weights = (1 - np.eye(units)) / (units - 1)
    laws = _laws(ladder.compute, weights @ ladder.loss.T, start=ladder.law)
    return np.array([float(law.compute(value)) for law, value in zip(laws, weights @ enhanced)])


def _jackknifed(value: float, logs: Float[np.ndarray, "unit"], most: float, level: float) -> Estimate:
    """The interval of Student's t on the logarithm, from the jackknife's variance; open where it reaches beyond the ladder."""
    n = len(logs)
    variance = (n - 1) / n * float(np.square(logs - logs.mean()).sum())
    found = stats.bootstrap.student(log(value), variance, unit="unit", n=n, level=level)
    lo, hi = exp(found.lo), exp(min(found.hi, 700.0))
    return replace(found, value=value, lo=lo, hi=hi if hi <= most else float("inf"), method="jackknife")


def _stretch(n: int, degrees: int, level: float) -> float:
    """What the deviations of few units have to be multiplied by: Student's quantile over the normal one, and the lost degrees."""
    from scipy.stats import t

    if degrees < 1:
        return float("inf")
    return float(t.ppf(0.5 + level / 2, degrees)) / NormalDist().inv_cdf(0.5 + level / 2) * sqrt(n / degrees)


def _resampled(
    ladder: Ladder, enhanced: Float[np.ndarray, "unit"], draws: int, seed: int
) -> tuple[Float[np.ndarray, "draw"], int, int]:
    """Equivalent compute of every resample; degrees of freedom and number of what was resampled."""
    units, rungs = ladder.loss.shape[1], len(ladder.compute)
    laws = _law_draws(ladder, draws, seed)
    if ladder.shared:
        drawn = _unit_weights(units, draws, seed) @ enhanced
        degrees, n = units - 1, units
    else:
        noise = ladder.noise / sqrt(len(enhanced)) * np.random.default_rng([seed, 1]).standard_normal(draws)
        drawn = np.exp(np.log(enhanced.mean()) + noise)
        degrees, n = rungs - _PARAMETERS, rungs
    return np.array([law.compute(value) for law, value in zip(laws, drawn)]), degrees, n


@lru_cache(maxsize=8)
def _law_draws(ladder: Ladder, draws: int, seed: int) -> list[Law]:
    """The law of resampled units, or of the fitted law with noise of the residuals' size."""
    if ladder.shared:
        losses = _unit_weights(ladder.loss.shape[1], draws, seed) @ ladder.loss.T
    else:
        noise = ladder.noise * np.random.default_rng([seed, 0]).standard_normal((draws, len(ladder.compute)))
        losses = ladder.law.loss(ladder.compute) * np.exp(noise)
    return _laws(ladder.compute, losses, start=ladder.law)


def _unit_weights(units: int, draws: int, seed: int) -> Float[np.ndarray, "draw unit"]:
    return stats.bootstrap.draw_weights(units, draws, np.random.default_rng(seed)) / units


def _laws(compute: Float[np.ndarray, "rung"], losses: Float[np.ndarray, "draw rung"], start: Law | None = None) -> list[Law]:
    """The law of every row of losses: the best of several starts."""
    x = np.log(compute)
    centre = float(x.mean())
    x, y = x - centre, np.log(losses)
    starts = _starts(x, losses, start, centre)  # (start, draw, parameter)
    shape = starts.shape[:2]
    theta, objective = _minimised(x, np.broadcast_to(y, (shape[0], *y.shape)).reshape(-1, len(x)), starts.reshape(-1, _PARAMETERS))
    best = objective.reshape(shape).argmin(0)
    theta = theta.reshape(*shape, _PARAMETERS)[best, np.arange(shape[1])]
    return [Law(exp(p), exp(q + exp(beta) * centre), exp(beta)) for p, q, beta in theta.tolist()]


def _starts(
    x: Float[np.ndarray, "rung"], losses: Float[np.ndarray, "draw rung"], start: Law | None, centre: float
) -> Float[np.ndarray, "start draw 3"]:
    """log E, log of the rest at the middle of the ladder, and log b, for several floors and exponents."""
    lowest, middle = losses.min(1), np.median(losses, 1)
    floors: Sequence[float] = (0.05, 0.5, 0.9, 0.99) if start is None else (0.5, 0.95)
    exponents: Sequence[float] = (0.05, 0.15, 0.4, 1.0) if start is None else (0.15, 0.5)
    found = [
        np.stack([np.log(f * lowest), np.log(np.maximum(middle - f * lowest, 1e-3 * lowest)), np.full(len(losses), log(b))], -1)
        for f in floors
        for b in exponents
    ]
    if start is not None:
        at = [log(start.floor), log(start.scale) - start.exponent * centre, log(start.exponent)]
        found.append(np.tile(at, (len(losses), 1)))
    return np.stack(found)


def _minimised(
    x: Float[np.ndarray, "rung"], y: Float[np.ndarray, "row rung"], theta: Float[np.ndarray, "row 3"]
) -> tuple[Float[np.ndarray, "row 3"], Float[np.ndarray, "row"]]:
    """Levenberg-Marquardt with Huber's weights, every row by itself; a step is taken where it lowers the Huber loss."""
    damping, least, idle = np.full(len(y), 1e-2), _huber(_predicted(x, theta)[0] - y), 0
    for _ in range(_ITERATIONS):
        predicted, jacobian = _predicted(x, theta)
        r = predicted - y
        w = np.minimum(1.0, DELTA / np.maximum(np.abs(r), 1e-12))
        weighted = jacobian * w[..., None]
        normal = weighted.swapaxes(1, 2) @ jacobian
        diagonal = np.einsum("rii->ri", normal)
        damped = (
            normal + np.eye(_PARAMETERS) * (damping[:, None] * diagonal + 1e-9 * diagonal.max(1, keepdims=True) + 1e-300)[:, None]
        )
        step = np.linalg.solve(damped, -(weighted.swapaxes(1, 2) @ r[..., None]))[..., 0]
        proposed = np.clip(theta + np.clip(step, -1.0, 1.0), [-30.0, -30.0, -5.0], [30.0, 30.0, 1.6])
        value = _huber(_predicted(x, proposed)[0] - y)
        better = value < least
        idle = 0 if (least - value > 1e-6 * least).any() else idle + 1
        theta, least = np.where(better[:, None], proposed, theta), np.where(better, value, least)
        if idle > 8:
            break
        damping = np.clip(np.where(better, damping / 4, damping * 5), 1e-9, 1e9)
    return theta, least


def _predicted(
    x: Float[np.ndarray, "rung"], theta: Float[np.ndarray, "row 3"]
) -> tuple[Float[np.ndarray, "row rung"], Float[np.ndarray, "row rung 3"]]:
    """log (E + a C^-b), and its derivatives by log E, log a and log b."""
    p, q, b = theta[:, :1], theta[:, 1:2], np.exp(theta[:, 2:])
    log_rest = q - b * x
    found = np.logaddexp(p, log_rest)
    rest = np.exp(log_rest - found)
    return found, np.stack([1 - rest, rest, -rest * x * b], -1)


def _huber(r: Float[np.ndarray, "row rung"]) -> Float[np.ndarray, "row"]:
    size = np.abs(r)
    return np.asarray(np.where(size <= DELTA, 0.5 * r**2, DELTA * (size - 0.5 * DELTA)).sum(1))
