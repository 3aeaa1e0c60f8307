"""All directions of all seeds in one batch against one direction at a time, on a GAN and a diffusion model of sprites.

    python benchmarks/image_directions.py [--write]

Both ways run the same searches (L2, whose directions do not depend on each other, so that one at a time is possible) from the same
random vectors with the same number of steps, and must end at the same directions. One at a time runs whole passes of the network.
One batch of a diffusion model also shares what does not depend on the vectors (`shared_pass`); the batch without that is a column
of its own. Seconds of the search alone, on one thread; the fastest of some. The generators have the sizes of `repscope study
discover --subject gan|diffusion` and random weights.

A second table has the time that training these generators takes, from some of its steps.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from repscope.discovery import SolverOptions, l2
from repscope.discovery.generators import Bed, DiffusionBed, DiffusionSubject, LatentBed
from repscope.discovery.solvers import SOLVERS, SolverTask
from repscope.discovery.stacked_seeds import StackedTask, discover_seeds
from repscope.models.generators import LatentGenerator
from repscope.worlds.sprites import cached, train_regressor
from repscope.worlds.sprites.diffusion import (
    CaptionedUNet,
    DiffusionSizes,
    TrainedDiffusion,
    noise_schedule,
    patches,
    train_diffusion,
)
from repscope.worlds.sprites.gan import FEATURES, GanSizes, SpriteGenerator, sprite_batch, train_gan
from repscope.worlds.sprites.regressor import STEPS as STEPS_OF_REGRESSOR

TABLE = Path(__file__).with_name("RESULTS-image-directions.md")
DIRECTIONS, SEEDS = 12, (0, 1, 2, 3, 4)
STEPS = {"gan": 20, "diffusion": 4}
SAMPLES = {"gan": 16, "diffusion": 2}
REPEATS = {"gan": 3, "diffusion": 5}


class One(SolverTask):
    """A task of one direction with a given start."""

    def drawn(self, count: int | None = None) -> torch.Tensor:
        """The start."""
        return self.options.weight


def bed_of(kind: str, samples: int, share: bool = True) -> Bed:
    torch.manual_seed(0)
    if kind == "gan":
        sizes = GanSizes()
        module = SpriteGenerator(sizes.latent, sizes.width).eval().requires_grad_(False)
        return LatentBed(LatentGenerator(module, sizes.latent, FEATURES), samples, 4)
    network = CaptionedUNet(DiffusionSizes()).eval().requires_grad_(False)
    model = cached.diffusion_generator(TrainedDiffusion(network, noise_schedule(DiffusionSizes()), np.zeros(1)))
    bed = DiffusionBed(model, patches(sprite_batch(samples, 0)), held=4)
    if not share:
        bed.subject = DiffusionSubject(model, bed.site, bed.target, share=False)
        bed.context = bed.subject.context(bed.noisy)
    return bed


def together(bed, steps: int) -> np.ndarray:
    found = discover_seeds(bed.subject, bed.context, l2(), DIRECTIONS, SEEDS, scale=bed.scale, steps=steps)
    return np.concatenate([one.vectors for one in found])


def one_at_a_time(bed, steps: int) -> np.ndarray:
    count = DIRECTIONS * len(SEEDS)
    starts = StackedTask(bed.subject, bed.context, l2(), count, bed.scale, steps, 0, SolverOptions(), SEEDS).drawn()
    found = []
    with torch.no_grad():
        for start in starts:
            task = One(bed.subject, bed.context, l2(), 1, bed.scale, steps, 0, SolverOptions(weight=start[None].clone()))
            found.append(SOLVERS["sphere"].run(task).vectors.numpy())
    return np.concatenate(found)


def seconds(ways: dict[str, Callable[[], np.ndarray]], repeats: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The fastest of some runs of each way, taken in turn, as the machine is not equally fast all the time."""
    best, found = dict.fromkeys(ways, float("inf")), {}
    for _ in range(repeats):
        for name, run in ways.items():
            began = time.perf_counter()
            found[name] = run()
            best[name] = min(best[name], time.perf_counter() - began)
    return best, found


def trained_in(name: str, train: Callable[[int], object], few: int, whole: int) -> str:
    train(2)  # sets up kernels
    began = time.perf_counter()
    train(few)
    each = (time.perf_counter() - began) / few
    return f"| {name} | {whole} | {1000 * each:.1f} | {each * whole / 60:.1f} |"


TRAININGS: tuple[tuple[str, Callable[[int], object], int, int], ...] = (
    ("GAN", lambda n: train_gan(GanSizes(steps=n)), 200, GanSizes().steps),
    ("diffusion model", lambda n: train_diffusion(DiffusionSizes(steps=n)), 40, DiffusionSizes().steps),
    ("factor regressor (two are trained)", lambda n: train_regressor(0, n), 200, STEPS_OF_REGRESSOR),
)
TAIL = ("", "Training, one thread:", "", "| network | steps | ms per step | minutes |", "|---|---|---|---|")


def main() -> None:
    torch.set_num_threads(1)
    lines = []
    for kind, steps in STEPS.items():
        bed, whole = bed_of(kind, SAMPLES[kind]), bed_of(kind, SAMPLES[kind], share=False)
        together(bed, 1)  # first passes set up kernels
        ways = {"batch": partial(together, bed, steps), "one": partial(one_at_a_time, whole, steps)}
        ways |= {} if kind == "gan" else {"whole": partial(together, whole, steps)}
        took, found = seconds(ways, REPEATS[kind])
        slow, fast, batched = took["one"], took["batch"], f"{took['whole']:.2f}" if "whole" in took else "–"
        cos = float((found["batch"] * found["one"]).sum(1).min())
        rows = bed.context.prompts
        lines.append(f"| {kind} | {rows} | {slow:.2f} | {batched} | {fast:.2f} | {slow / fast:.1f} × | {cos:.6f} |")
        print(lines[-1], flush=True)
    trainings = [trained_in(name, train, few, whole) for name, train, few, whole in TRAININGS]
    print(*trainings, sep="\n", flush=True)
    head = [
        "# Directions of image generators: one batch against one direction at a time",
        "",
        f"{DIRECTIONS} directions × {len(SEEDS)} seeds, L2, the same start and steps; one thread.",
        "Written by `benchmarks/image_directions.py --write`.",
        "",
        "| generator | samples | one at a time (s) | one batch, whole passes (s) | one batch (s) | ratio | smallest cosine |",
        "|---|---|---|---|---|---|---|",
    ]
    if "--write" in sys.argv:
        TABLE.write_text("\n".join([*head, *lines, *TAIL, *trainings]) + "\n")


if __name__ == "__main__":
    main()
