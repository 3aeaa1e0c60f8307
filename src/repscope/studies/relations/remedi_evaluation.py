"""Evaluation of REMEDI's edits in the study of relations: every change of every reported fact, after every kind of question.

Kinds: the question, its paraphrases, another subject named after it in the same text, another fact of the subject, a neutral text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from repscope.conditions import CONTEXT_PROMPT, LRC_EDIT, RANDOM, RAW_ATTRIBUTE, UNEDITED
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.prompts import Prompt
from repscope.progress import progress
from repscope.read.concept_directions import class_means
from repscope.read.known_facts import EncodedFacts, starts_with
from repscope.results import ESTIMATE
from repscope.steer import remedi
from repscope.steer.remedi import Change, EditFact, Editor
from repscope.steer.remedi.evaluation import Outcomes, equal_norm, with_context
from repscope.studies.relations.options import RelationsOptions

_BESIDE = "{subject} came up in a conversation. "
_NEUTRAL = "{subject} is known for"
_STATED = 12  #: reported facts per relation whose continuations are compared


@dataclass(frozen=True, eq=False)
class Part:
    """One relation: its tokenized form, and the samples of each part."""

    facts: EncodedFacts
    train: list[EditFact]
    validation: list[EditFact]
    report: list[EditFact]
    outside: list[int]
    choosing: list[int]
    arrays: Mapping[str, np.ndarray]

    @property
    def name(self) -> str:
        """The relation's."""
        return self.facts.relation.name


@dataclass(eq=False)
class Found:
    """Numbers per reported fact: sums and counts by (metric, definition) and condition, over the questions of one kind."""

    facts: list[EditFact]
    sums: dict[tuple[str, str], dict[str, np.ndarray]] = field(default_factory=dict)

    def put(self, metric: str, definition: str, condition: str, i: int, value: float) -> None:
        """One number of one fact; several of one kind are averaged."""
        held = self.sums.setdefault((metric, definition), {})
        held.setdefault(condition, np.zeros((2, len(self.facts))))[:, i] += value, 1.0

    def values(self, metric: str, definition: str = "") -> dict[str, Float[np.ndarray, "fact"]]:
        """By condition, the mean of each fact; NaN where nothing was asked."""
        with np.errstate(invalid="ignore"):
            return {c: sums / counts for c, (sums, counts) in self.sums.get((metric, definition), {}).items()}


def evaluated(
    lm: LanguageModel, parts: Sequence[Part], report: list[EditFact], editors: Mapping[str, Editor], site: str, o: RelationsOptions
) -> Found:
    """Every change of every reported fact, after every question."""
    found = Found(report)
    attributes = lm.capture([f.context for f in report], site, "attribute.mean", batch_tokens=o.batch_tokens)[site]
    vectors = {condition: editor(attributes) for condition, editor in editors.items()}
    ours = vectors[ESTIMATE]
    vectors[RAW_ATTRIBUTE] = equal_norm(attributes, ours)
    vectors[RANDOM] = equal_norm(remedi.random_editor(editors[ESTIMATE], o.seed)(attributes), ours)
    questions = _questions(parts, report)
    with progress("editing facts", len(report)) as advance:
        for i, fact in enumerate(report):
            part = next(p for p in parts if p.name == fact.relation)
            changes = {condition: Change(site, v[i]) for condition, v in vectors.items()}
            if (step := _lrc_step(part, fact)) is not None:
                changes[LRC_EDIT] = step
            for kind, prompts in questions.items():
                for prompt in prompts[i]:
                    logits = remedi.changed_logits(lm, prompt, list(changes.values()))
                    _note(found, lm, i, kind, [UNEDITED, *changes], remedi.outcomes(logits, fact.target, fact.original))
            advance(1)
    _told_in_words(found, lm, questions)
    if not (o.short or o.tiny):
        _essence(found, lm, vectors, site)
    return found


def _questions(parts: Sequence[Part], report: Sequence[EditFact]) -> dict[str, list[list[Prompt]]]:
    """Per kind and reported fact: the question, its paraphrases, another subject, another fact of the subject, a neutral text."""
    found: dict[str, list[list[Prompt]]] = {k: [] for k in ("own", "paraphrase", "other subject", "same subject", "neutral")}
    for i, fact in enumerate(report):
        part = next(p for p in parts if p.name == fact.relation)
        beside = [f for f in report if f.relation == fact.relation and f.subject != fact.subject]
        head = _BESIDE.replace("{subject}", fact.subject)
        span = {"subject": (0, len(fact.subject))}
        found["own"].append([fact.prompt])
        templates = range(1, len(part.facts.relation.templates))
        found["paraphrase"].append([part.facts.prompt(fact.subject, (), t) for t in templates])
        other = beside[i % len(beside)].prompt.text if beside else ""
        found["other subject"].append([Prompt(head + other, span)] if other else [])
        elsewhere = [
            p.facts.prompt(fact.subject)
            for p in parts
            if p.name != fact.relation and fact.subject in {p.facts.relation.samples[j][0] for j in (*p.choosing, *p.outside)}
        ]
        found["same subject"].append(elsewhere[:1])
        found["neutral"].append([Prompt.fill(_NEUTRAL, subject=fact.subject)])
    return found


def _lrc_step(part: Part, fact: EditFact) -> Change | None:
    """W† (E[o′] − o) of the relation's map, at the block and rank that edits chose in the first split."""
    arrays = part.arrays
    if "edit inverse" not in arrays:
        return None
    samples = part.facts.relation.samples
    names, means = class_means(arrays["choosing states"], [samples[int(i)][1] for i in arrays["choosing"]])
    row = next(j for j, i in enumerate(arrays["reported"].tolist()) if samples[i][0] == fact.subject)
    moved = means[names.index(fact.new)] - arrays["reported states"][row]
    block = int(arrays["edit block"][0])
    return Change(f"resid_post.{block}", arrays["edit inverse"] @ moved, "last")


def _note(found: Found, lm: LanguageModel, i: int, kind: str, conditions: Sequence[str | None], result: Outcomes) -> None:
    """One question of one fact under every condition, the unedited network first; None is not noted."""
    fact = found.facts[i]
    for c, condition in enumerate(conditions):
        if condition is None:
            continue
        if kind in ("own", "paraphrase"):
            hit = float(starts_with(lm.tokenizer.decode([int(result.said[c])]), fact.new))
            found.put("REMEDI efficacy" if kind == "own" else "REMEDI generalisation", "", condition, i, hit)
            if kind == "own":
                found.put("REMEDI preference", "", condition, i, float(result.log_target[c] > result.log_original[c]))
        elif c and kind == "neutral":
            found.put("REMEDI damage", "", condition, i, float(result.kl[c]))
        elif c:
            found.put("REMEDI specificity", kind, condition, i, float(result.said[c] == result.said[0]))


def _told_in_words(found: Found, lm: LanguageModel, questions: Mapping[str, list[list[Prompt]]]) -> None:
    """The sentence before each question in place of an edit."""
    asked = [(i, kind, p) for kind, each in questions.items() for i, prompts in enumerate(each) for p in prompts]
    plain = lm.logits([p for _, _, p in asked])
    told = lm.logits([with_context(p, found.facts[i].context) for i, _, p in asked])
    for (i, kind, _), a, b in zip(asked, plain, told):
        fact = found.facts[i]
        result = remedi.outcomes(np.stack([a, b]), fact.target, fact.original)
        _note(found, lm, i, kind, [None, CONTEXT_PROMPT], result)


def _essence(found: Found, lm: LanguageModel, vectors: Mapping[str, np.ndarray], site: str) -> None:
    """What is written about the subject, with and without each change; of some facts of each relation."""
    of_relation: dict[str, int] = {}
    rows = []
    for i, fact in enumerate(found.facts):
        of_relation[fact.relation] = of_relation.get(fact.relation, 0) + 1
        rows += [i] if of_relation[fact.relation] <= _STATED else []
    prompts = [Prompt.fill(_NEUTRAL, subject=found.facts[i].subject) for i in rows]
    for condition, v in vectors.items():
        edit = Edit.add(site, v[rows], tokens="subject", per_prompt=True)
        for i, value in zip(rows, remedi.essence(lm, prompts, edit)):
            found.put("REMEDI essence", "", condition, i, float(value))
    told = [with_context(p, found.facts[i].context) for i, p in zip(rows, prompts)]
    for i, value in zip(rows, remedi.essence(lm, prompts, told)):
        found.put("REMEDI essence", "", CONTEXT_PROMPT, i, float(value))
