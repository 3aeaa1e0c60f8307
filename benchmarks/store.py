"""The activation store beside what bounds it: raw files, np.memmap, and the bare forward loop of a truncated network.

    python benchmarks/store.py [--rows N] [--rounds N] [--parts write read memory harvest] [--write]

1. Write: rows of 576 float16 in batches of 4,096 to a `StoreWriter` (shuffled, with checksums and moments), and the same batches
   appended to one raw file; both synchronised to the disk.
2. Read: batches of 4,096 rows from a mixing buffer of 65,536 rows that is filled with random blocks of 512 rows, by
   `store.batches`, and by hand from an `np.memmap` of the raw file: the same blocks, buffer and batches, without checksums.
   Also the distinct sequences of 128 tokens in a batch.
3. Memory: the high-water mark of a fresh process that reads a tenth of the rows, and all of them.
4. Harvest: the default model up to block 15, sequences of 128 tokens, float16 rows; and a loop that runs a network of these blocks
   alone on the same batches, and keeps nothing.

Rounds alternate; ratios are paired within a round, and are of wall time.
"""

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import describe, rss_mb, versions, write_section

from repscope.store import ActivationStore, StoreWriter

RESULTS = Path(__file__).with_name("RESULTS-features.md")
SITE, WIDTH, LENGTH, BATCH = "resid_post.15", 576, 128, 4096
BLOCK, BUFFER = 512, 65_536


def timed(run):
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def source():
    return torch.randn(BATCH * 16, WIDTH, generator=torch.Generator().manual_seed(0)).half()


def batches_of(rows):
    held = source()
    for first in range(0, rows, BATCH):
        at = first % len(held)
        yield first, held[at : at + min(BATCH, rows - first)]


def write_store(folder, rows):
    shutil.rmtree(folder, ignore_errors=True)
    with StoreWriter(folder, {SITE: WIDTH}, "float16") as writer:
        for first, held in batches_of(rows):
            numbers = torch.arange(first, first + len(held), dtype=torch.int32)
            writer.add({SITE: held}, token=numbers, document=numbers // LENGTH, position=numbers % LENGTH)


def write_raw(path, rows):
    path.unlink(missing_ok=True)
    with path.open("wb", buffering=0) as file:
        for _, held in batches_of(rows):
            file.write(held.numpy().data)
        os.fsync(file.fileno())


def read_store(store, rows):
    seen = 0
    for batch in store.batches(SITE, BATCH, buffer=BUFFER):
        seen += len(batch.rows[SITE])
    assert seen == rows


def read_memmap(path, rows):
    held = np.memmap(path, dtype=np.float16, mode="r", shape=(rows, WIDTH))
    rng = np.random.default_rng(0)
    starts = rng.permutation(np.arange(0, rows, BLOCK))
    buffer, seen = np.empty((BUFFER, WIDTH), np.float16), 0
    for first in range(0, len(starts), BUFFER // BLOCK):
        filled = 0
        for start in starts[first : first + BUFFER // BLOCK]:
            block = held[start : start + BLOCK]
            buffer[filled : filled + len(block)] = block
            filled += len(block)
        order = rng.permutation(filled)
        for at in range(0, filled, BATCH):
            seen += len(buffer[order[at : at + BATCH]])
    assert seen == rows


def distinct(folder):
    """Distinct sequences in each whole batch."""
    found = [len(b.labels.document.unique()) for b in ActivationStore(folder).batches(SITE, BATCH, labels=True) if len(b) == BATCH]
    return min(found), statistics.median(found)


def memory_of(folder):
    """High-water mark in MB of a fresh process that reads a store once."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from machine import rss_mb\nfrom repscope.store import ActivationStore\n"
        f"seen = sum(len(b) for b in ActivationStore({str(folder)!r}).batches({SITE!r}))\n"
        "print(rss_mb('VmHWM'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def harvested(folder, sequences, rounds):
    """Wall seconds of harvest and of the bare loop per round, and the number of tokens."""
    import repscope as rs
    from repscope.data.corpus import corpus
    from repscope.models.engine.positions import padded
    from repscope.store import cut, harvest
    from repscope.store.files import files_at
    from repscope.store.plan import read_plan

    lm = rs.load()
    whole = cut(lm, list(corpus().sample(3000)), LENGTH)
    full = np.flatnonzero(whole.lengths == LENGTH)[:sequences]
    texts = [lm.tokenizer.decode(ids) for ids in whole.take(full).ragged]
    block = int(SITE.rpartition(".")[2])
    body = lm.model.model
    layers = body.layers

    def ours():
        shutil.rmtree(folder, ignore_errors=True)
        harvest(lm, texts, SITE, folder, length=LENGTH, dtype="float16")

    ours()  # plans and proofs
    plan = read_plan(files_at(folder))
    held = plan.read_sequences(files_at(folder))
    work, first = [], 0
    for count, _ in plan.shards:
        ids = held.take(np.arange(first, first + count)).ragged
        work.append((ids, lm.planned(ids, plan.batch_tokens, lm.resolve(SITE))))
        first += count
    if any(planned.tree is not None for _, planned in work):
        raise SystemExit("packed: give sequences of equal length")

    def bare():
        body.layers = layers[: block + 1]
        try:
            with torch.no_grad():
                for _, planned in work:
                    for batch in reversed(planned.batches):
                        rows, _ = padded([planned.ids[i] for i in batch], lm.pad)
                        body(input_ids=torch.from_numpy(rows), use_cache=False)
        finally:
            body.layers = layers

    bare()
    times = []
    for i in range(rounds):
        pair = {
            name: timed(run)[0] for name, run in ((("ours", ours), ("bare", bare)) if i % 2 else (("bare", bare), ("ours", ours)))
        }
        times.append((pair["ours"], pair["bare"]))
    return times, plan.rows, sum(len(p.batches) for _, p in work)


def main():
    asked = argparse.ArgumentParser()
    asked.add_argument("--rows", type=int, default=2_000_000)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--sequences", type=int, default=160)
    asked.add_argument("--parts", nargs="+", default=["write", "read", "memory", "harvest"])
    asked.add_argument("--folder", type=Path)
    asked.add_argument("--write", action="store_true")
    given = asked.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="repscope-store-"))
    folder.mkdir(exist_ok=True)
    store, raw, small = folder / "store", folder / "raw.f16", folder / "small"
    size = given.rows * WIDTH * 2 / 1e6
    lines = ["| | MB/s, wall | MB per CPU-second | share of the bound, wall |", "|---|---|---|---|"]
    notes = []

    def compare(name, ours, bound_name, bound):
        rounds = []
        for i in range(given.rounds):
            pair = {}
            for which, run in ((0, ours), (1, bound)) if i % 2 else ((1, bound), (0, ours)):
                pair[which] = timed(run)
            rounds.append(pair)
        shares = [r[1][0] / r[0][0] for r in rounds]
        for which, label in ((0, name), (1, bound_name)):
            wall, cpu = (statistics.median(size / r[which][k] for r in rounds) for k in (0, 1))
            share = f"{statistics.median(shares):.2f} ({min(shares):.2f}–{max(shares):.2f})" if not which else ""
            lines.append(f"| {label} | {wall:,.0f} | {cpu:,.0f} | {share} |")
        print("\n".join(lines[-2:]), flush=True)

    if "write" in given.parts:
        compare("store, write", lambda: write_store(store, given.rows), "one raw file, write", lambda: write_raw(raw, given.rows))
    if "read" in given.parts:
        if not raw.exists():
            write_raw(raw, given.rows)
        if not store.exists():
            write_store(store, given.rows)
        held = ActivationStore(store)
        read_store(held, given.rows)
        read_memmap(raw, given.rows)
        bound = "np.memmap, the same reads", lambda: read_memmap(raw, given.rows)
        compare("store, shuffled read", lambda: read_store(held, given.rows), *bound)
        compare("store, the first epoch, with checksums", lambda: read_store(ActivationStore(store), given.rows), *bound)
        least, median = distinct(store)
        notes.append(f"Distinct sequences in a batch of {BATCH:,} rows: {median:,.0f} (median), {least:,} (least).")
    if "memory" in given.parts:
        if not store.exists():
            write_store(store, given.rows)
        write_store(small, given.rows // 10)
        few, many = memory_of(small), memory_of(store)
        notes.append(
            f"High-water mark of a process that reads {given.rows // 10:,} rows: {few:,.0f} MB; {given.rows:,} rows: "
            f"{many:,.0f} MB (importing repscope and torch included). This process: {rss_mb():,.0f} MB."
        )
    if "harvest" in given.parts:
        times, rows, passes = harvested(folder / "harvest", given.sequences, given.rounds)
        shares = [bare / ours for ours, bare in times]
        notes.append(
            f"Harvest of {rows:,} rows in {passes} passes: {statistics.median(rows / ours for ours, _ in times):,.0f} rows/s; "
            f"the bare forward loop of 16 blocks {statistics.median(rows / bare for _, bare in times):,.0f}; share "
            f"{statistics.median(shares):.2f} ({min(shares):.2f}–{max(shares):.2f})."
        )
    for note in notes:
        print(note)
    shutil.rmtree(folder, ignore_errors=True)
    if given.write:
        head = (
            f"## Activation store: {', '.join(given.parts)}\n\n`python benchmarks/store.py --rows {given.rows} --rounds "
            f"{given.rounds} --parts {' '.join(given.parts)}`, "
            f"{datetime.date.today()}. {describe()}. {versions(['torch', 'numpy', 'transformers'])}, {torch.get_num_threads()} "
            f"threads. {given.rows:,} rows of {WIDTH} float16. Median over rounds (least–most)."
        )
        name = "store" if "write" in given.parts else f"store, {' '.join(given.parts)}"
        write_section(name, "\n\n".join([head, *(["\n".join(lines)] if len(lines) > 2 else []), *notes]), RESULTS)
    print(json.dumps({"notes": len(notes)}))


if __name__ == "__main__":
    main()
