"""A contrast by its name, or from a file of the user's.

Files: a table (`tables`) with the columns positive and negative (minimal pairs) or text and label (two labels, texts that are no
pairs); a column group is optional, and without it every pair or text is its own group. Empty texts and exact copies are left out
and counted. Of labels such as 0 and 1, false and true, no and yes, the positive one is known, whatever row
comes first.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import pandas as pd

from repscope.data.columns import poles
from repscope.data.contrasts.built_in import CONTRASTS, openings
from repscope.data.contrasts.definition import Choice, Contrast
from repscope.data.reading import How, shortened
from repscope.data.tables import DataTable, read_table, table_path
from repscope.errors import UserError, unknown

LEAST = 8  #: texts per pole in a file of the user's
_COLUMNS = ("positive", "negative", "text", "label", "prompt", "yes", "no", "group")


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
    asked = str(name_or_path)
    if asked in CONTRASTS:
        for option, given in (("positive", positive), ("chat", chat)):
            if given is not None:
                raise UserError(f"{option}={given!r} is for a file of yours; the built-in {asked!r} has its own.")
        found = CONTRASTS[asked]()
    else:
        path = table_path(asked, "contrast", CONTRASTS, "Give")
        found = replace(_of_file(path, positive, how), chat=bool(chat), openings=openings(bool(chat)))
    if choices is not None:
        held, notes = _choices(table_path(str(choices), "file of choices", (), "Give"), found.chat, how)
        found = replace(found, choices=held, notes=(*found.notes, *notes))
    if instructions is not None:
        if isinstance(instructions, str) or len(instructions) != 2:
            raise UserError(f"instructions must be two texts, one a pole of {found.name!r}.")
        found = replace(found, instructions=(instructions[0], instructions[1]))
    return found


def contrast_names() -> tuple[str, ...]:
    """The contrasts that are built in."""
    return tuple(CONTRASTS)


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
    total, notes = len(frame), list(told)
    full = (frame["positive"] != "") & (frame["negative"] != "") & (frame["positive"] != frame["negative"])
    frame = _without(frame, ~full, path, f"of {total} pairs are empty on a side or twice one text and left out", notes)
    copies = frame.duplicated(["positive", "negative"])
    frame = _without(frame, copies, path, f"of {total} pairs are copies of an earlier one and left out", notes)
    _check_enough(path, {"positive": len(frame), "negative": len(frame)})
    groups = _groups(frame)
    return Contrast(
        path.stem, "positive", "negative", tuple(frame["positive"]), tuple(frame["negative"]), groups, groups, notes=tuple(notes)
    )


def _of_labels(path: Path, table: DataTable, frame: pd.DataFrame, positive: str | None) -> Contrast:
    total = len(frame)
    found = table.labels("label")
    notes = [*table.notes, *found.notes]
    frame = frame.assign(label=found.values.fillna("").map(str.strip))
    full = (frame["text"] != "") & (frame["label"] != "")
    frame = _without(frame, ~full, path, f"of {total} rows have an empty text or label and are left out", notes)
    labels = list(dict.fromkeys(frame["label"]))
    if len(labels) != 2:
        raise UserError(
            f"{path} has {len(labels)} labels ({', '.join(map(shortened, labels[:4]))}) and a contrast two; keep the rows of two."
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
    frame = _without(
        frame, frame.duplicated(["text", "label"]), path, f"of {total} texts are copies of an earlier one and left out", notes
    )
    torn = frame.duplicated("text", keep=False)
    if int(torn.sum()):
        notes.append(f"{path.stem}: {int(torn.sum()) // 2} texts have both labels and are left out.")
    frame = frame[~torn]
    sides = [frame[frame["label"] == label] for label in (positive, negative)]
    _check_enough(path, {positive: len(sides[0]), negative: len(sides[1])})
    (yes, yes_groups), (no, no_groups) = ((tuple(side["text"]), _groups(side)) for side in sides)
    return Contrast(path.stem, positive, negative, yes, no, yes_groups, no_groups, paired=False, notes=tuple(notes))


def _without(frame: pd.DataFrame, dropped: pd.Series, path: Path, why: str, notes: list[str]) -> pd.DataFrame:
    """The rows that are not dropped; adds a note with the number of dropped ones."""
    if count := int(dropped.sum()):
        notes.append(f"{path.stem}: {count} {why}.")
    return frame[~dropped]


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
    frame = _without(frame, ~full, path, f"of {total} choices are empty in part or twice one text and left out", notes)
    copies = frame.duplicated(["prompt", "yes", "no"])
    frame = _without(frame, copies, path, f"of {total} choices are copies of an earlier one and left out", notes)
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


def _read(path: Path, how: How, strip: bool = True) -> tuple[DataTable, pd.DataFrame]:
    """The table, and its columns that are known here as text in NFC."""
    table = read_table(path, optional=_COLUMNS, **how)
    frame = table.frame.map(lambda text: unicodedata.normalize("NFC", text))
    return table, frame.map(str.strip) if strip else frame


def _check_enough(path: Path, counts: dict[str, int]) -> None:
    for pole, count in counts.items():
        if count < LEAST:
            raise UserError(f"{path} has {count} usable {pole} texts; a contrast needs at least {LEAST} a pole.")
