"""Training until each of several stacked networks has a given reward, or a given divergence, to a small fraction of an update.

1. Train, and evaluate every few updates on samples with fixed random numbers.
2. Where a network passed its target since the last evaluation, keep the weights since then; at the end, for all networks at once,
   find the update in which each did (bisection), then repeat that last update at a smaller rate. AdamW's update is linear in its
   rate, so the weights after an update at the share f of the rate lie at f on the line between the weights before and after it:
   no update is made again.
3. f by the secant method inside the bracket, until the target is met.
A network that does not reach its target in the given number of updates, or that begins beyond it, is marked, never dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

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
    alone: Mapping[str, Callable[[State], Float[np.ndarray, "network"]]] = MappingProxyType({}),
    also: Callable[[State], Mapping[str, Float[np.ndarray, "network"]]] = lambda state: {},
) -> Course:
    """Train until every network has passed each of its targets, or for `most` updates.

    Parameters
    ----------
    targets
        By name of a value of `measure`, which grows in training.
    every
        Updates between evaluations.
    alone
        Quicker ways to one value of `measure`, by its name.
    also
        Further values of the curve.
    """
    first = tuning.state
    now = measure(first)
    course = Course({}, [_entry(0, now, also(first))])
    missing = {name: now[name] < target for name, target in targets.items()}  # not passed yet
    passages = {name: _Passage.empty(first, every) for name in targets}
    window = [first]
    while tuning.step < most and any(m.any() for m in missing.values()):
        before = now
        for _ in range(min(every, most - tuning.step)):
            tuning.update()
            window.append(tuning.state)
            tick(1)
        now = measure(window[-1])
        course.curve.append(_entry(tuning.step, now, also(window[-1])))
        for name, target in targets.items():
            passed = missing[name] & (now[name] >= target)
            if passed.any():
                passages[name] = passages[name].with_networks(window, passed, tuning.step, before[name], now[name])
                missing[name] &= ~passed
        window = window[-1:]
    for name, target in targets.items():
        passage = passages[name]
        at = alone.get(name, lambda state, name=name: measure(state)[name])
        state, updates = _refined(passage, at, target) if passage.passed.any() else (first, np.zeros(len(target)))
        state = _placed(state, window[-1], missing[name])
        updates = np.where(missing[name], float(tuning.step), np.where(passage.passed, updates, 0.0))
        course.matched[name] = Matched(state, passage.passed, updates)
    return course


@dataclass(frozen=True)
class _Passage:
    """The weights between the evaluations around a target, of the networks that passed it.

    window: states of the whole stack; of each network those of its own passage, the last repeated. length: updates in a network's
    window. begin: its first step. below, above: values at its ends.
    """

    window: list[State]
    passed: Bool[np.ndarray, "network"]
    length: Int[np.ndarray, "network"]
    begin: Int[np.ndarray, "network"]
    below: Float[np.ndarray, "network"]
    above: Float[np.ndarray, "network"]

    @classmethod
    def empty(cls, state: State, every: int) -> "_Passage":
        """No network has passed."""
        n = runs_of(state)
        return cls(
            [state] * (every + 1), np.zeros(n, dtype=bool), np.ones(n, dtype=int), np.zeros(n, dtype=int), np.zeros(n), np.ones(n)
        )

    def with_networks(
        self,
        window: Sequence[State],
        passed: Bool[np.ndarray, "network"],
        step: int,
        below: Float[np.ndarray, "network"],
        above: Float[np.ndarray, "network"],
    ) -> "_Passage":
        """With the networks that passed in this window, which ends at a step."""
        length = len(window) - 1
        padded = [*window, *[window[-1]] * (len(self.window) - len(window))]
        return _Passage(
            [_placed(old, new, passed) for old, new in zip(self.window, padded, strict=True)],
            self.passed | passed,
            np.where(passed, length, self.length),
            np.where(passed, step - length, self.begin),
            np.where(passed, below, self.below),
            np.where(passed, above, self.above),
        )


def _refined(
    passage: _Passage, at: Callable[[State], Float[np.ndarray, "network"]], target: Float[np.ndarray, "network"]
) -> tuple[State, Float[np.ndarray, "network"]]:
    """Weights at the target, and the updates to them, of the networks that passed."""
    window, active = passage.window, passage.passed
    lo, hi = np.zeros(len(target), dtype=int), passage.length.copy()
    below, above = passage.below.copy(), passage.above.copy()
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
    return _between(start, end, best), passage.begin + lo + best


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
