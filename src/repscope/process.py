"""The process of a command: signals, standard streams and exit codes. Imports nothing heavy, as it comes before all imports.

1. SIGINT, SIGTERM and SIGHUP end the command with 130, 143 and 129 and no traceback. While modules are imported, or when asked a
   second time, at once; while the command runs, by a `KeyboardInterrupt`, so that locks are released and partial files removed.
2. Text that the terminal's encoding lacks is replaced; bytes of a file name that is not UTF-8 are written as they are.
3. While modules and weights are loaded, nothing is searched for garbage: they stay, and looking through them takes a second.
4. A reader that went away (`| head -1`) and a full disk behind standard output never end the work: what is said is dropped.
"""

from __future__ import annotations

import codecs
import errno
import gc
import io
import os
import select
import signal
import sys

TYPE_CHECKING = False  #: as typing's, which takes long to import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType
    from typing import Any, NoReturn, TextIO

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_SOON = 0.01  #: seconds until a signal that was lost in a destructor is repeated
_PATIENCE = 10.0  #: seconds that a stopped command has for its own end
_ASCII = dict(zip("…×−–—“”‘’→←≤≥±·│─⏎·", ["...", "x", *"---", *'""', *"''", "->", "<-", "<=", ">=", "+-", *".|-/."]))
_ERRORS = "repscope"  #: our name of what is done with a character that cannot be encoded


class _State:
    """received: the signal that ends this process, or 0. lost: one that a destructor swallowed. running: the command runs."""

    received = 0
    lost = 0
    running = False


def start(load: Callable[[], Callable[[Sequence[str]], int]], arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line of this process and end it with its exit code.

    load: imports the command line, and returns the function from arguments to an exit code. arguments: by default the process's.
    """
    output = _open_streams()
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a job in the background: stays ignored
            signal.signal(number, _on_signal)
    signal.signal(signal.SIGALRM, _on_alarm)
    sys.unraisablehook = _unraisable
    try:
        command = load()
        _State.running = True
        code = command(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # between two statements of the command line itself
        code = stopped()
    _State.running = False
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if output.error not in (0, errno.EPIPE):
        reason = os.strerror(output.error)
        print(f"repscope: the answer could not be written to standard output ({reason}); write it elsewhere.", file=sys.stderr)
        code = code or 2
    sys.exit(code)


class Uncollected:
    """A context without garbage collection, for imports and weights. In the process of a command, what was made in it stays out of
    later collections too.
    """

    def __enter__(self) -> None:
        self.enabled = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if _State.running:
            gc.freeze()
        if self.enabled:
            gc.enable()


def received() -> int:
    """The signal that ends this process; 0 without one."""
    return _State.received


def stopped() -> int:
    """Say that the command was stopped, and return the exit code of its signal."""
    number = _State.received or signal.SIGINT
    said = "interrupted" if number == signal.SIGINT else "stopped"
    print(f"repscope: {said}; the same command continues from here.", file=sys.stderr)
    return 128 + number


def _on_signal(number: int, frame: FrameType | None) -> None:
    if not _State.running or _State.received:  # nothing is begun, all is done, or it was asked for before
        os._exit(128 + number)
    _State.received = number
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
    raise KeyboardInterrupt


def _on_alarm(number: int, frame: FrameType | None) -> None:
    """Repeat a signal that was lost, or end a command that does not end by itself: a library may catch everything."""
    lost, _State.lost = _State.lost, 0
    if lost:
        _on_signal(lost, frame)
    elif _State.received:
        os._exit(128 + _State.received)


def _unraisable(problem: Any) -> None:
    """A destructor swallows exceptions, ours too: repeat the signal. Everything else as always."""
    if not _State.received or not isinstance(problem.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(problem)
        return
    _State.lost, _State.received = _State.received, 0
    signal.setitimer(signal.ITIMER_REAL, _SOON)


# ------------------------------------------------------------------------------------------------------ standard streams


class _Lenient(io.RawIOBase):
    """A file descriptor to which writing never fails. error: of the first write that did; 0 without one."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.error = descriptor, 0

    def write(self, data: Any) -> int:
        """Write all of it, or drop it."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left and not self.error:
            try:
                left = left[os.write(self.descriptor, left) :]
            except BlockingIOError:  # a full pipe that its reader made non-blocking
                select.select([], [self.descriptor], [])
            except OSError as error:
                self.error = error.errno or errno.EIO
        return size

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The file descriptor."""
        return self.descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self.descriptor)


def _open_streams() -> _Lenient:
    """Replace standard output and error by streams that degrade instead of failing; returns the former's descriptor."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file that is opened would take its number, and get what others print
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error(_ERRORS, _replaced)
    raws = []
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        before: TextIO | None = getattr(sys, name)
        raw = _Lenient(descriptor)
        encoding = getattr(before, "encoding", None) or "utf-8"
        line_buffered = name == "stderr" or raw.isatty()
        buffer: Any = io.BufferedWriter(raw)
        stream = io.TextIOWrapper(buffer, encoding, _ERRORS, line_buffering=line_buffered)
        setattr(sys, name, stream)
        raws.append(raw)
    return raws[0]


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """The next character in the stream's encoding: its byte, where it is one of a file name; else the nearest in ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return ascii_of(character), error.start + 1


def ascii_of(character: str) -> str:
    """The nearest text in ASCII: a letter without its accent, a sign spelt out, else a question mark.

    >>> ascii_of("é"), ascii_of("≤"), ascii_of("国")
    ('e', '<=', '?')
    """
    from unicodedata import normalize

    return _ASCII.get(character) or normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"
