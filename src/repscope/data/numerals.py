"""Parsing of numbers in local formats: a column of texts to floats, with errors for ambiguous cells.

A numeral is digits of any script, which may have a sign, a fraction, an exponent, a percent sign, and thousands separated by
points, commas, spaces or apostrophes.

1. Evidence of a cell on the decimal mark:

   | cell | evidence |
   |---|---|
   | 6.5, 0.123, 1234.5, 1,234.5, 1,234,567 | the mark is a point |
   | 6,5, 0,123, 1234,5, 1.234,5, 1.234.567 | the mark is a comma |
   | 1,234 or 1.234 | none: a decimal mark or a separator of thousands |
   | 12, 12 345 | none needed |

2. A column has one mark. Contradictory cells are refused. "1,234" is read if another cell determines the mark ("6,5"
   makes it 1.234, "1,234,567" makes it 1234), and refused otherwise. "1.234" has a decimal point, as software writes it, unless
   the column also has whole numbers under 1,000 and all fractions have three digits, as with separated thousands.
3. `decimal` overrides these rules; a cell that does not fit it is refused.

Every reading other than plain digits with a decimal point is reported as a note.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from repscope.errors import UserError

Where = Callable[[int], str]  #: label of a row → "line 7"
Mark = Literal[".", ","]

_SPACES = str.maketrans(dict.fromkeys(" \u00a0\u2007\u2009\u202f'\u2019\u066c", "_"))
_SIGNS = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\uff0d": "-", "\uff0b": "+", "\uff05": "%", "\u066a": "%", "\uff0e": ".", "\uff0c": ","}
)
_ARABIC_POINT = "\u066b"
_CELL = re.compile(r"([+-]?)_?([0-9.,_]*[0-9]\.?)([eE][+-]?[0-9]+)?(_?%)?", re.ASCII)
#: shape of the digits → evidence on the decimal mark: a point, a comma, none, or ambiguous
_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(shape), says)
    for shape, says in (
        (r"\d+|\d{1,3}(_\d{3})+", ""),
        (r"[1-9]\d{0,2}\.\d{3}", "?."),
        (r"[1-9]\d{0,2},\d{3}", "?,"),
        (r"\d+\.\d*|\.\d+|\d{1,3}(_\d{3})+\.\d+", "."),
        (r"[1-9]\d{0,2}(,\d{3}){2,}|[1-9]\d?(,\d\d)+,\d{3}|[1-9]\d{0,2}(,\d{2,3})*,\d{3}\.\d*", ".,"),
        (r"\d+,\d+|,\d+|\d{1,3}(_\d{3})+,\d+", ","),
        (r"[1-9]\d{0,2}(\.\d{3}){2,}|[1-9]\d{0,2}(\.\d{3})+,\d+", ",."),
    )
)
_INFINITE = re.compile(r"[+\-\u2212]?(inf|infinity|\u221e)", re.IGNORECASE)


@dataclass(frozen=True)
class _Cell:
    """One numeral: sign, digits with separators, exponent, whether in percent, and evidence on the decimal mark."""

    sign: str
    digits: str
    exponent: str
    percent: bool
    says: str

    def value(self, mark: Mark) -> float:
        digits = self.digits.replace("_", "").replace("," if mark == "." else ".", "").replace(mark, ".")
        return float(self.sign + digits + self.exponent)


def is_numeral(text: str) -> bool:
    """Whether a text is a number, infinity included.

    >>> [is_numeral(t) for t in ("1.234,5", "12 345", "٣٫٥", "-5 %", "inf", "12.05.2020", "NA")]
    [True, True, True, True, True, False, False]
    """
    return _INFINITE.fullmatch(text.strip()) is not None or _cell(text) is not None


def numbers(texts: pd.Series, column: str, where: Where, decimal: Mark | None = None) -> tuple[Float[np.ndarray, "row"], list[str]]:
    """The numbers of a column of numerals, and notes on how they were read.

    Raises
    ------
    UserError
        For a cell that is ambiguous, contradicts others, is infinite or too large.
    """
    infinite = texts.map(lambda text: _INFINITE.fullmatch(text.strip()) is not None).astype(bool)
    if infinite.any():
        raise UserError(
            f"Column {column!r} has {_at(texts, infinite, where)}, which is no finite number; leave that row out, or count it as "
            "missing with --na."
        )
    cells = texts.map(_cell)
    percent = cells.map(lambda cell: cell.percent).astype(bool)
    if percent.any() and not percent.all():
        raise UserError(
            f"Column {column!r} has {_at(texts, percent, where)} and {_at(texts, ~percent, where)}, with and without a percent "
            "sign; write all of them in one way."
        )
    says = cells.map(lambda cell: cell.says)
    mark = _given(texts, says, column, where, decimal) if decimal is not None else _found(texts, cells, says, column, where)
    found = np.array([cell.value(mark) for cell in cells], dtype=np.float64)
    if np.isinf(found).any():
        large = texts[np.isinf(found)].iloc[0]
        raise UserError(f"Column {column!r} has a number too large to hold: {large[:40]}; write it as a logarithm.")
    return found, _notes(texts, cells, says, column, where, mark, decimal)


def canonical(text: str) -> str:
    """A numeral with ASCII digits and without separators; leading zeros remain.

    >>> canonical("٠٠٧")
    '007'
    """
    cell = _cell(text)
    return text if cell is None else cell.sign + cell.digits.replace("_", "") + cell.exponent


@lru_cache(maxsize=1 << 17)
def _cell(text: str) -> _Cell | None:
    plain, certain = text.strip(), False
    if not plain.isascii():
        plain = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in plain).translate(_SIGNS)
        certain = _ARABIC_POINT in plain  # an unambiguous decimal mark
        plain = plain.replace(_ARABIC_POINT, ".")
    match = _CELL.fullmatch(plain.translate(_SPACES))
    if match is None or "_" in text:
        return None
    sign, digits, exponent, percent = (part or "" for part in match.groups())
    says = next((says for shape, says in _SHAPES if shape.fullmatch(digits)), None)
    if says is None or (exponent and says in (".,", ",.")):
        return None
    return _Cell(sign, digits, exponent, bool(percent), says.lstrip("?") if exponent or certain else says)


def _found(texts: pd.Series, cells: pd.Series, says: pd.Series, column: str, where: Where) -> Mark:
    """The decimal mark of a column."""
    point, comma = says.isin([".", ".,"]), says.isin([",", ",."])
    if point.any() and comma.any():
        raise UserError(
            f"Column {column!r} has {_at(texts, point, where)} and {_at(texts, comma, where)}, whose decimal marks differ; "
            "write all of them in one way."
        )
    settled = {"?,": bool(comma.any() or (says == ".,").any()), "?.": bool(point.any() or (says == ",.").any())}
    small = says.eq("") & cells.map(lambda cell: len(cell.digits) <= 3).astype(bool)
    if not comma.any() and not (small.any() and small[says.eq("")].all()):
        settled["?."] = True
    for kind, known in settled.items():
        if (says == kind).any() and not known:
            raise UserError(
                f"Column {column!r} has {_at(texts, says == kind, where)}, where the {'comma' if kind == '?,' else 'point'} may be "
                "a decimal mark or separate thousands; say which with --decimal , or --decimal . (in Python, decimal=',')."
            )
    return "," if comma.any() else "."


def _given(texts: pd.Series, says: pd.Series, column: str, where: Where, decimal: Mark) -> Mark:
    other = [",", ",."] if decimal == "." else [".", ".,"]
    if (wrong := says.isin(other)).any():
        raise UserError(
            f"Column {column!r} has {_at(texts, wrong, where)}, which is no number with the decimal mark {decimal!r}; "
            "leave --decimal out or write all of them in one way."
        )
    return decimal


def _notes(
    texts: pd.Series, cells: pd.Series, says: pd.Series, column: str, where: Where, mark: Mark, decimal: Mark | None
) -> list[str]:
    other = "comma" if mark == "." else "point"
    grouped = cells.map(lambda cell: ("," if mark == "." else ".") in cell.digits).astype(bool)
    spaced = cells.map(lambda cell: "_" in cell.digits).astype(bool)
    foreign = texts.map(lambda text: not text.isascii() and any(c.isdecimal() and c > "9" for c in text)).astype(bool)
    percent = cells.map(lambda cell: cell.percent).astype(bool)
    marked = cells.map(lambda cell: mark in cell.digits).astype(bool)
    told = [
        (marked, "a decimal comma", mark == "," and decimal is None),
        (
            says == "?.",
            "a decimal point, though it could separate thousands (--decimal , reads it so)",
            mark == "." and decimal is None and bool((says == "?.").any()) and not (says == ".").any(),
        ),
        (grouped, f"a {other} between thousands", True),
        (spaced, "a space or apostrophe between thousands", True),
        (foreign, "digits of another script", True),
        (percent, "percent", True),
    ]
    return [
        f"Column {column!r} was read as numbers with {what} ({_at(texts, rows, where)})."
        for rows, what, wanted in told
        if wanted and rows.any()
    ]


def _at(texts: pd.Series, rows: pd.Series, where: Where) -> str:
    first = texts[rows.astype(bool)]
    return f"{first.iloc[0].strip()[:40]!r} in {where(first.index[0])}"
