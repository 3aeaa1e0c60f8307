"""Writing of stores: rows are scattered over a shard in memory as they come, and full shards are written.

1. Row j of shard i goes to place p(j), where p is a permutation drawn from (seed, i). So every block of a shard is a random
   sample of its rows.
2. A last, shorter shard keeps the order of its places.
3. The manifest is written last; without it there is no store.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError, unknown
from repscope.models.engine.row_writer import cast
from repscope.store.files import Files, files_at
from repscope.store.manifest import MANIFEST, Origin, ShardRecord, SiteRecord, finished, written
from repscope.store.reading import PLAN
from repscope.store.shards import LABELS, Layout, write_shard

SHARD_BYTES = 192 * 2**20
DTYPES = ("float16", "bfloat16", "float32", "float64")
_MOST_ROWS = 2**20  #: of a shard
_BLOCK_ROWS = 512
_BLOCKS_PER_SHARD = 32


def bytes_per_row(sites: tuple[SiteRecord, ...]) -> int:
    """Bytes of a row of all sites, with its labels."""
    layout = Layout.of(sites, 1, 1)
    return sum(map(layout.row_bytes, layout.tensors))


def shard_rows(sites: tuple[SiteRecord, ...], shard_bytes: int) -> int:
    """Rows of a shard of so many bytes; at least one, at most 2²⁰."""
    return min(_MOST_ROWS, max(1, shard_bytes // bytes_per_row(sites)))


def block_rows(rows: int) -> int:
    """Rows of a block for shards of so many rows: 512, or fewer where a shard would have less than 32 blocks."""
    return max(1, min(_BLOCK_ROWS, rows // _BLOCKS_PER_SHARD))


class Scatter:
    """Rows of one shard in memory, in a random order drawn from (seed, shard)."""

    def __init__(self, layout: Layout, seed: int, index: int, memory: dict[str, Tensor] | None = None) -> None:
        self.layout, self.index, self.filled = layout, index, 0
        rng = np.random.default_rng([seed, index])
        self._places = torch.from_numpy(rng.permutation(layout.rows))
        self.tensors: dict[str, Tensor] = {}
        for name, (dtype, width) in layout.tensors.items():
            held = (memory or {}).get(name)
            reusable = held is not None and len(held) >= layout.rows
            self.tensors[name] = held[: layout.rows] if reusable and held is not None else _rows(layout.rows, width, dtype)

    def put(self, name: str, first: int | Int[Tensor, "row"], rows: Float[Tensor, "row *d"]) -> None:
        """Put rows of one tensor: from the given number on, or those of the given numbers."""
        numbers = self._places[first : first + len(rows)] if isinstance(first, int) else self._places[first]
        _items(self.tensors[name])[numbers.numpy()] = _items(rows.contiguous())

    def shortened(self, rows: int) -> tuple[Layout, dict[str, Tensor]]:
        """Layout and tensors when only the first rows were put."""
        if rows == self.layout.rows:
            return self.layout, self.tensors
        kept = self._places[:rows].sort().values
        layout = Layout(self.layout.tensors, rows, self.layout.block)
        return layout, {name: tensor[kept] for name, tensor in self.tensors.items()}


def _items(rows: Tensor) -> "np.ndarray[Any, Any]":
    """A view of rows in which each is one item, which numpy moves quickest."""
    size = rows.element_size() * (rows.shape[1] if rows.dim() > 1 else 1)
    array: np.ndarray = rows.view(torch.uint8).numpy().reshape(len(rows), size).view(f"V{size}")[:, 0]
    return array


def _rows(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((rows, width) if width else (rows,), dtype=dtype)


class StoreWriter:
    """Writes rows from anywhere into a store; a context manager. The store appears when the block ends without an error.

    Parameters
    ----------
    place
        A new or empty local folder, or an fsspec URL.
    widths
        Site → features.
    dtype
        Type in which rows are kept: float16, bfloat16, float32 or float64. Casts are checked for overflow and loss.
    shard_bytes
        Approximate size of a shard; twice as much memory is used, as one is filled while another is written.
    seed
        Of the order of rows in each shard.
    origin
        What the rows were made from.

    Raises
    ------
    UserError
        When the place is taken.
    """

    def __init__(
        self,
        place: str | Path,
        widths: Mapping[str, int],
        dtype: str = "float32",
        *,
        shard_bytes: int = SHARD_BYTES,
        seed: int = 0,
        origin: Origin | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise unknown("type of rows", dtype, DTYPES)
        self.files: Files = files_at(place)
        if self.files.size(MANIFEST) is not None or self.files.size(PLAN) is not None or self.files.names():
            raise UserError(f"{self.files.place} is not empty; name a new folder.")
        self.sites = tuple(SiteRecord(name=str(name), width=width, dtype=dtype) for name, width in widths.items())  # type: ignore[arg-type]
        self.seed, self.origin = seed, origin or Origin()
        self._rows = shard_rows(self.sites, shard_bytes)
        self._block = block_rows(self._rows)
        self._thread = ThreadPoolExecutor(1)
        self._records: list[Future[ShardRecord]] = []
        self._spare: dict[str, Tensor] = {}  #: memory of the shard that is being written
        self._shard = self._next({})

    def _next(self, memory: dict[str, Tensor]) -> Scatter:
        layout = Layout.of(self.sites, self._rows, self._block)
        return Scatter(layout, self.seed, len(self._records), memory)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def add(
        self,
        rows: Mapping[str, Float[Tensor, "row d"]],
        token: Int[Tensor, "row"] | None = None,
        document: Int[Tensor, "row"] | None = None,
        position: Int[Tensor, "row"] | None = None,
    ) -> None:
        """Add rows of all sites; tokens, documents and positions that are not given are −1.

        Raises
        ------
        UserError
            When shapes differ from those declared, or the type of the store cannot hold a value.
        """
        count = len(next(iter(rows.values())))
        given: dict[str, Tensor | None] = {"token": token, "document": document, "position": position}
        if set(rows) != {site.name for site in self.sites}:
            raise UserError(f"There are rows of {', '.join(rows)}, and the store has {', '.join(s.name for s in self.sites)}.")
        for site in self.sites:
            if rows[site.name].shape != (count, site.width):
                shape = tuple(rows[site.name].shape)
                raise UserError(f"Rows of {site.name} have the shape {shape}; it must be ({count}, {site.width}).")
        if any(label is not None and label.shape != (count,) for label in given.values()):
            raise UserError(f"Labels must be one number for each of the {count} rows.")
        done = 0
        while done < count:
            shard = self._shard
            part = slice(done, done + min(count - done, self._rows - shard.filled))
            size = part.stop - part.start
            for site in self.sites:
                held = rows[site.name][part].detach().cpu()
                shard.put(site.name, shard.filled, cast(held, getattr(torch, site.dtype), site.name, "keep them in a wider type"))
            for name in LABELS:
                label = given[name]
                held = torch.full((size,), -1, dtype=torch.int32) if label is None else label[part].cpu().to(torch.int32)
                shard.put(name, shard.filled, held)
            shard.filled += size
            done += size
            if shard.filled == self._rows:
                self._flush()

    def _flush(self) -> None:
        """Write the shard in another thread, after the one before it; go on with the memory of that one."""
        layout, tensors = self._shard.shortened(self._shard.filled)
        if self._records:
            self._records[-1].result()
        self._records.append(self._thread.submit(write_shard, self.files, self._shard.index, layout, tensors))
        memory, self._spare = self._spare, self._shard.tensors
        self._shard = self._next(memory)

    def close(self) -> None:
        """Write the last shard and the manifest.

        Raises
        ------
        UserError
            When there is no row.
        """
        if self._shard.filled:
            self._flush()
        if not self._records:
            raise UserError(f"No row was added, so {self.files.place} was not written.")
        records = [record.result() for record in self._records]
        self.files.write(MANIFEST, written(finished(self.sites, self._block, self.seed, self.origin, records)))
