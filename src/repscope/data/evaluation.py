"""Evaluation texts from a user's file, with labels and splits.

1. A `.txt` file has one text per line. A table (`tables`) has a column of texts, and optional columns of second texts, labels and
   splits.
2. Rows without a text, or a requested second text or label, are dropped with a note.
3. Losses are per split. The first is `id` if present, else the first in the file: its losses are `loss` and `error`, those of
   split s are `s loss` and `s error`.
4. `resolved`: labels as class numbers, by a classifier's class names or as whole numbers.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np
from jaxtyping import Int

from repscope.data.reading import How
from repscope.data.separated import lines_of
from repscope.data.table_files import SUFFIXES
from repscope.data.tables import WORKBOOKS, read_table
from repscope.errors import UserError, unknown

FIRST = "id"  #: split whose losses have no prefix
LABEL = "label"  #: default column of labels


@dataclass(frozen=True)
class Texts:
    """Texts of a file.

    name: of the file. pairs: second texts, or empty; likewise labels and splits. notes: dropped rows.
    """

    name: str
    texts: tuple[str, ...]
    pairs: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Splits, that without a prefix first; a single unnamed one if the file has none."""
        found = dict.fromkeys(self.splits or ("",))
        return tuple(sorted(found, key=lambda name: name != FIRST))

    @property
    def digest(self) -> str:
        """Digest of all texts, labels and splits."""
        held = json.dumps([self.texts, self.pairs, self.labels, self.splits])
        return hashlib.sha256(held.encode()).hexdigest()

    def loss(self, split: str, kind: str) -> str:
        """The name of a loss on a split: `loss`, `ood error`."""
        return kind if split == self.names[0] else f"{split} {kind}"

    def rows(self, split: str) -> Int[np.ndarray, "example"]:
        """The rows of a split."""
        held = self.splits or ("",) * len(self.texts)
        return np.flatnonzero([name == split for name in held])

    def first(self, most: int | None, seed: int = 0) -> "Texts":
        """A random sample of at most `most` rows per split, in file order."""
        if most is None or all(len(self.rows(name)) <= most for name in self.names):
            return self
        rng = np.random.default_rng(seed)
        drawn = [rng.permutation(self.rows(name))[:most] for name in self.names]
        kept = sorted(int(i) for rows in drawn for i in rows)
        note = f"{len(kept)} of {len(self.texts)} texts were drawn at random, at most {most} of a split (seed {seed})."
        return replace(
            self,
            texts=_of(self.texts, kept),
            pairs=_of(self.pairs, kept),
            labels=_of(self.labels, kept),
            splits=_of(self.splits, kept),
            notes=(*self.notes, note),
        )


def read_texts(
    path: str | Path,
    *,
    text: str = "text",
    pair: str | None = None,
    label: str | None = None,
    split: str | None = None,
    **how: Unpack[How],
) -> Texts:
    """Read evaluation texts.

    Parameters
    ----------
    path
        A `.txt` file with one text per line, or a `.csv`, `.tsv`, `.json`, `.jsonl` or `.parquet` table.
    text
        Column of texts.
    pair
        Column of second texts, such as hypotheses.
    label
        Column of labels.
    split
        Column of splits, such as id and ood.
    how
        `decimal`, `na` and `quote` of a table, see `Reading`.

    Raises
    ------
    UserError
        If the file is missing, empty or of another kind, or lacks a column.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() == ".txt":
        if columned := [f"--{k}" for k, v in (("pair", pair), ("label", label), ("split", split)) if v is not None]:
            raise UserError(f"{file} has no columns, only one text per line; {columned[0]} needs a table ({_LISTED}).")
        return _lines(file)
    if file.is_file() and file.suffix.lower() not in (*SUFFIXES, *WORKBOOKS):
        raise unknown("kind of data file", file.suffix or file.name, (".txt", *SUFFIXES))
    if file.is_file() and not file.stat().st_size:
        raise UserError(f"{file} is empty; give a file with one text per row.")
    asked = {"text": text, "pair": pair, "label": label, "split": split}
    columns = {what: column for what, column in asked.items() if column is not None}
    table = read_table(file, list(dict.fromkeys(columns.values())), **how)
    frame, notes = table.frame, list(table.notes)
    if label is not None:
        named = table.labels(label)
        frame = frame.assign(**{label: named.values.fillna("")})
        notes += named.notes
    whole = np.ones(len(frame), dtype=bool)
    for column in columns.values():
        whole &= (frame[column].str.strip() != "").to_numpy()
    if not whole.any():
        raise UserError(f"{file} has no row with {' and '.join(columns.values())}; give a file with one text per row.")
    if lost := int((~whole).sum()):
        notes.append(f"{lost} of {len(frame)} rows have an empty {' or '.join(columns.values())}, and were left out.")
    kept = frame[whole]
    held = {what: tuple(str(cell) for cell in kept[column]) for what, column in columns.items()}
    return Texts(file.name, held["text"], held.get("pair", ()), held.get("label", ()), held.get("split", ()), tuple(notes))


def resolved(texts: Texts, classes: Mapping[int, str]) -> Int[np.ndarray, "example"]:
    """Labels as class numbers: by class names if all labels are names, else as whole numbers.

    Parameters
    ----------
    texts
        With labels.
    classes
        Number → name, of the classifier.

    Raises
    ------
    UserError
        For a label that is not a class.
    """
    numbers = {name: number for number, name in classes.items()}
    if set(texts.labels) <= set(numbers):
        return np.array([numbers[label] for label in texts.labels], dtype=np.int64)
    held = f"the classifier has {len(classes)} classes: " + ", ".join(f"{k} {v}" for k, v in sorted(classes.items())[:8])
    if named := [label for label in texts.labels if label in numbers and not label.removesuffix(".0").isdigit()]:
        wrong = next(label for label in texts.labels if label not in numbers)
        raise UserError(f"{texts.name} has the label {wrong!r} beside {named[0]!r}, and {held}; map the labels to these.")
    for label in texts.labels:
        whole = label.removesuffix(".0")
        if not whole.isascii() or not whole.isdigit() or int(whole) not in classes:
            raise UserError(f"{texts.name} has the label {label!r}, and {held}; map the labels to these.")
    return np.array([int(label.removesuffix(".0")) for label in texts.labels], dtype=np.int64)


_LISTED = ", ".join(SUFFIXES)


def _lines(file: Path) -> Texts:
    if not file.exists():
        raise UserError(f"There is no file {file}; check the path.")
    held = lines_of(file)
    if not held:
        raise UserError(f"{file} is empty; give a file with one text per line.")
    return Texts(file.name, held)


def _of(values: tuple[str, ...], rows: list[int]) -> tuple[str, ...]:
    return tuple(values[i] for i in rows) if values else ()
