"""What checking of digests costs: its share of a study's time, and of `repscope runs` over 200 runs.

    python benchmarks/checking.py [--short] [--before CHECKOUT] [--write]

1. Share: seconds inside the functions that make and compare digests, over the seconds of a whole study: tiny, and with `--short`
   the short form on the default model; then of the same command again, which reads everything that the first wrote.
2. `runs`: `run_rows` over 200 copies of a tiny run with its page, with the checks and without, in turn, in one process; with
   `--before` also by a checkout of an earlier version, in processes that alternate with ours.

Ratios and differences within one process, repeated, so that what else the machine does distorts them little.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from repscope import manifest
from repscope.studies.catalogue import study
from repscope.studies.run.history import run_rows
from repscope.studies.run.runner import Run

RUNS, ROUNDS = 200, 15
TIMED = ("write", "damage", "need_sound", "seal", "sealed", "digest_of")
STUDIES = ("entities", "relations", "features")
_BEFORE = """
import sys, time
from pathlib import Path
from repscope.studies.run.history import run_rows
run_rows(Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    started = time.perf_counter()
    run_rows(Path(sys.argv[1]))
    print(time.perf_counter() - started)
"""


@contextmanager
def timed() -> Iterator[list[float]]:
    """Collect the seconds spent in the functions of `manifest`; calls inside others count once."""
    spent, depth = [0.0], [0]

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any, **named: Any) -> Any:
            depth[0] += 1
            started = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                depth[0] -= 1
                if not depth[0]:
                    spent[0] += time.perf_counter() - started

        return called

    of, damage = manifest.Manifest.of.__func__, manifest.Manifest.damage  # type: ignore[attr-defined]
    with mock.patch.multiple(manifest, **{name: around(getattr(manifest, name)) for name in TIMED}):
        manifest.Manifest.of = classmethod(around(of))  # type: ignore[method-assign]
        manifest.Manifest.damage = around(damage)  # type: ignore[method-assign]
        try:
            yield spent
        finally:
            manifest.Manifest.of = classmethod(of)  # type: ignore[method-assign]
            manifest.Manifest.damage = damage  # type: ignore[method-assign]


def share(name: str, out: Path, **options: Any) -> list[str]:
    """A row: seconds of a study, share of checking, and both of the same command again."""
    found = study(name)
    cells = [f"{name}, {'tiny' if options.get('tiny') else 'short'}"]
    for _ in range(2):
        with timed() as spent:
            started = time.perf_counter()
            Run(found, found.options(**options), out=out).answer()
            seconds = time.perf_counter() - started
        cells += [f"{seconds:.1f}", f"{spent[0] * 1000:.0f}", f"{100 * spent[0] / seconds:.2f} %"]
    return cells


def listing(out: Path, before: Path | None) -> list[str]:
    """Lines: seconds of `run_rows` over copies of a run, without checks, with them, and by the earlier version."""
    (first,) = out.iterdir()
    for i in range(1, RUNS):
        shutil.copytree(first, first.with_name(f"{first.name}-{i:03d}"))
    seconds: dict[str, list[float]] = {"with the checks": [], "without": []}
    run_rows(out)
    for _ in range(ROUNDS):
        for name, times in seconds.items():
            with mock.patch.object(manifest, "damage", manifest.damage if name == "with the checks" else lambda *a, **k: None):
                started = time.perf_counter()
                run_rows(out)
                times.append(time.perf_counter() - started)
    if before is not None:
        places = {"with the checks, in a process of its own": Path(__file__).parents[1], f"before ({before.name})": before}
        seconds |= {name: [] for name in places}
        for _ in range(3):
            for name, place in places.items():
                done = subprocess.run(
                    [sys.executable, "-c", _BEFORE, str(out), "5"],
                    env={"PYTHONPATH": str(place.absolute() / "src"), "PATH": "/usr/bin:/bin", "HOME": str(Path.home())},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                seconds[name] += map(float, done.stdout.split())
    size = sum(p.stat().st_size for p in first.rglob("*") if p.is_file()) / 1e6
    lines = [
        f"`run_rows` over {RUNS} runs of {size:.1f} MB ({first.name}), seconds:",
        "",
        "| | median | fastest |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {np.median(t):.3f} | {min(t):.3f} |" for name, t in seconds.items()]
    more = np.median(np.array(seconds["with the checks"]) - np.array(seconds["without"]))
    return [*lines, "", f"The checks take {more:.3f} s (median of paired differences)."]


def main() -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the short form of entities on the default model too")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier version")
    parser.add_argument("--write", action="store_true", help="write RESULTS-checking.md")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as home:
        for name in STUDIES:
            rows.append(share(name, Path(home, name), tiny=True))
        if asked.short:
            rows.append(share("entities", Path(home, "short"), short=True))
        listed = listing(Path(home, STUDIES[0]), asked.before)
    head = ["study", "seconds", "checking, ms", "share", "again, seconds", "checking, ms", "share"]
    table = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    text = "\n".join(["# Checking of digests", "", "`benchmarks/checking.py`", "", *table, "", *listed, ""])
    print(text)
    if asked.write:
        Path(__file__).with_name("RESULTS-checking.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
