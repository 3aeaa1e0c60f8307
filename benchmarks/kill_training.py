"""Kills a training at random moments and resumes it: the final file must equal that of a run without interruption, byte for byte.

A checkpoint is written after every third step, so many kills hit a write. Minutes; run by hand:

    python benchmarks/kill_training.py --kills 50
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from repscope.read.sae.training import Matryoshka, Recipe, TensorRows, train
from repscope.read.sae.training.checkpoint import NAME, read

STEPS = 100_000


def run(out: Path, steps: int) -> None:
    rows = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(Matryoshka(8, prefixes=(64,)), 256, STEPS, batch=512, warmup=20, dead_after=4096)

    class Until:
        """The rows, and an end of the process after `steps` steps, since the recipe's steps belong to the file."""

        def batches(self, *names, **how):  # type: ignore[no-untyped-def]
            start = how.get("start")
            done = 0 if start is None else start.epoch * 8 + start.offset // 512
            for i, batch in enumerate(TensorRows({"x": rows}).batches(*names, **how)):
                if how.get("start") is not None and done + i >= steps:
                    raise SystemExit(0)
                yield batch

    print("ready", flush=True)
    train(Until(), recipe, "x", out=out, checkpoint_every=3, log_every=50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.steps)
        return
    rng = random.Random(options.seed)

    def start(folder: Path, steps: int) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, "--run", str(folder), "--steps", str(steps)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    with tempfile.TemporaryDirectory() as temporary:
        killed, whole = Path(temporary) / "killed", Path(temporary) / "whole"
        began, steps = time.time(), []
        for kill in range(options.kills):
            process = start(killed, STEPS)
            time.sleep(rng.uniform(0.02, 0.6))
            process.send_signal(signal.SIGKILL)
            process.wait()
            steps.append(read(killed / NAME)[1]["step"] if (killed / NAME).exists() else 0)
            assert steps == sorted(steps), steps
            print(f"  kill {kill + 1}: step {steps[-1]}", file=sys.stderr, flush=True)
        last = 3 * (steps[-1] // 3) + 30
        assert start(killed, last).wait() == 0
        assert start(whole, last).wait() == 0
        same = (killed / NAME).read_bytes() == (whole / NAME).read_bytes()
        end = read(killed / NAME)[1]["step"]
        print(f"{options.kills} kills over {end} steps: final files {'equal' if same else 'DIFFER'} ({time.time() - began:.0f} s)")
        if not same:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
