"""What the commands share: the app, the options that many take, and how a table is printed."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, get_args

from cyclopts import App, ArgumentCollection, CoercionError, Group, Parameter
from cyclopts.validators import Number

from repscope import __version__
from repscope.data.reading import HELP
from repscope.names import printable


def _need_whole_numbers(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse decimals for the whole-number options of every command; cyclopts would round them."""
    for argument in arguments:
        for token in argument.tokens if _is_whole(argument.hint) else ():
            if _has_decimals(token.value):
                raise CoercionError(f"{token.value} is not a whole number.", token=token, argument=argument, target_type=int)


def _is_whole(hint: Any) -> bool:
    """Whether values of a type are whole numbers, or several of them."""
    parts = get_args(hint)
    return hint is int or (any(map(_is_whole, parts)) and not any(part in (float, str) for part in parts))


def _has_decimals(text: str) -> bool:
    try:
        return "." in text and not float(text).is_integer()
    except ValueError:  # no number; cyclopts says so
        return False


app = App(
    name="repscope",
    version=__version__,
    help="What has a trained network learned? Every number with its control and its interval.",
    help_format="plaintext",
    # --methods A B C takes all three; there is no --empty-methods, as an empty list means nothing anywhere. No value is
    # read as JSON: [a].csv is a file.
    default_parameter=Parameter(consume_multiple=True, negative_iterable=(), json_dict=False, json_list=False),
    config=_need_whole_numbers,
)

_RUN = Group("Run")
Out = Annotated[Path, Parameter(group=_RUN, help="Folder of all runs.")]
Plan = Annotated[bool, Parameter(group=_RUN, negative="", help="Print tokens, FLOPs, minutes and disk; run nothing.")]
Fresh = Annotated[bool, Parameter(group=_RUN, negative="", help="Start again, without the saved steps of an interrupted run.")]
Json = Annotated[bool, Parameter(group=_RUN, negative="", help="Print one JSON object that contains the page's path.")]
ModelName = Annotated[str, Parameter(help="Alias, hub id org/name, local folder or .gguf file.")]
Dtype = Literal["float32", "bfloat16", "float16"]  #: as `models.loading.sources.Dtype`, which brings much with it
Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=2**32))]
Index = Annotated[int, Parameter(validator=Number(gte=0))]
Count = Annotated[int, Parameter(validator=Number(gte=1))]


def _finite(type_: Any, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ValueError("Must be a finite number.")


Finite = Annotated[float, Parameter(validator=_finite)]
RUNS = Path("runs")
_TABLES = Group("Tables")
Decimal = Annotated[Literal[".", ","] | None, Parameter(group=_TABLES, help=HELP["decimal"])]
Na = Annotated[tuple[str, ...] | None, Parameter(group=_TABLES, help=HELP["na"])]
Quote = Annotated[bool | None, Parameter(group=_TABLES, help=HELP["quote"])]


def say(line: object, file: TextIO | None = None) -> None:
    """Print a line to standard output or another stream. Control characters, which may come from a file, are spelt out."""
    print(printable(str(line)), file=file)


def print_notes(notes: Sequence[str]) -> None:
    """Print to standard error what was left out, guessed or sampled; `--json` has it under "notes"."""
    for note in notes:
        say(f"note: {note}", file=sys.stderr)


def print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print rows as a table, numbers to four digits."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=printable(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        number = isinstance(rows[0].get(column), (int, float)) and not isinstance(rows[0].get(column), bool)
        table.add_column(printable(column), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column, "")) for column in columns))
    width = None if sys.stdout.isatty() else 200
    Console(width=width, markup=False, highlight=False).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float) and math.isnan(value):
        return "–"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else printable(str(value))
