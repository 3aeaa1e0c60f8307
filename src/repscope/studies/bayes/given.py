"""The user's hidden Markov models in place of a GINC world: documents of their mixture, exact predictors, and the steps with them.

1. A document is drawn from one of the models, each equally likely. Networks learn to predict its next symbol.
2. What they answer after n symbols is compared with the exact predictor of the mixture, which has no floor: documents are possible.
3. Labels are the most probable symbols of the model that the document was drawn from, given the symbols so far.
Controls: untrained networks; the exact predictor as the ceiling.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from repscope import stats
from repscope.conditions import ESTIMATE
from repscope.errors import UserError
from repscope.models.loading.stacked_weights import state_of
from repscope.results import Result, Row
from repscope.studies.bayes import measures, names
from repscope.studies.bayes.measures import Asked
from repscope.studies.bayes.task import HELD_OUT, TRANSFORMER, BayesTask, Kind
from repscope.studies.bayes.training import trained, training_cost
from repscope.studies.run.study import Context, Cost, Step
from repscope.trace.bayes import HiddenMarkovModel, Mixture, PromptForecast, read_models

Documents = tuple[Int[np.ndarray, "document token"], Int[np.ndarray, "document"]]


@dataclass(frozen=True)
class GivenTask(BayesTask):
    """As `BayesTask`, with the models of a file."""

    @cached_property
    def models(self) -> list[HiddenMarkovModel]:
        """The models of the file; refuses those of one symbol, of which nothing can be predicted."""
        assert self.options.hmm is not None
        found = read_models(self.options.hmm)
        if found[0].symbols < 2:
            raise UserError(
                f"The models of {self.options.hmm} have one symbol, so there is nothing to predict; they need at least 2."
            )
        return found

    @cached_property
    def mixture(self) -> Mixture:
        """Their uniform mixture; refuses models that no text tells apart."""
        return Mixture.uniform(self.models)

    @property
    def symbols(self) -> int:
        """Symbols of the models."""
        return self.models[0].symbols

    def drawn(self, count: int, rng: np.random.Generator) -> Documents:
        """Documents, each of a model drawn uniformly, and those models."""
        concept = rng.integers(len(self.models), size=count)
        tokens = np.empty((count, self.options.length), np.int64)
        for i, model in enumerate(self.models):
            tokens[concept == i] = model.documents(int((concept == i).sum()), self.options.length, rng)
        return tokens, concept

    def documents(self, kind: Kind, step: int) -> torch.Tensor:
        """Documents of a step, others for each network."""
        o = self.options
        tokens, _ = self.drawn(o.networks * o.batch, np.random.default_rng([o.seed, step, *kind.name.encode()]))
        return torch.from_numpy(tokens.reshape(o.networks, o.batch, o.length))

    def held_out(self, kind: Kind) -> tuple[Int[np.ndarray, "document token"], Float[np.ndarray, "document place symbol"]]:
        """Documents that no training saw, and what the exact predictor says after each symbol but the last."""
        tokens, _ = self.drawn(HELD_OUT, np.random.default_rng([self.options.seed, 77]))
        return tokens, self.mixture.forecast(tokens, range(self.options.length - 1)).next

    @cached_property
    def asked_documents(self) -> Documents:
        """Documents that are asked about after every number of symbols."""
        return self.drawn(self.options.prompts, np.random.default_rng([self.options.seed, *b"asked"]))

    @property
    def seen_symbols(self) -> list[int]:
        """Numbers of symbols after which is asked: the powers of two, and all but the last."""
        most = self.options.length - 1
        return sorted({most, *(2**i for i in range(16) if 2**i < most)})

    @property
    def places(self) -> Int[np.ndarray, "place"]:
        """The place of the last symbol that was seen."""
        return np.array(self.seen_symbols) - 1

    @cached_property
    def asked(self) -> Asked:
        """What the exact predictor says about those documents, and their labels."""
        tokens, concept = self.asked_documents
        exact, own = self.mixture.forecast(tokens, self.places.tolist()), self._by_own_model()
        truth = exact.posterior[np.arange(len(tokens)), :, concept]
        two = np.partition(own, -2, axis=-1)[..., -2:]
        forecast = PromptForecast(exact.next, truth)
        return Asked(names.GIVEN, 0, self.seen_symbols, own.argmax(-1), two[..., 1] - two[..., 0], forecast, unit="document")

    def _by_own_model(self) -> Float[np.ndarray, "document place symbol"]:
        """What an observer who knows each document's model predicts."""
        tokens, concept = self.asked_documents
        found = np.empty((len(tokens), len(self.places), self.symbols))
        for i, model in enumerate(self.models):
            if (rows := concept == i).any():
                found[rows] = Mixture.uniform([model]).forecast(tokens[rows], self.places.tolist()).next
        return found


def given_steps(task: GivenTask) -> list[Step]:
    """The models; a training; what the networks answer after every number of symbols."""
    assert task.mixture.models  # mistakes in the file show here, before anything is written
    step = f"train {TRANSFORMER.name}"
    return [
        models_step(task),
        Step(step, partial(trained, task, TRANSFORMER), partial(training_cost, task, TRANSFORMER)),
        Step(f"documents {TRANSFORMER.name}", partial(_answers, task), partial(documents_cost, task), needs=(step,)),
    ]


def models_step(task: GivenTask) -> Step:
    """The step that describes the models."""
    return Step("models", partial(_models, task), partial(documents_cost, task))


def documents_cost(task: GivenTask) -> Cost:
    """Forecast of exact predictions for all documents."""
    o, states = task.options, task.mixture.starts.shape[1]
    tokens = o.prompts * o.length
    return Cost(tokens, 2.0 * tokens * o.networks * 24 * o.width**2, 2.0 * tokens * len(task.models) * states**2, memory_bytes=4e8)


def _models(task: GivenTask, context: Context) -> Result:
    """Sizes of the models, how well texts tell them apart, and near-ties of labels."""
    tokens, concept = task.asked_documents
    logs = task.mixture.log_likelihood(tokens)
    asked = task.asked
    share = stats.proportion((asked.margins[:, -1] < names.NEAR_TIE).astype(float), unit=asked.unit)
    row = Row.of(share, metric=names.TIES, item=names.GIVEN, seed=task.options.seed)
    table = [_facts(i, model, logs[concept == i], task.options.length) for i, model in enumerate(task.models)]
    return Result.of([row], side={"models": pd.DataFrame(table)})


def _facts(i: int, model: HiddenMarkovModel, logs: Float[np.ndarray, "document model"], length: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"model": i, "states": model.states, "symbols": model.symbols}
    facts["impossible transitions"] = f"{(model.transition == 0).mean():.0%}"
    if not len(logs):
        return facts | {"entropy": float("nan"), "nearest other": "–", "distance": float("nan")}
    others = np.delete((logs[:, [i]] - logs).mean(0), i)
    near = int(others.argmin()) if len(others) else -1
    return facts | {
        "entropy": -float(logs[:, i].mean()) / length,
        "nearest other": str(near + (near >= i)) if near >= 0 else "–",
        "distance": float(others[near]) / length if near >= 0 else float("nan"),
    }


def _answers(task: GivenTask, context: Context) -> Result:
    """What networks answer, trained and untrained."""
    tokens, _ = task.asked_documents
    weights = {ESTIMATE: state_of(context.inputs[f"train {TRANSFORMER.name}"].arrays), names.UNTRAINED: task.initial(TRANSFORMER)}
    answers = {c: task.answers(TRANSFORMER, state, tokens, task.places) for c, state in weights.items()}
    asked, seed = task.asked, task.options.seed
    return Result.of(measures.rows(asked, answers, seed) + measures.changes(asked, answers, seed))
