"""What it costs to write files through to the disk (`fsync`) before they are renamed.

Each command runs in this process into new folders, in turn with `os.fsync` as it is and replaced by nothing, so that a busy machine
slows both. Median seconds, their ratio, and the number of calls.

    python benchmarks/writing_through.py --write    # minutes
"""

import argparse
import contextlib
import datetime
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import machine
import torch

from repscope.cli import run

COMMANDS = {
    "lens, the default model": ["lens", "smollm2-135m-instruct-q4", "Paris"],
    "study entities --tiny": ["study", "entities", "--tiny", "--entities", "countries"],
    "study paths --tiny": ["study", "paths", "--tiny"],
    "train, 24 runs of 20 steps": ["train", "--steps", "20", "--early-bias", "10", "--fork", "20"],
}
_FSYNC = os.fsync


def timed(words: list[str], folder: Path, through: bool) -> tuple[float, int]:
    """Seconds of a command into a new folder, and how often it asked for writing through."""
    calls = [0]

    def fsync(handle: int) -> None:
        calls[0] += 1
        if through:
            _FSYNC(handle)

    os.fsync = fsync
    try:
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert run([*words, "--out", str(folder)]) == 0
        return time.perf_counter() - began, calls[0]
    finally:
        os.fsync = _FSYNC


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| command | without (s) | with (s) | ratio | calls |", "|---|---:|---:|---:|---:|"]
    with tempfile.TemporaryDirectory(dir=".", prefix=".writing-") as home:  # on this disk: /tmp may be memory
        for name, words in COMMANDS.items():
            timed(words, Path(home) / f"{len(lines)}-first", True)  # caches and imports
            taken: dict[bool, list[float]] = {False: [], True: []}
            calls = 0
            for i in range(options.repeats):
                for through in (True, False) if i % 2 else (False, True):
                    seconds, calls = timed(words, Path(home) / f"{len(lines)}-{i}-{through}", through)
                    taken[through].append(seconds)
            without, with_ = (statistics.median(taken[through]) for through in (False, True))
            ratio = statistics.median(a / b for a, b in zip(taken[True], taken[False]))
            lines.append(f"| {name} | {without:.2f} | {with_:.2f} | {ratio:.3f} | {calls} |")
            print(lines[-1], flush=True)
    text = "\n".join(
        [
            f"## Writing through\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}. {machine.describe()}. "
            f"{machine.versions(('torch', 'repscope'))}. Median of {options.repeats} runs each, in turn; the ratio is the median "
            "over neighbours.\n",
            *lines,
        ]
    )
    print(text)
    if options.write:
        machine.write_section("writing through", text)


if __name__ == "__main__":
    main()
