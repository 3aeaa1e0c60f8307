"""The command line: `repscope study NAME`, `tour`, and what looks at models and runs.

Standard output carries the answer, its last line the page's path (with `--json` one JSON object); progress goes to standard
error. Exit codes: 0 answered, 1 a check failed, 2 the user's mistake in one sentence, 70 our fault, 130 interrupted, 143 stopped.
Everything heavy is imported inside the command that needs it, so that `--help` and typos answer at once. A file a family of
commands; importing it adds them to the app.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from cyclopts import CycloptsError, UnusedCliTokensError

from repscope.cli import directions, finetune, harvests, models, runs, studies, train  # noqa: F401  # each registers its commands
from repscope.cli.shared import app, say
from repscope.cli.studies import register
from repscope.errors import UserError
from repscope.process import Uncollected, received, start, stopped

__all__ = ["app", "main", "register", "run", "run_process"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line as the whole of this process, and exit with its code."""
    start(lambda: run_process, arguments)


def run_process(arguments: Sequence[str]) -> int:
    """As `run`, in a process of its own: warnings of repscope are notes, without lines of code."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **how: Any) -> None:
        if issubclass(category, UserWarning):
            say(f"note: {message}", file=sys.stderr)
        else:
            shown(message, category, *where, **how)

    warnings.showwarning = show
    return run(arguments)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; a user's mistake is one sentence on standard error, never a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        for word in arguments:
            _check_text(word)
        with Uncollected():
            register(arguments)
        app(list(arguments), exit_on_error=False, print_error=False, result_action="return_value")
    except SystemExit as stop:
        return stopped() if received() else int(stop.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        return _failed(error)
    return stopped() if received() else 0


def _failed(error: BaseException) -> int:
    """Say what was wrong, and return the exit code."""
    from pydantic import ValidationError

    from repscope.disk import disk_error

    if isinstance(error, KeyboardInterrupt) or received():  # whatever the interrupted code made of it
        return stopped()
    said = error if isinstance(error, (UserError, CycloptsError, ValidationError)) else None
    if said is None and isinstance(error, Exception):
        said = disk_error(error) or _of_machine(error)
    if said is not None:
        say(f"repscope: {' '.join(_sentence(said).split())}", file=sys.stderr)
        return 2
    import traceback

    say("".join(traceback.format_exception(error)).rstrip("\n"), file=sys.stderr)
    say("repscope: this is a fault of repscope; please report the lines above.", file=sys.stderr)
    return 70


def _check_text(word: str) -> None:
    """Refuse a word that is no text: libraries in other languages open no file of such a name."""
    try:
        word.encode()
    except UnicodeEncodeError as error:
        shown = word.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        raise UserError(f"The argument {shown!r} is not UTF-8; rename the file or folder.") from error


def _of_machine(error: Exception) -> UserError | None:
    """What the machine refuses, in one sentence: memory, and a working folder that is gone."""
    if isinstance(error, MemoryError):
        return UserError("There is not enough memory for this; give a smaller input, or a machine with more memory.")
    if isinstance(error, FileNotFoundError):
        try:
            os.getcwd()
        except FileNotFoundError:
            return UserError("The folder in which this was started is gone; change to another one.")
    return None


def _sentence(error: Exception) -> str:
    from pydantic import ValidationError

    if isinstance(error, CycloptsError) and isinstance(error.__cause__, ValidationError):
        error = error.__cause__
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = next((str(part) for part in first["loc"]), "")
        said = first["msg"].removeprefix("Value error, ").rstrip(".")
        if not where:
            return f"{said}."
        return f"--{where.replace('_', '-')} {first['input']}: {said[0].lower()}{said[1:]}."
    if isinstance(error, UnusedCliTokensError):
        held = " ".join(map(str, error.unused_tokens or ()))
        return f"{held!r} is one argument too many; put a text with spaces between quotation marks."
    return str(error)
