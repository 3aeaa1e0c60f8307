"""Reader of users' tables: CSV, TSV, Parquet, JSON or JSON lines to a frame of text.

1. `read_table`: everything is read as text, by format (`separated` for CSV and TSV). Too many or too few fields, a wrong encoding
   or a missing column are errors, never guessed. If all columns are read, index columns of data frames, unnamed columns and lists
   are omitted with a note.
2. Empty cells are missing, and those that `columns` detects. `DataTable.typed` makes a column a class or a number.
3. `clean`: names are stripped and normalised to Unicode NFC; empty and over-long names are dropped, copies of a name are merged. A
   column on which copies disagree becomes missing for that name.

`DataTable.notes` reports everything omitted, ambiguous or missing. Formats that can contain code (such as pickle) are not read.
"""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Unpack

import numpy as np
import pandas as pd

from repscope.data.columns import Column, blanked, labels, typed
from repscope.data.numerals import is_numeral
from repscope.data.reading import How, Reading, reading, shortened
from repscope.data.separated import separated, text_of
from repscope.errors import UserError, no_file, unknown
from repscope.untrusted import parse_json

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


@dataclass(frozen=True)
class _Raw:
    """Contents of a file: text by column, and notes. lists: columns of lists or objects."""

    header: list[str]
    columns: dict[str, list[str]]
    lines: list[int]
    native: set[str]
    notes: list[str]
    lists: list[str]


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
    reader = _READERS.get(path.suffix.lower())
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


_Chosen = Callable[[Sequence[str]], list[str] | None]


def _separated(path: Path, chosen: _Chosen, how: Reading, separator: str) -> _Raw:
    held = separated(path, separator, chosen(()) or (), how.quote)
    names = chosen(held.header)
    _check_columns(path, held.header, names)
    wanted = range(len(held.header)) if names is None else [held.header.index(name) for name in names]
    columns: dict[str, list[str]] = {}
    notes = list(held.notes)
    for i in wanted:
        if not held.header[i]:
            notes.append(f"Column {i + 1} of {path.name} has no name and was left out.")
            continue
        columns[held.header[i]] = [row[i] for row in held.rows]
    return _Raw(held.header, columns, held.lines, set(), notes, [])


def _parquet(path: Path, chosen: _Chosen, how: Reading) -> _Raw:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    raw = _Raw([], {}, [], set(), [], [])
    try:
        with pq.ParquetFile(path) as file:
            raw.header.extend(file.schema_arrow.names)
            names = chosen(raw.header)
            _check_columns(path, raw.header, names)
            kinds = {name: file.schema_arrow.field(name).type for name in raw.header if raw.header.count(name) == 1}
            for name in raw.header if names is None else names:
                if name in kinds and _nested(kinds[name]):
                    raw.lists.append(name)
            if raw.lists and names is not None:
                _refuse_lists(path, raw.lists[0], str(kinds[raw.lists[0]]))
            read = [name for name in (raw.header if names is None else names) if name in kinds and name not in raw.lists]
            table = file.read(columns=read)
            for name in read:
                table.column(name).validate(full=True)
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, RecursionError) as error:  # its bytes are trusted
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path} is not a Parquet file that can be read ({reason}).") from error
    for name in read:
        column = table.column(name)
        try:
            cells = pc.cast(column, pa.string())
        except pa.ArrowException:
            _refuse_lists(path, name, str(column.type))
        if pa.types.is_floating(column.type):
            cells = pc.if_else(pc.is_nan(column), None, cells)
        if pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_decimal(column.type):
            raw.native.add(name)
        raw.columns[name] = [str(cell) for cell in pc.fill_null(cells, "").to_pylist()]
    return raw


def _nested(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _json(path: Path, chosen: _Chosen, how: Reading) -> _Raw:
    try:
        rows = parse_json(text_of(path), _object)
    except ValueError as error:
        if isinstance(error, UserError):
            raise error if str(path) in str(error) else UserError(f"{path} {error}") from None
        raise UserError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f'{path} must be a list of objects, such as [{{"column": value, …}}, …].')
    return _of_objects(path, rows, [], chosen)


def _jsonl(path: Path, chosen: _Chosen, how: Reading) -> _Raw:
    held: list[dict[str, Any]] = []
    lines: list[int] = []
    try:
        for i, line in enumerate(text_of(path).split("\n"), 1):
            if line.strip():
                row = parse_json(line, _object)
                if not isinstance(row, dict):
                    raise UserError(f'{path} holds no object in line {i}; each line is to be {{"column": value, …}}.')
                held.append(row)
                lines.append(i)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}, line {i}, {error}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON in line {i} ({getattr(error, 'msg', error)}); write one object a line.") from error
    return _of_objects(path, held, lines, chosen)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"has an object with {twice!r} {names.count(twice)} times; give each value its own name.")
    return made


def _of_objects(path: Path, rows: Sequence[dict[str, Any]], lines: list[int], chosen: _Chosen) -> _Raw:
    header = list(dict.fromkeys(name for row in rows for name in row))
    names = chosen(header)
    if rows:
        _check_columns(path, header, names)
    raw = _Raw(header, {}, lines, set(), [], [])
    for name in header if names is None else names:
        values = [row.get(name) for row in rows]
        lists = next((i for i, value in enumerate(values) if isinstance(value, list | dict)), None)
        if lists is not None:
            if names is not None:
                _refuse_lists(path, name, "lists or objects", f" in line {lines[lists]}" if lines else f" in row {lists + 1}")
            raw.lists.append(name)
            continue
        held = [value for value in values if value is not None]
        if held and all(isinstance(value, int | float) and not isinstance(value, bool) for value in held):
            raw.native.add(name)
        raw.columns[name] = [_text(value) for value in values]
    return raw


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value if isinstance(value, str) else json.dumps(value)


_Reader = Callable[[Path, _Chosen, Reading], _Raw]
_READERS: dict[str, _Reader] = {
    ".csv": lambda path, chosen, how: _separated(path, chosen, how, ","),
    ".tsv": lambda path, chosen, how: _separated(path, chosen, how, "\t"),
    ".parquet": _parquet,
    ".jsonl": _jsonl,
    ".json": _json,
}
SUFFIXES = tuple(_READERS)


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


def _check_columns(path: Path, header: Sequence[str], names: Sequence[str] | None) -> None:
    if not any(header):
        raise UserError(f"{path} is empty; its first line must name the columns.")
    for name in dict.fromkeys(filter(None, header if names is None else names)):
        if header.count(name) > 1:
            raise UserError(f"{path} has the column {name!r} {header.count(name)} times; give each column its own name.")
        if name not in header:
            raise missing(path, name, header)


def missing(path: Path, name: str, header: Sequence[str], hint: str = "") -> UserError:
    """The error for a missing column; reports a first line without column names."""
    if "" in header:
        hint = f"Its column {list(header).index('') + 1} has no name; give it one."
    elif not hint and any(is_numeral(cell) for cell in header):
        hint = "Its first line must name the columns."
    return unknown(f"column of {path.name}", name, [cell for cell in header if cell], hint)


def _refuse_lists(path: Path, name: str, what: str, where: str = "") -> NoReturn:
    raise UserError(f"Column {name!r} of {path} holds {what}{where}, not text or numbers; choose another.")


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
