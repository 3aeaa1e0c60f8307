"""Local learning coefficients of potentials whose value is known, beside devinterp: how far each is off.

    .peers-llc/bin/python benchmarks/learning_coefficient.py --write     # environment: requirements-learning-coefficient.txt

1. Potentials: ½‖w‖² in 100 dimensions (value 50); the sum of w⁴ in 64 dimensions (value 16); forty pairs (w₁w₂)² with a
   localisation of 4, whose value is that of quadrature over a grid.
2. Both packages start at the minimum, with the same rate, localisation, n beta, chains, draws and burn-in. Ours with Metropolis's
   rule (`adjusted`) and without it. devinterp takes a loss by token of a data set: every token has the potential's value.
3. Every side has three seeds. Their mean, its error, and the largest error of a seed, in per cent of the known value.
"""

import argparse
import logging
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from repscope.trace.learning_coefficient import Sampling, learning_coefficient

SEEDS, CHAINS = range(3), 4


class Weights(nn.Module):
    """Parameters at the minimum."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(d))


def quadratic(module: nn.Module) -> torch.Tensor:
    return 0.5 * module.w.square().sum()


def quartic(module: nn.Module) -> torch.Tensor:
    return module.w.pow(4).sum()


def crossing(module: nn.Module) -> torch.Tensor:
    return (module.w[:40] * module.w[40:]).square().sum()


def by_quadrature(n_beta: float, gamma: float) -> float:
    grid = np.linspace(-4, 4, 2001)
    product = (grid[:, None] * grid[None]) ** 2
    density = np.exp(-n_beta * product - gamma / 2 * (grid[:, None] ** 2 + grid[None] ** 2))
    return float(40 * n_beta * (product * density).sum() / density.sum())


#: name → potential, dimensions, known value, n beta, rate, localisation, draws, burn-in
CASES = {
    "½‖w‖², 100 dimensions": (quadratic, 100, 50.0, 1000.0, 4e-4, 0.0, 300, 60),
    "Σw⁴, 64 dimensions": (quartic, 64, 16.0, 1000.0, 2e-3, 0.0, 500, 200),
    "Σ(w₁w₂)², forty pairs": (crossing, 80, by_quadrature(200.0, 4.0), 200.0, 4e-3, 4.0, 700, 100),
}


def ours(case: str, seed: int, adjusted: bool) -> float:
    potential, d, _, n_beta, rate, gamma, draws, burn_in = CASES[case]
    sampling = Sampling(int(n_beta), 1.0, rate, gamma, CHAINS, draws, burn_in, adjusted, seed)
    return learning_coefficient(Weights(d), lambda m, _: potential(m), sampling).estimate.value


def theirs(case: str, seed: int, burn_in: bool) -> float:
    from datasets import Dataset
    from devinterp.slt.llc import llc

    potential, d, _, n_beta, rate, gamma, draws, burn = CASES[case]
    data = Dataset.from_dict({"input_ids": [[0, 1]] * 4}).with_format("torch")
    with tempfile.TemporaryDirectory() as folder:
        found = llc(
            Weights(d),
            data,
            {},
            lr=rate,
            n_beta=n_beta,
            loss_fn=lambda model, ids: potential(model).expand(len(ids), ids.shape[1] - 1),
            num_chains=CHAINS,
            num_draws=draws,
            num_burnin_steps=burn if burn_in else 0,
            batch_size=2,
            num_init_loss_batches=1,
            localization=gamma,
            init_seed=1000 * seed,
            device="cpu",
            output_path=Path(folder) / "samples.zarr",
        )
        return float(found.llc_mean)


SIDES = {
    "repscope, adjusted": lambda case, seed: ours(case, seed, True),
    "repscope": lambda case, seed: ours(case, seed, False),
    "devinterp, default burn-in (0)": lambda case, seed: theirs(case, seed, False),
    "devinterp, the same burn-in": lambda case, seed: theirs(case, seed, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write RESULTS-learning-coefficient.md beside this file")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # read when devinterp is imported
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    lines = [
        "devinterp 2.0.1. Mean over three seeds (error; largest error of a seed), in per cent of the known value.",
        "",
        "| potential | known | " + " | ".join(SIDES) + " |",
        "|---|---|" + "---|" * len(SIDES),
    ]
    print("\n".join(lines), flush=True)
    for case, (_, _, known, *_rest) in CASES.items():
        cells = []
        for side in SIDES.values():
            values = np.array([side(case, seed) for seed in SEEDS])
            worst = values[np.abs(values - known).argmax()]
            cells.append(f"{values.mean():.2f} ({100 * (values.mean() / known - 1):+.1f} %; {100 * (worst / known - 1):+.1f} %)")
        lines.append(f"| {case} | {known:.2f} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    if options.write:
        text = "# Local learning coefficients of known potentials\n\n" + "\n".join(lines) + "\n"
        (Path(__file__).parent / "RESULTS-learning-coefficient.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
