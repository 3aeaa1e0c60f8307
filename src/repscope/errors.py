"""Errors in one sentence: what was wrong with which input, and what to do.

`UserError` is a user's mistake (exit code 2, no traceback on the command line). Any other uncaught exception is a bug.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class UserError(ValueError):
    """A user's mistake. Its text is one sentence that names the input and the next step."""


def unknown(what: str, name: object, known: Iterable[object], hint: str = "") -> UserError:
    """The error for an unknown name: suggests the nearest names, or lists all if they are few.

    >>> str(unknown("site kind", "resid_pst", ["resid_pre", "resid_post"]))
    "There is no site kind 'resid_pst'; did you mean 'resid_post' or 'resid_pre'?"
    """
    names = [str(k) for k in known]
    folded = {n.casefold(): n for n in names}
    near = [folded[n] for n in get_close_matches(str(name).casefold(), folded, n=3, cutoff=0.55)]
    if near:
        listed = ", ".join(repr(n) for n in near[:-1])
        tail = f"; did you mean {listed + ' or ' if listed else ''}{near[-1]!r}?"
    elif 0 < len(names) <= 12:
        tail = f"; there are {', '.join(names)}."
    elif names:
        tail = f"; among the {len(names)} there are {', '.join(names[:8])} …"
    else:
        tail = "; there is none at all."
    return UserError(f"There is no {what} {name!r}{tail}{' ' + hint if hint else ''}")


def no_file(path: Path, siblings: Iterable[str], what: str = "file") -> UserError:
    """The error for a missing file: suggests similar names in the same folder.

    >>> str(no_file(Path("data/citis.csv"), ["cities.csv", "notes.csv"], "table"))
    "There is no table data/citis.csv; did you mean 'cities.csv'?"
    >>> str(no_file(Path("data/zebra.csv"), ["cities.csv", "notes.csv"], "table"))
    'There is no table data/zebra.csv; check the path.'
    """
    names = [Path(name) for name in siblings]
    similar = get_close_matches(path.stem.casefold(), [n.stem.casefold() for n in names], n=3, cutoff=0.75)

    def one_letter_off(stem: str) -> bool:
        return len(stem) == len(path.stem) and sum(a != b for a, b in zip(stem, path.stem)) == 1

    near = [repr(str(n)) for n in names if n.stem.casefold() in similar or (len(n.stem) > 1 and one_letter_off(n.stem))][:3]
    return UserError(f"There is no {what} {path}; " + (f"did you mean {' or '.join(near)}?" if near else "check the path."))
