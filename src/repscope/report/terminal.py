"""Two texts side by side in a terminal, as they grow; where there is no terminal, each pair once it is whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text


class PairWriter(Protocol):
    """What is told of texts that are being written."""

    def say(self, line: str) -> None:
        """A line above them."""

    def grow(self, prompt: str, left: str, right: str) -> None:
        """Both texts of a prompt so far."""

    def done(self) -> None:
        """The last text is whole."""


@contextmanager
def side_by_side(out: TextIO | None, heads: tuple[str, str] = ("unsteered", "steered")) -> Iterator[PairWriter]:
    """Yield what shows pairs of texts on a stream; None shows nothing."""
    shown = _Beside(out, heads) if out is not None else _Nothing()
    try:
        yield shown
    finally:
        shown.done()


class _Nothing:
    def say(self, line: str) -> None:
        """Nothing is shown."""

    def grow(self, prompt: str, left: str, right: str) -> None:
        """Nothing is shown."""

    def done(self) -> None:
        """Nothing is shown."""


class _Beside:
    def __init__(self, out: TextIO, heads: tuple[str, str]) -> None:
        self._console = Console(file=out, markup=False, highlight=False, width=None if out.isatty() else 120)
        self._heads, self._now, self._live = heads, ("", "", ""), None if not out.isatty() else self._console
        self._screen: Live | None = None

    def say(self, line: str) -> None:
        self._console.print(line, style="dim")

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
        """Leave the pair as it stands."""
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
        table = Table(title=Text(prompt), title_justify="left", box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
        for head in self._heads:
            table.add_column(head, ratio=1, overflow="fold")
        table.add_row(Text(left.strip()), Text(right.strip()))
        return table
