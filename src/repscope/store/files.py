"""Files of a store, in a local folder or behind an fsspec URL: complete or absent, read by byte ranges, created exclusively.

Local: a file is written under a temporary name, synchronised to the disk and renamed; then its folder is synchronised. Reads go
into the caller's memory without a memory map, whose pages would count as memory of the process.

URLs (`s3://bucket/folder`, `memory://folder`), by fsspec; S3 by s3fs where it is installed, else by pyarrow: a file is made in a
local temporary folder and uploaded; object stores show an
object when it is complete. Other file systems get it under a temporary name, then it is moved.
"""

import errno
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from repscope.disk import disk_error, explained, whole_file
from repscope.errors import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(::[A-Za-z][A-Za-z0-9+.\-]*)*://")
_WHOLE_WHEN_SEEN = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "memory"}  #: a put is complete or absent
_CONNECTIONS = 16  #: at once, to a file system without asynchronous reads
Range = tuple[str, int, int]  #: name, first byte, number of bytes


def files_at(place: str | Path) -> "Files":
    """The files of a local folder or an fsspec URL.

    Raises a `UserError` when the URL's file system is unknown or its package is not installed.
    """
    if isinstance(place, str) and _URL.match(place) and not place.startswith(("file://", "local://")):
        return RemoteFiles(place)
    text = str(place)
    for scheme in ("file://", "local://"):
        text = text.removeprefix(scheme)
    return LocalFiles(Path(text).expanduser().absolute())


class Files(ABC):
    """Files of a store by names relative to it (`shards/00000.safetensors`)."""

    place: str  #: as users read it

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A whole file."""

    @abstractmethod
    def names(self, folder: str = "") -> list[str]:
        """Names of the files directly in a folder, sorted, relative to the store; empty where there is none."""

    @abstractmethod
    def read_into(
        self, ranges: Sequence[Range], buffers: Sequence[memoryview], filled: Callable[[int], None] = lambda _: None
    ) -> None:
        """Fill each buffer with the bytes of its range, and call `filled` with its number while they are in the processor's cache.

        Raises an `OSError` when a file is too short.
        """

    @abstractmethod
    def written(self, name: str) -> Any:
        """A context manager that yields a local path; the file appears when the block has succeeded."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Create a file unless it exists; whether it was created."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file, replacing it."""
        with self.written(name) as path:
            Path(path).write_bytes(content)


class LocalFiles(Files):
    """Files of a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, str(folder)

    def size(self, name: str) -> int | None:
        """See `Files`."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return (self.folder / name).stat().st_size
        return None

    def read(self, name: str) -> bytes:
        """See `Files`."""
        return (self.folder / name).read_bytes()

    def names(self, folder: str = "") -> list[str]:
        """See `Files`."""
        here = self.folder / folder
        found = []
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(here) as entries:
            found = [str(PurePosixPath(folder) / entry.name) for entry in entries if entry.is_file(follow_symlinks=False)]
        return sorted(found)

    def read_into(
        self, ranges: Sequence[Range], buffers: Sequence[memoryview], filled: Callable[[int], None] = lambda _: None
    ) -> None:
        """See `Files`."""
        handles: dict[str, int] = {}
        try:
            for number, ((name, first, size), buffer) in enumerate(zip(ranges, buffers, strict=True)):
                if name not in handles:
                    handles[name] = os.open(self.folder / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
                done = 0
                while done < size:
                    got = os.preadv(handles[name], [buffer[done:size]], first + done)
                    if not got:
                        raise OSError(errno.EIO, "the file is too short", name)
                    done += got
                filled(number)
        finally:
            for handle in handles.values():
                os.close(handle)

    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """See `Files`."""
        with whole_file(self.folder / name, sync=True) as path:
            yield path

    def create(self, name: str, content: bytes) -> bool:
        """See `Files`."""
        path = self.folder / name
        with explained(path), suppress(FileExistsError, FileNotFoundError):  # it exists, or its folder was removed meanwhile
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                try:
                    os.link(partial, path)  # with its content, or not at all
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                        raise
                    with path.open("xb") as file:  # a file system without links
                        file.write(content)
            finally:
                Path(partial).unlink(missing_ok=True)
            return True
        return False

    def remove(self, name: str) -> None:
        """See `Files`."""
        (self.folder / name).unlink(missing_ok=True)


def _s3_of_pyarrow() -> Any:
    """S3 by pyarrow, which everybody has; region, credentials and AWS_ENDPOINT_URL come from the environment, as for s3fs."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import S3FileSystem

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    scheme, _, host = (endpoint or "").rpartition("://")
    return ArrowFSWrapper(S3FileSystem(endpoint_override=host, scheme=scheme or "https") if endpoint else S3FileSystem())


class RemoteFiles(Files):
    """Files behind an fsspec URL."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.place = url.rstrip("/")
        try:
            if self.place.startswith("s3://") and find_spec("s3fs") is None:
                self._fs, self._root = _s3_of_pyarrow(), self.place.removeprefix("s3://")
            else:
                self._fs, self._root = fsspec.core.url_to_fs(self.place)
        except (ImportError, ValueError) as error:
            said = " ".join(str(error).split()).rstrip(".")
            raise UserError(f"{url} cannot be opened ({said}); install that package or choose another place.") from error
        # pyarrow's files cannot seek unless they are told to, and fsspec tells them only where a range does not begin at 0
        self._ranged = {"seekable": True} if type(self._fs).__name__ == "ArrowFSWrapper" else {}
        protocol = self._fs.protocol
        self._whole = bool(_WHOLE_WHEN_SEEN & set((protocol,) if isinstance(protocol, str) else protocol))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else str(self._root)

    def _make_folder(self, path: str) -> None:
        if not self._whole:  # object stores have no folders
            self._fs.makedirs(self._fs._parent(path), exist_ok=True)

    def size(self, name: str) -> int | None:
        """See `Files`."""
        self._fs.invalidate_cache()
        try:
            return int(self._fs.info(self._path(name))["size"])
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """See `Files`."""
        return bytes(self._fs.cat_file(self._path(name)))

    def names(self, folder: str = "") -> list[str]:
        """See `Files`."""
        self._fs.invalidate_cache()
        try:
            entries = self._fs.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return []
        found = [PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "file"]
        return sorted(str(PurePosixPath(folder) / name) for name in found)

    def read_into(
        self, ranges: Sequence[Range], buffers: Sequence[memoryview], filled: Callable[[int], None] = lambda _: None
    ) -> None:
        """See `Files`. All ranges are requested at once, as each has the latency of the network."""
        names, starts, sizes = (list(column) for column in zip(*ranges, strict=True))
        ends = [start + size for start, size in zip(starts, sizes)]
        paths = [self._path(name) for name in names]
        if self._fs.async_impl:
            found = self._fs.cat_ranges(paths, starts, ends, on_error="raise")
        else:
            with ThreadPoolExecutor(_CONNECTIONS) as pool:
                found = list(pool.map(partial(self._fs.cat_file, **self._ranged), paths, starts, ends))
        for number, (name, size, data, buffer) in enumerate(zip(names, sizes, found, buffers, strict=True)):
            if len(data) != size:
                raise OSError(errno.EIO, "the file is too short", name)
            buffer[:size] = data
            filled(number)

    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """See `Files`."""
        with tempfile.TemporaryDirectory(prefix="repscope-") as folder:
            local = Path(folder) / PurePosixPath(name).name
            with explained(local):
                yield local
            path = self._path(name)
            self._make_folder(path)
            to = path if self._whole else f"{path}.{os.urandom(4).hex()}.part"
            try:
                self._fs.put_file(str(local), to)
                if to != path:
                    self._fs.mv(to, path)
            except OSError as error:
                raise disk_error(error, Path(name)) or error from error

    def create(self, name: str, content: bytes) -> bool:
        """See `Files`. A file system without exclusive creation is asked first whether the file exists."""
        path = self._path(name)
        self._make_folder(path)
        if self.size(name) is not None:
            return False
        try:
            self._fs.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        except (TypeError, ValueError, NotImplementedError):
            self._fs.pipe_file(path, content)
        return True

    def remove(self, name: str) -> None:
        """See `Files`."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))
