"""`python -m repscope`, and the command `repscope`: signals and standard streams first, then the command line."""

from __future__ import annotations

import os

TYPE_CHECKING = False  #: as typing's, which takes long to import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    import _signal  # type: ignore[import-not-found,unused-ignore]  # `signal` itself imports for milliseconds

    if _signal.getsignal(_signal.SIGINT) == _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, lambda *_: os._exit(128 + _signal.SIGINT))
    from repscope.process import start

    start(_command_line)


def _command_line() -> Callable[[Sequence[str]], int]:
    from repscope.cli import run_process

    return run_process


if __name__ == "__main__":
    main()
