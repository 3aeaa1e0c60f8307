"""Facts to edit: a subject, its object and a new one; a sentence that says the new one, and the question that should change.

context     "Peru is in the country of Japan"     attribute: the words after the subject
question    "Peru is in the country of"           object: before " Peru …", after " Japan"
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from repscope.errors import UserError, unknown
from repscope.models.prompts import Prompt
from repscope.read.known_facts import EncodedFacts, starts_with


@dataclass(frozen=True)
class EditFact:
    """One fact to edit.

    relation, subject, old, new: names. prompt: the question, with the span "subject". context: the sentence, with the span
    "attribute". target, original: the token with which the new and the old object begin in an answer.
    """

    relation: str
    subject: str
    old: str
    new: str
    prompt: Prompt
    context: Prompt
    target: int
    original: int


def edit_facts(
    facts: EncodedFacts, rows: Sequence[int], objects: Sequence[str], *, per_subject: int = 1, template: int = 0, seed: int = 0
) -> list[EditFact]:
    """Facts about samples of a relation, each with new objects drawn at random.

    Parameters
    ----------
    rows
        Samples of the relation.
    objects
        Those to draw from; none that begins with the same token as the sample's own.
    per_subject
        New objects of each subject; fewer where there are not as many.

    Raises
    ------
    UserError
        When no sample can have a new object, and for a sample or an object that the relation does not have.
    """
    samples = facts.relation.samples
    for row in rows:
        if not 0 <= int(row) < len(samples):
            raise UserError(f"The relation {facts.relation.name!r} has no sample {row}; there are {len(samples)}, counted from 0.")
    for new in objects:
        if new not in facts.first:
            raise unknown(f"object of {facts.relation.name!r}", new, facts.first)
    made = []
    for row in rows:
        subject, old = samples[int(row)]
        free = [o for o in dict.fromkeys(objects) if facts.first[o] != facts.first[old] and not _alike(o, old)]
        order = np.random.default_rng([seed, int(row)]).permutation(len(free))[:per_subject]
        made += [edit_fact(facts, subject, old, free[i], template) for i in order]
    if not made:
        raise UserError(f"No sample of {facts.relation.name!r} can have another object; give a relation with several objects.")
    return made


def edit_fact(facts: EncodedFacts, subject: str, old: str, new: str, template: int = 0) -> EditFact:
    """One fact with a given new object."""
    return EditFact(
        facts.relation.name,
        subject,
        old,
        new,
        facts.prompt(subject, (), template),
        sentence(facts, subject, new, template),
        facts.first[new],
        facts.first[old],
    )


def sentence(facts: EncodedFacts, subject: str, obj: str, template: int = 0) -> Prompt:
    """The sentence that says an object of a subject; the span "attribute" is what follows the subject."""
    said = facts.relation.prompt(subject, (), template, answer=obj)
    return replace(said, spans={**said.spans, "attribute": (said.spans["subject"][1], said.spans["object"][1])})


def _alike(a: str, b: str) -> bool:
    return starts_with(a, b) or starts_with(b, a)
