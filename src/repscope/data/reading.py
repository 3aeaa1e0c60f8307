"""Options for reading ambiguous tables, the same on the command line and in Python.

Functions that read a table take them as keyword arguments (`How`). `HELP` is the `--help` text of each, used by all commands that
read a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

from repscope.errors import UserError

HELP: Mapping[str, str] = {
    "decimal": "Decimal mark of a table's numbers, . or ,; the other one then separates thousands.",
    "na": "Words that count as missing in all columns of a table; if not given, nan and null in all, and NA, None, - and ? among "
    "numbers.",
    "quote": 'Whether "marks" around a field of a table only enclose it; if not given, yes in a CSV, and in a TSV that shows it.',
}


class How(TypedDict, total=False):
    """The fields of `Reading` as keyword arguments."""

    decimal: Literal[".", ","] | None
    na: Sequence[str] | None
    quote: bool | None


@dataclass(frozen=True)
class Reading:
    """How tables are read; None: detect. decimal: decimal mark. na: missing words. quote: whether marks enclose a field."""

    decimal: Literal[".", ","] | None = None
    na: tuple[str, ...] | None = None
    quote: bool | None = None


OPTIONS = tuple(field.name for field in fields(Reading))


def reading(**how: Any) -> Reading:
    """A `Reading` of keyword arguments.

    Raises
    ------
    UserError
        For an invalid value of an option.

    >>> reading(na="NA").na
    ('NA',)
    """
    if unknown := set(how) - set(OPTIONS):
        raise TypeError(f"there is no option {unknown.pop()!r} of reading a table")
    decimal, na, quote = (how.get(option) for option in OPTIONS)
    words = (na,) if isinstance(na, str) else na if na is None else tuple(na)
    for option, given, fits, takes in (
        ("decimal", decimal, decimal in (None, ".", ","), "'.' or ','"),
        ("na", na, words is None or all(isinstance(word, str) for word in words), "a list of words"),
        ("quote", quote, quote in (None, True, False), "True or False"),
    ):
        if not fits:
            raise UserError(f"{option}={given!r} is not how a table can be read; give {takes}.")
    return Reading(decimal, words, quote)


def shortened(text: str) -> str:
    """Text shortened for an error message."""
    return text if len(text) <= 40 else text[:39] + "…"
