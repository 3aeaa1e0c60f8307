"""Fingerprints (digests) of weights in safetensors files or in memory.

Weights in safetensors files:

1. read each file's header: the name, dtype, shape and byte range of every tensor;
2. SHA-256 of every tensor's bytes, streamed in file order, without torch;
3. SHA-256 over the lines (name, dtype, shape, digest) sorted by name, independent of the split into files.

A file's digests are cached under `cache_home()/fingerprints` with its path, size and modification time.

For a module in memory only 64 evenly spaced entries of every tensor in its state dict are used. Such a fingerprint is marked
("sampled:…"); it does not detect changes between the sampled entries.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repscope import manifest
from repscope.disk import cache_home, whole_file
from repscope.errors import UserError
from repscope.progress import Advance, progress
from repscope.untrusted import parse_json

if TYPE_CHECKING:
    from torch import nn

_CHUNK = 1 << 23  # bytes read at once
_SAMPLED = 64  # entries of each tensor of a module in memory
_LONGEST_HEADER = 100_000_000  # bytes; the safetensors format's own limit


@dataclass(frozen=True)
class Fingerprint:
    """A digest of weights. digest: 64 hex digits. sampled: made from some entries of each tensor, not from all."""

    digest: str
    sampled: bool

    def __str__(self) -> str:
        return f"{'sampled:' if self.sampled else ''}{self.digest[:16]}"


@dataclass(frozen=True)
class WeightSource:
    """Origin of a network, as shown on pages.

    name: as the user gave it. precision: "float32", or "float32, dequantised from Q4_1 GGUF". path: the folder it was read from;
    None for a module in memory. revision: the commit on the hub, if any.
    """

    name: str
    fingerprint: Fingerprint
    precision: str
    path: Path | None
    revision: str | None


def of_digests(lines: Mapping[str, str]) -> Fingerprint:
    """The fingerprint of these tensors, given as by `digests_of`."""
    return Fingerprint(_combined(lines), sampled=False)


def digests_of(paths: Sequence[Path]) -> dict[str, str]:
    """Name of each tensor in safetensors files → its dtype, shape and digest. Cached by path, size and modification time.

    Raises a `UserError` for a file that is missing, truncated or not safetensors, and for a tensor in two files.
    """
    total = sum(path.stat().st_size for path in paths if path.is_file())
    lines: dict[str, str] = {}
    with progress("fingerprinting weights", total) as advance:
        for path in paths:
            for name, line in _remembered(path, "tensors", partial(_tensors, path, advance)).items():
                if name in lines:
                    raise UserError(f"Two of the weight files beside {path} hold a tensor {name!r}; remove the stale one.")
                lines[name] = line
    return lines


def shape_in(line: str) -> tuple[int, ...]:
    """The shape in a line of `digests_of`."""
    return tuple(int(n) for n in line.split(" ")[1].split("x") if n)


def of_module(module: "nn.Module") -> Fingerprint:
    """The sampled fingerprint of a module in memory."""
    import torch

    from repscope.models.engine.hooks import parameter

    lines: dict[str, str] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            continue
        if value.is_meta:  # put away by accelerate
            path, _, own = name.rpartition(".")
            value = parameter(module.get_submodule(path), own)
        if value is None or value.is_meta:
            raise UserError(f"The weight {name!r} is on no device, so this network has none to study; load its weights.")
        flat = value.detach().reshape(-1)
        n = flat.numel()
        kept = min(n, _SAMPLED)
        # Integers, not linspace: float32 cannot represent every index of a large embedding.
        index = [i * (n - 1) // max(kept - 1, 1) for i in range(kept)]
        entries = flat[torch.tensor(index, dtype=torch.long, device=flat.device)].cpu().contiguous()
        digest = hashlib.sha256(entries.view(torch.uint8).numpy().tobytes()).hexdigest()
        lines[name] = _line(str(value.dtype).removeprefix("torch."), list(value.shape), digest)
    return Fingerprint(_combined(lines), sampled=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a whole file. Cached by path, size and modification time."""

    def digest() -> dict[str, str]:
        whole = hashlib.sha256()
        with path.open("rb") as file, progress(f"hashing {path.name}", path.stat().st_size) as advance:
            while block := file.read(_CHUNK):
                whole.update(block)
                advance(len(block))
        return {"sha256": whole.hexdigest()}

    return _remembered(path, "file", digest)["sha256"]


def _remembered(path: Path, what: str, compute: Callable[[], dict[str, str]]) -> dict[str, str]:
    """`compute()`, cached by the file's path, size and modification time."""
    if not path.is_file():
        raise UserError(f"There is no file {path}; was the model's folder moved or copied only in part?")
    stat = path.stat()
    made_for = {"path": str(path.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "what": what}
    key = hashlib.sha256(f"{what}\0{made_for['path']}".encode()).hexdigest()[:24]
    kept = cache_home() / "fingerprints" / f"{key}.json"
    with suppress(OSError, ValueError, AttributeError):  # absent or damaged: made again
        record = parse_json(kept.read_text(encoding="utf-8")) if manifest.sealed(kept) else {}
        if record.get("made_for") == made_for and isinstance(record.get("digests"), dict):
            return {str(name): str(line) for name, line in record["digests"].items()}
    digests = compute()
    # If the cache cannot be written (full disk, read-only home), the next load only takes longer.
    with suppress(UserError, OSError), whole_file(kept, sync=False) as unfinished:
        record = {"seal": manifest.UNSEALED, "made_for": made_for, "digests": digests}
        unfinished.write_text(json.dumps(record), encoding="utf-8")
        manifest.seal(unfinished)
    return digests


def safetensors_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Of a safetensors file: name → dtype, shape and data_offsets of each tensor, and where their bytes start.

    Raises a `UserError` for a file that is missing, truncated or not safetensors.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}; check the path.")
    with path.open("rb") as file:
        return _header(path, file.read(8), path.stat().st_size, file.read)


def _tensors(path: Path, advance: Advance) -> dict[str, str]:
    """The line (dtype, shape, digest of the bytes) of every tensor in one safetensors file."""
    lines: dict[str, str] = {}
    with path.open("rb") as file:
        header, start = _header(path, file.read(8), path.stat().st_size, file.read)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
            first, end = entry["data_offsets"]
            file.seek(start + first)
            digest = hashlib.sha256()
            left = end - first
            while left:
                block = file.read(min(left, _CHUNK))
                if not block:  # shorter than it was when the header was checked
                    raise _cut(path)
                digest.update(block)
                advance(len(block))
                left -= len(block)
            lines[name] = _line(entry["dtype"], entry["shape"], digest.hexdigest())
    return lines


def _header(path: Path, size: bytes, held: int, read: Callable[[int], bytes]) -> tuple[dict[str, Any], int]:
    """The tensors in a safetensors header, and the offset of their bytes. `held`: bytes in the file."""
    length = int.from_bytes(size, "little")
    if len(size) < 8 or not 2 <= length <= _LONGEST_HEADER:
        raise UserError(f"{path} is not a safetensors file; repscope reads safetensors and GGUF weights only.")
    if 8 + length > held:
        raise _cut(path)
    try:
        tensors = {name: entry for name, entry in parse_json(read(length)).items() if name != "__metadata__"}
        ends = [8 + length + int(entry["data_offsets"][1]) for entry in tensors.values()]
        sound = all(
            len(entry["data_offsets"]) == 2
            and 0 <= entry["data_offsets"][0] <= entry["data_offsets"][1]
            and isinstance(entry["dtype"], str)
            and prod(entry["shape"]) >= 0
            for entry in tensors.values()
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
        sound = False
    if not sound:
        raise UserError(f"{path} has a damaged safetensors header; download or copy it again.")
    if any(end > held for end in ends):
        raise _cut(path)
    return tensors, 8 + length


def _cut(path: Path) -> UserError:
    return UserError(f"{path} is cut short, as by an interrupted download or copy; fetch it again.")


def _line(dtype: str, shape: Sequence[int], digest: str) -> str:
    return f"{dtype} {'x'.join(str(n) for n in shape)} {digest}"


def _combined(lines: Mapping[str, str]) -> str:
    return hashlib.sha256("\n".join(f"{name}\0{lines[name]}" for name in sorted(lines)).encode()).hexdigest()
