"""Contrasts: texts of two poles (positive and negative, formal and informal), and questions on which the difference is measured.

A direction is learned from `yes` and `no`, the texts of the positive and the negative pole, and judged on `choices`: after a
prompt, which of two continuations does the model prefer? Every text and every choice has a group (its template, its topic);
`halves` keeps groups whole, so that no wording is both learned from and judged on. Knows no tokenizer and no network.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from repscope.data import splits
from repscope.data.reading import shortened
from repscope.errors import UserError

LEAST = 8  #: texts per pole in a file of the user's
_COLUMNS = ("positive", "negative", "text", "label", "prompt", "yes", "no", "group")


@dataclass(frozen=True)
class Choice:
    """One question: which of two continuations does the model prefer?

    prompt: what stands before them. yes: the continuation that the positive pole makes likelier; it begins with a space where the
    text needs one. no: the other. group: the unit that halves keep whole.
    """

    prompt: str
    yes: str
    no: str
    group: str = ""


@dataclass(frozen=True)
class Contrast:
    """Texts of two poles, and what the effect of a direction between them is measured on.

    name: of the contrast. positive, negative: names of the poles. yes, no: texts of the positive and of the negative pole; where
    `paired`, yes[i] and no[i] differ in the pole alone. yes_groups, no_groups: the group of each text; left empty, every pair or
    text is its own. choices: questions, which share no sentence with the texts. instructions: what asks for the positive and for
    the negative pole in words, put before a prompt. openings: neutral beginnings of texts. paired: whether the texts are pairs.
    chat: whether texts, prompts and openings are a user's turn, for the model's chat template. notes: what was left out.
    """

    name: str
    positive: str
    negative: str
    yes: tuple[str, ...]
    no: tuple[str, ...]
    yes_groups: tuple[str, ...] = ()
    no_groups: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    instructions: tuple[str, str] = ("", "")
    openings: tuple[str, ...] = ()
    paired: bool = True
    chat: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what would fail later, far from its cause."""
        if self.positive == self.negative or not self.positive or not self.negative:
            raise UserError(f"The poles of {self.name!r} must have two names, not {self.positive!r} and {self.negative!r}.")
        for pole, texts in ((self.positive, self.yes), (self.negative, self.no)):
            if not texts:
                raise UserError(f"The contrast {self.name!r} has no {pole} text; give texts of both poles.")
            if not all(isinstance(t, str) and t.strip() for t in texts):
                raise UserError(f"A {pole} text of {self.name!r} is empty or no text; leave it out.")
        if self.paired and len(self.yes) != len(self.no):
            raise UserError(
                f"{len(self.yes)} {self.positive} and {len(self.no)} {self.negative} texts of {self.name!r} are no pairs; "
                "give as many of each, or paired=False."
            )
        if self.paired and (same := [t for t, u in zip(self.yes, self.no, strict=True) if t == u]):
            raise UserError(f"Both texts of a pair of {self.name!r} are {shortened(same[0])!r}; leave it out.")
        own = "" if self.paired else "no "
        for field, texts, word in (("yes_groups", self.yes, ""), ("no_groups", self.no, own)):
            if not getattr(self, field):
                object.__setattr__(self, field, tuple(f"{word}{i}" for i in range(len(texts))))
            if len(getattr(self, field)) != len(texts):
                raise UserError(f"{len(getattr(self, field))} {field} of {self.name!r} are given for {len(texts)} texts.")
        if self.paired and self.yes_groups != self.no_groups:
            raise UserError(f"Both texts of a pair must be in one group; yes_groups and no_groups of {self.name!r} differ.")
        for choice in self.choices:
            if not choice.prompt.strip() or not choice.yes.strip() or not choice.no.strip() or choice.yes == choice.no:
                raise UserError(
                    f"A choice of {self.name!r} needs a prompt and two different continuations, not {shortened(str(choice))}."
                )
        if len(self.instructions) != 2:
            raise UserError(f"{self.name!r} needs two instructions, one a pole, not {len(self.instructions)}.")

    def __repr__(self) -> str:
        texts = f"{len(self.yes)} pairs" if self.paired else f"{len(self.yes)} and {len(self.no)} texts"
        return (
            f"Contrast({self.name}, {self.positive} / {self.negative}, {texts} in {len(self.groups)} groups, "
            f"{len(self.choices)} choices)"
        )

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(positive text, negative text) of each pair.

        Raises
        ------
        UserError
            When the texts are no pairs.
        """
        if not self.paired:
            raise UserError(f"The texts of {self.name!r} are no pairs; use its yes and no.")
        return tuple(zip(self.yes, self.no, strict=True))

    @property
    def groups(self) -> tuple[str, ...]:
        """The distinct groups of its texts, in order."""
        return tuple(dict.fromkeys((*self.yes_groups, *self.no_groups)))

    def questions(self) -> tuple[Choice, ...]:
        """Choices made of its pairs: what both texts begin with is the prompt, what follows in each a continuation.

        Raises
        ------
        UserError
            When the texts are no pairs, or hardly any two begin with the same word.
        """
        made = []
        for (yes, no), group in zip(self.pairs if self.paired else (), self.yes_groups):
            shared = next((i for i, (a, b) in enumerate(zip(yes, no)) if a != b), min(len(yes), len(no)))
            at = max(yes.rfind(" ", 0, shared), 0)  # the word in which they part belongs to the continuation
            if yes[:at].strip() and yes[at:].strip() and no[at:].strip():
                made.append(Choice(yes[:at], yes[at:], no[at:], group))
        if len(made) < LEAST:
            raise UserError(
                f"{self.name!r} has no choices to measure an effect on, and {len(made)} of its pairs begin alike; give a file of "
                "choices with the columns prompt, yes and no (a direction alone needs none: steer.fit)."
            )
        return tuple(made)

    def with_choices(self) -> "Contrast":
        """Itself, with questions made of its pairs where it has no choices; what `repscope study contrast` and `steer` begin with.

        Raises
        ------
        UserError
            See `questions`.
        """
        return self if self.choices else replace(self, choices=self.questions())

    def take(
        self, yes: Iterable[int], no: Iterable[int] | None = None, choices: Iterable[int] | None = None, note: str = ""
    ) -> "Contrast":
        """Some of its texts and choices, in the order asked for.

        Parameters
        ----------
        yes, no
            Rows of positive and negative texts; of pairs `yes` alone, which takes whole pairs.
        choices
            Rows of choices; None keeps all.
        """
        rows = [int(i) for i in yes]
        if self.paired and no is not None:
            raise ValueError("pairs are taken whole; give their rows as yes")
        others = rows if self.paired else list(range(len(self.no))) if no is None else [int(i) for i in no]
        return replace(
            self,
            yes=tuple(self.yes[i] for i in rows),
            no=tuple(self.no[i] for i in others),
            yes_groups=tuple(self.yes_groups[i] for i in rows),
            no_groups=tuple(self.no_groups[i] for i in others),
            choices=self.choices if choices is None else tuple(self.choices[int(i)] for i in choices),
            notes=(*self.notes, note) if note else self.notes,
        )

    def sample(self, most: int, seed: int = 0) -> "Contrast":
        """At most so many texts per pole (whole pairs), drawn at random; all choices; itself where it has no more."""
        if most < 1:
            raise UserError(f"{most} texts per pole are none; ask for at least 1.")
        if max(len(self.yes), len(self.no)) <= most:
            return self
        rng = np.random.default_rng(seed)

        def drawn(n: int) -> list[int]:
            return sorted(rng.choice(n, min(n, most), replace=False).tolist())

        rows = drawn(len(self.yes))
        no = None if self.paired else drawn(len(self.no))
        return self.take(rows, no, note=f"{self.name}: at most {most} texts per pole were drawn at random.")

    def halves(self, seed: int = 0) -> tuple["Contrast", "Contrast"]:
        """Two contrasts that share no group of texts or choices and no opening: choose on the first, report on the second.

        Texts and choices whose groups have one name stay together; each kind is divided as evenly as its groups let it.

        Raises
        ------
        UserError
            When the groups leave a half without texts of a pole.
        """
        kinds = (self.yes_groups, self.no_groups, tuple(c.group for c in self.choices))
        first = splits.halves(
            np.array([group for kind in kinds for group in kind]),
            seed,
            np.repeat(np.arange(len(kinds)), [len(kind) for kind in kinds]),
        )
        return self._half(first, "first", seed), self._half(~first, "second", seed)

    def _half(self, kept: Bool[np.ndarray, "member"], which: str, seed: int) -> "Contrast":
        n, m = len(self.yes), len(self.no)
        yes, no, choices = (np.flatnonzero(part).tolist() for part in np.split(kept, [n, n + m]))
        if not yes or not no:
            raise UserError(
                f"The {which} half of {self.name!r} would have {len(yes)} {self.positive} and {len(no)} {self.negative} "
                "texts, since groups stay whole; give groups that hold both poles, or none."
            )
        note = f"{self.name}: the {which} half of its groups (seed {seed})."
        every_second = self.openings[which == "second" :: 2] if len(self.openings) > 1 else self.openings
        return replace(self.take(yes, None if self.paired else no, choices, note), openings=every_second)
