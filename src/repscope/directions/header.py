"""JSON header of direction files: all fields except vectors, with validation on reading.

Every field of an untrusted header is checked against one table before a direction is built. nan, which JSON lacks, is null.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypedDict

from repscope.directions.direction import Direction
from repscope.errors import UserError
from repscope.untrusted import parse_json

LONGEST = 1 << 26  #: characters of a header
MOST = 1 << 20  #: directions
MOST_BLOCKS = 1 << 16


class Contents(TypedDict):
    """Contents of a direction file: the fields of a `DirectionSet`."""

    directions: list[Direction]
    model: str
    note: str
    architecture: str
    blocks: int


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(float(value))


def _range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_number, value)) and value[0] <= value[1]


def _text(value: Any) -> bool:
    return isinstance(value, str)


#: check of each field of a direction, and its description
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "site": (_text, "a string"),
    "name": (_text, "a string"),
    "scale": (lambda v: _number(v) and v > 0, "a positive number"),
    "offset": (_number, "a number"),
    "found_by": (_text, "a string"),
    "does": (lambda v: isinstance(v, dict) and all(map(_number, v.values())), "numbers by name"),
    "tokens": (lambda v: isinstance(v, str) and v != "", "a string"),
    "norm": (lambda v: v is None or (_number(v) and v >= 0), "a number or null"),
    "works": (lambda v: v is None or _range(v), "two numbers in order, or null"),
    "trained_on": (_text, "a string"),
    "model": (_text, "a string"),
}
assert set(_FIELDS) == {f.name for f in fields(Direction)} - {"vector"}


def written(directions: Sequence[Direction]) -> str:
    """The fields of all directions except vectors, as JSON.

    Raises
    ------
    UserError
        If JSON cannot represent a field, such as nan in `does`.
    """
    rows = []
    for direction in directions:
        row = {name: getattr(direction, name) for name in _FIELDS}
        row["norm"] = None if math.isnan(direction.norm) else direction.norm
        try:
            plain = json.loads(json.dumps(row, default=float))  # numpy's numbers become Python's
            rows.append(_checked(plain, f"the direction {direction.name!r}"))
        except (TypeError, ValueError) as error:
            raise UserError(f"The direction {direction.name!r} cannot be written ({str(error).rstrip('.')}).") from error
    return json.dumps(rows)


def rows(text: str) -> list[dict[str, Any]]:
    """The fields of each direction in a header, checked, ready for `Direction(vector=…, **row)`.

    Raises
    ------
    UserError
        If it is not such a header; the message is a clause for the sentence of the file's reader.
    """
    if len(text) > LONGEST:
        raise UserError(f"its header has {len(text)} characters, more than {LONGEST}")
    try:
        held = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"its header is no JSON ({type(error).__name__})") from error
    if not isinstance(held, list) or len(held) > MOST:
        raise UserError("its header is no list of directions")
    checked = []
    for i, row in enumerate(held):
        row = _checked(row, f"direction {i} of its header")
        row["norm"] = math.nan if row.get("norm") is None else float(row["norm"])
        row["works"] = None if row.get("works") is None else (float(row["works"][0]), float(row["works"][1]))
        checked.append(row)
    return checked


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict) or not {"site", "name"} <= set(row):
        raise UserError(f"{where} has no site and name")
    for name, value in row.items():
        if name not in _FIELDS:
            raise UserError(f"{where} has a field {name[:40]!r} that this version does not know")
        fits, kind = _FIELDS[name]
        try:
            right = fits(value)
        except OverflowError:  # a whole number too large for a float
            right = False
        if not right:
            raise UserError(f"the {name} of {where} is not {kind}")
    return row


def block_count(value: Any) -> int:
    """Number of blocks from a header; 0 if unknown."""
    text = str(value or 0)
    if not text.isascii() or not text.isdigit() or len(text) > 6 or int(text) > MOST_BLOCKS:
        raise UserError(f"its number of blocks, {text[:40]!r}, is none")
    return int(text)
