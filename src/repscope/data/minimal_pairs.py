"""Minimal pairs: two sentences that differ in one respect, of which one is acceptable, with the phenomenon that they test.

1. A file is a table (`tables`): BLiMP's JSON lines (sentence_good, sentence_bad, UID, linguistics_term), or any table with two
   columns of sentences; a folder is all tables in it. Columns have common names, or are named by the user.
2. Pairs of equal sentences say nothing and are left out with a note that names their lines (BLiMP has one); an empty sentence is
   refused; a pair that occurs twice counts once, with a note.
3. `chosen`: some phenomena only, and a random sample of the pairs of each.

Knows no model.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np
from jaxtyping import Int

from repscope.data.reading import How
from repscope.data.table_files import SUFFIXES
from repscope.data.tables import DataTable, read_table
from repscope.errors import UserError, unknown

#: names of columns in use, the first that a table has is taken
GOOD = ("sentence_good", "good", "good_sentence", "grammatical", "acceptable", "sentence_grammatical")
BAD = ("sentence_bad", "bad", "bad_sentence", "ungrammatical", "unacceptable", "sentence_ungrammatical")
PHENOMENON = ("UID", "phenomenon", "paradigm")
GROUP = ("linguistics_term", "group", "field")


@dataclass(frozen=True)
class MinimalPairs:
    """Pairs of sentences.

    name: of the file or folder. good, bad: (pair), sentences. phenomenon: (pair), what each tests. groups: phenomenon → wider term,
    of files that have one. notes: copies that count once.
    """

    name: str
    good: tuple[str, ...]
    bad: tuple[str, ...]
    phenomenon: tuple[str, ...]
    groups: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the pairs."""
        if not len(self.good) == len(self.bad) == len(self.phenomenon):
            raise UserError(f"{self.name} has {len(self.good)} good and {len(self.bad)} bad sentences; give one of each per pair.")
        if not self.good:
            raise UserError(f"{self.name} has no pair; give at least one good and one bad sentence.")
        for i, (good, bad) in enumerate(zip(self.good, self.bad)):
            if good == bad:
                raise UserError(
                    f"Pair {i} of {self.name} has two equal sentences, {_short(good)}; a minimal pair has two different ones."
                )
            if not good.strip() or not bad.strip():
                raise UserError(f"Pair {i} of {self.name} lacks a sentence; give both, or leave the pair out.")

    @property
    def phenomena(self) -> tuple[str, ...]:
        """The phenomena, in the order of the file."""
        return tuple(dict.fromkeys(self.phenomenon))

    @property
    def digest(self) -> str:
        """Digest of all sentences and phenomena."""
        return hashlib.sha256(json.dumps([self.good, self.bad, self.phenomenon]).encode()).hexdigest()

    def rows(self, phenomenon: str) -> Int[np.ndarray, "pair"]:
        """The pairs of a phenomenon."""
        return np.flatnonzero(np.array(self.phenomenon, dtype=object) == phenomenon)

    def chosen(self, phenomena: Sequence[str] = (), most: int | None = None, seed: int = 0) -> "MinimalPairs":
        """Some phenomena, and at most `most` pairs of each, drawn at random, in the order of the file.

        Raises
        ------
        UserError
            For a phenomenon that is not in the file.
        """
        for name in phenomena:
            if name not in self.phenomena:
                raise unknown(f"phenomenon in {self.name}", name, self.phenomena)
        rng = np.random.default_rng(seed)
        kept = [rng.permutation(self.rows(name))[:most] for name in (phenomena or self.phenomena)]
        rows = sorted(int(i) for some in kept for i in some)
        good, bad, of = (tuple(column[i] for i in rows) for column in (self.good, self.bad, self.phenomenon))
        return replace(self, good=good, bad=bad, phenomenon=of)


def read_pairs(
    path: str | Path, *, good: str | None = None, bad: str | None = None, phenomenon: str | None = None, **how: Unpack[How]
) -> MinimalPairs:
    """Read minimal pairs.

    Parameters
    ----------
    path
        A `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` table with one pair per row, or a folder of such tables.
    good, bad
        Columns of the sentences; by default the first of `GOOD` and of `BAD` that the table has.
    phenomenon
        Column of the phenomenon; by default the first of `PHENOMENON`, and the name of the file where there is none.
    how
        `decimal`, `na` and `quote` of a table, see `Reading`.

    Raises
    ------
    UserError
        When a file cannot be read or lacks a column, for an empty sentence (names its line), and where no pair differs.
    """
    home = Path(path).expanduser()
    files = [home]
    if home.is_dir():
        files = sorted(p for p in home.iterdir() if p.suffix.lower() in SUFFIXES)
        if not files:
            raise UserError(f"{home} has no table of pairs; it may hold files that end in {', '.join(SUFFIXES)}.")
    held: dict[tuple[str, str, str], None] = {}
    groups: dict[str, str] = {}
    total, notes, equal = 0, list[str](), list[str]()
    for file in files:
        names = {"good": good, "bad": bad, "phenomenon": phenomenon}
        known = {"good": GOOD, "bad": BAD, "phenomenon": PHENOMENON, "group": GROUP}
        asked = [names.get(what) or each for what, each in known.items()]
        table = read_table(file, optional=[c for each in asked for c in ([each] if isinstance(each, str) else each)], **how)
        columns = {what: _column(table, what, names.get(what), each) for what, each in known.items()}
        of = _cells(table, columns["phenomenon"]) or [file.stem] * len(table.frame)
        pairs = list(zip(_cells(table, columns["good"]), _cells(table, columns["bad"]), of))
        for row, (one, other, _) in enumerate(pairs):
            if not one.strip() or not other.strip():
                raise UserError(
                    f"A sentence in {table.where(row)} of {file.name} is empty; give both sentences of the pair, or leave it out."
                )
            if not of[row].strip():
                raise UserError(f"{table.where(row)} of {file.name} names no phenomenon; name it, or leave the pair out.")
            if one == other:
                equal.append(f"{table.where(row)} of {file.name}")
        held |= dict.fromkeys(pair for pair in pairs if pair[0] != pair[1])
        total += len(pairs)
        groups |= dict(zip(of, _cells(table, columns["group"])))
        notes += [f"{file.name}: {note}" for note in table.notes]
    if equal:
        listed = ", ".join(equal[:3]) + (f" and {len(equal) - 3} more" if len(equal) > 3 else "")
        if not held:
            raise UserError(f"The two sentences of every pair are equal ({listed}); a minimal pair has two different ones.")
        notes.append(f"{len(equal)} of {total} pairs have two equal sentences, and were left out: {listed}.")
    if copies := total - len(held) - len(equal):
        notes.append(f"{copies} of {total} pairs are copies of others, and count once.")
    goods, bads, phenomena = zip(*held)
    wider = tuple((name, group) for name, group in groups.items() if group)
    return MinimalPairs(home.name, goods, bads, phenomena, wider, tuple(dict.fromkeys(notes)))


def _column(table: DataTable, what: str, asked: str | None, names: Iterable[str]) -> str | None:
    """The table's column of this kind; None where a phenomenon or a group has none."""
    if asked is not None:
        if asked not in table.header:
            raise unknown(f"column of {table.path.name}", asked, table.header)
        return asked
    found = next((name for name in names if name in table.frame.columns), None)
    if found is None and what in ("good", "bad"):
        listed = ", ".join(table.header[:8])
        raise UserError(f"{table.path.name} has no column of {what} sentences (its columns: {listed}); name it with --{what}.")
    return found


def _cells(table: DataTable, column: str | None) -> list[str]:
    return [] if column is None else [str(cell) for cell in table.frame[column]]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
