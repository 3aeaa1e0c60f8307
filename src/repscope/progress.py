"""Progress: a bar with the remaining time on a terminal and in a notebook, an occasional line on standard error elsewhere.

Work reports in its own unit (bytes, tokens). Nested work shows as further bars under the first. Work of less than a second prints
nothing, so that short calls in a notebook stay silent.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from repscope import notebook
from repscope.names import printable

Advance = Callable[[float], None]

_QUIET_SECONDS = 1.0
_LINE_EVERY_SECONDS = 15.0
_CELL_EVERY_SECONDS = 0.3
_live: list[tuple[Progress, float]] = []  #: the bars on this terminal and the start time of the outermost work


@contextmanager
def progress(label: str, total: float | None) -> Iterator[Advance]:
    """Show the progress of the work in the block; yield a function to call with each amount of work done.

    Parameters
    ----------
    label
        The kind of work, in two or three words.
    total
        The amount of work in the caller's unit; None if unknown.
    """
    shown = _bar if sys.stderr.isatty() else _in_notebook if notebook.in_notebook() else _lines
    with shown(printable(label), total) as advance:
        yield advance


@contextmanager
def _bar(label: str, total: float | None) -> Iterator[Advance]:
    owner = not _live
    if owner:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        _live.append((Progress(*columns, console=Console(stderr=True), transient=True), time.monotonic()))
    bars, began = _live[0]
    task: TaskID = bars.add_task(label, total=total)

    def advance(amount: float) -> None:
        if not bars.live.is_started and time.monotonic() - began > _QUIET_SECONDS:
            bars.start()
        bars.update(task, advance=amount)

    try:
        yield advance
    finally:
        bars.remove_task(task)
        if owner:
            _live.clear()
            bars.stop()


@dataclass
class _Work:
    """Work that a notebook shows."""

    label: str
    total: float | None
    started: float
    done: float = 0.0

    def line(self, now: float) -> str:
        """Its state in words."""
        if not self.total:
            return f"{self.label}: {now - self.started:.0f} s so far"
        left = (now - self.started) * max(self.total - self.done, 0) / max(self.done, 1e-9)
        return f"{self.label}: {100 * self.done / self.total:.0f} %" + (f", about {left:.0f} s left" if self.done else "")

    def html(self, now: float) -> str:
        """Its state as a bar and words, without scripts or widgets."""
        ends = f' max="{self.total:g}" value="{min(self.done, self.total):g}"' if self.total else ""
        return f"<div><progress{ends}></progress> {escape(self.line(now))}</div>"


@dataclass
class _Cell:
    """The output of a notebook's cell in which work shows: one line per work, replaced in place, empty at the end."""

    began: float
    last: float
    works: list[_Work] = field(default_factory=list)
    handle: Any = None

    def show(self, now: float, *, last: bool = False) -> None:
        """Display the state; the first time, open an output that later calls replace."""
        shown = {"text/plain": "\n".join(w.line(now) for w in self.works), "text/html": "".join(w.html(now) for w in self.works)}
        if last:
            shown = {"text/plain": "", "text/html": ""}
        if self.handle is None:
            self.handle = import_module("IPython.display").display(shown, raw=True, display_id=True)
        else:
            self.handle.update(shown, raw=True)
        self.last = now


_cells: list[_Cell] = []  #: the output in use, if any


@contextmanager
def _in_notebook(label: str, total: float | None) -> Iterator[Advance]:
    now = time.monotonic()
    owner = not _cells
    if owner:
        _cells.append(_Cell(now, now))
    cell, work = _cells[0], _Work(label, total, now)
    cell.works.append(work)

    def advance(amount: float) -> None:
        work.done += amount
        now = time.monotonic()
        if now - cell.began > _QUIET_SECONDS and now - cell.last > _CELL_EVERY_SECONDS:
            cell.show(now)

    try:
        yield advance
    finally:
        cell.works.remove(work)
        if owner:
            _cells.clear()
            if cell.handle is not None:
                cell.show(time.monotonic(), last=True)


@contextmanager
def _lines(label: str, total: float | None) -> Iterator[Advance]:
    started = last = time.monotonic()
    done = 0.0

    def advance(amount: float) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last < _LINE_EVERY_SECONDS:
            return
        last = now
        if total:
            left = (now - started) * max(total - done, 0) / max(done, 1e-9)
            print(f"{label}: {100 * done / total:.0f} %, about {left:.0f} s left", file=sys.stderr, flush=True)
        else:
            print(f"{label}: {now - started:.0f} s so far", file=sys.stderr, flush=True)

    yield advance
