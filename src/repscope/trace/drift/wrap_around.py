"""Does tuning remove an ability of pre-training, or wrap around it? Three tests.

1. `readable`: accuracy of a linear probe for the ability on the tuned network, beside the base network, the same architecture with
   random weights, and shuffled labels. Each probe is fitted to one half of the prompts of its own network, tested on the other.
2. `relearning`: steps of further training until a score is reached again, beside a network that never had the ability. The caller
   trains; this counts steps. A run that never reaches the target counts as its last step, which is a lower bound.
3. `constant_vector`: the share of the tuned network's next-token KL that one constant vector recovers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from repscope import stats
from repscope.conditions import ESTIMATE, SHUFFLED_LABELS
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.prompts import PromptLike
from repscope.models.sites import Site, Tokens
from repscope.read.probes import ProbeTask
from repscope.results import Result, Row
from repscope.results import at as at_site
from repscope.trace.drift.constant_vector import constant_vector
from repscope.trace.drift.directions import halved, hits, labelled
from repscope.trace.drift.prompted import listed, same_ids, shared_sites

__all__ = ["constant_vector", "readable", "relearning"]

BASE, NEVER = "base network", "never had the ability"
#: metric → its definition
DEFINITIONS = {
    "accuracy": "share of test prompts whose class a ridge probe of the same network reads",
    "steps to relearn": "training steps until the score reaches the target, mean over runs",
}
_SHUFFLES = 20

Network = TypeVar("Network")


def readable(
    base: LanguageModel,
    tuned: LanguageModel,
    prompts: Iterable[PromptLike],
    labels: Sequence[Any],
    *,
    at: str | Site | Sequence[str | Site] = "resid_post",
    tokens: str | int | Tokens = "last",
    seed: int = 0,
) -> Result:
    """Whether a linear probe still reads a pre-trained ability after tuning.

    Parameters
    ----------
    base, tuned
        The networks before and after tuning.
    prompts, labels
        Prompts, and the class of each that the ability tells apart; at least 4 prompts per class.
    at, tokens
        Sites and one position of each prompt, or a mean.
    seed
        Of the halves, the random weights, the shuffles and the intervals.

    Raises
    ------
    UserError
        As `directions`.
    """
    picked, held = Tokens.parse(tokens), listed(base, prompts, 8)
    if picked.ragged:
        raise UserError(f"A probe reads one vector of each prompt, and {picked} names several; use last, mean or an index.")
    task, rng = labelled(labels, len(held)), np.random.default_rng(seed)
    same_ids((base, tuned), held)
    sites = shared_sites((base, tuned), at)
    train, test = halved(task.values, rng)
    shuffles = [rng.permutation(task.values) for _ in range(_SHUFFLES)]
    found: list[Row] = []
    for condition, lm in ((ESTIMATE, tuned), (BASE, base), ("random weights", tuned.twin(seed))):
        held_acts = lm.capture(held, sites, picked)
        for site in sites:
            x = held_acts[site].reshape(len(held), -1).astype(np.float64)
            where: dict[str, Any] = {
                "metric": "accuracy",
                "definition": DEFINITIONS["accuracy"],
                "item": "ability",
                "split": "halves",
                "model": tuned.fingerprint,
                "token": str(picked),
                "seed": seed,
                **at_site(site),
            }
            right = hits(x, x, task, train, test)
            found.append(Row.of(stats.proportion(right, unit="prompt", seed=seed), condition=condition, **where))
            if condition == ESTIMATE:
                null = [hits(x, x, ProbeTask(task.name, "class", s, task.classes), train, test).mean() for s in shuffles]
                found.append(Row.of(stats.null(null, unit="shuffle"), condition=SHUFFLED_LABELS, **where))
    return Result.of(found)


def relearning(
    train: Callable[[Network, int], Iterator[tuple[int, float]]],
    networks: Mapping[str, Sequence[Network]],
    *,
    target: float,
    limit: int,
    seed: int = 0,
) -> Result:
    """Steps of training until an ability is back.

    Parameters
    ----------
    train
        Maps a network and a seed to an iterator of (step, score), in rising steps from step 0, the score before training. It is
        asked for more until the score reaches the target or the step the limit; it must train a copy.
    networks
        Networks by condition: "estimate" for those that were tuned, "never had the ability" for the control, at least one of each.
    target
        The score at which the ability counts as back; steps between two measurements are interpolated linearly.
    limit
        Largest number of steps.
    seed
        Of the runs (seed, seed + 1, …) and the intervals.

    Returns
    -------
    Result
        Mean steps per condition, the share of the control's steps that is saved (item "saved"), and the side table "curves".

    Raises
    ------
    UserError
        For a missing condition, or an iterator without a step 0, that ends early or whose steps fall.
    """
    if missing := {ESTIMATE, NEVER} - {name for name, held in networks.items() if len(held)}:
        raise UserError(f"There is no network for {sorted(missing)[0]!r}; give at least one for each condition.")
    curves: list[dict[str, Any]] = []
    steps: dict[str, list[float]] = {}
    notes = []
    for condition, held in networks.items():
        for run, network in enumerate(held):
            curve = _curve(train(network, seed + run), target, limit, f"run {run} of {condition!r}")
            curves += [{"condition": condition, "run": run, "step": s, "score": v} for s, v in curve]
            reached = _reached(curve, target)
            if reached is None:
                notes.append(f"Run {run} of {condition!r} did not reach {target:g} in {limit} steps; it counts as {limit}.")
            steps.setdefault(condition, []).append(limit if reached is None else reached)
    where: dict[str, Any] = {"metric": "steps to relearn", "definition": DEFINITIONS["steps to relearn"], "seed": seed}
    rows = [
        Row.over(np.array(values, dtype=np.float64), "run", condition=condition, **where) for condition, values in steps.items()
    ]
    ours, theirs = np.array(steps[ESTIMATE]), np.array(steps[NEVER])
    if len(ours) == len(theirs) > 1:  # runs with one seed are a pair
        functions = {"saved": lambda means: 1 - means[:, 0]}
        saved = stats.functions_of_ratios(ours[:, None], theirs[:, None], functions, unit="run", seed=seed)["saved"]
        rows.append(Row.of(saved, item="saved", **where | {"definition": "1 - steps / steps of the control"}))
    return Result.of(rows, side={"curves": pd.DataFrame(curves)}, notes=tuple(notes))


def _curve(scores: Iterator[tuple[int, float]], target: float, limit: int, name: str) -> list[tuple[int, float]]:
    """Measurements up to the target or the limit, of an iterator that may go on for ever."""
    curve: list[tuple[int, float]] = []
    for step, score in scores:
        if (not curve and step != 0) or (curve and step <= curve[-1][0]):
            raise UserError(f"The steps of {name} are {[s for s, _ in curve]} and then {step}; they begin with 0 and rise.")
        curve.append((int(step), float(score)))
        if score >= target or step >= limit:
            return curve
    raise UserError(f"Training of {name} ended after step {curve[-1][0] if curve else 'none'} below {target:g}; train to {limit}.")


def _reached(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """The step at which a curve first reaches the target, between two measurements by a straight line; None if it does not."""
    for k, (step, score) in enumerate(curve):
        if score >= target:
            if k == 0:
                return 0.0
            before, lower = curve[k - 1]
            return before + (step - before) * (target - lower) / (score - lower)
    return None
