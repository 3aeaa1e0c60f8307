"""What each way of adapting does to predictions: accuracy, divergence from the base, token shift, agreement with k examples."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from repscope import stats
from repscope.conditions import FEW_SHOT, SHUFFLED_SHOTS
from repscope.results import Row
from repscope.trace.drift.next_tokens import SHIFTS, divergences, token_ranks
from repscope.trace.task_shift.states import Scores

ALONE, AFTER_NEUTRAL, AFTER_SHOTS = (f"test items, {place}" for place in ("query alone", "after neutral text", "after examples"))
DEV = "dev items, query alone"

SCORES = {
    "first-token accuracy": ("first", "the most likely next token is the answer's first"),
    "whole-answer accuracy": ("whole", "every token of the answer is the most likely one at its position"),
    "answer log-probability": ("logprob", "of all tokens of the answer, nats"),
}
DEFINITIONS = {
    "KL from the base": "KL(adapted ‖ base) of the next token after the query, nats; base after neutral text of as many tokens",
    "KL from few-shot": "KL(few-shot ‖ adapted) of the next token after the query, nats",
    "unshifted": "share of queries whose most likely next token has rank 1 in the base",
    "marginal": "share of queries whose most likely next token has rank 2 or 3 in the base",
    "shifted": "share of queries whose most likely next token has a rank above 3 in the base",
    "agreement with few-shot": "share of queries with the same most likely next token as after k examples",
    "recall of corrections": "of queries that fine-tuning corrects, the share that examples in the prompt correct too (Rec2FTP)",
}


def score_rows(found: Scores, condition: str, split: str, where: Mapping[str, Any]) -> list[Row]:
    """Accuracies and log-probability of one condition."""
    rows = []
    for metric, (field, definition) in SCORES.items():
        values = getattr(found, field)
        made = stats.mean if field == "logprob" else stats.proportion
        estimate = made(values, unit="query", seed=where["seed"])
        rows.append(Row.of(estimate, metric=metric, definition=definition, condition=condition, split=split, **where))
    return rows


def prediction_rows(
    base: Float[np.ndarray, "query vocab"],
    adapted: Mapping[str, Float[np.ndarray, "query vocab"]],
    own_base: Mapping[str, Float[np.ndarray, "query vocab"]],
    split: str,
    where: Mapping[str, Any],
) -> list[Row]:
    """Divergences, token shift and agreement of each way with its base (`own_base`, where it differs from `base`)."""
    rows, top = [], {way: logits.argmax(-1) for way, logits in adapted.items()}
    for way, logits in adapted.items():
        reference = own_base.get(way, base)
        ranks = token_ranks(reference, top[way])
        values = {
            "KL from the base": divergences(reference, logits).tuned_base,
            **dict(zip(SHIFTS, (ranks == 1, (ranks > 1) & (ranks <= 3), ranks > 3))),
        }
        if way != FEW_SHOT:
            values["KL from few-shot"] = divergences(logits, adapted[FEW_SHOT]).tuned_base
            values["agreement with few-shot"] = top[way] == top[FEW_SHOT]
        for metric, each in values.items():
            made = stats.mean if metric.startswith("KL") else stats.proportion
            estimate = made(np.asarray(each, dtype=np.float64), unit="query", seed=where["seed"])
            rows.append(Row.of(estimate, metric=metric, definition=DEFINITIONS[metric], condition=way, split=split, **where))
    return rows


def correction_rows(
    top: Mapping[str, Int[np.ndarray, "query"]],
    base: Int[np.ndarray, "query"],
    correct: Int[np.ndarray, "query"],
    tuned: Sequence[str],
    split: str,
    where: Mapping[str, Any],
) -> list[Row]:
    """Recall of each fine-tuning's corrections by the examples, and by permuted ones; none where nothing is corrected.

    Rows have the way of fine-tuning in their definition and the kind of examples as condition.
    """
    rows = []
    for way in tuned:
        corrected: Bool[np.ndarray, query] = (top[way] == correct) & (base != correct)
        if not corrected.any():
            continue
        for shots in (FEW_SHOT, SHUFFLED_SHOTS):
            hits = (top[shots] == correct)[corrected].astype(np.float64)
            estimate = stats.proportion(hits, unit="query", seed=where["seed"])
            definition = f"{DEFINITIONS['recall of corrections']}; corrections by {way}"
            rows.append(
                Row.of(estimate, metric="recall of corrections", definition=definition, condition=shots, split=split, **where)
            )
    return rows
