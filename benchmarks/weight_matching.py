"""Barriers between independently trained networks before and after weight matching, and after a random permutation.

Digits of scikit-learn, 1,347 to train on and 450 to test. Networks of the same shape from different seeds (weights and order of
examples), trained until the training loss is near nothing; three disjoint pairs of each shape.

1. The test cross-entropy at 25 evenly spaced points between two networks, their ends included.
2. Barrier over the mean endpoint: the largest of the 25 less the mean of both ends. Also how far the midpoint lies above it, which
   may be negative, and the midpoint's accuracy.
3. Three versions of the second network: as trained, its units in random orders (median of five), and matched to the first.
4. The matching by the paper's algorithm alone (one search) and with the search from outside in: the cosines found, and the times.

Networks with batch norm have its statistics measured anew at every point, on the training data: without that barriers are of the
statistics, not of the weights.

    python benchmarks/weight_matching.py --write    # minutes; --quick: one pair
"""

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable

import machine
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from repscope.trace.barriers import barrier
from repscope.trace.weight_matching import match, permute, symmetries

State = dict[str, Tensor]
POINTS, RANDOM = 25, 5


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def cnn(width: int, norm: bool) -> nn.Module:
    def stage(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, padding=1), *([nn.BatchNorm2d(o)] if norm else []), nn.ReLU()]

    return nn.Sequential(
        *stage(1, width),
        *stage(width, width),
        nn.MaxPool2d(2),
        *stage(width, 2 * width),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


SHAPES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "MLP 64-[64, 64]-10": (lambda: mlp(64), 150),
    "MLP 64-[512, 512]-10": (lambda: mlp(512), 60),
    "CNN 32-32-64": (lambda: cnn(32, False), 50),
    "CNN 32-32-64, batch norm": (lambda: cnn(32, True), 50),
}


class Digits:
    """Training and test examples as images of one channel."""

    def __init__(self) -> None:
        data = load_digits()
        parts = train_test_split(data.images / 16 - 0.3, data.target, test_size=450, random_state=0, stratify=data.target)
        self.x, self.x_test = (torch.tensor(p, dtype=torch.float32)[:, None] for p in parts[:2])
        self.y, self.y_test = (torch.tensor(p) for p in parts[2:])


def trained(make: Callable[[], nn.Module], digits: Digits, seed: int, epochs: int) -> tuple[nn.Module, float]:
    """A network and its loss on the training data."""
    torch.manual_seed(seed)
    net = make()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, epochs * -(-len(digits.x) // 64))
    for _ in range(epochs):
        for rows in torch.randperm(len(digits.x)).split(64):
            optimiser.zero_grad()
            functional.cross_entropy(net(digits.x[rows]), digits.y[rows]).backward()
            optimiser.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        return net, float(functional.cross_entropy(net(digits.x), digits.y))


def along(net: nn.Module, a: State, b: State, digits: Digits) -> tuple[np.ndarray, float]:
    """Test losses at points between two networks, and the accuracy halfway."""
    losses, accuracy = [], 0.0
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for i, t in enumerate(np.linspace(0, 1, POINTS)):
        state = {n: torch.lerp(a[n], b[n], float(t)) if a[n].is_floating_point() else a[n] for n in a}
        net.load_state_dict(state)
        with torch.no_grad():
            if norms:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # the plain mean of what it sees
                net.train()
                net(digits.x)
            logits = functional_call(net.eval(), {}, (digits.x_test,))
        losses.append(float(functional.cross_entropy(logits, digits.y_test)))
        if i == POINTS // 2:
            accuracy = float((logits.argmax(1) == digits.y_test).float().mean())
    return np.array(losses), accuracy


def told(curve: np.ndarray, accuracy: float) -> dict[str, float]:
    ends = (curve[0] + curve[-1]) / 2
    return {"barrier": float(barrier(curve, definition="mean endpoint")), "middle": curve[POINTS // 2] - ends, "accuracy": accuracy}


def measured(name: str, digits: Digits, pairs: int) -> tuple[list[str], list[str]]:
    """A row a pair of barriers, and one of matchings."""
    make, epochs = SHAPES[name]
    barriers, matchings = [], []
    for pair in range(pairs):
        (net, one), (other, two) = (trained(make, digits, 2 * pair + k, epochs) for k in range(2))
        a, b = ({n: t.clone() for n, t in m.state_dict().items()} for m in (net, other))
        sym, probe = symmetries(net), make()
        started = time.perf_counter()
        plain = match(a, b, sym, restarts=1)
        between = time.perf_counter()
        found = match(a, b, sym)
        seconds = between - started, time.perf_counter() - between
        as_trained = told(*along(probe, a, b, digits))
        at_random = [told(*along(probe, a, permute(b, sym, seed), digits)) for seed in range(RANDOM)]
        matched = told(*along(probe, a, found.apply(b), digits))
        random = {key: statistics.median(r[key] for r in at_random) for key in matched}
        curve, _ = along(probe, a, b, digits)
        rows = (as_trained, random, matched)
        barriers.append(
            f"| {name} | {2 * pair}, {2 * pair + 1} | {curve[0]:.3f}, {curve[-1]:.3f} | "
            + " | ".join(f"{r['barrier']:.3f}" for r in rows)
            + " | "
            + " / ".join(f"{r['middle']:+.3f}" for r in rows)
            + " | "
            + " / ".join(f"{r['accuracy']:.3f}" for r in rows)
            + f" | {max(one, two):.0e} |"
        )
        matchings.append(
            f"| {name} | {2 * pair}, {2 * pair + 1} | {found.before:.3f} | {plain.after:.4f} ({plain.sweeps}) | {found.after:.4f} "
            f"({found.sweeps}) | {found.moved:.0%} | {seconds[0]:.2f} | {seconds[1]:.2f} |"
        )
        print(barriers[-1], matchings[-1], sep="\n", file=sys.stderr, flush=True)
    return barriers, matchings


def header(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one pair of each shape")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    options = parser.parse_args()
    if options.write and options.quick:
        parser.error("--write takes a real run: without --quick")
    digits = Digits()
    pairs = 1 if options.quick else options.pairs
    tables = [measured(name, digits, pairs) for name in SHAPES]
    barriers, matchings = ([row for t in tables for row in t[i]] for i in range(2))
    text = "\n".join(
        [
            f"## Weight matching\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}. {machine.describe()}. "
            f"{machine.versions(('torch', 'scipy', 'scikit-learn', 'repscope'))}. {torch.get_num_threads()} thread(s).\n",
            f"Digits, {len(digits.x):,} to train on, {len(digits.x_test)} to test. Test cross-entropy at {POINTS} points between "
            "two networks; barrier: the largest less the mean of both ends. At random: units of the second in random orders, "
            f"median of {RANDOM}. Midpoint: its loss above the mean of both ends, and its accuracy; as trained / at random / "
            "matched. Batch norm's statistics are measured anew at every point.\n",
            *header(
                "network",
                "seeds",
                "loss at the ends",
                "barrier as trained",
                "at random",
                "matched",
                "midpoint's loss",
                "midpoint's accuracy",
                "training loss",
            ),
            *barriers,
            "\nCosines between weights. One search: the paper's algorithm. Two: with the one from outside in; barriers are of "
            "these.\n",
            *header(
                "network",
                "seeds",
                "cosine as trained",
                "matched, one search (sweeps)",
                "two searches",
                "units moved",
                "s, one",
                "s, two",
            ),
            *matchings,
        ]
    )
    print(text)
    if options.write:
        machine.write_section("weight matching", text)


if __name__ == "__main__":
    main()
