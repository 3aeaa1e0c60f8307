"""One process at a time: a lock for every command that writes into a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repscope.disk import explained
from repscope.errors import UserError


@contextmanager
def only_process(folder: Path, lock: Path | None = None) -> Iterator[None]:
    """Hold a folder for this process. The lock ends with the process, however it ends.

    Parameters
    ----------
    folder
        What is written.
    lock
        The lock's file; by default hidden beside the folder, as a folder that is replaced as a whole cannot hold its own lock.

    Raises
    ------
    UserError
        When another process holds it, or the disk refuses.
    """
    from filelock import FileLock, Timeout

    file = lock or folder.absolute().parent / f".{folder.name}.lock"
    with explained(folder):
        file.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(file, timeout=0)
    try:
        with explained(folder):
            held.acquire()
    except Timeout:
        raise UserError(f"Another process is working on {folder}; wait for it or choose another --out.") from None
    try:
        yield
    finally:
        if lock is None:
            file.unlink(missing_ok=True)  # while it is held: who waits for it sees that its file is gone, and asks again
        held.release()
