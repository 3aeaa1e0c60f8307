"""Contents of tables' files as text by column: CSV, TSV, Parquet, JSON and JSON lines.

Formats that can contain code (such as pickle) are not read.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from repscope.data.numerals import is_numeral
from repscope.data.reading import Reading
from repscope.data.separated import separated, text_of
from repscope.errors import UserError, unknown
from repscope.untrusted import parse_json


@dataclass(frozen=True)
class TableFile:
    """Contents of a file: text by column, and notes. lists: columns of lists or objects."""

    header: list[str]
    columns: dict[str, list[str]]
    lines: list[int]
    native: set[str]
    notes: list[str]
    lists: list[str]


Chosen = Callable[[Sequence[str]], list[str] | None]


def _separated(path: Path, chosen: Chosen, how: Reading, separator: str) -> TableFile:
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
    return TableFile(held.header, columns, held.lines, set(), notes, [])


def _parquet(path: Path, chosen: Chosen, how: Reading) -> TableFile:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    raw = TableFile([], {}, [], set(), [], [])
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


def _json(path: Path, chosen: Chosen, how: Reading) -> TableFile:
    try:
        rows = parse_json(text_of(path), _object)
    except ValueError as error:
        if isinstance(error, UserError):
            raise error if str(path) in str(error) else UserError(f"{path} {error}") from None
        raise UserError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f'{path} must be a list of objects, such as [{{"column": value, …}}, …].')
    return _of_objects(path, rows, [], chosen)


def _jsonl(path: Path, chosen: Chosen, how: Reading) -> TableFile:
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


def _of_objects(path: Path, rows: Sequence[dict[str, Any]], lines: list[int], chosen: Chosen) -> TableFile:
    header = list(dict.fromkeys(name for row in rows for name in row))
    names = chosen(header)
    if rows:
        _check_columns(path, header, names)
    raw = TableFile(header, {}, lines, set(), [], [])
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


_Reader = Callable[[Path, Chosen, Reading], TableFile]
READERS: dict[str, _Reader] = {
    ".csv": lambda path, chosen, how: _separated(path, chosen, how, ","),
    ".tsv": lambda path, chosen, how: _separated(path, chosen, how, "\t"),
    ".parquet": _parquet,
    ".jsonl": _jsonl,
    ".json": _json,
}
SUFFIXES = tuple(READERS)
