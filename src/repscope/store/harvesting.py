"""Harvest: the activations of a corpus, written to a store by any number of workers.

1. The corpus is cut to sequences (`sequences`), whose order is drawn from the seed, and shards are runs of them. `plan.json` and
   the sequences are written first, so that workers need neither the corpus nor the tokenizer.
2. A worker takes the lease of a shard that has no record, runs its sequences through the blocks up to the last site, scatters the
   rows over the shard (`writing`), writes the shard and then its record.
3. When every shard has a record, the manifest is written and the leases are removed.

Passes are planned per shard from its sequences alone, and the plan fixes tokens per pass and threads, so a shard has the same bytes
whoever writes it and however often. The same harvest again continues, and repairs shards that differ from their checksums.
"""

import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from repscope.disk import need_folder, need_space
from repscope.errors import UserError, unknown
from repscope.models.prompts import Ragged
from repscope.models.sites import Site
from repscope.store.files import Files, LocalFiles, files_at
from repscope.store.leases import SECONDS, acquire
from repscope.store.manifest import MANIFEST, CorpusRecord, ModelRecord, Origin, SiteRecord, written
from repscope.store.plan import SEQUENCES, HarvestPlan, digest_of, read_plan
from repscope.store.ray_engine import run_on_ray
from repscope.store.reading import PLAN, ActivationStore
from repscope.store.sequences import Sequences, cut, tokenizer_fingerprint
from repscope.store.workers import finish, repair, work
from repscope.store.writing import DTYPES, SHARD_BYTES, block_rows, bytes_per_row, shard_rows

if TYPE_CHECKING:
    from repscope.data.corpus import Corpus
    from repscope.models.language import LanguageModel


def harvest(
    lm: "LanguageModel",
    corpus: "Corpus | Sequence[str]",
    at: str | Site | Sequence[str | Site],
    out: str | Path,
    *,
    length: int = 128,
    rows: int | None = None,
    dtype: str | None = None,
    skip: int = 0,
    seed: int = 0,
    batch_tokens: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    workers: int = 1,
    engine: Literal["local", "ray"] = "local",
    lease_seconds: float = SECONDS,
) -> ActivationStore:
    """Write the activations of a corpus to a store, or continue to.

    Parameters
    ----------
    lm
        The network. Workers in other processes load it by its name, which a network that was made in memory does not have.
    corpus
        A `Corpus`, or a list of texts.
    at
        Sites with one vector per token.
    out
        A new or empty folder, one that has this harvest, or an fsspec URL.
    length
        Tokens per sequence.
    rows
        At most so many rows: whole sequences in an order drawn from the seed. None for all.
    dtype
        Type of the rows: float16, bfloat16, float32 or float64; by default the network's own.
    skip
        First tokens of each sequence that are left out (vectors at the first token are often outliers).
    seed
        Of the order of sequences and rows.
    batch_tokens
        Tokens per forward pass; by default chosen from the device's speed and memory.
    shard_bytes
        Approximate size of a shard, and the memory of a worker beside the network's.
    workers
        Processes on this machine (local), or actors in the cluster (ray).
    engine
        "local", or "ray" for Ray Core actors, which need a place that all nodes reach.
    lease_seconds
        Time after which another machine takes over the shard of a worker that has stopped.

    Returns
    -------
    ActivationStore
        The finished store.

    Raises
    ------
    UserError
        When the place has another harvest, the network has changed, a value is not finite or does not fit the type, the disk is
        full, or the network is edited. What was written is kept.
    """
    if engine not in ("local", "ray"):
        raise unknown("engine", engine, ("local", "ray"))
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise UserError(f"workers is {workers!r}; it must be a whole number, 1 or more.")
    if lm.installed:
        raise UserError("A harvest of an edited network would be stored as the network's own; leave `lm.edit` first.")
    files = files_at(out)
    if isinstance(files, LocalFiles) and not files.folder.exists():
        need_folder(files.folder)
    sites = _sites(lm, at, dtype)
    wanted = {"sites": sites, "length": length, "rows": rows, "skip": skip, "seed": seed, "shard_bytes": shard_bytes}
    plan = _planned(lm, corpus, files, wanted, batch_tokens, lease_seconds)
    repair(files, plan)
    if files.size(MANIFEST) is None:
        if engine == "ray":
            run_on_ray(files.place, plan, workers, lease_seconds, gpu=lm.device.type == "cuda")
        else:
            with _helpers(files, plan, workers - 1, lease_seconds):
                work(files, lm, plan, lease_seconds=lease_seconds)
    finish(files, plan, lease_seconds)  # also where the manifest is there: a worker killed just after it leaves leases
    return ActivationStore(files.place)


def _sites(lm: "LanguageModel", at: Any, dtype: str | None) -> tuple[SiteRecord, ...]:
    """The sites with their widths, from a pass over two tokens."""
    if dtype is not None and dtype not in DTYPES:
        raise unknown("type of rows", dtype, DTYPES)
    kept: Any = dtype or str(lm.model.dtype).removeprefix("torch.")
    probe = lm.capture(Ragged.of([np.zeros(2)]), at, "all")  # not a list, which may not begin with padding
    for site, held in probe.rows.items():
        if held.ndim != 2:
            raise UserError(f"{site} has {held.ndim - 1} axes per token, and a store has vectors; choose another site.")
    return tuple(SiteRecord(name=str(site), width=int(held.shape[1]), dtype=kept) for site, held in probe.rows.items())


def _planned(
    lm: "LanguageModel", corpus: Any, files: Files, wanted: dict[str, Any], batch_tokens: int | None, lease_seconds: float
) -> HarvestPlan:
    """The plan of this harvest: that of the place if it is the same, else a new one."""
    before = read_plan(files) if files.size(PLAN) is not None else None
    if before is None and files.size(MANIFEST) is not None:
        raise UserError(f"{files.place} has a store that no harvest made; name a new folder.")
    if before is None and (foreign := [n for n in files.names() if not n.startswith((SEQUENCES, "."))]):
        raise UserError(f"{files.place} is not empty (it has {foreign[0]}); name a new folder.")
    documents = corpus if hasattr(corpus, "fingerprint") else list(corpus)
    told = CorpusRecord(
        name=str(getattr(corpus, "name", "list of texts")),
        fingerprint=corpus.fingerprint if hasattr(corpus, "fingerprint") else digest_of("\0".join(documents).encode()),
        documents=len(documents),
        sources=dict(getattr(corpus, "sources", {})),
    )
    origin = Origin(
        model=ModelRecord(name=lm.name, fingerprint=lm.fingerprint, precision=lm.source.precision, revision=lm.source.revision),
        tokenizer=tokenizer_fingerprint(lm.tokenizer),
        corpus=told,
        length=wanted["length"],
        skip=wanted["skip"],
    )
    asked = {"origin": origin, "sites": wanted["sites"], "seed": wanted["seed"], "asked_rows": wanted["rows"]}
    asked |= {"shard_bytes": wanted["shard_bytes"]}
    if before is not None:
        before.refuse_another(files.place, asked | ({"batch_tokens": batch_tokens} if batch_tokens is not None else {}))
        if not before.has_sequences(files):
            content = _divided(cut(lm, documents, wanted["length"]), wanted)[0].to_bytes()
            if digest_of(content) == before.sequences:  # otherwise workers refuse it
                warnings.warn(f"{files.place}/{SEQUENCES}.safetensors is damaged or missing; it is made again.", stacklevel=3)
                files.write(f"{SEQUENCES}.safetensors", content)
        return before
    lease = acquire(files, "plan", lease_seconds)
    if lease is None:
        raise UserError(f"Another harvest into {files.place} is being planned; run this again when it has begun.")
    try:
        if files.size(PLAN) is not None:
            raise UserError(f"Another harvest into {files.place} has just begun; run this again to help it, if it is the same.")
        sequences, shards = _divided(cut(lm, documents, wanted["length"]), wanted)
        content = sequences.to_bytes()
        if isinstance(files, LocalFiles):
            need_space(files.folder, sum(count for _, count in shards) * bytes_per_row(wanted["sites"]) + len(content))
        precision: Any = str(lm.model.dtype).removeprefix("torch.")
        plan = HarvestPlan(
            **asked,
            block=block_rows(max(count for _, count in shards)),
            batch_tokens=batch_tokens or lm.batch_tokens,
            threads=torch.get_num_threads(),
            sequences=digest_of(content),
            shards=shards,
            load=_loadable(lm),
            dtype=precision,
        )
        files.write(f"{SEQUENCES}.safetensors", content)
        files.write(PLAN, written(plan))
        return plan
    finally:
        lease.release()


def _divided(sequences: Sequences, wanted: dict[str, Any]) -> tuple[Sequences, tuple[tuple[int, int], ...]]:
    """Sequences in random order, and the sequences and rows of each shard."""
    order = np.random.default_rng([wanted["seed"], 2**32 - 1]).permutation(len(sequences))
    counts = sequences.rows(wanted["skip"])[order]
    order, counts = order[counts > 0], counts[counts > 0]
    if wanted["rows"] is not None:
        most = int(np.searchsorted(np.cumsum(counts), wanted["rows"], side="right"))
        order, counts = order[:most], counts[:most]
    if not len(order):
        raise UserError("No row remains: every sequence is longer than `rows`, or shorter than `skip`; change one of them.")
    target = shard_rows(wanted["sites"], wanted["shard_bytes"])
    ends = np.cumsum(counts)
    parts = max(1, round(int(ends[-1]) / target))
    cuts = np.unique(np.searchsorted(ends, np.arange(1, parts) * ends[-1] / parts, side="left") + 1)
    edges = [0, *(int(c) for c in cuts if 0 < c < len(order)), len(order)]
    shards = tuple((b - a, int(counts[a:b].sum())) for a, b in pairwise(edges))
    return sequences.take(order), shards


def _loadable(lm: "LanguageModel") -> str | None:
    """What `rs.load` takes to load the network again; None for one that was made in memory."""
    from repscope.models.loading.sources import ALIASES

    if lm.source.path is None:
        return None
    return lm.name if lm.name in ALIASES or lm.source.revision is not None else str(lm.source.path)


@contextmanager
def _helpers(files: Files, plan: HarvestPlan, count: int, lease_seconds: float) -> Iterator[None]:
    """Worker processes on this machine, as long as the block runs."""
    if count and plan.load is None:
        raise UserError(f"{plan.model.name} was made in memory, so no other process can load it; use one worker.")
    command = [sys.executable, "-m", "repscope", "worker", files.place, "--lease-seconds", str(lease_seconds)]
    # In a session of their own: Ctrl-C in a terminal reaches this process, which ends them.
    started = [subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for helper in started:
            helper.kill()  # shards are whole or absent, and leases of processes that are gone are taken over
            helper.wait()
