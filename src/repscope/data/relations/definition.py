"""Relations: templates and pairs of a subject and its object; built in, or from files of the user's.

A `Relation` makes prompts: solved examples, one a line, and a question that ends where the object would stand (the few-shot form of
Hernandez et al. 2024, arXiv 2308.09124). Knows no tokenizer and no network.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from repscope.errors import UserError
from repscope.models.prompts import Prompt
from repscope.untrusted import need_text

Pair = tuple[str, str]  #: a subject and its object

_LONGEST = 200  #: characters of a subject or an object
_LONGEST_NAME = 120  #: bytes
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


@dataclass(frozen=True)
class Relation:
    """Subjects, their objects, and how the relation is put into words.

    name: of the relation. templates: text with one "{}" for the subject, which the object follows after a space. samples: (subject,
    object), every subject once. notes: what was left out or repaired.
    """

    name: str
    templates: tuple[str, ...]
    samples: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what would fail later, far from its cause."""
        if not isinstance(self.name, str) or not self.name.isprintable() or len(self.name.encode()) > _LONGEST_NAME:
            raise UserError(
                f"The name {str(self.name)[:40]!r} is no name of a relation; give one of at most {_LONGEST_NAME} bytes on one line."
            )
        templates: object = self.templates
        if not isinstance(templates, (tuple, list)) or not all(isinstance(template, str) for template in templates):
            raise UserError(
                f"The templates of {self.name!r} are no list of texts; give several or one in a tuple, as ('{{}} is in',)."
            )
        if not self.templates:
            raise UserError(f"The relation {self.name!r} has no template; give one that holds {{}}, such as '{{}} is in'.")
        need_text(f"The relation {self.name!r}", *self.templates)
        for template in self.templates:
            if template.count("{}") != 1 or re.search(r"[{}]", template.replace("{}", "")):
                raise UserError(f"The template {template!r} of {self.name!r} must hold {{}} exactly once, where the subject goes.")
        if not self.samples:
            raise UserError(f"The relation {self.name!r} has no sample; give pairs of a subject and an object.")
        need_pairs(f"The relation {self.name!r}", self.samples)
        if (twice := Counter(self.subjects).most_common(1)[0])[1] > 1:
            raise UserError(
                f"The relation {self.name!r} has the subject {twice[0]!r} {twice[1]} times; give each subject one object."
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        return f"Relation({self.name}, {len(self)} subjects, {len(self.objects)} objects)"

    @property
    def subjects(self) -> tuple[str, ...]:
        """All subjects, in order."""
        return tuple(s for s, _ in self.samples)

    @property
    def objects(self) -> tuple[str, ...]:
        """The distinct objects, most common first."""
        return tuple(o for o, _ in Counter(o for _, o in self.samples).most_common())

    def take(self, rows: Iterable[int], note: str = "") -> "Relation":
        """Some of its samples, in the order asked for."""
        kept = tuple(self.samples[int(i)] for i in rows)
        return replace(self, samples=kept, notes=(*self.notes, note) if note else self.notes)

    def sample(self, most: int, seed: int = 0) -> "Relation":
        """At most so many samples, drawn at random; the whole relation where it has no more.

        Raises
        ------
        UserError
            For a number of samples that is not a whole one of 1 or more.
        """
        if isinstance(most, bool) or not isinstance(most, (int, np.integer)) or most < 1:
            raise UserError(f"{most!r} samples of {self.name!r} were asked for; give a whole number of 1 or more.")
        if len(self) <= most:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self), most, replace=False))
        return self.take(rows, f"{self.name}: {most} of {len(self)} samples were drawn at random.")

    def prompt(self, subject: str, shots: Sequence[Pair] = (), template: int = 0, answer: str | None = None) -> Prompt:
        """Solved examples and the question for a subject, which is the span "subject"; with `answer`, that after it as "object".

        >>> Relation("capital", ("{} has the capital",), (("Chile", "Santiago"),)).prompt("Peru", [("Chile", "Santiago")])
        Prompt(text='Chile has the capital Santiago\\nPeru has the capital', spans={'subject': (31, 35)}, special=True)
        """
        before, after = self.templates[template].split("{}")
        head = "".join(f"{before}{s}{after} {o}\n" for s, o in shots) + before
        spans = {"subject": (len(head), len(head) + len(subject))}
        text = head + subject + after
        if answer is not None:
            spans["object"] = (len(text) + 1, len(text) + 1 + len(answer))
            text += f" {answer}"
        return Prompt(text, spans)


def need_pairs(what: str, pairs: Iterable[Any]) -> None:
    """Raise a `UserError` for the first sample that is not a subject and an object, two texts that are not empty."""
    for i, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UserError(
                f"{what} has the sample {str(pair)[:60]} (number {i}); give pairs of a subject and its object, both texts."
            )
        for text, part in zip(pair, ("subject", "object")):
            if not text.strip():
                raise UserError(f"{what} has an empty {part} in sample {i}, {tuple(pair)!r}; leave the sample out.")
        need_text(what, *pair)


def of_pairs(name: str, templates: Sequence[str], pairs: Iterable[Pair], notes: Sequence[str] = ()) -> Relation:
    """A relation from raw pairs: text repaired and cleaned, copies merged, subjects with several objects left out; all counted."""
    held: dict[str, str] = {}
    repaired = unusable = copies = 0
    torn: set[str] = set()
    total = 0
    for raw in pairs:
        total += 1
        subject, at = _clean(raw[0])
        obj, also = _clean(raw[1])
        repaired += at or also
        if not subject or not obj or max(len(subject), len(obj)) > _LONGEST:
            unusable += 1
        elif held.get(subject, obj) != obj:
            torn.add(subject)
        else:
            copies += subject in held
            held[subject] = obj
    told = list(notes)
    if repaired:
        told.append(f"{name}: {repaired} of {total} samples were escaped twice and are repaired.")
    if unusable:
        told.append(f"{name}: {unusable} of {total} samples are empty or longer than {_LONGEST} characters and left out.")
    if copies:
        told.append(f"{name}: {copies} samples that are there twice count once.")
    if torn:
        told.append(f"{name}: {len(torn)} subjects have several objects and are left out ({', '.join(sorted(torn)[:3])} …).")
    kept = tuple((s, o) for s, o in held.items() if s not in torn)
    if total and not kept:
        raise UserError(f"The relation {name!r} has no usable sample among {total}: {' '.join(told)}")
    return Relation(name, tuple(templates), kept, tuple(told))


def _clean(text: str) -> tuple[str, bool]:
    """Text in NFC without space around it, and whether it was escaped twice."""
    mended = _ESCAPE.sub(lambda m: chr(int(m[1], 16)), text)
    # What stood outside the basic plane was two escapes; a lone half of a pair is no text and becomes a question mark.
    whole = mended.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return " ".join(unicodedata.normalize("NFC", whole).split()), mended != text
