"""Rows of `bayes`: what networks and Bayes predictors answer after every number of examples, or of symbols of a document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from repscope import stats
from repscope.conditions import ESTIMATE
from repscope.results import Row
from repscope.studies.bayes import names
from repscope.trace import bayes
from repscope.trace.bayes import PromptForecast
from repscope.worlds.ginc import GincPrompts

Answers = Float[np.ndarray, "network prompt example symbol"]
TO = f"KL({names.MIXTURE} ‖ answer), nats"


@dataclass(frozen=True, eq=False)
class Asked:
    """Texts whose next symbol was asked for, with the exact predictors' answers.

    title: kind of texts. length: of an example, 0 where texts are documents. doses: examples, or symbols, before each answer.
    labels, margins: the oracle's. reported: indices of the doses that become rows. mixture, aware: answers of the exact predictors.
    unit: of intervals.
    """

    title: str
    length: int
    doses: Sequence[int]
    labels: Int[np.ndarray, "prompt example"]
    margins: Float[np.ndarray, "prompt example"]
    mixture: PromptForecast
    aware: PromptForecast | None = None
    reported: Sequence[int] | None = None
    unit: str = "prompt"

    @classmethod
    def of_prompts(cls, title: str, prompts: GincPrompts, mixture: PromptForecast, aware: PromptForecast) -> "Asked":
        """Prompts of a GINC world, asked after every number of examples."""
        doses = range(prompts.examples)
        return cls(title, prompts.length, doses, prompts.labels, prompts.margins, mixture, aware, shown(prompts.examples))

    @property
    def indices(self) -> Sequence[int]:
        """Indices of the doses that become rows."""
        return range(len(self.doses)) if self.reported is None else self.reported

    def predictors(self) -> dict[str, Answers]:
        """What the exact predictors answer, by condition, with an axis of one network."""
        known = {names.MIXTURE: self.mixture, names.AWARE: self.aware}
        return {name: forecast.answers[None] for name, forecast in known.items() if forecast is not None}


def shown(examples: int) -> list[int]:
    """Numbers of examples that are reported: 0, the powers of two, and the most."""
    return sorted({0, examples - 1, *(k for k in (1, 2, 4, 8, 16, 32) if k < examples)})


def rows(asked: Asked, answers: Mapping[str, Answers], seed: int) -> list[Row]:
    """Accuracy, distances to Bayes and posteriors, by number of examples or symbols; answers by condition."""
    found, everything = list[Row](), asked.predictors() | dict(answers)
    unit: dict[str, Any] = {"unit": asked.unit, "seed": seed}
    for k in asked.indices:
        item = names.item(asked.title, asked.length, asked.doses[k])
        where: dict[str, Any] = {"item": item, "split": f"{asked.unit}s", "seed": seed}
        clear = asked.margins[:, k] >= names.CLEAR_MARGIN
        for condition, given in everything.items():
            right = (given[:, :, k].argmax(-1) == asked.labels[:, k]).mean(0)
            found.append(Row.of(stats.proportion(right, **unit), metric=names.ACCURACY, condition=condition, **where))
            if clear.sum() > 1:
                estimate = stats.proportion(right[clear], **unit)
                found.append(Row.of(estimate, metric=names.CLEAR, condition=condition, **where))
            if condition == names.MIXTURE:
                continue
            for metric, of, definition in ((names.KL, bayes.kl, TO), (names.TV, bayes.total_variation, f"to {names.MIXTURE}")):
                values = of(asked.mixture.answers[None, :, k], given[:, :, k]).mean(0)
                found.append(Row.of(stats.mean(values, **unit), metric=metric, definition=definition, condition=condition, **where))
        for condition, forecast in ((names.MIXTURE, asked.mixture), (names.AWARE, asked.aware)):
            if forecast is not None:
                estimate = stats.mean(forecast.truth[:, k], **unit)
                found.append(Row.of(estimate, metric=names.TRUTH, condition=condition, **where))
    return found


def changes(asked: Asked, answers: Mapping[str, Answers], seed: int) -> list[Row]:
    """From the least and, with prompts, from one example to the most: rise of accuracy on clear labels and change of KL, paired."""
    found, last = list[Row](), len(asked.doses) - 1
    dose, most = names.dose_name(asked.length), asked.doses[-1]
    unit: dict[str, Any] = {"unit": asked.unit, "seed": seed}
    where: dict[str, Any] = {"item": names.series(asked.title, asked.length), "seed": seed}
    both = (asked.margins[:, [0, last]] >= names.CLEAR_MARGIN).all(1)
    for condition, given in (asked.predictors() | dict(answers)).items():
        right = (given[:, :, [0, last]].argmax(-1) == asked.labels[None, :, [0, last]]).mean(0)[both]
        if both.sum() > 1:
            estimate = stats.change_of_proportion(right[:, 0], right[:, 1], **unit)
            columns = where | {"split": f"{dose} = {asked.doses[0]} to {most}"}
            found.append(Row.of(estimate, metric=names.RISE, definition=names.CLEAR, condition=condition, **columns))
    for condition, given in answers.items():
        values = bayes.kl(asked.mixture.answers[None], given).mean(0)
        for first in (i for i in (0, 1) if asked.doses[i] <= 1):
            columns = where | {"split": f"{dose} = {asked.doses[first]} to {most}"}
            estimate = stats.mean(values[:, last] - values[:, first], **unit)
            found.append(Row.of(estimate, metric=names.CHANGE, definition=TO, condition=condition, **columns))
    return found


def floors(title: str, held: GincPrompts, forecasts: Mapping[float, PromptForecast], answers: Answers, seed: int) -> list[Row]:
    """How the Bayes predictor and the distance to it depend on its floor."""
    found = []
    for floor, forecast in forecasts.items():
        for k in shown(held.examples):
            where: dict[str, Any] = {
                "item": names.item(names.floored(title, floor), held.length, k),
                "split": "prompts",
                "seed": seed,
            }
            right = (forecast.answers[:, k].argmax(-1) == held.labels[:, k]).astype(float)
            estimate = stats.proportion(right, unit="prompt", seed=seed)
            found.append(Row.of(estimate, metric=names.ACCURACY, condition=names.MIXTURE, **where))
            values = bayes.kl(forecast.answers[None, :, k], answers[:, :, k]).mean(0)
            estimate = stats.mean(values, unit="prompt", seed=seed)
            found.append(Row.of(estimate, metric=names.KL, definition=TO, condition=ESTIMATE, **where))
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
        columns: dict[str, Any] = {"metric": names.TOKEN_KL, "definition": TO, "condition": condition, "item": item, "seed": seed}
        found.append(Row.of(stats.mean(values, unit="document", seed=seed), split="documents", **columns))
    return found


def orders(examples: int, seed: int) -> Sequence[int]:
    """A random order of the examples before the query."""
    return [*np.random.default_rng(seed).permutation(examples - 1).tolist(), examples - 1]
