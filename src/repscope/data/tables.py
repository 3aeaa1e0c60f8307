"""Users' tables: CSV, TSV, Parquet or lines of JSON in, a frame of clean text out. Knows nothing of entities, models or tokens.

1. `read_table`: everything is read as text; only the empty string is missing ("NA" is Namibia). A row with too many or
   too few fields, a wrong encoding, a column that is not there: one sentence each, never a guess.
2. `clean`: names are stripped and brought to Unicode NFC; empty and over-long names are dropped, copies of one name are
   merged. Where copies disagree about a column it becomes missing for that name: no answer is better than a coin toss.
3. `typed`: a column of text becomes a class or a number.

   | the column holds | it is |
   |---|---|
   | numbers, some with a fraction, or whole with more than 12 distinct values | a number |
   | whole numbers with at most 12 distinct values (months, years of a study, 0/1) | a class |
   | whole numbers of which some begin with a zero (postcodes) | a class |
   | words; words and numbers with at most 12 distinct values | a class |
   | words and numbers, more than 12 distinct values | an error that names the column and a row |

Formats that can carry code (pickle and its relatives) are not read.
"""

import csv
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from repscope.errors import UserError, no_file, unknown

FEW = 12
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_LEADING_ZERO = re.compile(r"[+-]?0\d+")


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read columns of a table as text.

    Parameters
    ----------
    path
        A `.csv`, `.tsv` or `.jsonl` file in UTF-8 (of the last each line an object), or a `.parquet` file.
    columns
        The columns to read, in that order; None reads all of them.

    Returns
    -------
    frame
        One column of `str` for each column asked for; "" where the value is missing; rows numbered from 0.

    Raises
    ------
    UserError
        When the file cannot be read as such a table, has no rows, or lacks a column.
    """
    path = Path(path).expanduser()
    reader = _READERS.get(path.suffix.lower())
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the path of one {' or '.join(SUFFIXES)} file in it.")
    if not path.exists():
        raise _no_file(path)
    if reader is None:
        raise UserError(f"{path} is not of a kind that repscope reads; save it as {' or '.join(SUFFIXES)}.")
    try:
        frame = reader(path, columns)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); check the file and its permissions."
        ) from error
    if frame.empty:
        raise UserError(f"{path} has a header and no rows; give a table with one row an entity.")
    return frame


def clean(frame: pd.DataFrame, name_column: str, *, longest: int | None = None) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """One row a name: strip names, drop what cannot be used, merge copies. Other columns are stripped too.

    Parameters
    ----------
    frame
        Text, as `read_table` returns it.
    name_column
        The column of names (or of texts), which are made unique.
    longest
        Names with more characters than this are dropped; None keeps every length.

    Returns
    -------
    frame
        The rows that are left, in their order, under the row numbers they had.
    notes
        One sentence for each kind of row that was dropped, and how many.

    Raises
    ------
    UserError
        When no row is left.
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


def typed(values: pd.Series, column: str) -> tuple[Literal["class", "number"], pd.Series]:
    """Decide whether a column of text is a class or a number (see the table above).

    Returns
    -------
    kind
        "class" or "number".
    values
        `object` with None where missing, or `float64` with NaN where missing.

    Raises
    ------
    UserError
        When words and numbers are mixed, and when the column has no value at all.
    """
    held = values[values != ""]
    if held.empty:
        raise UserError(f"Column {column!r} has no value in any usable row; choose another column.")
    numeric = held.map(lambda text: bool(_NUMBER.fullmatch(text))).astype(bool)
    distinct = held.nunique()
    if not numeric.all():
        if numeric.any() and distinct > FEW:
            raise _mixed(held, numeric, column)
        return "class", _class(held, values)
    numbers = pd.to_numeric(values.where(values != ""), errors="coerce").astype("float64")
    if (huge := held[np.isinf(numbers[held.index])]).size:
        raise UserError(
            f"Column {column!r} has a number too large to hold: {_short(huge.iloc[0])}; write it as a logarithm."
        )
    if (numbers.dropna() % 1 == 0).all():
        if held.map(lambda text: bool(_LEADING_ZERO.fullmatch(text))).any():
            return "class", _class(held, values)
        if numbers.nunique() <= FEW:
            return "class", _class(held.map(_whole), values)
    return "number", numbers


def _csv(path: Path, columns: Sequence[str] | None, delimiter: str = ",") -> pd.DataFrame:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(rows, [])]
            if not any(header):
                raise UserError(f"{path} is empty; its first line must name the columns.")
            _check_columns(path, header, columns)
            wanted = [header.index(c) for c in (columns if columns is not None else header)]
            held = list(_fields(path, rows, len(header), wanted))
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(f"{path} is not UTF-8 (byte 0x{byte:02x} does not decode); save it as UTF-8.") from error
    except csv.Error as error:
        raise UserError(
            f"{path} is not well-formed at line {rows.line_num} ({error}); check its quotation marks."
        ) from error
    return pd.DataFrame(held, columns=[header[i] for i in wanted], dtype=object)


def _fields(path: Path, rows: Any, width: int, wanted: Sequence[int]) -> Iterator[list[str]]:
    for row in rows:
        if not row:
            continue
        if len(row) != width:
            raise UserError(
                f"{path} has {len(row)} fields in line {rows.line_num} and {width} column names; "
                "put quotation marks around values that hold the separator."
            )
        yield [row[i] for i in wanted]


def _parquet(path: Path, columns: Sequence[str] | None) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            header = list(file.schema_arrow.names)
            _check_columns(path, header, columns)
            table = file.read(columns=list(columns) if columns is not None else None)
    except pa.ArrowException as error:
        raise UserError(f"{path} is not a Parquet file that can be read ({str(error).splitlines()[0]}).") from error

    def text(name: str) -> list[str]:
        column = table.column(name)
        try:
            cells = pc.cast(column, pa.string())
        except pa.ArrowException as error:
            raise UserError(
                f"Column {name!r} of {path} holds {column.type}, not text or numbers; choose another."
            ) from error
        if pa.types.is_floating(column.type):
            cells = pc.if_else(pc.is_nan(column), None, cells)
        return [str(cell) for cell in pc.fill_null(cells, "").to_pylist()]

    names = list(columns) if columns is not None else header
    return pd.DataFrame({name: pd.Series(text(name), dtype=object) for name in names}, columns=names)


def _jsonl(path: Path, columns: Sequence[str] | None) -> pd.DataFrame:
    held: list[dict[str, Any]] = []
    try:
        for i, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f'{path} holds no object in line {i}; each line is to be {{"column": value, …}}.')
                held.append(row)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8; save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON in line {i} ({error.msg}); write one object a line.") from error
    header = list(dict.fromkeys(name for row in held for name in row))
    if held:
        _check_columns(path, header, columns)

    def text(name: str, value: Any) -> str:
        if isinstance(value, list | dict):
            raise UserError(f"Column {name!r} of {path} holds lists or objects, not text or numbers; choose another.")
        return value if isinstance(value, str) else "" if value is None else json.dumps(value)

    names = list(columns) if columns is not None else header
    rows = [[text(name, row.get(name)) for name in names] for row in held]
    return pd.DataFrame(rows, columns=names, dtype=object)


_Reader = Callable[[Path, Sequence[str] | None], pd.DataFrame]
_READERS: dict[str, _Reader] = {
    ".csv": _csv,
    ".tsv": lambda path, columns: _csv(path, columns, "\t"),
    ".parquet": _parquet,
    ".jsonl": _jsonl,
}
SUFFIXES = tuple(_READERS)


def _check_columns(path: Path, header: Sequence[str], columns: Sequence[str] | None) -> None:
    for name in header:
        if header.count(name) > 1:
            raise UserError(
                f"{path} has the column {name!r} {header.count(name)} times; give each column its own name."
            )
    for name in columns or ():
        if name not in header:
            hint = "Its columns are separated by semicolons; save it with commas." if ";" in "".join(header) else ""
            raise unknown(f"column of {path.name}", name, header, hint)


def _no_file(path: Path) -> UserError:
    if not path.parent.is_dir():
        return UserError(f"There is no folder {path.parent}; check the path {path}.")
    beside = [p.name for p in sorted(path.parent.iterdir()) if p.suffix.lower() in SUFFIXES]
    return no_file(path, beside, "table")


def _class(held: pd.Series, values: pd.Series) -> pd.Series:
    """The values held, None in the other rows. Of dtype object: pandas' own text type would turn None into NaN."""
    known = held.to_dict()
    return pd.Series([known.get(row) for row in values.index], index=values.index, dtype=object)


def _whole(text: str) -> str:
    return str(int(float(text))) if "." in text or "e" in text.lower() else text


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
                f"{_short(conflicts.index[0])!r}: {', '.join(map(_short, conflicts.iloc[0][:3]))}) count as missing."
            )
    return kept, notes


def _mixed(held: pd.Series, numeric: pd.Series, column: str) -> UserError:
    number, word = held[numeric], held[~numeric]
    return UserError(
        f"Column {column!r} mixes {len(number)} numbers (data row {number.index[0] + 1}: {_short(number.iloc[0])}) "
        f"with {len(word)} words (data row {word.index[0] + 1}: {_short(word.iloc[0])!r}); "
        "leave missing values empty and keep one kind in a column."
    )


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


def _rows(count: int) -> str:
    return f"{count:,} row" + ("" if count == 1 else "s")
