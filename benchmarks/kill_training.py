"""Kills a training at random moments and resumes it: the final file must equal that of a run without interruption, byte for byte.

A checkpoint is written after every third step, so many kills hit a write. Each run is a forked process with one thread, killed by
SIGKILL some moments after it started. By hand:

    python benchmarks/kill_training.py --kills 50
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from repscope.read.sae.training import Matryoshka, Recipe, TensorRows, train
from repscope.read.sae.training.checkpoint import NAME, read

STEPS = 400


def run(out: Path) -> None:
    torch.set_num_threads(1)
    rows = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(Matryoshka(8, prefixes=(64,)), 256, STEPS, batch=256, warmup=20, decay=100, dead_after=4096)
    train(TensorRows({"x": rows}), recipe, "x", out=out, checkpoint_every=3, log_every=50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, forked = random.Random(options.seed), multiprocessing.get_context("fork")
    torch.set_num_threads(1)  # no thread may run when the process is forked
    with tempfile.TemporaryDirectory() as temporary:
        killed, whole = Path(temporary) / "killed", Path(temporary) / "whole"
        began, kills, step = time.time(), 0, 0
        while kills < options.kills:
            process = forked.Process(target=run, args=(killed,))
            process.start()
            while process.is_alive() and (read(killed / NAME)[1]["step"] if (killed / NAME).exists() else 0) <= step:
                time.sleep(0.002)  # until it has gone on by one checkpoint
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
            process.join()
            now = read(killed / NAME)[1]["step"]
            assert step <= now, (step, now)
            kills, step = kills + 1, now
            unfinished = len(list(killed.glob(f".{NAME}.*.part")))
            print(f"  kill {kills}: step {step}, partial files {unfinished} (removed by the next run)", file=sys.stderr, flush=True)
            if step >= STEPS and kills < options.kills:
                raise SystemExit(f"The training ended after {kills} kills; choose more steps.")
        for folder in (killed, whole):
            process = forked.Process(target=run, args=(folder,))
            process.start()
            process.join()
            assert process.exitcode == 0
        same = (killed / NAME).read_bytes() == (whole / NAME).read_bytes()
    seconds = time.time() - began
    print(f"{kills} kills, the last at step {step} of {STEPS}: final files {'equal' if same else 'DIFFER'} ({seconds:.0f} s)")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
