"""Files from strangers: JSON that is refused in one way whatever is wrong with it, and paths that stay in their folder."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repscope.errors import UserError

_HALF = re.compile(r"\\ud[89a-f]", re.IGNORECASE)  #: may begin half of a surrogate pair


def parse_json(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value that a JSON text holds. pairs: makes an object from its (name, value) pairs.

    Raises
    ------
    ValueError
        If it is no JSON, nested too deeply, has a number of thousands of digits, or half of a surrogate pair, which is no text.
    """
    try:
        found = json.loads(text, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if _HALF.search(text if isinstance(text, str) else text.decode(errors="replace")):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("it has half of a surrogate pair, which is no text") from error
    return found


def inside(folder: Path, name: str) -> Path | None:
    """The path of what a file names, in a folder; None where it would be outside of it, or cannot be the name of a file."""
    try:
        root = folder.resolve()
        path = (root / name).resolve()
        path.exists()  # raises for a name that is too long
    except (OSError, ValueError):  # ValueError: a zero byte
        return None
    return path if path.is_relative_to(root) and path != root else None


def need_text(what: str, *texts: str) -> None:
    """Raise a `UserError` for half of a surrogate pair, as JSON can escape it: nothing else than Python takes it for text."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{what} has half of a surrogate pair in {text[:40]!r}, which is no text; write it as UTF-8."
            ) from error
