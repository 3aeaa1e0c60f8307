"""Cases in a child process: a crash or a hang of one case is its outcome, and the next one goes on."""

import json
import os
import resource
import select
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from processes import Processes

_MARK = "CASE "
_SECONDS = 60.0  #: that a case may take
_MEMORY = 12 << 30  #: bytes of address space that cases may take


Do = Callable[..., tuple[str, str]]


def each(processes: Processes, do: Do, cases: Sequence[Any], *given: Any) -> Iterator[tuple[Any, str, str]]:
    """(case, outcome, what was said) of `do(case, *given)` for each case; `do` is an importable function."""
    at = 0
    while at < len(cases):
        process = processes.start(_worker, do, list(cases[at:]), given)
        lines = _Lines(process.output.fileno())
        while at < len(cases):
            line = lines.next(_SECONDS)
            if line is None:
                if lines.ended:
                    process.wait(10)
                hung = process.running
                process.kill() if process.running else process.wait()
                yield cases[at], "raw", "hang" if hung else f"died with {process.returncode}"
                at += 1
                break
            outcome, said = json.loads(line)
            yield cases[at], outcome, said
            at += 1
        else:
            process.wait(30)


class _Lines:
    """The marked lines of a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.held, self.ended = descriptor, b"", False

    def next(self, seconds: float) -> str | None:
        """The next line; None after so long, or at the end."""
        until = time.monotonic() + seconds
        while True:
            line, end, rest = self.held.partition(b"\n")
            if end:
                self.held = rest
                text = line.decode(errors="replace")
                if text.startswith(_MARK):
                    return text.removeprefix(_MARK)
                continue
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.descriptor], [], [], left)[0]:
                return None
            data = os.read(self.descriptor, 1 << 16)
            if not data:
                self.ended = True
                return None
            self.held += data


def _worker(do, cases, given) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.fdopen(os.dup(1), "w", buffering=1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    for case in cases:
        try:
            outcome, said = do(case, *given)
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)
            ours = [f"{f.filename.rpartition('repscope/')[2]}:{f.lineno}" for f in where if "src/repscope" in f.filename]
            outcome, said = "raw", f"{type(error).__name__}: {str(error)[:150]} at {' < '.join(reversed(ours[-3:]))}"
        out.write(_MARK + json.dumps([outcome, said]) + "\n")
    sys.stdout.flush()
