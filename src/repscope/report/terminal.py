"""Pairs of texts side by side in a terminal while they are written; without a terminal, each pair when it is complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from repscope.names import printable


class PairWriter(Protocol):
    """Shows pairs of texts while they are written."""

    def say(self, line: str) -> None:
        """Print a line above the texts."""

    def grow(self, prompt: str, left: str, right: str) -> None:
        """Show both texts of a prompt so far."""

    def done(self) -> None:
        """The last text is complete."""


@contextmanager
def side_by_side(out: TextIO | None, heads: tuple[str, str] = ("unsteered", "steered")) -> Iterator[PairWriter]:
    """Yield a writer of pairs of texts to a stream; None shows nothing."""
    shown = _StreamWriter(out, heads) if out is not None else _NullWriter()
    try:
        yield shown
    finally:
        shown.done()


class _NullWriter:
    def say(self, line: str) -> None:
        """Nothing is shown."""

    def grow(self, prompt: str, left: str, right: str) -> None:
        """Nothing is shown."""

    def done(self) -> None:
        """Nothing is shown."""


class _StreamWriter:
    def __init__(self, out: TextIO, heads: tuple[str, str]) -> None:
        self._console = Console(file=out, markup=False, highlight=False, width=None if out.isatty() else 120)
        self._heads, self._now, self._live = heads, ("", "", ""), None if not out.isatty() else self._console
        self._screen: Live | None = None

    def say(self, line: str) -> None:
        self._console.print(printable(line), style="dim")

    def grow(self, prompt: str, left: str, right: str) -> None:
        if self._now[0] and self._now[0] != prompt:
            self.done()
        self._now = (prompt, left, right)
        if self._live is None:
            return
        if self._screen is None:
            self._screen = Live(console=self._console, auto_refresh=False, vertical_overflow="visible")
            self._screen.start()
        self._screen.update(self._table(), refresh=True)

    def done(self) -> None:
        """Finish the pair."""
        if not self._now[0]:
            return
        if self._screen is not None:
            self._screen.stop()
            self._screen = None
        else:
            self._console.print(self._table())
        self._now = ("", "", "")

    def _table(self) -> Table:
        prompt, left, right = self._now
        table = Table(title=Text(printable(prompt)), title_justify="left", box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
        for head in self._heads:
            table.add_column(head, ratio=1, overflow="fold")
        table.add_row(Text(printable(left.strip())), Text(printable(right.strip())))
        return table
