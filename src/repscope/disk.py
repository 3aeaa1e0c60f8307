"""Files and folders that are complete or absent: written under a temporary name in the same folder, then renamed.

Also the cache folder (models, fingerprints), and disk errors in one sentence.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from repscope import manifest
from repscope.errors import UserError


def cache_home() -> Path:
    """The user's cache folder: `REPSCOPE_CACHE`, else `$XDG_CACHE_HOME/repscope`, else `~/.cache/repscope`."""
    if named := os.environ.get("REPSCOPE_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "repscope"


@contextmanager
def whole_file(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it becomes `path` if the block succeeds, otherwise it is removed.

    `sync`: write it through to the disk before it is renamed, and its folder afterwards, so that it outlives a power failure; not
    for what is made again at no cost.

    Raises
    ------
    UserError
        If the disk is full or the folder cannot be written.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=".part")
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
def whole_folder(path: Path, *, sync: bool = True, digests: bool = True) -> Iterator[Path]:
    """As `whole_file`, for a folder. An existing folder of the final name is replaced, and kept where that fails.

    `digests`: leave a manifest of its files in it (see `manifest`), by which readers see damage.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path), suffix=".part"))
        try:
            yield partial
            if digests:
                manifest.write(partial)
            os.chmod(partial, 0o777 & ~_umask())
            if sync:
                _synchronise_all(partial)
            _put(partial, path)
            if sync:
                _synchronise(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _put(made: Path, path: Path) -> None:
    """Rename a folder to `path`; one that is there is moved away first, and back if this fails."""
    if not path.exists():
        os.replace(made, path)
        return
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path), suffix=".part"))
    try:
        os.replace(path, aside / "old")
        try:
            os.replace(made, path)
        except OSError:
            os.replace(aside / "old", path)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _prefix(path: Path) -> str:
    """Of temporary names; short enough for those of the longest names."""
    return f".{path.name.encode(errors='surrogateescape')[:200].decode(errors='ignore')}."


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
            if _number(error) in _FULL:
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
    if isinstance(error, UserError):
        return None
    number = _number(error)
    if number in _FULL or any(said in str(error) for said in _FULL_TEXTS):
        what = f"{path} was not written" if path is not None else "something was not written"
        return UserError(f"The disk is full: {what}; make room and run the same command.")
    named = path if path is not None else getattr(error, "filename", None) or "A file"
    if number == errno.EFBIG:
        return UserError(f"{named} would be larger than files may be here; raise the limit (ulimit -f), or choose another disk.")
    if number == errno.EMFILE:
        return UserError(f"{named} cannot be opened, as too many files are open; raise the limit (ulimit -n).")
    if number == errno.EISDIR:
        return UserError(f"{named} is a folder; give the name of a file in it.")
    if number in (errno.ENOTDIR, errno.EEXIST):
        return UserError(f"{named} cannot be made, as a part of that path is a file; choose another folder.")
    if number in _REFUSED:
        return UserError(f"{named} cannot be written ({os.strerror(number)}); choose another folder.")
    return None


_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = ("No space left on device", "requested and 0 written")  #: the latter is numpy's
_REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EIO, errno.ELOOP, errno.EBUSY, errno.EINVAL),
    *(errno.ENODEV, errno.ENXIO, errno.ENOTEMPTY, errno.EXDEV, errno.ESTALE, errno.ENOTSUP, errno.ETXTBSY),
)
_SYSTEM = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)


def _number(error: Exception) -> int:
    """The system's number of an error, 0 without one; safetensors and pyarrow say it in the text alone."""
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        return number
    found = _SYSTEM.search(str(error)[:10_000])
    return int(found[1] or found[2]) if found else 0


def _synchronise(path: Path) -> None:
    """Write a file or the entries of a folder through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems without it, for folders
            raise
    finally:
        os.close(handle)


def _synchronise_all(folder: Path) -> None:
    """Write a folder and all in it through to the disk; several files at once take little longer than one."""
    paths = [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]
    folders = [Path(parent) for parent, _, _ in os.walk(folder)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(_synchronise, [*paths, *folders]))


_AT_ONCE = 16  #: files written through


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
