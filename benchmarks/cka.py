"""CKA between all pairs of 30 × 30 layers on 20,000 rows of 576 features, beside cka-pytorch and ckatorch.

Two networks of 30 layers each are imitated: low-rank signals that both share, with noise and a mean of their own. Batches are made
one after the other from a seed and never held together; making them is not timed. For every batch all methods run in turn:

- repscope: `CKAAccumulator.update`.
- cka-pytorch 1.1.3: its `CKACalculator` on two modules that hand out the layers, float32, `epsilon=0` (its default adds 1e-4 under
  the root). The time is that of its `_process_batch`: Grams in its hooks, then a loop over chunks of 64 pairs.
- ckatorch 1.0.3: its loop over pairs around `cka_batch`, float64. Its class keeps the last batch alone (a fault), so its value is
  compared with ours of that batch; over several batches `cka_batch` of stacked batches is compared as well. It takes seconds per
  batch, so it runs on the first few.
- GEMM floor: the products that the definition needs, X Xᵀ of 60 layers and the (30, n²) · (n², 30) product of all pairs, by
  `torch.mm` or numpy, whichever is faster in that batch, on arrays that are there already. Share: floor over our time. numpy
  computes X Xᵀ by its triangle (syrk).

Memory: the peak of fresh processes that stream 2,500, 20,000 and 80,000 rows.

    .peers-cka/bin/python benchmarks/cka.py --write     # environment: requirements-cka.txt; --quick: 6 batches, no --write
"""

import argparse
import datetime
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import machine
import numpy as np
import torch
from torch import nn

from repscope.align import CKAAccumulator

LAYERS, WIDTH, ROWS, BATCH, RANK = 30, 576, 20_000, 256, 48
Layers = list[np.ndarray]


def batches(rows: int, seed: int = 0) -> Iterator[tuple[Layers, Layers]]:
    """Batches of both networks."""
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((2, LAYERS, RANK, WIDTH), np.float32)
    means = 5 * rng.standard_normal((2, LAYERS, WIDTH), np.float32)
    noise = rng.standard_normal((2, BATCH + LAYERS, WIDTH), np.float32)  # shifted by a row from layer to layer
    for start in range(0, rows, BATCH):
        n = min(BATCH, rows - start)
        n = BATCH if n < 4 else n
        z = rng.standard_normal((LAYERS, n, RANK), np.float32)
        z = np.cumsum(z, axis=0) / np.sqrt(np.arange(1, LAYERS + 1, dtype=np.float32))[:, None, None]  # near layers are alike
        made = [
            [z[i] @ maps[k, i] + noise[k, i : i + n] * rng.standard_normal((n, 1), np.float32) + means[k, i] for i in range(LAYERS)]
            for k in range(2)
        ]
        yield made[0], made[1]


class Layered(nn.Module):
    """A module whose layers hand out given activations, so that a peer's hooks see them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({f"layer{i}": nn.Identity() for i in range(LAYERS)})
        self.weight = nn.Parameter(torch.zeros(1))
        self.held: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run each layer on what it hands out."""
        for layer, held in zip(self.layers.values(), self.held):
            layer(held)
        return x


def floor(x: Layers, y: Layers, packed: tuple[np.ndarray, np.ndarray]) -> float:
    """Seconds of the products alone, the better of numpy and torch for each."""
    n = len(x[0])
    out = np.empty((n, n), np.float32)
    seconds = {"numpy": 0.0, "torch": 0.0}
    tensors, to = [torch.from_numpy(v) for v in (*x, *y)], torch.empty(n, n)
    started = time.perf_counter()
    for v in (*x, *y):
        np.matmul(v, v.T, out=out)
    seconds["numpy"] = time.perf_counter() - started
    started = time.perf_counter()
    for t in tensors:
        torch.mm(t, t.T, out=to)
    seconds["torch"] = time.perf_counter() - started
    a, b = (side[:, : n * n] for side in packed)
    started = time.perf_counter()
    a @ b.T
    between = time.perf_counter()
    torch.from_numpy(a) @ torch.from_numpy(b).T
    pairs = min(between - started, time.perf_counter() - between)
    return min(seconds.values()) + pairs


def memory(rows: int) -> float:
    """Peak MB of a fresh process that streams so many rows."""
    code = f"import cka; cka.stream({rows})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=machine.RESULTS.parent)
    return float(found.stdout)


def stream(rows: int) -> None:
    found = CKAAccumulator()
    for x, y in batches(rows):
        found.update(x, y)
    assert np.isfinite(found.matrix()).all()
    print(machine.rss_mb("VmHWM"))


def peer_loop(x: Layers, y: Layers) -> np.ndarray:
    """ckatorch's loop over pairs, as its class writes it."""
    from ckatorch.core import cka_batch

    first, second = ([torch.from_numpy(v)[None] for v in side] for side in (x, y))
    found = torch.zeros(LAYERS, LAYERS)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            found[i, j] = cka_batch(a, b)
    return found.numpy()


def measured(rows: int, slow: int) -> tuple[list[str], dict[str, float]]:
    """Rows of the table, and the differences of values."""
    from cka_pytorch.cka import CKACalculator
    from ckatorch.core import cka_batch

    modules = Layered(), Layered()
    peer = CKACalculator(*modules, model1_layers=[f"layer{i}" for i in range(LAYERS)], verbose=False)
    assert peer.num_layers_x == LAYERS
    ours, seconds, last = CKAAccumulator(), {k: [] for k in ("repscope", "cka-pytorch", "ckatorch", "floor")}, 0.0
    stacked: list[tuple[Layers, Layers]] = []
    packed = tuple(np.random.default_rng(k).standard_normal((LAYERS, BATCH * BATCH), np.float32) for k in range(2))
    for number, (x, y) in enumerate(batches(rows)):
        started = time.perf_counter()
        ours.update(x, y)
        seconds["repscope"].append(time.perf_counter() - started)
        seconds["floor"].append(floor(x, y, packed))
        for module, side in zip(modules, (x, y)):
            module.held = [torch.from_numpy(v) for v in side]
        started = time.perf_counter()
        with torch.no_grad():
            peer._process_batch(torch.zeros(1))
        seconds["cka-pytorch"].append(time.perf_counter() - started)
        if number < slow:
            started = time.perf_counter()
            theirs = peer_loop(x, y)
            seconds["ckatorch"].append(time.perf_counter() - started)
            one = CKAAccumulator()
            one.update(x, y)
            last = max(last, float(np.abs(one.matrix() - theirs).max()))
            stacked.append((x, y))
        print(f"batch {number}: " + ", ".join(f"{k} {v[-1]:.3f} s" for k, v in seconds.items() if v), file=sys.stderr, flush=True)
    differences = {"cka-pytorch": float(np.abs(ours.matrix() - peer._compute_final_cka(0.0).numpy()).max()), "ckatorch": last}
    together = CKAAccumulator()
    for x, y in stacked:
        together.update(x, y)
    for i in (0, LAYERS - 1):
        a, b = (torch.stack([torch.from_numpy(pair[k][i]) for pair in stacked]) for k in range(2))
        differences["ckatorch"] = max(differences["ckatorch"], abs(float(cka_batch(a, b)) - together.matrix()[i, i]))
    table = []
    for name in ("repscope", "cka-pytorch", "ckatorch", "floor"):
        ratios = [t / o for t, o in zip(seconds[name], seconds["repscope"])]
        shown = "GEMM floor" if name == "floor" else name
        value = {"repscope": "", "floor": ""}.get(name) if name not in differences else f"{differences[name]:.1e}"
        table.append(
            f"| {shown} | {len(ratios)} | {1e3 * statistics.median(seconds[name]):,.0f} | {statistics.median(ratios):.2f}× "
            f"({min(ratios):.2f}–{max(ratios):.2f}) | {value} |"
        )
    return table, differences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 batches, and one of ckatorch")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    if options.write and options.quick:
        parser.error("--write takes a real run: without --quick")
    table, differences = measured(6 * BATCH if options.quick else ROWS, 1 if options.quick else 3)
    assert max(differences.values()) < 1e-5, differences
    peaks = {rows: memory(rows) for rows in ((2_500, 5_000) if options.quick else (2_500, ROWS, 4 * ROWS))}
    text = "\n".join(
        [
            f"## CKA of all pairs of {LAYERS} × {LAYERS} layers\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}. "
            f"{machine.describe()}. {machine.versions(('torch', 'numpy', 'cka-pytorch', 'ckatorch', 'repscope'))}. "
            f"{torch.get_num_threads()} thread(s).\n",
            f"{ROWS:,} rows of {WIDTH} features, batches of {BATCH}, float32. All methods run on the same batch in turn; "
            "ratios are paired within a batch. Largest difference: of any of the 900 values from repscope's.\n",
            "| method | batches | ms per batch, median | time over repscope's: median (range) | largest difference |",
            "|---|---|---|---|---|",
            *table,
            "\nPeak memory of a fresh process: " + ", ".join(f"{r:,} rows {mb:,.0f} MB" for r, mb in peaks.items()) + ".",
        ]
    )
    print(text)
    if options.write:
        machine.write_section("cka", text)


if __name__ == "__main__":
    main()
