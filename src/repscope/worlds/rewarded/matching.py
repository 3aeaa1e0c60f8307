"""Training until each of several stacked networks has a given reward, or a given divergence, to a small fraction of an update.

1. Train, and evaluate every few updates on samples with fixed random numbers.
2. Where a network passed its target since the last evaluation, find the update in which it did (bisection over the weights since
   then), then repeat that last update at a smaller rate. AdamW's update is linear in its rate, so the weights after an update at
   the share f of the rate lie at f on the line between the weights before and after it: no update is made again.
3. f by the secant method inside the bracket, until the target is met.
A network that does not reach its target in the given number of updates, or that begins beyond it, is marked, never dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from repscope.models.loading.stacked_weights import State, runs_of
from repscope.worlds.rewarded.methods import Tuning

Measure = Callable[[State], Mapping[str, Float[np.ndarray, "network"]]]
_SECANTS = 6
_TOLERANCE = 2e-3  #: of a target, on the samples that choose


@dataclass(frozen=True)
class Matched:
    """Networks at a target. state: at the target where reached, else the last. updates: taken, with the fraction of the last."""

    state: State
    reached: Bool[np.ndarray, "network"]
    updates: Float[np.ndarray, "network"]


@dataclass
class Course:
    """What a training did. matched: by target. curve: one entry per evaluation with updates, and each value by network."""

    matched: dict[str, Matched]
    curve: list[dict[str, np.ndarray]] = field(default_factory=list)


def train_to(
    tuning: Tuning,
    measure: Measure,
    targets: Mapping[str, Float[np.ndarray, "network"]],
    most: int,
    every: int = 4,
    tick: Callable[[float], None] = lambda amount: None,
    also: Callable[[State], Mapping[str, Float[np.ndarray, "network"]]] = lambda state: {},
) -> Course:
    """Train until every network has passed each of its targets, or for `most` updates.

    Parameters
    ----------
    targets
        By name of a value of `measure`, which grows in training.
    every
        Updates between evaluations.
    also
        Further values of the curve.
    """
    window = [tuning.state]
    now = measure(window[0])
    course = Course({}, [_entry(0, now, also(window[0]))])
    n = runs_of(window[0])
    beyond = {name: now[name] >= target for name, target in targets.items()}
    open_ = {name: ~b for name, b in beyond.items()}
    found = dict.fromkeys(targets, window[0])
    updates = {name: np.zeros(n) for name in targets}
    reached = {name: np.zeros(n, dtype=bool) for name in targets}
    while tuning.step < most and any(o.any() for o in open_.values()):
        before = now
        for _ in range(min(every, most - tuning.step)):
            tuning.update()
            window.append(tuning.state)
            tick(1)
        now = measure(window[-1])
        course.curve.append(_entry(tuning.step, now, also(window[-1])))
        for name, target in targets.items():
            passed = open_[name] & (now[name] >= target)
            if passed.any():
                at = lambda state, name=name: measure(state)[name]  # noqa: E731
                state, step = _refined(window, at, before[name], now[name], target, passed)
                found[name] = _placed(found[name], state, passed)
                updates[name] = np.where(passed, tuning.step - len(window) + 1 + step, updates[name])
                reached[name] |= passed
                open_[name] &= ~passed
        window = window[-1:]
    for name in targets:
        left = open_[name]
        course.matched[name] = Matched(
            _placed(found[name], window[-1], left), reached[name], np.where(left, float(tuning.step), updates[name])
        )
    return course


def _refined(
    window: Sequence[State],
    at: Callable[[State], Float[np.ndarray, "network"]],
    first: Float[np.ndarray, "network"],
    last: Float[np.ndarray, "network"],
    target: Float[np.ndarray, "network"],
    active: Bool[np.ndarray, "network"],
) -> tuple[State, Float[np.ndarray, "network"]]:
    """Weights at the target, and the updates from the beginning of the window to them, of the active networks."""
    lo, hi = np.zeros(len(target), dtype=int), np.full(len(target), len(window) - 1)
    below, above = first.copy(), last.copy()
    while (hi - lo > 1)[active].any():
        middle = (lo + hi) // 2
        value = at(_gathered(window, middle))
        inside = hi - lo > 1
        over = value >= target
        hi, above = np.where(inside & over, middle, hi), np.where(inside & over, value, above)
        lo, below = np.where(inside & ~over, middle, lo), np.where(inside & ~over, value, below)
    start, end = _gathered(window, lo), _gathered(window, hi)
    low, high = np.zeros(len(target)), np.ones(len(target))
    best, error = np.ones(len(target)), np.abs(above - target)
    for _ in range(_SECANTS):
        if (error[active] < _TOLERANCE).all():
            break
        share = np.clip((target - below) / np.where(above > below, above - below, 1.0), 0.1, 0.9)  # never stuck at one end
        f = low + share * (high - low)
        value = at(_between(start, end, f))
        nearer = np.abs(value - target) < error
        best, error = np.where(nearer, f, best), np.where(nearer, np.abs(value - target), error)
        over = value >= target
        high, above = np.where(over, f, high), np.where(over, value, above)
        low, below = np.where(over, low, f), np.where(over, below, value)
    return _between(start, end, best), lo + best


def _gathered(window: Sequence[State], index: Int[np.ndarray, "network"]) -> State:
    """Of each network the weights at its own place of the window."""
    return {name: torch.stack([window[k][name][i] for i, k in enumerate(index)]) for name in window[0]}


def _between(start: State, end: State, share: Float[np.ndarray, "network"]) -> State:
    f = torch.from_numpy(share).float()
    return {name: torch.lerp(v, end[name], f.view(-1, *[1] * (v.ndim - 1))) for name, v in start.items()}


def _placed(into: State, state: State, where: Bool[np.ndarray, "network"]) -> State:
    chosen = torch.from_numpy(where)
    return {name: torch.where(chosen.view(-1, *[1] * (v.ndim - 1)), state[name], v) for name, v in into.items()}


def _entry(step: int, *parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"updates": np.asarray(step), **{name: value for part in parts for name, value in part.items()}}
