"""Types of table columns (class or number) and detection of missing values.

| contents of the column | type |
|---|---|
| numbers, some with a fraction, or whole with more than 12 distinct values | a number |
| whole numbers with at most 12 distinct values (months, years of a study, 0/1) | a class |
| whole numbers of which some begin with a zero (postcodes) | a class |
| words; words and numbers with at most 12 distinct values | a class |
| words and numbers, more than 12 distinct values; numbers with a unit | an error that names the column and a line |

Empty cells are missing. So are, unless `Reading.na` is given:

1. `NEVER_WORDS` ("nan", "null", "#N/A"), in every column: software's words for a missing value.
2. `AMONG_NUMBERS` ("NA", "None", "-", "?", "unknown"), where everything else in the column is a number, or one of two `POLES`
   (true and false). Among other words "NA" is Namibia.

Ambiguous cases are reported as notes. `numerals` handles number formats.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from repscope.data.numerals import Where, canonical, is_numeral, numbers
from repscope.data.reading import Reading, shortened
from repscope.errors import UserError

FEW = 12
NEVER_WORDS = frozenset({"nan", "NaN", "-nan", "-NaN", "<NA>", "#N/A", "#NA", "N/A", "n/a", "null", "NULL", "NaT"})
#: marks of a missing number and, in pairs, unambiguous words for a positive and a negative label; in lower case
_MARKS = """
na | none | nil | n.a. | nan | null | n/a | unknown | unk | missing | not available | no data
- | -- | --- | \u2013 | \u2014 | \u2212 | ? | ?? | . | .. | ... | \u2026 | * | /
#value! | #div/0! | #ref! | #num! | #name? | #null! | 1.#ind | 1.#qnan | -1.#ind | -1.#qnan
"""
_LABELS = """
true false | yes no | y n | t f | positive negative | pos neg | + - | correct incorrect | correct wrong | right wrong | on off
good bad | pass fail | present absent | oui non | vrai faux | ja nein | wahr falsch | sí no | si no | verdadero falso | sim não
verdadeiro falso | да нет | 是 否 | 真 假 | हाँ नहीं | نعم لا
"""
AMONG_NUMBERS = frozenset(re.split(r" \| |\n", _MARKS.strip()))
POLES = tuple((yes, no) for yes, no in map(str.split, re.split(r" \| |\n", _LABELS.strip())))
_NEGATION = re.compile(r"(?:not|non|no)[\s_-]*")
_TOLD = frozenset({"NA", "na", "None", "none", "-", "--", "?", "."})  #: among words, a note reports that these count as words
_LEADING_ZERO = re.compile(r"[+-]?0\d+")
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?([T ].*)?|\d\d?[./-]\d\d?[./-]\d{2,4}")
_WITH_UNIT = re.compile(r"([$€£¥]?) ?(.*\d)\s?([A-Za-zµ°²³/€$£¥]{0,8})")


@dataclass(frozen=True)
class Column:
    """A typed column.

    kind: class or number. values: `object` with None if missing, or `float64` with NaN if missing. notes: how it was read.
    """

    kind: Literal["class", "number"]
    values: pd.Series
    notes: tuple[str, ...] = ()


def blanked(values: pd.Series, column: str, where: Where, how: Reading) -> tuple[pd.Series, list[str]]:
    """The column with "" in cells that are missing in any type of column, and a note on them."""
    marks = NEVER_WORDS if how.na is None else frozenset(word.strip() for word in how.na)
    found = values.str.strip().isin(marks) & (values.str.strip() != "")
    if not found.any():
        return values, []
    reversal = "; --na '' reads them as words" if how.na is None else ""
    return values.mask(found, ""), [f"Column {column!r}: {_counted(values[found], where)} count as missing{reversal}."]


def poles(labels: Iterable[str]) -> tuple[str, str] | None:
    """The positive and the negative one of two labels, if the words determine it.

    >>> poles(["No", "Yes"]), poles(["not spam", "spam"]), poles(["cat", "dog"])
    (('Yes', 'No'), ('spam', 'not spam'), None)
    """
    held = list(labels)
    if len(held) != 2:
        return None
    for yes, no in (held, held[::-1]):
        a, b = yes.strip().casefold(), no.strip().casefold()
        if (a, b) in POLES or ((match := _NEGATION.match(b)) and b[match.end() :] == a):
            return yes, no
    return None


def typed(values: pd.Series, column: str, where: Where, how: Reading, *, native: bool = False) -> Column:
    """Decide whether a column of text is a class or a number (see the table above).

    Parameters
    ----------
    values
        Text, "" if missing.
    column
        Its name, for errors and notes.
    where
        Location of a row in its file.
    how
        Decimal mark and missing words, if given by the user.
    native
        Whether the file format types these as numbers, with a decimal point.

    Raises
    ------
    UserError
        For words among numbers, ambiguous numbers, and a column without any value.
    """
    held = values[values.str.strip() != ""]
    held, notes = _without_marks(held, column, where, how)
    if held.empty:
        raise UserError(f"Column {column!r} has no value in any usable row; choose another column.")
    numeric = held.map(is_numeral).astype(bool)
    if numeric.all():
        return _numeric(held, values, column, where, "." if native else how.decimal, notes)
    if held.nunique() > FEW:
        _check_words(held, numeric, column, where)
    return Column("class", _spread(held, values), (*notes, *_told(held, numeric, column, where, how)))


def labels(values: pd.Series, column: str, where: Where, how: Reading, *, native: bool = False) -> Column:
    """Any column as a class: whole numbers under one name ("1.0" is "1"), other numbers by their value."""
    held, notes = _without_marks(values[values.str.strip() != ""], column, where, how)
    if held.empty:
        raise UserError(f"Column {column!r} has no value in any usable row; choose another column.")
    numeric = held.map(is_numeral).astype(bool)
    if not numeric.all():
        return Column("class", _spread(held, values), (*notes, *_told(held, numeric, column, where, how)))
    found = _numeric(held, values, column, where, "." if native else how.decimal, notes)
    if found.kind == "class":
        return found
    named = found.values.dropna().map(lambda value: str(int(value)) if value % 1 == 0 else repr(float(value)))
    return Column("class", _spread(named, values), found.notes)


def _without_marks(held: pd.Series, column: str, where: Where, how: Reading) -> tuple[pd.Series, list[str]]:
    """The cells without marks of a missing number, if all others are numbers."""
    if how.na is not None:
        return held, []
    marks = held.map(lambda text: text.strip().casefold() in AMONG_NUMBERS).astype(bool)
    others = held[~marks]
    if not marks.any() or not (others.map(is_numeral).all() or _two(others)):
        return held, []
    told = [
        f"Column {column!r}: {_counted(held[marks], where)} among {'two labels' if _two(others) else 'numbers'} count as missing."
    ]
    return others, told


def _two(held: pd.Series) -> bool:
    """Whether a column contains only true and false, or another pair of `POLES`, also in several spellings."""
    found = set(held.str.strip().str.casefold())
    return len(found) == 2 and poles(found) is not None


def _numeric(
    held: pd.Series, values: pd.Series, column: str, where: Where, decimal: Literal[".", ","] | None, notes: Sequence[str]
) -> Column:
    plain = held.map(canonical)
    zeros = plain.map(lambda text: _LEADING_ZERO.fullmatch(text) is not None).astype(bool)
    if zeros.any() and plain.map(lambda text: text.lstrip("+-").isdecimal()).all():
        told = f"Column {column!r} has digits of another script or separators; the classes are plain digits."
        more = [] if (held == plain).all() else [told]
        return Column("class", _spread(plain, values), (*notes, *more))
    digits = plain.map(lambda text: text.lstrip("+-").isdecimal()).all()
    if digits and plain.map(lambda text: len(text.lstrip("+-")) > 15).any():
        told = f"Column {column!r} has numbers of more digits than a float64 holds; they are classes."
        return Column("class", _spread(plain, values), (*notes, told))
    found, read = numbers(held, column, where, decimal)
    series = pd.Series(found, index=held.index)
    if (found % 1 == 0).all() and series.nunique() <= FEW:
        return Column("class", _spread(series.map(lambda value: str(int(value))), values), (*notes, *read))
    return Column("number", series.reindex(values.index).astype("float64"), (*notes, *read))


def _check_words(held: pd.Series, numeric: pd.Series, column: str, where: Where) -> None:
    """Refuse columns of intended numbers: many words among numbers, and numbers with a unit."""
    if numeric.any():
        number, word = held[numeric], held[~numeric]
        raise UserError(
            f"Column {column!r} mixes {len(number)} numbers ({shortened(number.iloc[0])!r} in {where(number.index[0])}) "
            f"with {len(word)} words ({shortened(word.iloc[0])!r} in {where(word.index[0])}); "
            "keep one kind in a column, leave missing values empty, or name the words that are missing with --na."
        )
    parts = [match.groups() if (match := _WITH_UNIT.fullmatch(text.strip())) else None for text in held]
    units = {(part[0], part[2]) if part and is_numeral(part[1]) else None for part in parts}
    if len(units) == 1 and None not in units:
        raise UserError(
            f"Column {column!r} holds numbers with a unit ({shortened(held.iloc[0])!r} in {where(held.index[0])}); "
            "write the numbers alone."
        )


def _told(held: pd.Series, numeric: pd.Series, column: str, where: Where, how: Reading) -> list[str]:
    """Notes on a column of words."""
    notes = []
    if numeric.any():
        word = held[~numeric]
        notes.append(
            f"Column {column!r} has words among numbers ({shortened(word.iloc[0])!r} in {where(word.index[0])}); all are classes."
        )
    marks = held[held.str.strip().isin(_TOLD)]
    if how.na is None and len(marks):
        notes.append(f"Column {column!r}: {_counted(marks, where)} count as words; name with --na what is missing.")
    if held.nunique() > FEW and held.str.strip().map(lambda text: _DATE.fullmatch(text) is not None).all():
        notes.append(f"Column {column!r} holds dates, each a class of its own; write a year or a count of days for a number.")
    return notes


def _spread(held: pd.Series, values: pd.Series) -> pd.Series:
    """The given values, None in other rows. Of dtype object, as pandas' text type would turn None into NaN."""
    known = held.to_dict()
    return pd.Series([known.get(row) for row in values.index], index=values.index, dtype=object)


def _counted(marks: pd.Series, where: Where) -> str:
    counts = marks.str.strip().value_counts()
    listed = ", ".join(f"{n} {shortened(str(text))!r}" for text, n in counts.items())
    return f"{listed} (first in {where(marks.index[0])})"
