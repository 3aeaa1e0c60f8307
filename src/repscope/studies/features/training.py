"""Training of the autoencoders of `features`: the recipe that the options give."""

import math
from typing import Any

from repscope import manifest
from repscope.progress import progress
from repscope.read.sae.training import BatchTopK, Gated, JumpReLU, Matryoshka, Recipe, TopK, Trained, checkpoint, train
from repscope.studies.features.task import FeaturesTask, Training
from repscope.studies.run.study import Context

_BATCH = 1024  #: rows; small, as a store of some hundred thousand rows is passed over a few times
_RATE = 4e-4  #: of Adam, for such a short training
_CALIBRATION = 4


def architecture(task: FeaturesTask, k: int) -> Any:
    """The architecture that the options name, with k active latents (for JumpReLU and Gated: as the target, or by the penalty)."""
    latents = task.options.expansion * task.width
    match task.options.architecture:
        case "topk":
            return TopK(k)
        case "batchtopk":
            return BatchTopK(k)
        case "matryoshka":
            return Matryoshka(
                k, prefixes=tuple(sorted({max(1, latents // 8), max(1, latents // 4), max(1, latents // 2), latents}))
            )
        case "jumprelu":
            return JumpReLU(1.0, target_l0=float(k))
        case _:
            return Gated(1.0 / math.sqrt(k))


def recipe(task: FeaturesTask, one: Training, rows: int) -> Recipe:
    """The recipe of one autoencoder on a store of so many rows."""
    o = task.options
    batch = max(16, min(_BATCH, rows // 4))
    steps = max(1, rows * o.epochs // batch)
    return Recipe(
        architecture(task, one.k),
        latents=o.expansion * task.width,
        steps=steps,
        batch=batch,
        learning_rate=_RATE,
        warmup=min(steps, max(1, steps // 20)),
        decay=steps // 5,
        dead_after=max(1, rows // 2),
        calibration=min(_CALIBRATION, max(1, rows // batch)),
        seed=one.seed,
    )


def train_one(task: FeaturesTask, one: Training, context: Context) -> Trained:
    """Train, or go on where a killed run stopped."""
    store = task.store(context, one.twin)
    plan = recipe(task, one, len(store))
    each = max(1, plan.steps // 20)
    with progress(f"training {one.name}", plan.steps) as advance:
        done = [0]

        def log(row: Any) -> None:
            advance(int(row["step"]) - done[0])
            done[0] = int(row["step"])

        out = context.partial / "training"
        if manifest.sealed(out / checkpoint.NAME) is False:  # damaged: trained from the beginning
            (out / checkpoint.NAME).unlink()
        return train(store, plan, task.site, out=out, checkpoint_every=max(50, plan.steps // 4), log_every=each, on_log=log)
