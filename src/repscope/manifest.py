"""Manifests and seals: do files still hold the bytes that were written?

1. A manifest is the file `.digests.json` in a folder: for each file its size and digest. `disk.whole_folder` leaves one in every
   folder that it writes; folders without one (of earlier versions, of other programs) are not checked.
2. A seal is a digest inside a single file, at a place that the file keeps for it (`UNSEALED`): it moves with the file, and file and
   digest are replaced as one. Files without a seal are not checked.
3. A stamped line of a file that only grows begins with the digest of its rest.

Digests are the first 32 hex digits of SHA-256: against accidents (bit rot, cut or mixed files), not against forgers, who would
write the manifest as well. SHA-256 has instructions of its own on today's processors (1.5 GB/s on the machine of
`benchmarks/RESULTS-checking.md`; BLAKE2b 0.7). A large file is read once per process as long as its size and times stay the same.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from repscope.errors import UserError

NAME = ".digests.json"
_FORMAT = 1
_CHUNK = 1 << 22  #: bytes read at once; a seal is looked for in the first
_LARGE = 1 << 23  #: bytes of a file whose digest is remembered
_LONGEST = 1 << 26  #: bytes of a manifest
_LEVELS = 3  #: folders above a file in which its manifest is looked for
_MARK = b"repscope-sha256:"
UNSEALED = _MARK.decode() + "0" * 32  #: what a file that will be sealed holds once, near its beginning
_known: dict[tuple[str, int, int, int, int], str] = {}  #: digests of large files


@dataclass(frozen=True)
class Manifest:
    """Size in bytes and digest of files, by their names relative to a folder (`a/b.parquet`)."""

    files: Mapping[str, tuple[int, str]]

    @classmethod
    def of(cls, folder: Path, names: Iterable[str] | None = None) -> "Manifest":
        """The manifest of these files of a folder; by default of all, except for its own manifest."""
        if names is None:
            found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
            names = (name for name in found if name != NAME)
        return cls({name: ((folder / name).stat().st_size, digest_of(folder / name)) for name in sorted(names)})

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read a manifest.

        Raises
        ------
        UserError
            When it is damaged, or names files outside its folder.
        """
        try:
            if path.stat().st_size > _LONGEST:
                raise ValueError("too long")
            held = json.loads(path.read_text(encoding="utf-8"))
            if held["format"] != _FORMAT:
                raise ValueError("another format")
            files = {str(name): (int(size), str(digest)) for name, (size, digest) in held["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is damaged; if the files beside it are as you want them, remove it.") from error
        if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name for name in files):
            raise UserError(f"{path} names a file outside its folder; remove it.")
        return cls(files)

    def text(self) -> str:
        """As JSON, a line a file."""
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(list(entry))}" for name, entry in sorted(self.files.items()))
        return f'{{"format": {_FORMAT}, "files": {{\n{lines}\n}}}}\n'

    def damage(self, folder: Path, *, sizes_only: Collection[str] = ()) -> str | None:
        """The first file that is missing or has other bytes, in words; None when all are as they were written."""
        for name, (size, _) in self.files.items():
            try:
                now = (folder / name).stat().st_size
            except (OSError, ValueError):
                return f"{name} is missing"
            if now != size:
                return f"{name} has {now:,} bytes instead of {size:,}"
        for name, (_, digest) in self.files.items():
            if name not in sizes_only and _digest_or_none(folder / name) != digest:
                return f"{name} has other bytes than were written"
        return None


def write(folder: Path) -> None:
    """Write the manifest of all files of a folder that nobody else sees yet."""
    (folder / NAME).write_text(Manifest.of(folder).text(), encoding="utf-8")


@contextmanager
def changing(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Around a change of some of these files of a folder in use, which has no manifest meanwhile, and a new one afterwards."""
    (folder / NAME).unlink(missing_ok=True)
    yield
    partial = folder / f".{NAME}.part"
    partial.write_text(Manifest.of(folder, [n for n in names if (folder / n).is_file()]).text(), encoding="utf-8")
    os.replace(partial, folder / NAME)


def damage(folder: Path, *, sizes_only: Collection[str] = ()) -> str | None:
    """What is wrong with the files of a folder, in words; None when nothing is, or it has no manifest."""
    if not (folder / NAME).is_file():
        return None
    try:
        return Manifest.read(folder / NAME).damage(folder, sizes_only=sizes_only)
    except UserError:
        return f"{NAME} is unreadable"


def need_sound(path: Path) -> None:
    """Raise a `UserError` when a folder, or a file of one, has other bytes than were written. What has no manifest passes."""
    if path.is_dir():
        if (wrong := damage(path)) is not None:
            raise _damaged(path, wrong, path)
        return
    for folder in list(path.absolute().parents)[:_LEVELS]:
        if (folder / NAME).is_file():
            held = Manifest.read(folder / NAME).files
            name = path.absolute().relative_to(folder).as_posix()
            if name in held and (wrong := Manifest({name: held[name]}).damage(folder)) is not None:
                raise _damaged(folder, wrong, folder)


def _damaged(path: Path, wrong: str, folder: Path) -> UserError:
    return UserError(f"{path} is damaged: {wrong}; make or copy it again (if you changed it yourself, remove {folder / NAME}).")


def digest_of(path: Path) -> str:
    """The digest of a file's bytes."""
    stat = path.stat()
    key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    if key not in _known:
        with path.open("rb") as file:
            found = _rest(hashlib.sha256(), file)
        if stat.st_size < _LARGE:
            return found
        _known[key] = found
    return _known[key]


def _digest_or_none(path: Path) -> str | None:
    try:
        return digest_of(path)
    except OSError:
        return None


def _rest(digest: "hashlib._Hash", file: BinaryIO) -> str:
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()[:32]


# ---------------------------------------------------------------------------------------------------- single files


def seal(path: Path) -> None:
    """Put the digest of a file in the place that it holds for it, in a file that nobody else sees yet.

    The metadata of a safetensors file, which the library writes in an order that differs from call to call, are sorted first.
    """
    _sort_metadata(path)
    with path.open("r+b") as file:
        head = file.read(_CHUNK)
        at = head.find(UNSEALED.encode())
        if at < 0:
            raise ValueError(f"{path} has no place for a seal")
        digest = _rest(hashlib.sha256(head), file)
        file.seek(at + len(_MARK))
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())


def sealed(path: Path) -> bool | None:
    """Whether a file has the bytes that were sealed; None when it is no sealed file, or there is none."""
    try:
        with path.open("rb") as file:
            head = file.read(_CHUNK)
            at = head.find(_MARK)
            if at < 0:
                return None
            start = at + len(_MARK)
            bare = head[:start] + b"0" * 32 + head[start + 32 :]
            return _rest(hashlib.sha256(bare), file).encode() == head[start : start + 32]
    except (OSError, ValueError):
        return None


def need_seal(path: Path, remedy: str) -> None:
    """Raise a `UserError` with a remedy when a sealed file has other bytes. What has no seal passes."""
    if sealed(path) is False:
        raise UserError(f"{path} is damaged: it has other bytes than were written; {remedy}.")


def _sort_metadata(path: Path) -> None:
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(path.stat().st_size, 1 << 27):
            return
        raw = file.read(length)
        if not raw.startswith(b'{"__metadata__":{'):
            return
        header = json.loads(raw)
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(ordered) == length:  # another length would mean another spelling, which is left as it is
            file.seek(8)
            file.write(ordered)


# ----------------------------------------------------------------------------------------------------------- lines


def stamped(line: str) -> str:
    """A line of a file that only grows, with its digest before it."""
    return f"{hashlib.sha256(line.encode()).hexdigest()[:16]} {line}"


def unstamped(line: str) -> str | None:
    """The line without its digest; None when it is damaged. Lines of JSON without one, of earlier versions, pass."""
    if line.startswith(("{", "[")):
        return line
    digest, _, rest = line.partition(" ")
    return rest if rest and digest == hashlib.sha256(rest.encode()).hexdigest()[:16] else None
