"""Progress on standard error: a bar with the remaining time on a terminal, an occasional line elsewhere.

Work reports in its own unit (bytes, tokens). Nested work shows as further bars under the first. Work of less than a second prints
nothing, so that short calls in a notebook stay silent.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[float], None]

_QUIET_SECONDS = 1.0
_LINE_EVERY_SECONDS = 15.0
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
    with _bar(label, total) if sys.stderr.isatty() else _lines(label, total) as advance:
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
