"""When does a skill appear? Steps of transitions of accuracy curves over checkpoints, with intervals, and how sharp they are.

Curves are over log2(step + 1), linear between checkpoints. Of every run:

1. *Step of 50 %*: where the accuracy first reaches a level. Infinite if it never does; the first checkpoint if it begins there.
2. *Steepest rise*: the middle of the doubling of steps in which the accuracy rises most.
3. *Sharpness*: that rise, divided by the mean rise per doubling from the first to the last checkpoint. 1 is an even rise. A finite
   number of examples and checkpoints alone makes the largest rise more than the mean one, so its null is simulated: every example
   that is learned is learned at a random point of the log axis.
4. *Lag*: the step of 50 % of one curve over that of another.

A number is the mean over runs (steps: geometric). Intervals: runs, and examples inside each run, are resampled.
Takes arrays, never a network.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from repscope import stats
from repscope.errors import UserError
from repscope.stats import Estimate

DRAWS = 500
LEVEL = 0.5
LEAST_RISE = 0.25  #: of accuracy, below which nothing appeared
_FINE = 16  #: points per doubling


@dataclass(frozen=True, eq=False)
class Curve:
    """Accuracy over checkpoints. steps: ascending. hits: 1 where a run answers an example at a checkpoint, else 0.

    Raises a `UserError` for fewer than two checkpoints, steps that do not ascend, or numbers that are missing.
    """

    steps: Int[np.ndarray, "checkpoint"]
    hits: Float[np.ndarray, "run checkpoint example"]

    def __post_init__(self) -> None:
        """Refuse what is no curve."""
        steps, hits = np.asarray(self.steps), np.asarray(self.hits, dtype=np.float64)
        if len(steps) < 2:
            raise UserError("A curve needs at least two checkpoints; one says what a model can do, not when it began.")
        if (np.diff(steps) <= 0).any() or steps[0] < 0:
            raise UserError(f"The steps {_listed(steps)} do not ascend; sort the checkpoints by step, and give each step once.")
        if hits.ndim != 3 or hits.shape[1] != len(steps) or not hits.size:
            raise UserError(f"There are hits of shape {hits.shape} for {len(steps)} checkpoints; give (run, checkpoint, example).")
        if not np.isfinite(hits).all():
            raise UserError("A checkpoint has answers that are not numbers; its training diverged, so leave it out.")
        object.__setattr__(self, "hits", hits)

    @property
    def accuracy(self) -> Float[np.ndarray, "run checkpoint"]:
        """Share of examples that are answered."""
        return np.asarray(self.hits.mean(-1))


@dataclass(frozen=True)
class Transition:
    """Of one curve, means over runs. reached: share of runs that reach the level. sharpness_null: of even learning."""

    step: Estimate
    steepest: Estimate
    sharpness: Estimate
    sharpness_null: Estimate
    reached: float


def transition(curve: Curve, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> Transition:
    """The step of the level, the steepest rise and the sharpness of a curve.

    Parameters
    ----------
    curve
        Hits by run, checkpoint and example.
    level
        Accuracy at which a skill counts as there.
    draws, seed
        Of intervals and of the null.
    """
    whole = _shapes(curve.steps, curve.accuracy[None], level)
    drawn = _shapes(curve.steps, _resampled(curve, draws, seed), level)
    runs = _drawn_runs(curve, draws, seed)
    n, unit = (len(curve.hits), "run") if len(curve.hits) > 1 else (curve.hits.shape[2], "example")
    found = {}
    for name in ("step", "steepest", "sharpness"):
        values = np.take_along_axis(drawn[name], runs, 1)
        value, sampled = _joined(whole[name], name)[0], _joined(values, name)
        found[name] = stats.of_draws(float(value), sampled, unit=unit, n=n)
    null = stats.null(_even(curve, draws, seed), unit="draw")
    reached = float(np.isfinite(whole["step"]).mean())
    return Transition(found["step"], found["steepest"], found["sharpness"], null, reached)


def lag(late: Curve, early: Curve, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Step of the level of one curve over that of another, of the same runs; their mean is geometric. Infinite where never reached.

    Raises
    ------
    UserError
        When the curves have different numbers of runs.
    """
    if len(late.hits) != len(early.hits):
        raise UserError(f"The curves are of {len(late.hits)} and {len(early.hits)} runs; a lag needs both of every run.")

    def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            found: np.ndarray = np.exp((np.log(a + 1) - np.log(b + 1)).mean(1))
        return found

    whole = [_shapes(c.steps, c.accuracy[None], level)["step"] for c in (late, early)]
    runs = _drawn_runs(late, draws, seed)
    drawn = [
        np.take_along_axis(_shapes(c.steps, _resampled(c, draws, seed + i), level)["step"], runs, 1)
        for i, c in enumerate((late, early))
    ]
    n, unit = (len(late.hits), "run") if len(late.hits) > 1 else (late.hits.shape[2], "example")
    return stats.of_draws(float(ratio(*whole)[0]), ratio(*drawn), unit=unit, n=n)


def _shapes(
    steps: Int[np.ndarray, "checkpoint"], accuracy: Float[np.ndarray, "draw run checkpoint"], level: float
) -> dict[str, Float[np.ndarray, "draw run"]]:
    """Step of the level, steepest step and sharpness of curves."""
    x = np.log2(np.asarray(steps, dtype=np.float64) + 1)
    fine = np.linspace(x[0], x[-1], max(2, int(np.ceil((x[-1] - x[0]) * _FINE)) + 1))
    place = np.clip(np.searchsorted(x, fine, side="right") - 1, 0, len(x) - 2)
    share = (fine - x[place]) / (x[place + 1] - x[place])
    y = accuracy[..., place] * (1 - share) + accuracy[..., place + 1] * share
    above = y >= level
    first = above.argmax(-1)
    after = np.take_along_axis(y, first[..., None], -1)[..., 0]
    before = np.take_along_axis(y, np.maximum(first - 1, 0)[..., None], -1)[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        back = np.where(first > 0, (after - level) / (after - before), 0.0)
    spacing = fine[1] - fine[0]
    at = np.where(above.any(-1), np.exp2(fine[first] - back * spacing) - 1, np.inf)
    window = min(len(fine) - 1, max(1, round(1 / spacing)))
    rises = y[..., window:] - y[..., :-window]
    middle = (fine[window:] + fine[:-window]) / 2
    best = rises.argmax(-1)
    total = y[..., -1] - y[..., 0]
    even = total * (window * spacing) / (x[-1] - x[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        sharp = np.where(total >= LEAST_RISE, rises.max(-1) / even, np.nan)
    return {"step": at, "steepest": np.where(total >= LEAST_RISE, np.exp2(middle[best]) - 1, np.nan), "sharpness": sharp}


def _joined(values: Float[np.ndarray, "draw run"], name: str) -> Float[np.ndarray, "draw"]:
    """The mean over runs: of steps geometric; runs without a transition have no sharpness and no steepest rise."""
    if name == "step":
        return np.asarray(np.exp(np.log(values + 1).mean(1)) - 1)
    known = np.isfinite(values)
    scaled = np.where(known, np.log(np.where(known, values, 1) + 1) if name == "steepest" else values, 0).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = scaled / known.sum(1)
    return np.asarray(np.exp(mean) - 1 if name == "steepest" else mean)


def _drawn_runs(curve: Curve, draws: int, seed: int) -> Int[np.ndarray, "draw run"]:
    runs = len(curve.hits)
    return np.random.default_rng([seed, 1]).integers(0, runs, (draws, runs))


def _resampled(curve: Curve, draws: int, seed: int) -> Float[np.ndarray, "draw run checkpoint"]:
    """Accuracy on resampled examples, of every run with examples of its own."""
    rng = np.random.default_rng([seed, 0])
    examples = curve.hits.shape[2]
    found = [stats.bootstrap.draw_weights(examples, draws, rng) @ one.T / examples for one in curve.hits]
    return np.stack(found, 1)


def _even(curve: Curve, draws: int, seed: int) -> Float[np.ndarray, "draw"]:
    """Sharpness where the examples that are answered only at the end are learned at random points of the log axis."""
    rng = np.random.default_rng([seed, 2])
    x = np.log2(np.asarray(curve.steps, dtype=np.float64) + 1)
    runs, _, examples = curve.hits.shape
    first, last = curve.accuracy[:, 0], curve.accuracy[:, -1]
    if not (last - first >= LEAST_RISE).any():
        return np.full(1, np.nan)
    learned = np.maximum(np.round((last - first) * examples).astype(int), 0)
    found = np.empty((draws, runs, len(x)))
    for run in range(runs):
        at = rng.uniform(x[0], x[-1], (draws, int(learned[run])))
        found[:, run] = first[run] + (at[..., None] <= x).sum(1) / examples
    return _joined(_shapes(curve.steps, found, LEVEL)["sharpness"], "sharpness")


def _listed(steps: ArrayLike) -> str:
    held = np.asarray(steps).tolist()
    return ", ".join(map(str, held[:6])) + (" …" if len(held) > 6 else "")
