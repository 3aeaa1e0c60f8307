"""Parser of CSV and TSV files: rows of fields with their line numbers.

1. Encoding: UTF-8, or UTF-16 and UTF-32 with a byte order mark. Files that are not text are refused by their type.
2. Skipped before the header: blank lines, comment lines that begin with "#", Excel's "sep=;".
3. Separator: that of the file's kind, unless the header and the rows show another.
4. Quotation marks. A CSV encloses fields in them. A TSV does not: `"Why not?` is a text that begins with a mark. But spreadsheets
   and data frames write TSV with marks as well, so that the file must show it: a header in marks, or marks around those fields,
   and only those, that need them. What shows neither is refused with its line.
5. Rows: as many fields in each as in the header.

Every guess is reported as a note.
"""

import codecs
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repscope.errors import UserError
from repscope.untrusted import parse_json

NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_LINE_END = re.compile(r"\r\n|\n|\r")
_LARGEST_JSON = 64 << 20  #: bytes
_LONGEST = 2**31 - 1  #: characters of a field
_NO_TEXT = (
    (b"PK\x03\x04", "a workbook or another archive; save the sheet as CSV in UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old workbook; save the sheet as CSV in UTF-8"),
    (b"\x1f\x8b", "compressed; unpack it first"),
    (b"PAR1", "a Parquet file; let its name end in .parquet"),
)
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Separated:
    """A header, rows of as many fields, the line in which each row begins, and notes on how they were read."""

    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Flaw:
    """Why the text is ambiguous or malformed: the problem, and its remedy."""

    what: str
    mend: str


@dataclass(frozen=True)
class _Parsed:
    """Records, the first of which is the header, with their first and last lines."""

    records: list[list[str]]
    first: list[int]
    last: list[int]


def json_of(path: Path, what: str) -> Any:
    """What a JSON file of the user's holds; what: what it should be, for the message.

    Raises
    ------
    UserError
        For a file that is too large, cannot be read or is not JSON.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise UserError(f"{path} is larger than {_LARGEST_JSON >> 20} MB, which no {what} is.")
        return parse_json(text_of(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path.") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from error


def text_of(path: Path) -> str:
    """The text of a file.

    Raises
    ------
    UserError
        For bytes that are not text, or of an unknown encoding.
    """
    held = path.read_bytes()
    for magic, what in _NO_TEXT:
        if held.startswith(magic):
            raise UserError(f"{path} is no text but {what}.")
    encoding = next((name for mark, name in _ENCODINGS if held.startswith(mark)), "utf-8")
    try:
        text = held.decode(encoding)
    except UnicodeDecodeError as error:
        line = held[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path} is not {encoding.removesuffix('-sig').upper()} (byte 0x{held[error.start]:02x} does not decode, in "
            f"line {line}); save it as UTF-8."
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{path} has a zero byte in line {line}, as text in UTF-16 has; save it as UTF-8.")
    return text


def lines_of(path: Path) -> tuple[str, ...]:
    """The lines of a text file that are not blank, stripped.

    Raises
    ------
    UserError
        For a file that cannot be read, and as `text_of`.
    """
    try:
        lines = text_of(path).replace("\r", "\n").split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path.") from error
    return tuple(line.strip() for line in lines if line.strip())


def separated(path: Path, separator: str, wanted: Sequence[str], quote: bool | None) -> Separated:
    """Read a file of fields between separators.

    Parameters
    ----------
    path
        The file.
    separator
        That of the file's kind.
    wanted
        Required columns; if only another separator gives them, that one is used.
    quote
        Whether marks around a field only enclose it; None: detect.

    Raises
    ------
    UserError
        For text that is not such a table, or ambiguous quotation marks.
    """
    text, skipped, notes, told = _opened(text_of(path), separator)
    if not text.strip():
        raise UserError(f"{path} is empty; its first line must name the columns.")
    tried: list[tuple[str, Separated | UserError]] = []
    for found in _candidates(text, told or separator, wanted, only=told is not None):
        try:
            tried.append((found, _read(path, text, skipped, found, quote)))
            break
        except UserError as error:
            tried.append((found, error))
    found, made = tried[-1]
    if isinstance(made, UserError):
        raise tried[0][1] if isinstance(tried[0][1], UserError) else made
    if found != separator:
        notes.append(f"The columns of {path.name} are separated by {NAMES[found]}.")
    return Separated(made.header, made.rows, made.lines, [*notes, *made.notes])


def _opened(text: str, separator: str) -> tuple[str, int, list[str], str | None]:
    """The text from its header on, the lines before it, notes on them, and the separator if the file names it."""
    skipped, comments, told = 0, 0, None
    while True:
        line, rest = _first_line(text)
        if match := re.fullmatch(r'"?sep=([,;\t|])"?', line):
            told = match[1]
        elif line.startswith("#") and _is_comment(line, rest):
            comments += 1
        elif line.strip() or not rest:
            break
        text, skipped = rest, skipped + 1
    return text, skipped, [f"{comments} lines of comment before the header were left out."] if comments else [], told


def _first_line(text: str) -> tuple[str, str]:
    match = _LINE_END.search(text)
    return (text[: match.start()], text[match.end() :]) if match else (text, "")


def _is_comment(line: str, rest: str) -> bool:
    """Whether a line that begins with "#" is not a header: the next line without "#" has other fields."""
    after = next((one for one in _LINE_END.split(rest) if one.strip() and not one.startswith("#")), "")
    separator = max(NAMES, key=after.count)
    return bool(after) and (separator not in after or line.count(separator) != after.count(separator))


def _candidates(text: str, own: str, wanted: Sequence[str], only: bool) -> list[str]:
    """Separators to try in turn: those that divide the header, first the one that gives the required columns."""
    if only:
        return [own]
    header = _first_line(text)[0]
    fields = {s: [name.strip().strip('"').strip() for name in header.split(s)] for s in (own, *NAMES)}
    divide = [s for s in fields if len(fields[s]) > 1]
    divide.sort(key=lambda s: not set(wanted) <= set(fields[s]))  # stable: the file's own first among equals
    return divide or [own]


def _read(path: Path, text: str, skipped: int, separator: str, quote: bool | None) -> Separated:
    mode = quote if quote is not None and '"' in text else None if '"' in text else False
    notes: list[str] = []
    if mode is not None:
        chosen = _parsed(path, text, skipped, separator, mode)
    else:
        plain, enclosed = (_parsed(path, text, skipped, separator, mode) for mode in (False, True))
        taken_in = [] if isinstance(enclosed, _Flaw) else _taken_in(enclosed, text, skipped, separator)
        if separator == "\t":
            chosen, notes = _of_tsv(path, plain, enclosed, bool(taken_in))
        else:
            chosen, notes = _of_csv(path, enclosed, taken_in)
    if isinstance(chosen, _Flaw):
        raise UserError(f"{chosen.what}; {chosen.mend}.")
    header = [name.strip() for name in chosen.records[0]]
    return Separated(header, chosen.records[1:], chosen.first[1:], notes)


def _parsed(path: Path, text: str, skipped: int, separator: str, enclosed: bool) -> _Parsed | _Flaw:
    made = _Parsed([], [], [])
    before = csv.field_size_limit(_LONGEST)
    rows = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, strict=True, quoting=csv.QUOTE_MINIMAL if enclosed else csv.QUOTE_NONE
    )
    try:
        while True:
            line = skipped + rows.line_num + 1
            row = next(rows, None)
            if row is None:
                return made
            if not row or (len(row) == 1 and not row[0].strip() and (not made.records or len(made.records[0]) > 1)):
                continue
            if made.records and len(row) != (width := len(made.records[0])):
                return _uneven(path, row, line, width, separator)
            made.records.append(row)
            made.first.append(line)
            made.last.append(skipped + rows.line_num)
    except csv.Error as error:
        return _Flaw(
            f"{path} is not well-formed at line {line} ({error})",
            "check its quotation marks, or read them as text with --no-quote (in Python, quote=False)",
        )
    finally:
        csv.field_size_limit(before)


def _uneven(path: Path, row: list[str], line: int, width: int, separator: str) -> _Flaw:
    what = f"{path} has {len(row)} fields in line {line} and {width} column names"
    if row[0].startswith("#"):
        return _Flaw(what, "take out lines of comment")
    if len(row) == 1 and width > 1:
        return _Flaw(what, "take out lines that are no row")
    return _Flaw(what, f"put quotation marks around values that hold the separator ({NAMES[separator]})")


def _of_csv(path: Path, enclosed: _Parsed | _Flaw, taken_in: list[tuple[int, int]]) -> tuple[_Parsed | _Flaw, list[str]]:
    """Fields are enclosed; one that spans whole rows is an error, as its mark may be part of the text."""
    for first, last in taken_in:
        what = f"In {path}, a quotation mark in line {first} takes in the lines to {last}, each of which is a row by itself"
        if last - first > 1:
            mend = "say with --quote that it is one field, or with --no-quote that marks are text (in Python, quote=True or False)"
            return _Flaw(what, mend), []
        return enclosed, [f"{what}; --no-quote reads marks as text."]
    return enclosed, []


def _of_tsv(path: Path, plain: _Parsed | _Flaw, enclosed: _Parsed | _Flaw, takes_in: bool) -> tuple[_Parsed | _Flaw, list[str]]:
    """Marks are text, unless the file shows that they enclose fields."""
    read_so = f"Fields of {path.name} are enclosed in quotation marks, as in CSV; --no-quote reads the marks as text."
    if isinstance(plain, _Flaw):
        return (plain, []) if isinstance(enclosed, _Flaw) or takes_in else (enclosed, [read_so])
    if isinstance(enclosed, _Flaw) or (takes_in and len(plain.records[0]) > 1):
        return plain, _whole(path, plain)
    if len(enclosed.records) != len(plain.records):  # one column, or fields of several lines that are rows as well
        return _unclear(path, plain), []
    shown = _shown(plain, enclosed)
    if shown is None:
        return _unclear(path, plain), []
    return (enclosed, [read_so]) if shown else (plain, _whole(path, plain))


def _shown(plain: _Parsed, enclosed: _Parsed) -> bool | None:
    """Whether marks enclose fields: yes, no, or None if undetermined. Both readings have the same fields."""
    opened = [[cell.lstrip().startswith('"') for cell in row] for row in plain.records]
    if not any(map(any, opened)):
        return False
    pairs = [
        (raw, inner, at)
        for rows, inners, ats in zip(plain.records[1:], enclosed.records[1:], opened[1:])
        for raw, inner, at in zip(rows, inners, ats)
    ]
    stray = any('"' in raw and not at for raw, _, at in pairs)
    header = all(at for raw, at in zip(plain.records[0], opened[0]) if raw.strip())
    if header:
        return None if stray else True
    held = [inner for _, inner, at in pairs if at]
    needed = any(c in inner for inner in held for c in '"\t\r\n')
    commas = any("," in raw for raw, _, at in pairs if not at)  # spreadsheets enclose every field with a comma
    idle = any(not any(c in inner for c in ('"\t\r\n' if commas else '"\t\r\n,;')) for inner in held)
    columns = [[at for at, raw in zip(ats, raws) if raw.strip()] for ats, raws in zip(zip(*opened[1:]), zip(*plain.records[1:]))]
    whole_column = any(column and all(column) for column in columns)
    if stray or (idle and not needed and not whole_column):
        return False
    return True if needed and not idle else None


def _whole(path: Path, plain: _Parsed) -> list[str]:
    count = sum(len(cell) > 1 and cell[0] == cell[-1] == '"' for row in plain.records for cell in row)
    what = f"Quotation marks around {count} fields of {path.name} are part of the text, as in TSV; --quote takes them off."
    return [what] if count else []


def _unclear(path: Path, plain: _Parsed) -> _Flaw:
    line = next(line for row, line in zip(plain.records, plain.first) if any(cell.lstrip().startswith('"') for cell in row))
    return _Flaw(
        f"{path} has a field that begins with a quotation mark in line {line}, which in a TSV may be part of the text or only "
        "enclose the field",
        "say --no-quote if it is text, --quote if it encloses (in Python, quote=False or True)",
    )


def _taken_in(enclosed: _Parsed, text: str, skipped: int, separator: str) -> list[tuple[int, int]]:
    """First and last lines of records over several lines, each of which would be a row of its own."""
    width = len(enclosed.records[0])
    spans = [(first, last) for first, last in zip(enclosed.first, enclosed.last) if last > first]
    if width == 1 or not spans:
        return []
    lines = _LINE_END.split(text)
    rows = {skipped + i for i, line in enumerate(lines, 1) if line.count(separator) == width - 1}
    return [(first, last) for first, last in spans if rows.issuperset(range(first, last + 1))]
