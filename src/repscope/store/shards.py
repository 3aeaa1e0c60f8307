"""Shards: safetensors files of rows, one tensor per site, and token, document and position of each row.

1. The header follows from the manifest (names, types, shapes), so it is compared byte by byte and never trusted.
2. Every block of rows of every tensor has a CRC-32, which is checked when the block is read.
3. The mean and the sum of squared deviations of each feature are computed from the stored values: sums in float32 of 256 rows
   after a shift by the first row, added in float64.
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from repscope.errors import UserError
from repscope.store.files import Files, Range
from repscope.store.manifest import Moments, ShardRecord, SiteRecord

LABELS = ("token", "document", "position")
_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.int32: "I32"}
_MOMENT_ROWS = 256  #: rows summed in float32


def shard_name(index: int) -> str:
    """The file of a shard."""
    return f"shards/{index:05d}.safetensors"


@dataclass(frozen=True)
class Layout:
    """Tensors of a shard, in the order of the file: name → (type, width); width 0 for one number per row. rows, block: counts."""

    tensors: Mapping[str, tuple[torch.dtype, int]]
    rows: int
    block: int

    @classmethod
    def of(cls, sites: Sequence[SiteRecord], rows: int, block: int) -> "Layout":
        """The layout of a shard of these sites; wider types first, so that every tensor is aligned."""
        held: dict[str, tuple[torch.dtype, int]] = {s.name: (getattr(torch, s.dtype), s.width) for s in sites}
        held |= dict.fromkeys(LABELS, (torch.int32, 0))
        order = sorted(held, key=lambda name: (-held[name][0].itemsize, name))
        return cls({name: held[name] for name in order}, rows, block)

    def row_bytes(self, name: str) -> int:
        """Bytes of one row of a tensor."""
        dtype, width = self.tensors[name]
        return dtype.itemsize * max(width, 1)

    @cached_property
    def header(self) -> bytes:
        """The bytes before the tensors: the length of the JSON and the JSON, padded to a multiple of 64."""
        entries: dict[str, Any] = {}
        offset = 0
        for name, (dtype, width) in self.tensors.items():
            end = offset + self.rows * self.row_bytes(name)
            shape = [self.rows, width] if width else [self.rows]
            entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % 64)
        return len(text).to_bytes(8, "little") + text

    @cached_property
    def starts(self) -> dict[str, int]:
        """First byte of each tensor in the file."""
        starts, at = {}, len(self.header)
        for name in self.tensors:
            starts[name] = at
            at += self.rows * self.row_bytes(name)
        return starts

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + self.rows * sum(map(self.row_bytes, self.tensors))

    @property
    def blocks(self) -> int:
        """Number of blocks; the last may have fewer rows."""
        return -(-self.rows // self.block)

    def range(self, file: str, name: str, block: int) -> Range:
        """The bytes of one block of a tensor."""
        each = self.row_bytes(name)
        first = block * self.block
        return file, self.starts[name] + first * each, (min(first + self.block, self.rows) - first) * each

    def fits(self, record: ShardRecord) -> bool:
        """Whether a record can be that of such a shard."""
        widths = {name: width for name, (_, width) in self.tensors.items() if width}
        return (
            set(record.crc) == set(self.tensors)
            and all(len(crc) == self.blocks for crc in record.crc.values())
            and set(record.moments) == set(widths)
            and all(len(m.mean) == len(m.squares) == widths[name] for name, m in record.moments.items())
        )


def raw(rows: Shaped[Tensor, "..."]) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    array: Any = rows.view(torch.uint8).numpy()
    return memoryview(array).cast("B")


def write_shard(files: Files, index: int, layout: Layout, tensors: Mapping[str, Tensor]) -> ShardRecord:
    """Write a shard, complete or not at all; the same tensors give the same bytes.

    Raises a `UserError` for values that are not finite, and when the disk is full.
    """
    crc: dict[str, tuple[int, ...]] = {}
    moments = {name: moments_of(tensors[name], name) for name, (_, width) in layout.tensors.items() if width}
    with files.written(shard_name(index)) as path, open(path, "wb", buffering=0) as file:
        _write_all(file, memoryview(layout.header))
        for name in layout.tensors:
            held, step = raw(tensors[name]), layout.block * layout.row_bytes(name)
            sums = []
            for first in range(0, len(held), step):
                part = held[first : first + step]
                sums.append(zlib.crc32(part))
                _write_all(file, part)
            crc[name] = tuple(sums)
    return ShardRecord(rows=layout.rows, crc=crc, moments=moments)


def _write_all(file: Any, part: memoryview) -> None:
    while len(part):
        part = part[file.write(part) :]


def moments_of(rows: Shaped[Tensor, "row d"], name: str) -> Moments:
    """Mean and sum of squared deviations of each feature.

    Raises a `UserError` for values that are not finite.
    """
    kind = torch.float64 if rows.dtype == torch.float64 else torch.float32
    shift = rows[0].to(kind)
    sums, squares = (np.zeros(rows.shape[1]) for _ in range(2))
    memory = torch.empty(min(_MOMENT_ROWS, len(rows)), rows.shape[1], dtype=kind)
    for first in range(0, len(rows), _MOMENT_ROWS):
        part = rows[first : first + _MOMENT_ROWS]
        centred = memory[: len(part)].copy_(part).sub_(shift).numpy()
        with np.errstate(all="ignore"):  # checked below
            sums += centred.sum(0)
            np.multiply(centred, centred, out=centred)
            squares += centred.sum(0)
    if not (np.isfinite(sums).all() and np.isfinite(squares).all()):
        if bool(torch.isfinite(rows).all()):
            return moments_of(rows.double(), name)
        raise UserError(f"Rows of {name} hold values that are not finite; load the network in float32, or leave that site out.")
    base = shift.double().numpy()
    mean = base + sums / len(rows)
    spread = np.maximum(squares - sums**2 / len(rows), 0.0)
    return Moments(mean=tuple(mean.tolist()), squares=tuple(spread.tolist()))


def check_header(files: Files, index: int, layout: Layout) -> None:
    """Check the size and the header of a shard.

    Raises a `UserError` when they are not those of the manifest.
    """
    name = shard_name(index)
    found = files.size(name)
    if found is None:
        raise UserError(f"{files.place} lacks {name}; {REPAIR}.")
    header = bytearray(len(layout.header))
    if found == layout.size:
        files.read_into([(name, 0, len(header))], [memoryview(header)])
    if bytes(header) != layout.header:
        raise UserError(f"{files.place}/{name} is not the shard of the manifest (its size or header differs); {REPAIR}.")


REPAIR = "run the same harvest again, which writes that shard again and keeps the others, or copy the store again"


def damaged_blocks(files: Files, index: int, layout: Layout, record: ShardRecord) -> Iterator[tuple[str, int]]:
    """Tensor and number of every block whose bytes differ from its checksum. Reads the whole shard."""
    file = shard_name(index)
    for name in layout.tensors:
        for block in range(layout.blocks):
            where = layout.range(file, name, block)
            held = bytearray(where[2])
            files.read_into([where], [memoryview(held)])
            if zlib.crc32(held) != record.crc[name][block]:
                yield name, block


def sound(files: Files, index: int, layout: Layout, record: ShardRecord) -> bool:
    """Whether a shard is on disk as its record says."""
    try:
        check_header(files, index, layout)
        return next(damaged_blocks(files, index, layout, record), None) is None
    except (UserError, OSError):
        return False
