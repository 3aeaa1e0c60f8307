"""Drift of weights compared with the disk-read floor, on two SmolLM2-135M checkpoints in float32.

1. The base is the cached default model; the tuned checkpoint is a copy with small noise on every weight, in a temporary folder.
2. Floor: every byte of both files read once by one thread, through a memory mapping (each part copied into a buffer that stays in
   the cache), and as a second floor by plain reads into the same buffer, without page faults. The page cache is warm: both files
   were read before.
3. The same from the disk: the pages of both files are dropped before each reading (`posix_fadvise`), which is what a pair larger
   than memory costs.
4. Measured: norms, cosines and unchanged shares in float32 and bfloat16 (`measured`, without spectra and without the rounding
   control), with one thread and with one per core. Goal: 70 % of the floor of the mapping, in wall time.
5. All in each round, in turn, several rounds; ratios within a round, of wall time and, for one thread, of CPU time, which other
   processes on the machine change less. Also the numbers compared with a float64 twin, once.

    python benchmarks/compare_weights.py --write
"""

import argparse
import datetime
import mmap
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import machine
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from repscope.models.loading.sources import folder_of
from repscope.trace.drift.entrywise import PART, Sums
from repscope.trace.drift.pair import Pair
from repscope.trace.drift.weights import measured

GOAL = 0.7


def noisy(base: Path, to: Path) -> Path:
    """A copy of a checkpoint with noise of a thousandth of each weight's scale."""
    to.mkdir()
    shutil.copy(base / "config.json", to)
    g, state = torch.Generator().manual_seed(0), load_file(base / "model.safetensors")
    for value in state.values():
        value.add_(torch.randn(value.shape, generator=g), alpha=1e-3 * float(value.std()))
    save_file(state, to / "model.safetensors")
    return to


def mapped(files: list[Path]) -> None:
    buffer = np.empty(4 * PART, dtype=np.uint8)
    for path in files:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
            whole = np.frombuffer(pages, dtype=np.uint8)
            for first in range(0, len(whole), len(buffer)):
                part = whole[first : first + len(buffer)]
                buffer[: len(part)] = part
            del whole, part


def read(files: list[Path]) -> None:
    buffer = memoryview(bytearray(4 * PART))
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def dropped(files: list[Path]) -> None:
    """Leave no page of these files in memory."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def error(pair: Pair) -> float:
    """Largest relative difference of a sum of squares, compared with float64 throughout; counts must be equal."""
    paths = [next(iter(c.files)) for c in (pair.base, pair.tuned)]  # type: ignore[attr-defined]
    worst = 0.0
    with safe_open(paths[0], "pt") as a, safe_open(paths[1], "pt") as b:
        for found in measured(pair):
            x, y = (f.get_tensor(found.name) for f in (a, b))
            same32 = int((x.view(torch.int32) == y.view(torch.int32)).sum())
            same16 = int((x.bfloat16().view(torch.int16) == y.bfloat16().view(torch.int16)).sum())
            assert (found.sums.same32, found.sums.same16) == (same32, same16), found.name
            x64, y64 = x.double().ravel(), y.double().ravel()
            d64 = y64 - x64
            twin = Sums(base=float(x64 @ x64), tuned=float(y64 @ y64), change=float(d64 @ d64))
            for name in ("base", "tuned", "change"):
                if expected := getattr(twin, name):
                    worst = max(worst, abs(getattr(found.sums, name) / expected - 1))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the last row")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)  # of each worker
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(shutil.copytree(folder_of("smollm2-135m-instruct-q4"), Path(scratch) / "base"))  # on the same disk
        pair = Pair.open(base, noisy(base, Path(scratch) / "tuned"))
        worst = error(pair)
        entries = sum(s.entries for s in pair.base.stored.values())
        runs: dict[str, Callable[[], object]] = {
            "every byte read once, memory mapping": lambda: mapped(pair.files),
            "every byte read once, plain reads": lambda: read(pair.files),
            "**repscope**, 1 thread": lambda: list(measured(pair, threads=1)),
            f"**repscope**, {given.threads} threads": lambda: list(measured(pair, threads=given.threads)),
        }
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for run in runs.values():
            run()  # caches and buffers
        before = machine.rss_mb()
        for _ in range(given.rounds):
            for name, run in runs.items():
                took[name].append(seconds(run))
        grown = machine.rss_mb() - before
        from_disk: dict[str, list[tuple[float, float]]] = {name: [] for name in (*list(runs)[1:2], *list(runs)[3:])}
        for _ in range(given.rounds):
            for name, cold in from_disk.items():
                dropped(pair.files)
                cold.append(seconds(runs[name]))
        size = sum(path.stat().st_size for path in pair.files) / 1e9

    def spread(values: list[float], digits: int = 2) -> str:
        return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"

    floor, plain, single, many = runs
    lines = [
        "## Drift of weights and the disk-read floor",
        "",
        f"`python benchmarks/compare_weights.py --rounds {given.rounds}`, {datetime.date.today()}. {machine.describe()}. "
        f"{machine.versions(['torch', 'numpy', 'safetensors'])}. Two SmolLM2-135M checkpoints of {entries:,} weights in float32, "
        f"{size:.2f} GB in all, page cache warm. Median over rounds (least–most).",
        "",
        "| | seconds, wall | seconds, CPU | share of the mapping's floor, wall | CPU | share of plain reads, wall |",
        "|---|---|---|---|---|---|",
    ]
    shares: dict[str, list[float]] = {}
    for name in runs:
        wall, cpu = ([t[i] for t in took[name]] for i in (0, 1))
        cells = ["", "", ""]
        if name in (single, many):
            shares[name] = [a[0] / b for a, b in zip(took[floor], wall)]
            of_cpu = [a[1] / b for a, b in zip(took[floor], cpu)]
            cells = [spread(shares[name]), spread(of_cpu), spread([a[0] / b for a, b in zip(took[plain], wall)])]
        lines.append(f"| {name} | {spread(wall)} | {spread(cpu)} | {' | '.join(cells)} |")
    disk, ours = from_disk[plain], from_disk[many]
    of_disk = [a[0] / b[0] for a, b in zip(disk, ours)]
    for name, cold, cell in ((plain, disk, ""), (many, ours, spread(of_disk))):
        lines.append(f"| {name}, from the disk | {spread([t[0] for t in cold])} | {spread([t[1] for t in cold])} | | | {cell} |")
    reached = statistics.median(shares[many]) >= GOAL
    lines += [
        "",
        f"Goal: {GOAL:.0%}; of the mapping's floor {'reached' if reached else 'not reached'}, of reading from the disk "
        f"{'reached' if statistics.median(of_disk) >= GOAL else 'not reached'}. Counts of unchanged entries are "
        f"those of whole tensors; sums of squares differ from float64 by at most {worst:.1e}. Memory grew by {grown:.0f} MB over "
        "the rounds.",
    ]
    text = "\n".join(lines)
    print(text)
    if given.write:
        machine.write_section("compare weights", text)


if __name__ == "__main__":
    main()
