"""Reader of users' tables: CSV, TSV, Parquet, JSON or JSON lines to a frame of text.

1. `read_table`: everything is read as text, by format (`separated` for CSV and TSV). Too many or too few fields, a wrong encoding
   or a missing column are errors, never guessed. If all columns are read, index columns of data frames, unnamed columns and lists
   are omitted with a note.
2. Empty cells are missing, and those that `columns` detects. `DataTable.typed` makes a column a class or a number.
3. `clean`: names are stripped and normalised to Unicode NFC; empty and over-long names are dropped, copies of a name are merged. A
   column on which copies disagree becomes missing for that name.

`DataTable.notes` reports everything omitted, ambiguous or missing.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, Unpack

import numpy as np
import pandas as pd

from repscope.data.columns import Column, blanked, labels, typed
from repscope.data.reading import How, Reading, reading, shortened
from repscope.data.table_files import READERS, SUFFIXES
from repscope.errors import UserError, no_file, unknown

_INDEX = re.compile(r"unnamed: ?\d+([._]\w+)*|__index_level_\d+__", re.IGNORECASE)
_NUMBERED = re.compile(r"index|idx|level_\d+", re.IGNORECASE)  #: names of an index exported as a column
#: refused endings, with the remedy
WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers")
_PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst")


@dataclass(frozen=True)
class DataTable:
    """A table as text.

    path: of its file. frame: one `str` column per column read; "" for missing values; rows numbered from 0. header: all columns of
    the file. lines: first line of each row; empty if the format has no lines. native: columns typed as numbers by the file. how:
    the user's reading options. notes: everything omitted, missing or guessed.
    """

    path: Path
    frame: pd.DataFrame
    header: tuple[str, ...]
    lines: tuple[int, ...]
    native: frozenset[str]
    how: Reading
    notes: tuple[str, ...] = ()

    def where(self, row: int) -> str:
        """Location of a row in the file: "line 7", or "row 6" of a file without lines."""
        return f"line {self.lines[row]}" if self.lines else f"row {row + 1}"

    def typed(self, column: str, values: pd.Series | None = None) -> Column:
        """A column as a class or a number; `values`: the column after cleaning, under the same row numbers."""
        held = self.frame[column] if values is None else values
        return typed(held, column, self.where, self.how, native=column in self.native)

    def labels(self, column: str) -> Column:
        """Any column as a class."""
        return labels(self.frame[column], column, self.where, self.how, native=column in self.native)


def read_table(
    path: str | Path, columns: Sequence[str] | None = None, *, optional: Sequence[str] | None = None, **how: Unpack[How]
) -> DataTable:
    """Read columns of a table as text.

    Parameters
    ----------
    path
        A `.csv` or `.tsv` file, a `.jsonl` file (each line an object), a `.json` file (a list of objects), or a `.parquet` file.
    columns
        The columns to read, in that order; None reads all of them.
    optional
        Alternative to `columns`: those to read if present.
    how
        `decimal`, `na` and `quote`, see `Reading`.

    Raises
    ------
    UserError
        If the file cannot be read as such a table, has no rows, or lacks a column.
    """
    path = Path(path).expanduser()
    asked = reading(**how)
    reader = READERS.get(path.suffix.lower())
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the path of one {_listed()} file in it.")
    if not path.exists():
        raise _no_file(path)
    if reader is None:
        _refuse_kind(path)

    def chosen(header: Sequence[str]) -> list[str] | None:
        if optional is not None:
            return [name for name in header if name in optional] or None
        return None if columns is None else list(columns)

    try:
        raw = reader(path, chosen, asked)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the file and its permissions.") from error
    frame = pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in raw.columns.items()})
    if frame.empty and (columns is not None or not raw.lists):
        raise UserError(f"{path} has a header and no rows; give a table with one row an entity.")
    table = DataTable(path, frame, tuple(raw.header), tuple(raw.lines), frozenset(raw.native), asked, tuple(raw.notes))
    if columns is None:
        table = _without_index(table, raw.lists)
    notes = list(table.notes)
    for name in table.frame.columns:
        table.frame[name], told = blanked(table.frame[name], name, table.where, asked)
        notes += told
    return replace(table, notes=tuple(notes))


def clean(frame: pd.DataFrame, name_column: str, *, longest: int | None = None) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """One row per name: strip names, drop unusable ones, merge copies. Other columns are stripped too.

    Parameters
    ----------
    frame
        Text, as `read_table` returns it.
    name_column
        The column of names (or of texts), which are made unique.
    longest
        Maximum of characters per name, longer ones are dropped; None: no limit.

    Returns
    -------
    frame
        The remaining rows in order, with their original row numbers.
    notes
        One sentence per kind of dropped rows, with their number.

    Raises
    ------
    UserError
        If no row remains.
    """
    notes: list[str] = []
    before = len(frame)
    frame = frame.apply(lambda column: column.map(_normal))
    names = frame[name_column]
    for dropped, why in (
        (names == "", f"an empty {name_column!r}"),
        (names.str.len() > (longest or np.inf), f"a {name_column!r} of more than {longest} characters"),
    ):
        if count := int(dropped.sum()):
            notes.append(f"{_rows(count)} of {before} dropped for {why}.")
            frame = frame[~dropped.reindex(frame.index)]
    frame, merged = _merge_copies(frame, name_column, before)
    if frame.empty:
        raise UserError(f"Column {name_column!r} has no usable name among its {_rows(before)}: {' '.join(notes)}")
    return frame, (*notes, *merged)


def table_path(name: str, what: str, known: Iterable[str], hint: str = "Or give") -> Path:
    """The path of a table; a UserError that lists known names for a bare word that is no file."""
    path = Path(name).expanduser()
    if path.suffix.lower() not in SUFFIXES and len(path.parts) == 1 and not path.exists():
        raise unknown(what, name, known, f"{hint} the path of a {_listed()} file.")
    return path


def _listed() -> str:
    return " or ".join(SUFFIXES)


def _without_index(table: DataTable, lists: Sequence[str]) -> DataTable:
    """All columns except those of a data frame's index, and a note on every omitted column."""
    notes = [f"Column {name!r} of {table.path.name} holds lists or objects and was left out." for name in lists]
    kept = []
    for name in table.frame.columns:
        cells = table.frame[name]
        if _INDEX.fullmatch(name) or (_NUMBERED.fullmatch(name) and _counts(cells)):
            notes.append(f"Column {name!r} of {table.path.name} is an index and was left out; ask for it by name to use it.")
        else:
            kept.append(name)
    if not kept:
        raise UserError(f"{table.path} has no column of text or numbers beside its index; give a table with named columns.")
    return replace(table, frame=table.frame[kept].copy(), notes=(*table.notes, *notes))


def _counts(cells: pd.Series) -> bool:
    """Whether cells are distinct whole numbers."""
    return bool(cells.str.fullmatch(r"[0-9]+(\.0)?").all() and cells.is_unique)


def _refuse_kind(path: Path) -> NoReturn:
    suffix = path.suffix.lower()
    if suffix in WORKBOOKS:
        raise UserError(f"{path} is a workbook, which repscope does not read; save the sheet as CSV in UTF-8 (.csv).")
    if suffix in _PACKED:
        raise UserError(f"{path} is compressed; unpack it to a {_listed()} file first.")
    raise UserError(f"{path} is not of a kind that repscope reads; save it as {_listed()}.")


def _no_file(path: Path) -> UserError:
    if not path.parent.is_dir():
        return UserError(f"There is no folder {path.parent}; check the path {path}.")
    beside = [p.name for p in sorted(path.parent.iterdir()) if p.suffix.lower() in SUFFIXES]
    return no_file(path, beside, "table")


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _merge_copies(frame: pd.DataFrame, name_column: str, before: int) -> tuple[pd.DataFrame, list[str]]:
    copies = frame.duplicated(name_column).to_numpy()
    if not copies.any():
        return frame, []
    notes = [f"{_rows(int(copies.sum()))} of {before} dropped as copies of an earlier {name_column!r}."]
    groups = frame[frame.duplicated(name_column, keep=False)].groupby(name_column, sort=False)
    kept = frame[~copies].copy()
    for column in frame.columns.drop(name_column):
        answers = groups[column].agg(lambda cells: sorted(set(cells) - {""}))
        agreed = answers.map(lambda found: found[0] if len(found) == 1 else "")
        kept[column] = kept[name_column].map(agreed).fillna(kept[column])
        conflicts = answers[answers.map(len) > 1]
        if len(conflicts):
            notes.append(
                f"Conflicting values of {column!r} for {len(conflicts)} copied {name_column!r} (such as "
                f"{shortened(conflicts.index[0])!r}: {', '.join(map(shortened, conflicts.iloc[0][:3]))}) count as missing."
            )
    return kept, notes


def _rows(count: int) -> str:
    return f"{count:,} row" + ("" if count == 1 else "s")
