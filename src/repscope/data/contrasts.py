"""Contrasts: texts of two poles (positive and negative, formal and informal), and questions on which the difference is measured.

A direction is learned from `yes` and `no`, the texts of the positive and the negative pole, and judged on `choices`: after a
prompt, which of two continuations does the model prefer? Every text and every choice has a group (its template, its topic);
`halves` keeps groups whole, so that no wording is both learned from and judged on. Knows no tokenizer and no network.

Files: a table (`tables`) with the columns positive and negative (minimal pairs) or text and label (two labels, texts that are no
pairs); a column group is optional, and without it every pair or text is its own group. Empty texts and exact copies are left out
and counted. Of labels such as 0 and 1, false and true, no and yes, the positive one is known, whatever row
comes first.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd
from jaxtyping import Bool

from repscope.data import splits
from repscope.data.columns import poles
from repscope.data.reading import How
from repscope.data.tables import SUFFIXES, Table, read_table
from repscope.errors import UserError, unknown

LEAST = 8  #: texts a pole in a file of the user's
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
            raise UserError(
                f"The poles of {self.name!r} must have two names, not {self.positive!r} and {self.negative!r}."
            )
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
            raise UserError(f"Both texts of a pair of {self.name!r} are {_short(same[0])!r}; leave it out.")
        own = "" if self.paired else "no "
        for field, texts, word in (("yes_groups", self.yes, ""), ("no_groups", self.no, own)):
            if not getattr(self, field):
                object.__setattr__(self, field, tuple(f"{word}{i}" for i in range(len(texts))))
            if len(getattr(self, field)) != len(texts):
                raise UserError(
                    f"{len(getattr(self, field))} {field} of {self.name!r} are given for {len(texts)} texts."
                )
        if self.paired and self.yes_groups != self.no_groups:
            raise UserError(
                f"Both texts of a pair must be in one group; yes_groups and no_groups of {self.name!r} differ."
            )
        for choice in self.choices:
            if not choice.prompt.strip() or not choice.yes.strip() or not choice.no.strip() or choice.yes == choice.no:
                raise UserError(
                    f"A choice of {self.name!r} needs a prompt and two different continuations, not {_short(str(choice))}."
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
        self,
        yes: Iterable[int],
        no: Iterable[int] | None = None,
        choices: Iterable[int] | None = None,
        note: str = "",
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
        """At most so many texts a pole (whole pairs), drawn at random; all choices; itself where it has no more."""
        if most < 1:
            raise UserError(f"{most} texts a pole are none; ask for at least 1.")
        if max(len(self.yes), len(self.no)) <= most:
            return self
        rng = np.random.default_rng(seed)

        def drawn(n: int) -> list[int]:
            return sorted(rng.choice(n, min(n, most), replace=False).tolist())

        rows = drawn(len(self.yes))
        no = None if self.paired else drawn(len(self.no))
        return self.take(rows, no, note=f"{self.name}: at most {most} texts a pole were drawn at random.")

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


def contrast(
    name_or_path: str | Path,
    *,
    positive: str | None = None,
    choices: str | Path | None = None,
    instructions: Sequence[str] | None = None,
    chat: bool | None = None,
    **how: Unpack[How],
) -> Contrast:
    """A built-in contrast by its name, or a file of the user's.

    Parameters
    ----------
    name_or_path
        One of `contrast_names()`, or a path.
    positive
        Which of a file's two labels is the positive one; None takes 1 over 0, true over false, yes over no, positive over negative,
        spam over "not spam", the larger of two numbers, and of other words the first in the file.
    choices
        A file with the columns prompt, yes, no (and group), in place of the contrast's own choices; a file has none of its own.
    instructions
        What asks for the positive and for the negative pole in words, in place of the contrast's own; a file has none.
    chat
        Whether the texts of a file are a user's turn, for the model's chat template.
    how
        `decimal`, `na` and `quote` of the files, see `Reading`.

    Raises
    ------
    UserError
        For a contrast, file or column that is not there, and a file that is not what it should be.
    """
    from repscope.data.contrast_sets import CONTRASTS, openings

    asked = str(name_or_path)
    if asked in CONTRASTS:
        for option, given in (("positive", positive), ("chat", chat)):
            if given is not None:
                raise UserError(f"{option}={given!r} is for a file of yours; the built-in {asked!r} has its own.")
        found = CONTRASTS[asked]()
    else:
        path = _path(asked, "contrast", CONTRASTS)
        found = replace(_of_file(path, positive, how), chat=bool(chat), openings=openings(bool(chat)))
    if choices is not None:
        held, notes = _choices(_path(str(choices), "file of choices", ()), found.chat, how)
        found = replace(found, choices=held, notes=(*found.notes, *notes))
    if instructions is not None:
        if isinstance(instructions, str) or len(instructions) != 2:
            raise UserError(f"instructions must be two texts, one a pole of {found.name!r}.")
        found = replace(found, instructions=(instructions[0], instructions[1]))
    return found


def contrast_names() -> tuple[str, ...]:
    """The contrasts that are built in."""
    from repscope.data.contrast_sets import CONTRASTS

    return tuple(CONTRASTS)


def _path(asked: str, what: str, known: Iterable[str]) -> Path:
    path = Path(asked).expanduser()
    if path.suffix.lower() not in SUFFIXES and len(path.parts) == 1 and not path.exists():
        raise unknown(what, asked, known, f"Give the path of a {' or '.join(SUFFIXES)} file.")
    return path


def _of_file(path: Path, positive: str | None, how: How) -> Contrast:
    table, frame = _read(path, how)
    if {"positive", "negative"} <= set(frame):
        if positive is not None:
            raise UserError(f"positive={positive!r} names a label, and {path} has pairs, whose columns say the pole.")
        return _of_pairs(path, frame, table.notes)
    if {"text", "label"} <= set(frame):
        return _of_labels(path, table, frame, positive)
    raise UserError(
        f"{path} needs the columns positive and negative, or text and label; it has {', '.join(map(repr, table.header))}."
    )


def _of_pairs(path: Path, frame: pd.DataFrame, told: Sequence[str]) -> Contrast:
    total = len(frame)
    notes = list(told)
    full = (frame["positive"] != "") & (frame["negative"] != "") & (frame["positive"] != frame["negative"])
    if empty := total - int(full.sum()):
        notes.append(f"{path.stem}: {empty} of {total} pairs are empty on a side or twice one text and left out.")
    frame = frame[full]
    copies = frame.duplicated(["positive", "negative"])
    if int(copies.sum()):
        notes.append(f"{path.stem}: {int(copies.sum())} of {total} pairs are copies of an earlier one and left out.")
    frame = frame[~copies]
    _check_enough(path, {"positive": len(frame), "negative": len(frame)})
    groups = _groups(frame)
    return Contrast(
        path.stem, "positive", "negative", tuple(frame["positive"]), tuple(frame["negative"]), groups, groups,
        notes=tuple(notes),
    )  # fmt: skip


def _of_labels(path: Path, table: Table, frame: pd.DataFrame, positive: str | None) -> Contrast:
    total = len(frame)
    found = table.labels("label")
    notes = [*table.notes, *found.notes]
    frame = frame.assign(label=found.values.fillna("").map(str.strip))
    full = (frame["text"] != "") & (frame["label"] != "")
    if empty := total - int(full.sum()):
        notes.append(f"{path.stem}: {empty} of {total} rows have an empty text or label and are left out.")
    frame = frame[full]
    labels = list(dict.fromkeys(frame["label"]))
    if len(labels) != 2:
        raise UserError(
            f"{path} has {len(labels)} labels ({', '.join(map(_short, labels[:4]))}) and a contrast has two; keep the rows of two."
        )
    if positive is None:
        positive, why = _positive(labels)
        notes.append(f"{path.stem}: {positive!r}{why} is the positive one.")
    elif positive not in labels:
        same = [label for label in labels if _number(label) == _number(positive) is not None]
        if not same:
            raise unknown(f"label in {path.name}", positive, labels)
        positive = same[0]
    negative = labels[1 - labels.index(positive)]
    copies = frame.duplicated(["text", "label"])
    if int(copies.sum()):
        notes.append(f"{path.stem}: {int(copies.sum())} of {total} texts are copies of an earlier one and left out.")
    frame = frame[~copies]
    torn = frame.duplicated("text", keep=False)
    if int(torn.sum()):
        notes.append(f"{path.stem}: {int(torn.sum()) // 2} texts have both labels and are left out.")
    frame = frame[~torn]
    sides = [frame[frame["label"] == label] for label in (positive, negative)]
    _check_enough(path, {positive: len(sides[0]), negative: len(sides[1])})
    (yes, yes_groups), (no, no_groups) = ((tuple(side["text"]), _groups(side)) for side in sides)
    return Contrast(path.stem, positive, negative, yes, no, yes_groups, no_groups, paired=False, notes=tuple(notes))


def _positive(labels: Sequence[str]) -> tuple[str, str]:
    """The positive one of two labels, and what makes it so where no convention does."""
    if known := poles(labels):
        return known[0], ""
    if None not in map(_number, labels):
        return max(labels, key=float), ("" if set(labels) <= {"-1", "0", "1"} else ", the larger number,")
    return labels[0], ", the first label in the file,"


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _choices(path: Path, chat: bool, how: How) -> tuple[tuple[Choice, ...], list[str]]:
    table, frame = _read(path, how, strip=False)
    if missing := [c for c in ("prompt", "yes", "no") if c not in frame]:
        raise unknown(f"column of {path.name}", missing[0], table.header, "Choices have prompt, yes and no.")
    total = len(frame)
    notes = list(table.notes)
    stripped = frame[["prompt", "yes", "no"]].apply(lambda column: column.str.strip())
    full = (stripped != "").all(axis=1) & (frame["yes"] != frame["no"])
    if empty := total - int(full.sum()):
        notes.append(f"{path.stem}: {empty} of {total} choices are empty in part or twice one text and left out.")
    frame = frame[full]
    copies = frame.duplicated(["prompt", "yes", "no"])
    if int(copies.sum()):
        notes.append(f"{path.stem}: {int(copies.sum())} of {total} choices are copies of an earlier one and left out.")
    frame = frame[~copies]
    if frame.empty:
        raise UserError(f"{path} has no usable choice among {total}; each needs a prompt and two continuations.")
    made = tuple(Choice(*row) for row in zip(frame["prompt"], frame["yes"], frame["no"], _groups(frame, "choice ")))
    joined = sum(c.prompt[-1].isalnum() and (c.yes[0].isalnum() or c.no[0].isalnum()) for c in made)
    if joined and not chat:
        notes.append(
            f"{path.stem}: {joined} of {len(made)} choices continue their prompt without a space, and are taken as they are."
        )
    return made, notes


def _groups(frame: pd.DataFrame, word: str = "row ") -> tuple[str, ...]:
    """The column group; a row without one is its own group."""
    own = [f"{word}{int(i) + 1}" for i in frame.index]
    given = frame["group"] if "group" in frame else [""] * len(frame)
    return tuple(g.strip() or o for g, o in zip(given, own, strict=True))


def _read(path: Path, how: How, strip: bool = True) -> tuple[Table, pd.DataFrame]:
    """The table, and its columns that are known here as text in NFC."""
    table = read_table(path, optional=_COLUMNS, **how)
    frame = table.frame.map(lambda text: unicodedata.normalize("NFC", text))
    return table, frame.map(str.strip) if strip else frame


def _check_enough(path: Path, counts: dict[str, int]) -> None:
    for pole, count in counts.items():
        if count < LEAST:
            raise UserError(f"{path} has {count} usable {pole} texts; a contrast needs at least {LEAST} a pole.")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
