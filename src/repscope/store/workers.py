"""Work of a harvest: shards under leases, their repair, and the manifest at the end. See `harvest`."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.engine.row_writer import cast
from repscope.models.prompts import Encoded
from repscope.models.sites import Site, Tokens
from repscope.progress import progress
from repscope.store.files import Files, LocalFiles
from repscope.store.leases import SECONDS, Lease, acquire
from repscope.store.manifest import MANIFEST, Manifest, ShardRecord, finished, parsed, written
from repscope.store.plan import HarvestPlan
from repscope.store.sequences import Sequences
from repscope.store.shards import sound, write_shard
from repscope.store.writing import Scatter

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

_POLL_SECONDS = 0.5  #: between looks at shards that other workers have


def repair(files: Files, plan: HarvestPlan) -> None:
    """Forget shards that are missing or differ from their checksums, and the manifest with them, so that they are written again.

    A damaged manifest is forgotten too: it is made from the records of the shards.
    """
    names = set(files.names("shards"))
    if files.size(MANIFEST) is not None:
        try:
            parsed(Manifest, files, MANIFEST, "it is made again")
        except UserError as error:
            warnings.warn(str(error), stacklevel=2)
            files.remove(MANIFEST)
    damaged = []
    for index in range(len(plan.shards)):
        if record_name(index) in names:
            record = _record(files, plan, index)
            if record is None or not sound(files, index, plan.layout(index), record):
                damaged.append(index)
        elif files.size(MANIFEST) is not None:
            damaged.append(index)
    if damaged:
        if files.size(MANIFEST) is not None:
            warnings.warn(f"{files.place} has {len(damaged)} damaged or missing shards; they are made again.", stacklevel=2)
        files.remove(MANIFEST)
        for index in damaged:
            files.remove(record_name(index))


def record_name(index: int) -> str:
    """The file of a shard's record."""
    return f"shards/{index:05d}.json"


def _record(files: Files, plan: HarvestPlan, index: int) -> ShardRecord | None:
    """The record of a shard; None where it is damaged or another's."""
    try:
        record = parsed(ShardRecord, files, record_name(index), "")
    except UserError:
        return None
    return record if plan.layout(index).fits(record) and record.rows == plan.shards[index][1] else None


def work(
    files: Files,
    lm: "LanguageModel",
    plan: HarvestPlan,
    *,
    lease_seconds: float = SECONDS,
    most: int | None = None,
    wait: bool = True,
) -> int:
    """Write shards until all have records, or `most` were written; return their number.

    `wait`: for shards that other workers have.

    Raises
    ------
    UserError
        When the network is not that of the plan, and as `harvest`.
    """
    plan.check_model(lm)
    sequences = plan.read_sequences(files)
    done = 0
    memory: dict[str, Tensor] = {}
    with _threads(plan.threads), progress("Harvesting", plan.rows) as advance:
        while most is None or done < most:
            names = set(files.names("shards"))
            missing = [i for i in range(len(plan.shards)) if record_name(i) not in names]
            taken = next(((i, lease) for i in missing if (lease := acquire(files, f"shard-{i:05d}", lease_seconds))), None)
            if taken is None:
                if not missing or not wait or files.size(MANIFEST) is not None:
                    break
                time.sleep(_POLL_SECONDS)
                continue
            index, lease = taken
            try:
                if files.size(record_name(index)) is None:  # it may have been written meanwhile
                    _sweep(files, f"shards/.{index:05d}.")
                    memory = _write(files, lm, plan, sequences, index, lease, memory)
                    done += 1
                    advance(plan.shards[index][1])
            finally:
                lease.release()
    return done


def _write(
    files: Files, lm: "LanguageModel", plan: HarvestPlan, sequences: Sequences, index: int, lease: Lease, memory: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Run the sequences of a shard and write it; returns the memory for the next."""
    first = sum(count for count, _ in plan.shards[:index])
    held = sequences.take(np.arange(first, first + plan.shards[index][0]))
    skip = plan.origin.skip
    encoded = Encoded(held.ragged, np.full(len(held), held.lead + skip), held.lengths - held.tail)
    shard = Scatter(plan.layout(index), plan.seed, index, memory)
    kinds: dict[Site, tuple[str, torch.dtype]] = {}
    for site in plan.sites:
        resolved = lm.resolve(site.name)[0]
        kinds[resolved] = (site.name, getattr(torch, site.dtype))

    def sink(site: Site, destination: Int[np.ndarray, "row"], rows: Tensor) -> None:
        name, dtype = kinds[site]
        shard.put(name, torch.from_numpy(destination), cast(rows.detach(), dtype, name, "keep them with dtype='float32'").cpu())
        lease.renew()

    sites = list(kinds)
    lm.run_once_per_pass(sites)
    lm.run(sites, encoded, lm.planned(encoded.ids, plan.batch_tokens, sites), Tokens("all"), sink)
    counts = held.rows(skip)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    at = np.repeat(held.offsets[:-1] + held.lead + skip, counts) + within
    labels = {
        "token": held.ids[at],
        "document": np.repeat(held.document, counts),
        "position": np.repeat(held.start, counts) + skip + within,
    }
    for name, values in labels.items():
        shard.put(name, 0, torch.from_numpy(values.astype(np.int32)))
    try:
        record = write_shard(files, index, shard.layout, shard.tensors)
        files.write(record_name(index), written(record))
    except FileNotFoundError:  # the lease had ended, and the worker who took it over has cleared the unfinished file
        pass
    return shard.tensors


def finish(files: Files, plan: HarvestPlan, lease_seconds: float = SECONDS) -> bool:
    """Write the manifest if all shards have records; whether the store is finished.

    Raises
    ------
    UserError
        When a record is damaged.
    """
    names = set(files.names("shards"))
    if any(record_name(i) not in names for i in range(len(plan.shards))):
        return False
    while files.size(MANIFEST) is None:
        lease = acquire(files, "manifest", lease_seconds)
        if lease is None:
            time.sleep(_POLL_SECONDS)
            continue
        try:
            records = []
            for index in range(len(plan.shards)):
                record = _record(files, plan, index)
                if record is None:
                    raise UserError(f"{files.place}/{record_name(index)} is damaged; run the same harvest again, which repairs it.")
                records.append(record)
            files.write(MANIFEST, written(finished(plan.sites, plan.block, plan.seed, plan.origin, records)))
        finally:
            lease.release()
    _sweep(files, "shards/.")
    _sweep(files, ".")
    _sweep(files, "leases/")
    if isinstance(files, LocalFiles):
        with suppress(OSError):  # absent, or in use
            (files.folder / "leases").rmdir()
    return True


def _sweep(files: Files, prefix: str) -> None:
    """Remove unfinished files, or all leases."""
    folder = prefix.rpartition("/")[0]
    for name in files.names(folder):
        if name.startswith(prefix) and (name.endswith(".part") or folder == "leases"):
            files.remove(name)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
