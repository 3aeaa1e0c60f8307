"""Python warnings issued once per object, with the line of the user's code."""

import sys
import warnings
import weakref
from typing import Any

_given: "weakref.WeakKeyDictionary[Any, set[str]]" = weakref.WeakKeyDictionary()
_PACKAGE = __name__.partition(".")[0]


def warn_once(owner: Any, text: str) -> None:
    """Warn about an object (a tokenizer) in one sentence; the same sentence about the same object comes once."""
    try:
        given = _given.setdefault(owner, set())
    except TypeError:  # not to be hashed or referred to: it is warned about each time
        given = set()
    if text in given:
        return
    given.add(text)
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level)
