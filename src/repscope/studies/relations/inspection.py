"""Inspection in the study of relations: does a subject's vector tell which answers of the model are wrong?

Samples outside the choosing half, asked without examples. Scores of the true object, high where the model should be right:
1. the editor's (`held_already`), at the editor's block and the subject's last token;
2. a random editor's; the logit lens of the vector; a logistic probe for right answers, fitted on the same vectors of other
   subjects by cross-validation; the model's confidence in its own answer.
The AUC of each score for right against wrong answers, with its bootstrap interval over subjects.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from repscope.conditions import CONFIDENCE, RANDOM
from repscope.models.language import LanguageModel
from repscope.read.known_facts import EncodedFacts, starts_with
from repscope.results import ESTIMATE, Row
from repscope.stats.groups import separation
from repscope.steer import remedi
from repscope.steer.remedi import Editor
from repscope.steer.remedi.facts import sentence
from repscope.studies.relations.names import ALL_RELATIONS

_OTHERS = 3  #: other objects whose scores are subtracted
_MOST = 120  #: subjects of one relation
_LEAST = 5  #: right and wrong answers, each
_FOLDS = 5


def inspected(
    lm: LanguageModel, parts: Sequence[tuple[EncodedFacts, list[int], list[int]]], editor: Editor, seed: int
) -> list[Row]:
    """Rows of the AUC, per relation and over all relations (scores are ranked within their relation).

    Parameters
    ----------
    parts
        Per relation: facts, samples to inspect, samples from whose objects others are drawn.
    """
    rows: list[Row] = []
    pooled: dict[str, list[np.ndarray]] = {}
    labels: list[np.ndarray] = []
    for facts, outside, choosing in parts:
        kept = np.random.default_rng([seed, 3]).permutation(outside)[:_MOST]
        if len(kept) < 2 * _LEAST:
            continue
        scores, right = _scores(lm, facts, kept.tolist(), choosing, editor, seed)
        if min(right.sum(), (~right).sum()) < _LEAST:
            continue
        rows += _rows(facts.relation.name, scores, right, seed)
        labels.append(right)
        for name, values in scores.items():
            pooled.setdefault(name, []).append(np.argsort(np.argsort(values)) / len(values))
    if len(labels) > 1:
        rows += _rows(ALL_RELATIONS, {name: np.concatenate(v) for name, v in pooled.items()}, np.concatenate(labels), seed)
    return rows


def _rows(item: str, scores: dict[str, np.ndarray], right: np.ndarray, seed: int) -> list[Row]:
    rows = []
    for condition, values in scores.items():
        found = separation(values, right.astype(int), seed=seed)
        rows.append(
            Row(
                metric="REMEDI AUC",
                definition=f"right ({int(right.sum())}) against wrong answers",
                item=item,
                condition=condition,
                value=found.auc,
                lo=found.lo,
                hi=found.hi,
                level=0.95,
                interval_method=found.method,
                unit="subject",
                n=len(values),
                seed=seed,
            )
        )
    return rows


def _scores(
    lm: LanguageModel, facts: EncodedFacts, rows: list[int], choosing: list[int], editor: Editor, seed: int
) -> tuple[dict[str, Float[np.ndarray, "subject"]], np.ndarray]:
    """Scores of each subject by condition, and whether the model answers right."""
    samples = facts.relation.samples
    pool = list(dict.fromkeys(samples[i][1] for i in choosing))
    rng = np.random.default_rng([seed, 4])
    asked, sentences = [], []
    for i in rows:
        subject, obj = samples[i]
        free = [o for o in pool if o != obj]
        others = [free[j] for j in rng.integers(0, len(free), _OTHERS)]
        asked.append(facts.prompt(subject))
        sentences += [sentence(facts, subject, o) for o in (obj, *others)]
    logits = lm.logits(asked).astype(np.float64)
    said = [lm.tokenizer.decode([int(t)]) for t in logits.argmax(-1)]
    right = np.array([starts_with(word, samples[i][1]) for word, i in zip(said, rows)])
    h = lm.capture(asked, editor.site, "subject.last")[editor.site]
    attributes = lm.capture(sentences, editor.site, "attribute.mean")[editor.site]
    lens = lm.unembed(h).astype(np.float64)
    own = np.array([facts.first[samples[i][1]] for i in rows])
    scores = {ESTIMATE: _held(editor, h, attributes), RANDOM: _held(remedi.random_editor(editor, seed), h, attributes)}
    scores["logit lens"] = _log_softmax(lens)[np.arange(len(rows)), own]
    scores[CONFIDENCE] = _log_softmax(logits).max(-1)
    if min(right.sum(), (~right).sum()) >= _FOLDS:
        scores["logistic probe"] = _probed(h, right, seed)
    return scores, right


def _held(editor: Editor, h: np.ndarray, attributes: np.ndarray) -> Float[np.ndarray, "subject"]:
    changes = editor(attributes).reshape(len(h), 1 + _OTHERS, -1)
    return remedi.held_already(h, changes[:, 0], changes[:, 1:])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    top = logits.max(-1, keepdims=True)
    made: np.ndarray = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return made


def _probed(h: np.ndarray, right: np.ndarray, seed: int) -> Float[np.ndarray, "subject"]:
    """Held-out log-odds of a logistic probe for right answers."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    found: np.ndarray = cross_val_predict(probe, h.astype(np.float64), right, cv=folds, method="decision_function")
    return found
