"""Do equal commands give equal bytes? Tiny runs of all studies under several hash seeds and numbers of threads.

    python benchmarks/same_bytes.py [STUDY …] [--seeds 1 2 3] [--threads 2]

1. Each study runs in a process of its own for each PYTHONHASHSEED, on one thread; with `--threads` once more, on so many.
2. Files in `results/` and `artifacts/` are compared with those of the first process byte by byte; of a table, the rows too.

Exit code 1 when a file differs between hash seeds. Another number of threads may round sums otherwise; what differs is printed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from repscope.studies.catalogue import ALL


def computed(command: tuple[str, ...], out: Path, seed: int, threads: int) -> dict[str, Path]:
    """The published files of a tiny run by their names."""
    words = [sys.executable, "-m", "repscope", *command, "--tiny", "--out", str(out)]
    environment = os.environ | {"PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # 1: a check of a benchmark failed, as some do on tiny models
        raise SystemExit(done.stderr)
    (folder,) = (p for p in out.iterdir() if p.is_dir())
    found = [p for part in ("results", "artifacts") for p in (folder / part).rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p for p in found}


def differences(first: dict[str, Path], other: dict[str, Path]) -> list[str]:
    """Files that differ, in words."""
    found = [f"{name} is there only once" for name in sorted(first.keys() ^ other.keys())]
    for name in sorted(first.keys() & other.keys()):
        if first[name].read_bytes() != other[name].read_bytes():
            found.append(f"{name}{_rows(first[name], other[name]) if name.endswith('.parquet') else ''}")
    return found


def _rows(first: Path, other: Path) -> str:
    a, b = pd.read_parquet(first), pd.read_parquet(other)
    if a.shape != b.shape or list(a["row_id"]) != list(b["row_id"]):
        return f": {len(a)} and {len(b)} rows, or another order"
    apart = (a["value"] - b["value"]).abs()
    metrics = ", ".join(sorted(set(a.loc[apart > 0, "metric"]))[:5])
    return f": {int((apart > 0).sum())} of {len(a)} values, by up to {apart.max():.2g} ({metrics})"


def main() -> int:
    """Print what differs; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", help="by default all with a tiny form")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    wrong = 0
    for name, entry in ALL.items():
        if not entry.module or (asked.studies and name not in asked.studies):
            continue
        with tempfile.TemporaryDirectory() as home:
            first = computed(entry.command, Path(home, "first"), asked.seeds[0], 1)
            for seed in asked.seeds[1:]:
                found = differences(first, computed(entry.command, Path(home, f"seed-{seed}"), seed, 1))
                wrong += bool(found)
                print(f"{name}, hash seed {seed}: {'; '.join(found) or f'{len(first)} files equal'}", flush=True)
            if asked.threads:
                found = differences(first, computed(entry.command, Path(home, "threads"), asked.seeds[0], asked.threads))
                print(f"{name}, {asked.threads} threads: {'; '.join(found) or f'{len(first)} files equal'}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
