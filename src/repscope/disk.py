"""Files that are whole or not there at all: written under a temporary name in the same folder, then renamed.

Also the two folders of repscope: the cache (models, fingerprints) and the runs.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repscope.errors import UserError


def cache_home() -> Path:
    """The user's cache folder: `REPSCOPE_CACHE`, else `$XDG_CACHE_HOME/repscope`, else `~/.cache/repscope`."""
    if named := os.environ.get("REPSCOPE_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "repscope"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; when the block ends well it becomes `path`, otherwise nothing remains.

    Raises
    ------
    UserError
        When the disk is full or the folder cannot be written.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            os.chmod(partial, 0o666 & ~_umask())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """As `whole_file`, for a folder. A folder that is already there under the final name is replaced."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        try:
            yield partial
            os.chmod(partial, 0o777 & ~_umask())
            if path.exists():
                shutil.rmtree(path)
            os.replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def need_space(folder: Path, needed: int) -> None:
    """Raise a `UserError` when the disk that holds `folder` has fewer than `needed` bytes free."""
    existing = next(p for p in [folder, *folder.parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{folder} needs {needed / 1e9:.1f} GB of disk and {free / 1e9:.1f} GB are free; "
            "make room or point REPSCOPE_CACHE at another disk."
        ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"The disk is full: {path} was not written; make room and run the same command.") from error
        if error.errno == errno.EISDIR:
            raise UserError(f"{path} is a folder; give the name of a file in it.") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"{path} cannot be written ({error.strerror}); choose another folder.") from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
