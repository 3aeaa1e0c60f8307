"""`ActivationStore`: rows of activations in shuffled order, read in blocks.

1. Rows are in random order inside each shard already (`writing`).
2. Each epoch draws an order of all blocks: every shard's blocks in random order, spread evenly over the epoch, so that any
   stretch of it has every shard's share.
3. As many blocks as fit are read into a mixing buffer, its rows are permuted, and batches are cut from it. Rows that remain begin
   the next batch, so that every epoch has every row exactly once.

The order depends on the seed, the epoch and the size of the buffer alone. A `Position` continues it exactly after reading one
buffer. Memory is two buffers (one is filled while the other is read), independent of the number of rows.
"""

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError, unknown
from repscope.store.batches import Batch, Labels, Position
from repscope.store.files import Files, files_at
from repscope.store.manifest import MANIFEST, Manifest, SiteRecord, parsed
from repscope.store.shards import LABELS, REPAIR, Layout, check_header, damaged_blocks, raw, shard_name

PLAN = "plan.json"  #: of a harvest
BUFFER_ROWS = 65_536
_Filled = tuple[Position, dict[str, Tensor], Tensor]  #: place, tensors and the order of their rows


@dataclass(frozen=True)
class _Block:
    """A block of a shard. at: its number in the store. index: of its shard. number: in it. rows: its number of rows."""

    at: int
    index: int
    number: int
    rows: int


class ActivationStore:
    """A finished store. Every block is compared with its checksum the first time that it is read through this object.

    Parameters
    ----------
    place
        A local folder, or an fsspec URL such as `s3://bucket/folder`.

    Raises
    ------
    UserError
        When there is no finished store, or a file of it is damaged.

    >>> import tempfile, torch
    >>> from repscope.store import StoreWriter
    >>> folder = tempfile.mkdtemp() + "/store"
    >>> with StoreWriter(folder, {"resid_post.1": 4}, "float32") as writer:
    ...     writer.add({"resid_post.1": torch.randn(100, 4)})
    >>> store = ActivationStore(folder)
    >>> [len(batch) for batch in store.batches("resid_post.1", rows=64)]
    [64, 36]
    """

    def __init__(self, place: str | Path) -> None:
        self.files: Files = files_at(place)
        if self.files.size(MANIFEST) is None:
            if self.files.size(PLAN) is not None:
                raise UserError(
                    f"{self.files.place} is not finished; run the same harvest again, or `repscope worker {self.files.place}`."
                )
            raise UserError(f"{self.files.place} is no activation store: it has no {MANIFEST}; check the path.")
        self.manifest: Manifest = parsed(Manifest, self.files, MANIFEST, REPAIR)
        held = self.manifest
        self._layouts = [Layout.of(held.sites, shard.rows, held.block) for shard in held.shards]
        widths = {site.name: site.width for site in held.sites}
        whole = set(held.mean) == set(held.variance) == set(widths)
        whole = whole and all(len(held.mean[n]) == len(held.variance[n]) == w for n, w in widths.items())
        fits = all(layout.fits(shard) for layout, shard in zip(self._layouts, held.shards, strict=True))
        if not whole or not fits or sum(shard.rows for shard in held.shards) != held.rows:
            raise UserError(f"{self.files.place}/{MANIFEST} is damaged (its counts disagree); {REPAIR}.")
        self._checked: set[int] = set()  #: shards whose size and header were looked at
        self._sound: dict[str, np.ndarray] = {}  #: per tensor, blocks that were compared with their checksums

    def __len__(self) -> int:
        return self.manifest.rows

    def __repr__(self) -> str:
        return f"ActivationStore({self.files.place}, {len(self):,} rows, {', '.join(self.sites)}, {len(self._layouts)} shards)"

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(site.name for site in self.manifest.sites)

    @property
    def fingerprint(self) -> str:
        """Digest of the manifest, which holds the checksums of all blocks."""
        import hashlib

        return hashlib.sha256(self.files.read(MANIFEST)).hexdigest()[:16]

    def width(self, site: str) -> int:
        """Features of a site."""
        return self._site(site).width

    def dtype(self, site: str) -> torch.dtype:
        """Type of a site's rows."""
        found: torch.dtype = getattr(torch, self._site(site).dtype)
        return found

    def mean(self, site: str) -> Float[Tensor, "d"]:
        """Mean of each feature over all rows, in float64."""
        return torch.tensor(self.manifest.mean[self._site(site).name], dtype=torch.float64)

    def variance(self, site: str) -> Float[Tensor, "d"]:
        """Population variance of each feature over all rows, in float64."""
        return torch.tensor(self.manifest.variance[self._site(site).name], dtype=torch.float64)

    def _site(self, name: str) -> SiteRecord:
        for site in self.manifest.sites:
            if site.name == str(name):
                return site
        raise unknown("site in this store", str(name), self.sites)

    @cached_property
    def _blocks(self) -> list[_Block]:
        size = self.manifest.block
        places = [(index, number) for index, layout in enumerate(self._layouts) for number in range(layout.blocks)]
        rows = [layout.rows for layout in self._layouts]
        return [_Block(at, index, n, min(size, rows[index] - n * size)) for at, (index, n) in enumerate(places)]

    def order(self, seed: int, epoch: int) -> Int[np.ndarray, "block"]:
        """The order of all blocks in an epoch: random within each shard, and each shard spread evenly over the epoch."""
        rng = np.random.default_rng([seed, epoch])
        counts = np.array([layout.blocks for layout in self._layouts])
        places = [(rng.permutation(n) + rng.random(n)) / n for n in counts]
        order: np.ndarray = np.argsort(np.concatenate(places), kind="stable")
        return order

    def batches(
        self,
        sites: str | Sequence[str] | None = None,
        rows: int = 4096,
        seed: int = 0,
        start: Position | None = None,
        *,
        epochs: int | None = 1,
        buffer: int = BUFFER_ROWS,
        labels: bool = False,
    ) -> Iterator[Batch]:
        """Batches of rows in shuffled order, deterministic in the seed.

        Parameters
        ----------
        sites
            Sites to read; None for all.
        rows
            Rows per batch. The last batch may have fewer.
        seed
            Of the order.
        start
            The position of an earlier batch, to continue after it; with the same seed and buffer the following batches are the
        same. epochs
            Passes over all rows, counted from epoch 0; None never ends. Batches may span two epochs.
        buffer
            Rows of the mixing buffer; rounded to whole blocks.
        labels
            Whether to read tokens, documents and positions too.

        Yields
        ------
        Batch
            With the position after it.

        Raises
        ------
        UserError
            For unknown sites, a position that is none of this store, and a block that differs from its checksum.
        """
        names = [self._site(s).name for s in ([sites] if isinstance(sites, str) else self.sites if sites is None else sites)]
        for what, count in (("rows", rows), ("buffer", buffer)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise UserError(f"{what} is {count!r}; it must be a whole number, 1 or more.")
        if not names:
            raise UserError("No site was asked for; name one of " + ", ".join(self.sites) + ".")
        start = start or Position()
        step = max(1, buffer // self.manifest.block)
        if min(start.epoch, start.block, start.offset) < 0 or start.block % step or start.block > len(self._blocks):
            raise UserError(f"{start} is no position of this store with a buffer of {buffer} rows; use those it was made with.")
        return self._batches(list(dict.fromkeys(names)), rows, seed, start, epochs, step, labels)

    def _batches(
        self, names: list[str], rows: int, seed: int, start: Position, epochs: int | None, step: int, labels: bool
    ) -> Iterator[Batch]:
        tensors = [*names, *(LABELS if labels else ())]
        parts: list[dict[str, Tensor]] = []
        missing, place = rows, start
        with ThreadPoolExecutor(1) as reader:
            for first, held, permutation in self._buffers(reader, tensors, seed, start, epochs, step):
                offset = start.offset if (first.epoch, first.block) == (start.epoch, start.block) else 0
                if offset > len(permutation):
                    raise UserError(f"{start} is no position of this store; its buffer has {len(permutation)} rows.")
                while offset < len(permutation):
                    chosen = permutation[offset : offset + missing]
                    parts.append({name: _chosen(held[name], chosen) for name in tensors})
                    offset += len(chosen)
                    missing -= len(chosen)
                    place = Position(first.epoch, first.block, offset)
                    if not missing:
                        yield _batch(names, parts, place, labels)
                        parts, missing = [], rows
        if parts:
            yield _batch(names, parts, place, labels)

    def _buffers(
        self, reader: ThreadPoolExecutor, tensors: list[str], seed: int, start: Position, epochs: int | None, step: int
    ) -> Iterator[_Filled]:
        """Mixing buffers and the order of their rows; the next is read while one is in use."""
        memory: list[dict[str, Tensor]] = [{}, {}]

        def places() -> Iterator[tuple[Position, list[_Block]]]:
            epoch, first = start.epoch, start.block
            while epochs is None or epoch < epochs:
                order = self.order(seed, epoch)
                for at in range(first, len(order), step):
                    yield Position(epoch, at), [self._blocks[i] for i in order[at : at + step]]
                epoch, first = epoch + 1, 0

        def filled(number: int, place: Position, blocks: list[_Block]) -> _Filled:
            held = self._fill(memory[number % 2], tensors, blocks, step * self.manifest.block)
            rng = np.random.default_rng([seed, place.epoch, place.block, 1])
            return place, held, torch.from_numpy(rng.permutation(sum(block.rows for block in blocks)))

        waiting: Future[_Filled] | None = None
        for number, (place, blocks) in enumerate(places()):
            following = reader.submit(filled, number, place, blocks)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()

    def _fill(self, memory: dict[str, Tensor], tensors: list[str], blocks: list[_Block], most: int) -> dict[str, Tensor]:
        """Read blocks one after the other into memory, which is made at first use, and check them."""
        if not memory:
            for name in tensors:
                dtype, width = self._layouts[0].tensors[name]
                memory[name] = torch.empty((most, width) if width else (most,), dtype=dtype)
        for index in {block.index for block in blocks} - self._checked:
            check_header(self.files, index, self._layouts[index])
            self._checked.add(index)
        ranges, buffers, sums = [], [], []
        for name in tensors:
            self._sound.setdefault(name, np.zeros(len(self._blocks), dtype=bool))
        at = 0
        for block in blocks:
            layout, record = self._layouts[block.index], self.manifest.shards[block.index]
            for name in tensors:
                ranges.append(layout.range(shard_name(block.index), name, block.number))
                buffers.append(raw(memory[name][at : at + block.rows]))
                sums.append((self._sound[name], block.at, record.crc[name][block.number]))
            at += block.rows

        def check(number: int) -> None:
            sound, block, crc = sums[number]
            if not sound[block] and zlib.crc32(buffers[number]) != crc:
                name, first, _ = ranges[number]
                raise UserError(
                    f"{self.files.place}/{name} is corrupt: the bytes from {first} differ from their checksum; {REPAIR}."
                )
            sound[block] = True

        try:
            self.files.read_into(ranges, buffers, check)
        except FileNotFoundError as error:
            raise UserError(f"{self.files.place} lacks a shard ({error.filename}); {REPAIR}.") from error
        return {name: memory[name][:at] for name in tensors}

    def verify(self) -> None:
        """Read everything and compare it with the checksums.

        Raises
        ------
        UserError
            Names the first damaged shard.
        """
        for index, (layout, record) in enumerate(zip(self._layouts, self.manifest.shards, strict=True)):
            check_header(self.files, index, layout)
            for name, block in damaged_blocks(self.files, index, layout, record):
                raise UserError(f"{self.files.place}/{shard_name(index)} is corrupt in block {block} of {name}; {REPAIR}.")


def _chosen(rows: Tensor, chosen: Int[Tensor, "row"]) -> Tensor:
    """Rows by their numbers; moved as 64-bit integers where they fit, twice as quick as in half precision."""
    if rows.dim() > 1 and rows.shape[1] * rows.element_size() % 8 == 0:
        return rows.view(torch.int64).index_select(0, chosen).view(rows.dtype)
    return rows.index_select(0, chosen)


def _batch(names: list[str], parts: list[dict[str, Tensor]], place: Position, labels: bool) -> Batch:
    whole = {name: parts[0][name] if len(parts) == 1 else torch.cat([part[name] for part in parts]) for name in parts[0]}
    told = Labels(*(whole[name] for name in LABELS)) if labels else None
    return Batch({name: whole[name] for name in names}, place, told)
