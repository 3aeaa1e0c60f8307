"""Paths between many small networks, and training them, beside one network at a time.

24 transformers of 26,000 weights (`repscope.worlds.hans.classifier`), 512 texts of 10 tokens.

1. *Paths*: losses at 10 points of all 276 lines. nngeom 0.2.0's `loss_barrier_matrix` on plain modules, as it comes; the same
   loop by hand over plain modules; repscope's batched `curves`; and, to tell what batching gives from what skipping work gives,
   repscope's forward one network at a time. Barriers must agree to 1e-5.
2. *Training*: 24 fine-tunings of `--steps` steps, batches of 32 texts. Plain modules with torch's AdamW, one after the other;
   repscope, all at once. Both draw the same texts. Losses must agree to 1e-4 while rounding has not
   grown, and in float64 throughout.
3. The floor: FLOPs that a plain forward takes, and those that ours takes, at the sgemm rate of the same round.

nngeom runs from a folder, which `make .peers-nngeom/.done` makes.

    python benchmarks/paths.py --write      # some minutes on two idle cores; --quick: 6 networks
"""

import argparse
import datetime
import statistics
import sys
import time
from pathlib import Path

import machine
import numpy as np
import torch
from torch.nn import functional

from repscope.models.loading.stacked_weights import runs_of, unstack
from repscope.trace.barriers import barrier
from repscope.trace.interpolation import all_pairs, curves
from repscope.worlds.hans import classifier, fine_tuning, stacked
from repscope.worlds.hans.training import Schedule

PEER = Path(__file__).resolve().parent.parent / ".peers-nngeom"
POINTS, TEXTS, EARLY = 10, 512, 30
WORLD = fine_tuning.World()
SHAPE = WORLD.shape()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", type=Path, default=PEER, help="folder that holds nngeom")
    parser.add_argument("--quick", action="store_true", help="six networks, one round")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    options = parser.parse_args()
    if options.write and options.quick:
        parser.error("--write takes a real run: without --quick")
    sys.path.insert(0, str(options.peer))
    torch.set_num_threads(options.threads)
    runs, rounds, steps = (6, 1, 20) if options.quick else (options.runs, options.rounds, options.steps)
    base = fine_tuning.pretrain(WORLD, [0], [200])[200]
    table = fine_tuning.run_plan(["none"] * runs)
    tuning = fine_tuning.FineTuning(Schedule(steps, 4e-3), early_bias=0)
    state = fine_tuning.fine_tune(WORLD, base, table, tuning)[steps]
    ids, labels = (torch.from_numpy(a) for a in WORLD.task.ambiguous(np.random.default_rng(5), TEXTS))
    told: dict[str, list[float]] = {}
    checks = {"barrier": 0.0, "barrier of nngeom": 0.0, "early": 0.0, "late": 0.0, "float64": 0.0}
    rates = []
    for turn in range(rounds):
        rates.append(machine.sgemm_rate([(32, 32)] * 4 + [(32, 128), (128, 32)], rows=TEXTS * 10))
        for name, seconds in paths(state, ids, labels, checks).items():
            told.setdefault(name, []).append(seconds)
        for name, seconds in training(base, table, tuning, checks).items():
            told.setdefault(name, []).append(seconds)
        print(f"round {turn + 1}: " + ", ".join(f"{k} {v[-1]:.1f} s" for k, v in told.items()), file=sys.stderr, flush=True)
    in_float64(base, table, tuning, checks)
    text = report(options, runs, steps, told, checks, rates)
    print(text)
    if options.write:
        machine.write_section("paths", text)


def paths(state, ids, labels, checks) -> dict[str, float]:
    from nngeom import Model, loss_barrier_matrix

    runs = runs_of(state)
    pairs = all_pairs(runs)
    nets = [classifier.as_module(SHAPE, unstack(state, i)) for i in range(runs)]

    def evaluate(some):
        found = stacked.classify(SHAPE, some, ids)
        return {
            "loss": functional.cross_entropy(found.mT, labels.expand(len(found), -1), reduction="none").double().mean(1).numpy()
        }

    def alone(some):
        return {
            "loss": np.concatenate([evaluate({k: v[i : i + 1] for k, v in some.items()})["loss"] for i in range(runs_of(some))])
        }

    evaluate({k: v[:1] for k, v in state.items()})  # first-call costs are nobody's
    seconds = {}
    started = time.perf_counter()
    ours = curves(state, evaluate, points=POINTS)
    seconds["repscope, paths"] = time.perf_counter() - started
    started = time.perf_counter()
    curves(state, alone, points=POINTS)
    seconds["repscope, one network at a time, paths"] = time.perf_counter() - started
    started = time.perf_counter()
    by_hand = np.empty((len(pairs), POINTS))
    net = classifier.as_module(SHAPE, unstack(state, 0))
    with torch.no_grad():
        for row, (i, j) in enumerate(pairs):
            a, b = (dict(nets[k].named_parameters()) for k in (i, j))
            for col, alpha in enumerate(np.linspace(0, 1, POINTS)):
                for name, value in net.named_parameters():
                    value.copy_((1 - alpha) * a[name] + alpha * b[name])
                by_hand[row, col] = functional.cross_entropy(net(ids), labels).item()
    seconds["by hand, paths"] = time.perf_counter() - started
    models = [Model(n, lambda m, batch: functional.cross_entropy(m(batch[0]), batch[1])) for n in nets]
    started = time.perf_counter()
    peer = loss_barrier_matrix(models, (ids, labels), steps=POINTS)
    seconds["nngeom, paths"] = time.perf_counter() - started
    matrix = np.asarray(next(v for v in peer.values() if np.ndim(v) == 2))
    checks["barrier"] = max(checks["barrier"], float(np.abs(ours.losses["loss"] - by_hand).max()))
    mine = ours.filled(barrier(ours.losses["loss"], definition="larger endpoint"))
    checks["barrier of nngeom"] = max(checks["barrier of nngeom"], float(np.abs(mine - matrix).max()))
    return seconds


def training(base, table, tuning, checks) -> dict[str, float]:
    seconds = {}
    started = time.perf_counter()
    descent = fine_tuning.training_run(WORLD, base, table, tuning)
    list(descent.until([tuning.schedule.steps]))
    seconds["repscope, training"] = time.perf_counter() - started
    together = np.array(descent.losses)
    first = fine_tuning.initial_states(WORLD, base, table, tuning.head)
    started = time.perf_counter()
    for run in range(len(table)):
        net = classifier.as_module(SHAPE, unstack(first, run)).train()
        adam = torch.optim.AdamW(net.parameters(), lr=tuning.schedule.rate, betas=(0.9, 0.98), weight_decay=0.0)
        for step in range(tuning.schedule.steps):
            for group in adam.param_groups:
                group["lr"] = tuning.schedule.at(step)
            rng = np.random.default_rng([12, int(table["data_seed"][run]), step])
            ids, labels = (torch.from_numpy(a) for a in WORLD.task.biased(rng, tuning.batch, "none"))
            loss = functional.cross_entropy(net(ids), labels)
            adam.zero_grad()
            loss.backward()
            adam.step()
            when = "early" if step < EARLY else "late"
            checks[when] = max(checks[when], abs(loss.item() - float(together[step, run])))
    seconds["by hand, training"] = time.perf_counter() - started
    return seconds


def in_float64(base, table, tuning, checks) -> None:
    """The same two ways in float64, where rounding does not grow: three networks, all steps."""
    some = table.iloc[:3]
    double = {name: value.double() for name, value in base.items()}
    descent = fine_tuning.training_run(WORLD, double, some, tuning)
    list(descent.until([tuning.schedule.steps]))
    for run in range(3):
        alone = fine_tuning.training_run(WORLD, double, some.iloc[run : run + 1], tuning)
        list(alone.until([tuning.schedule.steps]))
        apart = np.abs(np.array(descent.losses)[:, run] - np.array(alone.losses)[:, 0]).max()
        checks["float64"] = max(checks["float64"], float(apart))


def flops(skipping: bool) -> float:
    """Of products, for one network and all texts: a plain forward, or ours (the first block's projections looked up, the last
    block for the first token)."""
    d, t, h = SHAPE.width, SHAPE.tokens, SHAPE.heads
    attention = 2 * t * t * d
    block = t * 12 * d * d + attention
    if not skipping:
        return 2.0 * TEXTS * SHAPE.blocks * block
    first = t * 9 * d * d + attention / 2
    last = 3 * d * d + 2 * t * d * h + d * d + 8 * d * d
    return 2.0 * TEXTS * (first + last)


def report(options, runs, steps, told, checks, rates) -> str:
    pairs = runs * (runs - 1) // 2
    plain, ours = (n * f for n, f in ((pairs * POINTS, flops(False)), (pairs * (POINTS - 2) + runs, flops(True))))
    rate = statistics.median(rates)
    lines = [
        f"## Paths between many networks\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}. {machine.describe()}. "
        f"{machine.versions(('torch', 'numpy'))}, nngeom 0.2.0, {options.threads} threads. sgemm "
        f"{', '.join(f'{r / 1e9:.0f}' for r in rates)} GFLOP/s. {runs} networks, {pairs} pairs, {POINTS} points, {TEXTS} texts; "
        f"training of {steps} steps. Median over {len(rates)} rounds (least–most); ratios within a round.",
        "| | seconds | repscope is quicker by |\n|---|---|---|",
    ]
    for work in ("paths", "training"):
        best = told[f"repscope, {work}"]
        for name, seconds in told.items():
            if name.endswith(work):
                ratio = [a / b for a, b in zip(seconds, best)]
                lines.append(f"| {name} | {_range(seconds)} | {'' if name == f'repscope, {work}' else _range(ratio) + ' ×'} |")
    table = "\n".join([lines[1], *lines[2:]])
    said = (
        f"Largest difference of a loss on a path from the loop by hand {checks['barrier']:.1e}, of a barrier from nngeom's "
        f"{checks['barrier of nngeom']:.1e}, of a loss in the first {EARLY} steps of training "
        f"{checks['early']:.1e}, of a later one "
        f"{checks['late']:.1e} (rounding grows; in float64 all steps agree to {checks['float64']:.1e}). Floor of "
        "the paths at the sgemm rate: "
        f"{plain / rate:.1f} s for plain forwards at every point, {ours / rate:.1f} s for what repscope computes "
        f"({100 * ours / rate / statistics.median(told['repscope, paths']):.0f} % of the time it takes). "
        "Attention of ten tokens and norms "
        "of 32 numbers are bound by neither."
    )
    return "\n\n".join([lines[0], table, said])


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


if __name__ == "__main__":
    main()
