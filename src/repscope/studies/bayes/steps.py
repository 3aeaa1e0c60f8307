"""Is in-context learning Bayesian inference? In worlds where the exact Bayes predictor is known.

1. World: the first GINC world, with a delimiter that says nothing, whose labels are rarely near-ties (`worlds.ginc.scan`).
2. Training of small transformers (several seeds), LSTMs, transformers in the same world with the published delimiter, and
   transformers that see one concept alone. Per training, the distance to the exact predictor on held-out documents.
3. Prompts: what networks and exact predictors answer after 0 to k examples; accuracy against the oracle's label, KL and total
   variation to the mixture that was trained on; the floor sweep; concepts that were never seen; the same examples in two orders.
4. Changes from no example to the most, paired by prompt.
5. In-context linear regression over task diversity, with exact predictors (`trace.bayes.regression`).
The short form trains transformers in both worlds alone: no LSTMs, no networks of one concept.
With `hmm` or `model`, other steps: those of `given` (documents of the user's models) and `model` (a language model).
Controls: untrained networks; exact predictors as ceilings; the published delimiter; networks of one concept, on theirs and on all.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from repscope import stats
from repscope.conditions import ESTIMATE
from repscope.models.loading.stacked_weights import state_of
from repscope.results import Result, Row
from repscope.studies.bayes import measures, names
from repscope.studies.bayes.given import GivenTask, given_steps
from repscope.studies.bayes.measures import Answers, Asked
from repscope.studies.bayes.model import model_steps, model_subject
from repscope.studies.bayes.options import BayesOptions
from repscope.studies.bayes.task import CONTRAST, KINDS, RECURRENT, SINGLE, TRANSFORMER, BayesTask, Kind
from repscope.studies.bayes.training import trained, training_cost
from repscope.studies.run.study import Context, Cost, Setup, Step, Subject, trained_here
from repscope.trace import bayes
from repscope.worlds.ginc import GincPrompts, GincWorld


def steps(setup: Setup[BayesOptions]) -> list[Step]:
    """World; trainings; prompts by training; summary is part of each."""
    o = setup.options
    task = BayesTask(o) if o.hmm is None else GivenTask(o)
    if o.hmm is None:
        for length in o.lengths:
            task.examples(length)  # refuses lengths that do not fit
    if o.model is not None:
        return model_steps(setup, task)
    if isinstance(task, GivenTask):
        return given_steps(task)
    kinds = (TRANSFORMER, CONTRAST) if o.short else tuple(KINDS.values())
    made = [Step("world", partial(_world, task), lambda: Cost(fit_flops=1e8))]
    for kind in kinds:
        made.append(
            Step(f"train {kind.name}", partial(trained, task, kind), partial(training_cost, task, kind), 2, needs=("world",))
        )
    asks = {TRANSFORMER: _transformers, RECURRENT: _recurrent, CONTRAST: _contrast, SINGLE: _single}
    for kind in kinds:
        made.append(
            Step(f"prompts {kind.name}", partial(asks[kind], task), partial(_prompts_cost, task), 2, needs=(f"train {kind.name}",))
        )
    made.append(Step("regression", partial(_regression, task), partial(_regression_cost, task)))
    return made


def subject(setup: Setup[BayesOptions]) -> Subject:
    """The networks trained in the study, or the language model."""
    if setup.options.model is not None:
        return model_subject(setup)
    return trained_here(setup, "small-language-models")


def _prompts_cost(task: BayesTask) -> Cost:
    o = task.options
    tokens, states = len(o.lengths) * o.prompts * o.length, o.values * o.slots
    exact = 2.0 * tokens * o.concepts * o.slots * states**2
    return Cost(tokens, 2.0 * tokens * o.networks * 24 * o.width**2, exact, memory_bytes=4e8)


def _regression_cost(task: BayesTask) -> Cost:
    o = task.regression
    tokens = len(o.diversities) * o.seeds * o.steps * o.batch * 2 * o.world.examples
    return Cost(tokens, 6.0 * tokens * o.layers * 12 * o.width**2, 0.0, 4e8)


def _regression(task: BayesTask, context: Context) -> Result:
    """In-context linear regression over task diversity."""
    return bayes.regression_result(task.regression, saved=context.partial / "training.safetensors")


def _world(task: BayesTask, context: Context) -> Result:
    """The scan of worlds, and the near-ties of the chosen one."""
    world, table = task.scanned
    rows = []
    for delimiter in (names.UNIFORM, names.PUBLISHED):
        for length in task.options.lengths:
            held = task.prompts(delimiter, length, "scan")
            share = stats.proportion((held.margins[:, 0] < names.NEAR_TIE).astype(float), unit="prompt")
            where: dict[str, Any] = {"item": names.series(delimiter, length), "seed": task.options.seed}
            rows.append(Row.of(share, metric=names.TIES, **where))
    facts = pd.DataFrame([{"world": repr(world), "seed": world.seed, "hidden states": world.sizes.states}])
    return Result.of(rows, side={"scan": table, "world": facts})


def _asked(world: GincWorld, held: GincPrompts, title: str, seen: tuple[int, ...] | None = None) -> Asked:
    """Prompts and what the exact predictors of these concepts say."""
    exact = (f(world, held, names.FLOOR, seen) for f in (bayes.pretraining, bayes.format_aware))
    return Asked.of_prompts(title, held, *exact)


def _answers(task: BayesTask, kind: Kind, context: Context, held: GincPrompts) -> Answers:
    state = state_of(context.inputs[f"train {kind.name}"].arrays)
    return task.answers(kind, state, held.tokens, held.positions)


def _transformers(task: BayesTask, context: Context) -> Result:
    o, world, rows = task.options, task.world(names.UNIFORM), list[Row]()
    for length in o.lengths:
        held = task.prompts(names.UNIFORM, length, "asked")
        asked = _asked(world, held, names.UNIFORM)
        given = {
            ESTIMATE: _answers(task, TRANSFORMER, context, held),
            names.UNTRAINED: task.answers(TRANSFORMER, task.initial(TRANSFORMER), held.tokens, held.positions),
        }
        rows += measures.rows(asked, given, o.seed) + measures.changes(asked, given, o.seed)
        forecasts = {floor: bayes.pretraining(world, held, floor) for floor in o.floors}
        rows += measures.floors(names.UNIFORM, held, forecasts, given[ESTIMATE], o.seed)
        if held.examples > 2:
            turned = held.reordered(np.asarray(measures.orders(held.examples, o.seed)))
            first = {ESTIMATE: given[ESTIMATE], names.MIXTURE: asked.mixture.answers[None]}
            other = {
                ESTIMATE: _answers(task, TRANSFORMER, context, turned),
                names.MIXTURE: bayes.pretraining(world, turned, names.FLOOR).answers[None],
            }
            rows += measures.order_sensitivity(names.UNIFORM, held, first, other, o.seed)
        unseen = task.prompts(names.UNIFORM, length, "unseen", world.unseen)
        other_asked = _asked(world, unseen, names.UNSEEN)
        answers = {ESTIMATE: _answers(task, TRANSFORMER, context, unseen)}
        rows += measures.rows(other_asked, answers, o.seed) + measures.changes(other_asked, answers, o.seed)
    return Result.of(rows)


def _recurrent(task: BayesTask, context: Context) -> Result:
    o, world, rows = task.options, task.world(names.UNIFORM), list[Row]()
    for length in o.lengths:
        held = task.prompts(names.UNIFORM, length, "asked")
        asked = _asked(world, held, names.UNIFORM)
        given = {names.RECURRENT: _answers(task, RECURRENT, context, held)}
        rows += [r for r in measures.rows(asked, given, o.seed) + measures.changes(asked, given, o.seed) if r.condition in given]
    return Result.of(rows)


def _contrast(task: BayesTask, context: Context) -> Result:
    """The published delimiter."""
    o, world, rows = task.options, task.world(names.PUBLISHED), list[Row]()
    for length in o.lengths:
        held = task.prompts(names.PUBLISHED, length, "asked")
        asked = _asked(world, held, names.PUBLISHED)
        given = {ESTIMATE: _answers(task, CONTRAST, context, held)}
        rows += measures.rows(asked, given, o.seed) + measures.changes(asked, given, o.seed)
    return Result.of(rows)


def _single(task: BayesTask, context: Context) -> Result:
    """Networks of one concept, on prompts of their own concept and of all; the exact predictor is that of the one concept."""
    o, world, rows = task.options, task.world(names.UNIFORM), list[Row]()
    for length in o.lengths:
        for title, concepts in ((names.OWN, SINGLE.concepts), (names.ALL, None)):
            held = task.prompts(names.UNIFORM, length, "one concept", concepts)
            asked = _asked(world, held, title, SINGLE.concepts)
            given = {names.ONE: _answers(task, SINGLE, context, held)}
            rows += measures.rows(asked, given, o.seed) + measures.changes(asked, given, o.seed)
    return Result.of(rows)
