"""Rows of `bayes`: what networks and Bayes predictors answer on prompts, after every number of examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope import stats
from repscope.conditions import ESTIMATE
from repscope.results import Row
from repscope.studies.bayes import names
from repscope.trace import bayes
from repscope.trace.bayes import PromptForecast
from repscope.worlds.ginc import GincPrompts

Answers = Float[np.ndarray, "network prompt example symbol"]
_TO = f"KL({names.MIXTURE} ‖ answer), nats"


@dataclass(frozen=True, eq=False)
class Asked:
    """Prompts with the exact predictors' answers. title: kind of prompts."""

    title: str
    prompts: GincPrompts
    mixture: PromptForecast
    aware: PromptForecast


def shown(examples: int) -> list[int]:
    """Numbers of examples that are reported: 0, the powers of two, and the most."""
    return sorted({0, examples - 1, *(k for k in (1, 2, 4, 8, 16, 32) if k < examples)})


def rows(asked: Asked, answers: Mapping[str, Answers], seed: int) -> list[Row]:
    """Accuracy, distances to Bayes and posteriors, by number of examples; answers by condition."""
    held, found = asked.prompts, list[Row]()
    everything = {name: given[None] for name, given in _predictors(asked).items()} | dict(answers)
    for k in shown(held.examples):
        where: dict[str, Any] = {"item": names.item(asked.title, held.length, k), "split": "prompts", "seed": seed}
        clear = held.margins[:, k] >= names.CLEAR_MARGIN
        for condition, given in everything.items():
            right = (given[:, :, k].argmax(-1) == held.labels[:, k]).mean(0)
            found.append(Row.of(stats.mean(right, unit="prompt", seed=seed), metric=names.ACCURACY, condition=condition, **where))
            if clear.sum() > 1:
                estimate = stats.mean(right[clear], unit="prompt", seed=seed)
                found.append(Row.of(estimate, metric=names.CLEAR, condition=condition, **where))
            if condition == names.MIXTURE:
                continue
            for metric, of, definition in ((names.KL, bayes.kl, _TO), (names.TV, bayes.total_variation, f"to {names.MIXTURE}")):
                values = of(asked.mixture.answers[None, :, k], given[:, :, k]).mean(0)
                estimate = stats.mean(values, unit="prompt", seed=seed)
                found.append(Row.of(estimate, metric=metric, definition=definition, condition=condition, **where))
        for condition, forecast in ((names.MIXTURE, asked.mixture), (names.AWARE, asked.aware)):
            estimate = stats.mean(forecast.truth[:, k], unit="prompt", seed=seed)
            found.append(Row.of(estimate, metric=names.TRUTH, condition=condition, **where))
    return found


def changes(asked: Asked, answers: Mapping[str, Answers], seed: int) -> list[Row]:
    """From no example, and from one, to the most: rise of accuracy on clear labels and change of KL, paired by prompt."""
    held, found = asked.prompts, list[Row]()
    last = held.examples - 1
    where: dict[str, Any] = {"split": f"k = 0 to {last}", "item": names.series(asked.title, held.length), "seed": seed}
    everything = {name: given[None] for name, given in _predictors(asked).items()} | dict(answers)
    both = (held.margins[:, [0, last]] >= names.CLEAR_MARGIN).all(1)
    for condition, given in everything.items():
        right = (given[:, :, [0, last]].argmax(-1) == held.labels[None, :, [0, last]]).mean(0)
        if both.sum() > 1:
            estimate = stats.mean((right[:, 1] - right[:, 0])[both], unit="prompt", seed=seed)
            found.append(Row.of(estimate, metric=names.RISE, definition=names.CLEAR, condition=condition, **where))
    for condition, given in answers.items():
        values = bayes.kl(asked.mixture.answers[None], given).mean(0)
        for first in (0, 1):
            estimate = stats.mean(values[:, last] - values[:, first], unit="prompt", seed=seed)
            columns = where | {"split": f"k = {first} to {last}"}
            found.append(Row.of(estimate, metric=names.CHANGE, definition=_TO, condition=condition, **columns))
    return found


def floors(title: str, held: GincPrompts, forecasts: Mapping[float, PromptForecast], answers: Answers, seed: int) -> list[Row]:
    """How the Bayes predictor and the distance to it depend on its floor."""
    found = []
    for floor, forecast in forecasts.items():
        for k in shown(held.examples):
            where: dict[str, Any] = {
                "item": names.item(f"{title}, floor {floor:g}", held.length, k),
                "split": "prompts",
                "seed": seed,
            }
            right = (forecast.answers[:, k].argmax(-1) == held.labels[:, k]).astype(float)
            estimate = stats.mean(right, unit="prompt", seed=seed)
            found.append(Row.of(estimate, metric=names.ACCURACY, condition=names.MIXTURE, **where))
            values = bayes.kl(forecast.answers[None, :, k], answers[:, :, k]).mean(0)
            estimate = stats.mean(values, unit="prompt", seed=seed)
            found.append(Row.of(estimate, metric=names.KL, definition=_TO, condition=ESTIMATE, **where))
    return found


def order_sensitivity(
    title: str, held: GincPrompts, first: Mapping[str, Answers], other: Mapping[str, Answers], seed: int
) -> list[Row]:
    """Total variation between the answers to one query after the same examples in two orders; a Bayes predictor's own beside it."""
    where: dict[str, Any] = {"item": names.series(title, held.length), "split": f"k = {held.examples - 1}", "seed": seed}
    found = []
    for condition, given in first.items():
        values = bayes.total_variation(given[:, :, -1], other[condition][:, :, -1]).mean(0)
        estimate = stats.mean(values, unit="prompt", seed=seed)
        found.append(Row.of(estimate, metric=names.ORDER, definition="between two orders", condition=condition, **where))
    return found


def per_token(
    expected: Float[np.ndarray, "document place symbol"], answers: Mapping[str, Answers], item: str, seed: int
) -> list[Row]:
    """KL(pretraining Bayes ‖ network) per token of documents."""
    found = []
    for condition, given in answers.items():
        values = bayes.kl(expected[None], given).mean((0, 2))
        columns: dict[str, Any] = {"metric": names.TOKEN_KL, "definition": _TO, "condition": condition, "item": item, "seed": seed}
        found.append(Row.of(stats.mean(values, unit="document", seed=seed), split="documents", **columns))
    return found


def _predictors(asked: Asked) -> dict[str, Float[np.ndarray, "prompt example symbol"]]:
    return {names.MIXTURE: asked.mixture.answers, names.AWARE: asked.aware.answers}


def orders(examples: int, seed: int) -> Sequence[int]:
    """A random order of the examples before the query."""
    return [*np.random.default_rng(seed).permutation(examples - 1).tolist(), examples - 1]
