"""Ridge encoding models beside himalaya's own classes, on the same arrays, in one thread.

    python benchmarks/encoding.py --write

2,000 conditions, 5,000 features, 2,000 channels, float32, 10 penalties, 5 inner folds, intercepts: one fit and the prediction of
200 left-out conditions, as every outer fold of `encode` makes it. himalaya: `KernelRidgeCV` (its best route for more features than
conditions) and `RidgeCV`, which is what its users call first. On a smaller size in float64 all three must predict the same to 1e-9.
"""

import argparse
import datetime
import os
import time
import warnings
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import machine
import numpy as np
import torch
from himalaya.backend import set_backend
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.ridge import RidgeCV

from repscope.align.ridge import RidgeSettings, kernel_of, kernel_ridge

RESULTS = Path(__file__).with_name("RESULTS-brain.md")
ALPHAS, FOLDS, HELD = np.logspace(-5, 4, 10), 5, 200


def data(n: int, p: int, t: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, p)).astype(dtype)
    return x, (x @ rng.normal(size=(p, t)).astype(dtype) / np.sqrt(p) + rng.normal(size=(n, t)).astype(dtype)).astype(dtype)


def ours(x: np.ndarray, y: np.ndarray, held: int) -> np.ndarray:
    train, test = np.arange(len(x) - held), np.arange(len(x) - held, len(x))
    inner = np.repeat(np.arange(FOLDS), -(-len(train) // FOLDS))[: len(train)]
    return kernel_ridge(kernel_of(x), y[train], train, test, inner, RidgeSettings(alphas=tuple(ALPHAS)))[0]


def theirs(kind: type, x: np.ndarray, y: np.ndarray, held: int) -> np.ndarray:
    backend = set_backend("torch")
    train = slice(0, len(x) - held)
    centred = x[train] - x[train].mean(0)
    unit = float((centred**2).sum() / len(centred))
    alphas = (ALPHAS * unit).astype(x.dtype)
    model = kind(alphas=alphas, cv=FOLDS, fit_intercept=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x[train], y[train])
        return backend.to_numpy(model.predict(x[-held:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=3, default=(2200, 5000, 2000), help="conditions, features, channels")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS-brain.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, y = data(250, 400, 60, "float64")
    small = [ours(x, y, 50), theirs(KernelRidgeCV, x, y, 50), theirs(RidgeCV, x, y, 50)]
    off = max(float(np.abs(small[0] - other).max()) for other in small[1:])
    assert off < 1e-9, off
    x, y = data(*args.sizes, "float32")
    seconds = {}
    for name, run in (
        ("repscope", lambda: ours(x, y, HELD)),
        ("himalaya KernelRidgeCV", lambda: theirs(KernelRidgeCV, x, y, HELD)),
        ("himalaya RidgeCV", lambda: theirs(RidgeCV, x, y, HELD)),
    ):
        started = time.process_time()
        run()
        seconds[name] = time.process_time() - started
        print(name, f"{seconds[name]:.1f} s", flush=True)
    rows = [f"| {name} | {took:.1f} | {took / seconds['repscope']:.2f} |" for name, took in seconds.items()]
    text = "\n".join(
        [
            f"{datetime.date.today()}, {machine.describe()}. {machine.versions(['numpy', 'torch', 'himalaya'])}.",
            "",
            f"One thread, one run, {args.sizes[0] - HELD} × {args.sizes[1]} × {args.sizes[2]}, float32. Largest difference of "
            f"predictions in float64 on 200 × 400 × 60: {off:.0e}.",
            "",
            "| | CPU seconds | ÷ repscope |",
            "|---|---|---|",
            *rows,
        ]
    )
    print(text)
    if args.write:
        machine.write_section("Encoding models", text, RESULTS)


if __name__ == "__main__":
    main()
