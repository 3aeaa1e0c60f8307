"""Function vectors and task vectors on held-out items: how much of k examples one vector gives, with controls.

Each condition is measured on the same test queries of a task: without examples, with k examples, with k examples whose outputs are
shuffled, with the function vector (the estimate), with the task vector, with the vectors of as many random heads (equal norm, same
block), with the function vectors of other tasks (equal norm, same block), and with the function vector after shuffled examples.
Blocks and heads come from train and dev items. Intervals are over queries; random heads and other tasks are averaged per query.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from repscope.conditions import (
    ESTIMATE,
    FEW_SHOT,
    OTHER_TASK,
    RANDOM_HEADS,
    SHUFFLED_SHOTS,
    SHUFFLED_WITH_VECTOR,
    TASK_VECTOR,
    ZERO_SHOT,
)
from repscope.directions import Direction
from repscope.errors import UserError
from repscope.models.sites import Site
from repscope.progress import progress
from repscope.results import Result, Row, at
from repscope.stats import proportion
from repscope.steer.function_vectors.answers import Answers, answered
from repscope.steer.function_vectors.vectors import FunctionVector, TaskVector, summed_heads

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

TEST = 4  #: random stream of the examples before test queries
METRICS = {
    "first-token accuracy": ("first", "the most likely next token is the answer's first"),
    "whole-answer accuracy": ("whole", "every token of the answer is the most likely one at its position"),
    "answer log-probability": ("logprob", "of all tokens of the answer, nats"),
}


@dataclass(frozen=True)
class _Measured:
    """Answers under one condition, and the site of the vector, if any."""

    condition: str
    answers: Answers
    site: Site | None = None


def evaluate_vectors(
    lm: "LanguageModel",
    function_vectors: Sequence[FunctionVector],
    task_vectors: Sequence[TaskVector] = (),
    *,
    queries: int = 50,
    random_draws: int = 3,
    other_tasks: int = 3,
    seed: int = 0,
) -> Result:
    """Accuracies and log-probabilities of each task's test queries under all conditions, as rows of one table.

    Parameters
    ----------
    function_vectors
        One per task.
    task_vectors
        Of the same tasks, or none.
    queries
        Test queries per task, at most as many as there are.
    random_draws
        Sets of random heads, drawn from all heads that the vector does not use.
    other_tasks
        Other tasks whose function vectors are added, at most.
    seed
        Of the random heads.

    Returns
    -------
    Result
        `item` is the task, `condition` one of the above. Arrays: per task the outcome of each query, (condition, metric, query).

    Raises
    ------
    UserError
        For two vectors of one task, a task vector without a function vector, or a vector that changes nothing.
    """
    names = [vector.task.name for vector in function_vectors]
    replaced = {vector.task.name: vector for vector in task_vectors}
    if not names:
        raise UserError("There is no function vector to evaluate; make one with function_vector.")
    if len(set(names)) < len(names) or set(replaced) - set(names) or len(replaced) < len(task_vectors):
        raise UserError("Give one function vector per task, and at most one task vector of each of these tasks.")
    rows: list[Row] = []
    arrays: dict[str, np.ndarray] = {}
    with progress("Evaluating vectors", len(names)) as advance:
        for i, vector in enumerate(function_vectors):
            others = [other for j, other in enumerate(function_vectors) if j != i]
            order = np.random.default_rng([seed, i]).permutation(len(others))[:other_tasks]
            found = _conditions(
                lm, vector, replaced.get(vector.task.name), [others[int(j)] for j in order], queries, random_draws, seed
            )
            for one in found:
                rows += _rows(lm, vector, one)
            arrays[vector.task.name] = np.stack([[getattr(m.answers, field) for field, _ in METRICS.values()] for m in found])
            advance(1)
    notes = tuple(dict.fromkeys(note for vector in function_vectors for note in vector.task.notes))
    return Result.of(rows, arrays=arrays, notes=notes)


def _conditions(
    lm: "LanguageModel",
    vector: FunctionVector,
    replaced: TaskVector | None,
    others: Sequence[FunctionVector],
    queries: int,
    draws: int,
    seed: int,
) -> list[_Measured]:
    task = vector.task
    asked = task.queries("test", queries)
    alone = task.zero_shot(asked)
    shuffled = task.few_shot(asked, shuffled=True, stream=TEST)
    site = lm.resolve(vector.direction.site)[0]
    found = [
        _Measured(ZERO_SHOT, answered(lm, task, alone)),
        _Measured(FEW_SHOT, answered(lm, task, task.few_shot(asked, stream=TEST))),
        _Measured(SHUFFLED_SHOTS, answered(lm, task, shuffled)),
        _Measured(ESTIMATE, answered(lm, task, alone, vector.edit()), site),
        _Measured(SHUFFLED_WITH_VECTOR, answered(lm, task, shuffled, vector.edit()), site),
    ]
    if replaced is not None:
        there = lm.resolve(replaced.direction.site)[0]
        found.append(_Measured(TASK_VECTOR, answered(lm, task, alone, replaced.edit()), there))
    controls = [random_heads(lm, vector, [seed, draw]) for draw in range(draws)]
    if controls:
        several = [answered(lm, task, alone, vector.edit(control)) for control in controls]
        found.append(_Measured(RANDOM_HEADS, Answers.mean(several), site))
    if others:
        norm = vector.direction.scale
        several = [answered(lm, task, alone, vector.edit(o.direction * (norm / o.direction.scale))) for o in others]
        found.append(_Measured(OTHER_TASK, Answers.mean(several), site))
    return found


def random_heads(lm: "LanguageModel", vector: FunctionVector, seed: int | Sequence[int]) -> Direction:
    """A vector made as a function vector from as many random other heads, of equal norm at the same site."""
    rest = [head for head in vector.means if head not in vector.heads]
    count = len(vector.heads)
    if len(rest) < count:
        raise UserError(f"The vector uses {count} of {len(vector.means)} heads; random heads need as many others: use fewer.")
    drawn = np.random.default_rng(seed).choice(len(rest), count, replace=False)
    weights = summed_heads(lm, vector.means, [rest[int(i)] for i in drawn])
    made = Direction.of(weights, vector.direction.site, f"{count} random heads", model=lm.fingerprint)
    return made * (vector.direction.scale / made.scale)


def _rows(lm: "LanguageModel", vector: FunctionVector, measured: _Measured) -> list[Row]:
    rows = []
    for metric, (field, definition) in METRICS.items():
        values = getattr(measured.answers, field)
        where = {
            "metric": metric,
            "definition": definition,
            "model": lm.fingerprint,
            "token": "last",
            "item": vector.task.name,
            "condition": measured.condition,
            "split": f"test items, {vector.task.shots} examples",
            "seed": vector.task.seed,
            **(at(measured.site) if measured.site is not None else {}),
        }
        binary = field != "logprob" and bool(np.isin(values, (0.0, 1.0)).all())
        rows.append(Row.of(proportion(values, unit="query"), **where) if binary else Row.over(values, "query", **where))
    return rows
