"""Files and folders that are complete or absent: written under a temporary name in the same folder, then renamed.

Also the cache folder (models, fingerprints), and disk errors in one sentence.
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
def whole_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it becomes `path` if the block succeeds, otherwise it is removed.

    `sync`: write it through to the disk before it is renamed, and its folder afterwards, so that it outlives a power failure.

    Raises
    ------
    UserError
        If the disk is full or the folder cannot be written.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            os.chmod(partial, 0o666 & ~_umask())
            if sync:
                _synchronise(partial)
            os.replace(partial, path)
            if sync:
                _synchronise(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """As `whole_file`, for a folder. An existing folder of the final name is replaced."""
    with explained(path):
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
    """Raise a `UserError` if the disk of `folder` has fewer than `needed` bytes free."""
    existing = next(p for p in [folder, *folder.parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{folder} needs {needed / 1e9:.1f} GB of disk and {free / 1e9:.1f} GB are free; "
            "make room or point REPSCOPE_CACHE at another disk."
        ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def need_folder(path: Path) -> None:
    """Raise a `UserError` unless `path` is, or can become, a folder that can be written to. Leaves nothing behind."""
    path = path.expanduser()
    with explained(path):
        there = next(p for p in [path, *path.parents] if p.exists() or p.is_symlink())
        if not there.is_dir():
            what = "a broken link" if there.is_symlink() else "a file"
            raise UserError(f"{there} is {what} and not a folder, so nothing can be written to {path}; choose another folder.")
        try:
            os.rmdir(tempfile.mkdtemp(dir=there, prefix=".repscope."))
        except OSError as error:
            if _full(error):
                raise
            raise UserError(f"{path} cannot be written ({error.strerror or error}); choose another folder.") from error


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Disk errors of the block as one sentence about `path`: full, read-only, not a folder."""
    try:
        yield
    except Exception as error:
        if (explanation := disk_error(error, path)) is None:
            raise
        raise explanation from error


def disk_error(error: Exception, path: Path | None = None) -> UserError | None:
    """The `UserError` for a disk error; None for any other error."""
    if _full(error):
        what = f"{path} was not written" if path is not None else "something was not written"
        return UserError(f"The disk is full: {what}; make room and run the same command.")
    if not isinstance(error, OSError) or isinstance(error, UserError):
        return None
    named = path if path is not None else error.filename
    if error.errno == errno.EISDIR:
        return UserError(f"{named} is a folder; give the name of a file in it.")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(f"{named} cannot be made, as a part of that path is a file; choose another folder.")
    if error.errno in _REFUSED:
        return UserError(f"{named} cannot be written ({error.strerror}); choose another folder.")
    return None


_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EIO, errno.ELOOP)


def _full(error: Exception) -> bool:
    """Whether the disk is full; safetensors and pyarrow say so only in the text of their errors."""
    number = getattr(error, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def _synchronise(path: Path) -> None:
    """Write a file or the entries of a folder through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
