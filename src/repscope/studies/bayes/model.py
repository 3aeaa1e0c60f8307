"""A language model in place of networks trained in the study: its answers on a GINC world, or on the user's hidden Markov models.

1. Each symbol is one token of the model (`TokenMap`), the user's words or the tokenizer's first ones. Probabilities are
   renormalised over these tokens; the mass that they had before is in the table.
2. On prompts after every number of examples (or on documents after every number of symbols): accuracy, KL and total variation to
   the exact predictor of the mixture, which the model has never seen. It can only come near by learning from the text at hand.
3. Per token of held-out documents: KL to the same predictor.
Controls: the same architecture with random weights; counts of symbol pairs in the text so far, the least that a text teaches; the
exact predictors as ceilings. Intervals are over prompts or documents; there is one model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from repscope import stats
from repscope.conditions import ESTIMATE, over
from repscope.errors import UserError
from repscope.results import Result, Row
from repscope.studies.bayes import measures, names
from repscope.studies.bayes.given import GivenTask, models_step
from repscope.studies.bayes.measures import Answers, Asked
from repscope.studies.bayes.options import BayesOptions
from repscope.studies.bayes.task import TRANSFORMER, BayesTask
from repscope.studies.run.study import Context, Cost, Setup, Step, Subject
from repscope.trace import bayes
from repscope.trace.bayes import TokenMap

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

Masses = Mapping[str, Float[np.ndarray, "text place"]]


@dataclass(frozen=True)
class Reader:
    """A model, its random twin and the counts, asked about texts of symbols."""

    model: "LanguageModel"
    symbols: TokenMap
    seed: int

    @cached_property
    def twin(self) -> "LanguageModel":
        """The same architecture with random weights."""
        return self.model.twin(self.seed)

    def answers(self, tokens: Int[np.ndarray, "text token"], places: Int[np.ndarray, "place"]) -> tuple[dict[str, Answers], Masses]:
        """Next-symbol distributions by condition, and the mass on the symbols."""
        found, masses = dict[str, Answers](), dict[str, Float[np.ndarray, "text place"]]()
        for condition, model in ((ESTIMATE, self.model), (names.RANDOM, self.twin)):
            given, masses[condition] = self.symbols.forecast(model, tokens, places.tolist())
            found[condition] = given[None]
        found[names.COUNTS] = bayes.pair_counts(tokens, len(self.symbols.tokens), places)[None]
        return found, masses


def model_subject(setup: Setup[BayesOptions]) -> Subject:
    """The language model."""
    model = setup.network
    source = model.source
    facts = {"model": source.name, "precision": source.precision, "fingerprint": model.fingerprint, "revision": source.revision}
    return Subject(model.name, model.fingerprint, facts)


def model_steps(setup: Setup[BayesOptions], task: BayesTask) -> list[Step]:
    """The world or the user's models; documents; prompts of the world."""
    reader = Reader(setup.network, _token_map(setup, task), setup.options.seed)
    documents = Step("documents model", partial(_documents, task, reader), partial(_cost, task, reader, task.options.prompts))
    if isinstance(task, GivenTask):
        return [models_step(task), documents]
    prompts = len(task.options.lengths) * task.options.prompts
    return [documents, Step("prompts model", partial(_prompts, task, reader), partial(_cost, task, reader, prompts))]


def _token_map(setup: Setup[BayesOptions], task: BayesTask) -> TokenMap:
    words, symbols = setup.options.words, task.symbols
    if not words:
        return TokenMap.common(setup.network, symbols)
    if len(words) != symbols:
        raise UserError(f"--words has {len(words)} texts for {symbols} symbols; give one text per symbol, in their order.")
    return TokenMap.of_texts(setup.network, words)


def _cost(task: BayesTask, reader: Reader, texts: int) -> Cost:
    tokens = 2 * texts * task.options.length  # the model and its twin
    weights = sum(p.numel() for p in reader.model.model.parameters())
    return Cost(tokens, 2.0 * tokens * weights, memory_bytes=4.0 * weights)


def _documents(task: BayesTask, reader: Reader, context: Context) -> Result:
    """Distance per token of held-out documents; of the user's models also by number of symbols."""
    tokens, expected = task.held_out(TRANSFORMER)
    answers, _ = reader.answers(tokens, np.arange(expected.shape[1]))
    rows = measures.per_token(expected, answers, names.MODEL, task.options.seed)
    if isinstance(task, GivenTask):
        answers, masses = reader.answers(task.asked_documents[0], task.places)
        rows += _rows(task.asked, answers, masses, task.options.seed)
    return Result.of(rows, notes=(_note(reader),))


def _prompts(task: BayesTask, reader: Reader, context: Context) -> Result:
    """Prompts of the world with a uniform delimiter."""
    world, rows = task.world(names.UNIFORM), list[Row]()
    for length in task.options.lengths:
        held = task.prompts(names.UNIFORM, length, "asked")
        answers, masses = reader.answers(held.tokens, held.positions)
        exact = (f(world, held, names.FLOOR) for f in (bayes.pretraining, bayes.format_aware))
        rows += _rows(Asked.of_prompts(names.ASKED, held, *exact), answers, masses, task.options.seed)
    return Result.of(rows, notes=(_note(reader),))


def _rows(asked: Asked, answers: Mapping[str, Answers], masses: Masses, seed: int) -> list[Row]:
    """The rows of all studied networks, the mass on the symbols, and the distance beyond that of the counts."""
    found = measures.rows(asked, answers, seed) + measures.changes(asked, answers, seed)
    of: dict[str, Any] = {"unit": asked.unit, "seed": seed}
    for k in asked.indices:
        where: dict[str, Any] = {
            "item": names.item(asked.title, asked.length, asked.doses[k]),
            "split": f"{asked.unit}s",
            "seed": seed,
        }
        for condition, mass in masses.items():
            found.append(Row.of(stats.mean(mass[:, k], **of), metric=names.MASS, condition=condition, **where))
        own, counts = (bayes.kl(asked.mixture.answers[:, k], answers[c][0, :, k]) for c in (ESTIMATE, names.COUNTS))
        condition = over(names.COUNTS)
        found.append(Row.of(stats.mean(own - counts, **of), metric=names.KL, condition=condition, definition=measures.TO, **where))
    return found


def _note(reader: Reader) -> str:
    ids = reader.symbols.tokens.tolist()
    texts = [reader.model.tokenizer.decode([i]) for i in ids[:30]]
    more = f" … ({len(ids)} in all)" if len(ids) > len(texts) else ""
    return f"The symbols are the tokens {', '.join(repr(t) for t in texts)}{more} of {reader.model.name}."
