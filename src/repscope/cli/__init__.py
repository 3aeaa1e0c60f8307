"""The command line: `repscope study NAME`, `tour`, and what looks at models and runs.

Standard output carries the answer, its last line the page's path (with `--json` one JSON object); progress goes to standard
error. Exit codes: 0 answered, 1 a check failed, 2 the user's mistake in one sentence, 70 our fault, 130 interrupted.
Everything heavy is imported inside the command that needs it, so that `--help` and typos answer at once. A file a family of
commands; importing it adds them to the app.
"""

import os
import sys
from collections.abc import Sequence

from cyclopts import CycloptsError, UnusedCliTokensError

from repscope.cli import directions, finetune, harvests, models, runs, studies, train  # noqa: F401  # each registers its commands
from repscope.cli.shared import app
from repscope.cli.studies import register
from repscope.errors import UserError

__all__ = ["app", "main", "register", "run"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; a user's mistake is one sentence on standard error, never a traceback."""
    from pydantic import ValidationError

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        register(arguments)
        app(list(arguments), exit_on_error=False, print_error=False, result_action="return_value")
    except (UserError, CycloptsError, ValidationError) as error:
        print(f"repscope: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("repscope: interrupted; the same command continues from here.", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return int(stop.code or 0)
    except BrokenPipeError:  # the reader of a pipe went away (| head)
        sys.stderr.close()
        return 0
    except Exception as error:
        from repscope.disk import disk_error

        if (said := disk_error(error)) is not None:
            print(f"repscope: {_sentence(said)}", file=sys.stderr)
            return 2
        import traceback

        traceback.print_exc()
        print("repscope: this is a fault of repscope; please report the lines above.", file=sys.stderr)
        return 70
    return 0


def _sentence(error: Exception) -> str:
    from pydantic import ValidationError

    if isinstance(error.__cause__, ValidationError):  # as cyclopts wraps it
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
    return " ".join(str(error).split())
