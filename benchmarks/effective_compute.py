"""Coverage of the intervals of compute-equivalent gains on simulated ladders, by calibration arm.

    python benchmarks/effective_compute.py --write

1. Ladders of eight rungs of the law 1.9 + C^-0.3. *One network per rung*: noise of 0.4 % on every loss, one enhanced network.
   *Three worlds*, *five worlds*: networks of worlds whose floors differ by 0.1 (sd) with noise of 0.008; ladder and enhancement
   share them.
2. Arms: nothing changed (1), four times the training (4), half the training (1/2), always from the fifth rung.
3. An interval of 90 % should contain the gain in 90 of 100 ladders; with 300 ladders the coverage itself has a standard error of
   1.7 points. An interval without an upper end contains every gain above its lower end.
"""

import argparse
from pathlib import Path

import numpy as np

from repscope.trace.effective_compute import Ladder, gain

COMPUTE = np.logspace(11, 13, 8)
FACTORS = (1.0, 4.0, 0.5)
SETTINGS = {"one network per rung": 0, "three worlds": 3, "five worlds": 5}


def loss(compute):
    return 1.9 + (np.asarray(compute) / 1e11) ** -0.3


def simulated(worlds: int, seed: int):
    """A ladder, and the function that draws an enhanced network's losses."""
    rng = np.random.default_rng([seed, worlds])
    if not worlds:
        noisy = lambda c: loss(c) * np.exp(0.004 * rng.standard_normal(np.shape(c)))  # noqa: E731
        return Ladder(COMPUTE, noisy(COMPUTE)), noisy
    floors = rng.normal(0, 0.1, worlds)
    ladder = Ladder(COMPUTE, loss(COMPUTE)[:, None] + floors + 0.008 * rng.standard_normal((len(COMPUTE), worlds)))
    return ladder, lambda c: loss(c) + floors + 0.008 * rng.standard_normal(worlds)


def covered(worlds: int, ladders: int, draws: int) -> tuple[dict[float, list[bool]], dict[float, list[float]]]:
    """Whether each interval holds the gain, and its width as a ratio."""
    held: dict[float, list[bool]] = {f: [] for f in FACTORS}
    wide: dict[float, list[float]] = {f: [] for f in FACTORS}
    for seed in range(ladders):
        ladder, enhanced = simulated(worlds, seed)
        for factor in FACTORS:
            found = gain(ladder, COMPUTE[4], enhanced(factor * COMPUTE[4]), draws=draws, seed=seed).estimate
            held[factor].append(found is not None and found.lo <= factor <= found.hi)
            wide[factor].append(found.hi / found.lo if found is not None else np.nan)
    return held, wide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladders", type=int, default=300)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--write", action="store_true", help="write RESULTS-effective-compute.md beside this file")
    options = parser.parse_args()
    lines = [
        f"Share of {options.ladders} ladders whose 90 % interval contains the known gain (median ratio of its ends).",
        "",
        "| ladder | " + " | ".join(f"gain {f:g}" for f in FACTORS) + " | all |",
        "|---|" + "---|" * (len(FACTORS) + 1),
    ]
    print("\n".join(lines), flush=True)
    for name, worlds in SETTINGS.items():
        held, wide = covered(worlds, options.ladders, options.draws)
        cells = [f"{100 * np.mean(held[f]):.1f} % ({np.nanmedian(wide[f]):.2f})" for f in FACTORS]
        every = 100 * np.mean([held[f] for f in FACTORS])
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {every:.1f} % |")
        print(lines[-1], flush=True)
    if options.write:
        text = "# Coverage of compute-equivalent gains\n\n" + "\n".join(lines) + "\n"
        (Path(__file__).parent / "RESULTS-effective-compute.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
