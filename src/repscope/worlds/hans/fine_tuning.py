"""Pretraining and fine-tuning runs on HANS in miniature, with or without an early bias.

1. `pretrain`: masked words in HANS in miniature (`worlds.hans.examples`). The weights at several steps are *forks*.
2. `training_run`: from a fork with its own head, each run has `early_bias` steps on its condition's data, then only ambiguous data,
   under one schedule. The biased conditions differ only in these first steps; the unbiased one has ambiguous data throughout.
3. `evaluator`: loss and error on held-out ambiguous texts (ID), and on permuted ones (OOD), whose labels are the rule's: an OOD
   error of 0 is the rule, of 1 lexical overlap.

A run is known by its pretraining, head seed, data seed and group; every batch follows from data seed and step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from repscope.errors import UserError, unknown
from repscope.models.loading.stacked_weights import Evaluate, Losses, Shape, State, runs_of, select_runs, stack
from repscope.worlds.hans import classifier as small
from repscope.worlds.hans import stacked
from repscope.worlds.hans.examples import GROUPS, HansExamples
from repscope.worlds.hans.training import Schedule, TrainingRun

Tick = Callable[[float], None]
_PRETRAIN, _TUNE, _JUDGE = 11, 12, 13  #: of random generators, so that no two uses share numbers


@dataclass(frozen=True)
class World:
    """The task, the network, and how it is pretrained.

    ordered: share of pretraining texts whose hypothesis keeps the premise's order. batch: of pretraining.
    """

    task: HansExamples = field(default_factory=HansExamples)
    width: int = 32
    blocks: int = 2
    ordered: float = 0.8
    batch: int = 128
    pretraining: Schedule = field(default_factory=lambda: Schedule(1200, 3e-3, warmup=50, last=0.1))

    def shape(self, classes: int = 2) -> Shape:
        """Sizes of the network; without classes it fills in words."""
        return Shape(self.task.vocabulary, self.task.tokens, self.width, self.blocks, classes=classes)


@dataclass(frozen=True)
class FineTuning:
    """How runs are fine-tuned. early_bias: initial steps on condition-specific data. batch: examples per step. share: of permuted
    examples in these.
    head: scale of the random head."""

    schedule: Schedule = field(default_factory=lambda: Schedule(240, 4e-3))
    early_bias: int = 120
    batch: int = 32
    share: float = 0.25
    head: float = 0.02


def pretrain(world: World, seeds: Sequence[int], forks: Sequence[int], tick: Tick = lambda amount: None) -> dict[int, State]:
    """Masked language models, one per seed, at each of these steps: step → weights.

    Raises
    ------
    UserError
        For a fork beyond the pretraining.
    """
    if not forks or max(forks) > world.pretraining.steps or min(forks) < 0:
        raise UserError(f"Pretraining has {world.pretraining.steps} steps; forks at {list(forks)} are not all within it.")
    shape = world.shape(classes=0)

    def loss(state: State, step: int) -> torch.Tensor:
        drawn = [world.task.masked(np.random.default_rng([_PRETRAIN, seed, step]), world.batch, world.ordered) for seed in seeds]
        ids, places, answers = (torch.from_numpy(np.stack(part)) for part in zip(*drawn))
        found = stacked.words(shape, state, ids, places)
        return functional.cross_entropy(found.flatten(0, 1), answers.flatten(), reduction="none").view(len(seeds), -1).mean(1)

    descent = TrainingRun(stack(small.random_weights(shape, seed) for seed in seeds), loss, world.pretraining)
    return dict(descent.until(forks, tick))


def heldout_accuracy(world: World, state: State, n: int = 512) -> dict[str, np.ndarray]:
    """Accuracy of filling in words, by run: of texts in order, and of shuffled ones (for which lexical overlap is enough)."""
    shape, found = world.shape(classes=0), {}
    for name, ordered in (("in order", 1.0), ("shuffled", 0.0)):
        ids, places, answers = (torch.from_numpy(a) for a in world.task.masked(np.random.default_rng(_JUDGE), n, ordered))
        runs = runs_of(state)
        with torch.no_grad():
            logits = stacked.words(shape, state, ids[None], places.expand(runs, -1))
        found[name] = (logits.argmax(-1) == answers).double().mean(1).numpy()
    return found


def initial_states(world: World, base: State, runs: pd.DataFrame, head: float) -> State:
    """Weights with which runs begin: those of row `init` of a stack of pretrained networks, each with a head of its own."""
    kept = {name: value for name, value in base.items() if not name.startswith("unembed")}
    heads = stack(small.random_head(world.shape(), int(seed), head) for seed in runs["head_seed"])
    heads = {name: value.to(base["embed.weight"]) for name, value in heads.items()}
    return select_runs(kept, runs["init"].to_list()) | heads


def training_run(world: World, base: State, runs: pd.DataFrame, tuning: FineTuning) -> TrainingRun:
    """The fine-tuning of runs, to be gone through with `until`.

    Parameters
    ----------
    base
        Pretrained networks.
    runs
        One row per run, with the columns init (a row of `base`), head_seed, data_seed and group.
    tuning
        Shared by all.

    Raises
    ------
    UserError
        For an unknown group, a run whose init is not there, or more steps of early bias than there are.
    """
    for group in runs["group"].unique():
        if group not in GROUPS:
            raise unknown("group", group, GROUPS)
    if runs["init"].min() < 0 or runs["init"].max() >= runs_of(base):
        raise UserError(f"A run starts from network {int(runs['init'].max())}, and {runs_of(base)} are pretrained.")
    if tuning.early_bias > tuning.schedule.steps and set(runs["group"]) != {"none"}:
        raise UserError(
            f"An early bias of {tuning.early_bias} steps is longer than the {tuning.schedule.steps} steps of fine-tuning."
        )
    shape, rows = world.shape(), list(zip(runs["data_seed"].astype(int), runs["group"]))

    def loss(state: State, step: int) -> torch.Tensor:
        drawn = [
            world.task.biased(
                np.random.default_rng([_TUNE, seed, step]),
                tuning.batch,
                group if step < tuning.early_bias else "none",
                tuning.share,
            )
            for seed, group in rows
        ]
        ids, labels = (torch.from_numpy(np.stack(part)) for part in zip(*drawn))
        found = stacked.logits(shape, state, ids)
        return functional.cross_entropy(found.flatten(0, 1), labels.flatten(), reduction="none").view(len(rows), -1).mean(1)

    return TrainingRun(initial_states(world, base, runs, tuning.head), loss, tuning.schedule)


def fine_tune(
    world: World, base: State, runs: pd.DataFrame, tuning: FineTuning, keep: Sequence[int] = (), tick: Tick = lambda amount: None
) -> dict[int, State]:
    """Fine-tuned runs at each of these steps, the last if none is named: step → weights. Arguments as `training_run`."""
    return dict(training_run(world, base, runs, tuning).until(keep or [tuning.schedule.steps], tick))


def evaluator(world: World, seed: int, ambiguous: int = 512, permuted: int = 256, *, by_example: bool = False) -> Evaluate:
    """What evaluates stacked runs: `loss` and `error` on ambiguous texts, `ood loss` and `ood error` on permuted ones.

    With `by_example` each comes as the sums above and below for every text, of which intervals are made.
    """
    rng = np.random.default_rng([_JUDGE, seed])
    parts = [world.task.ambiguous(rng, ambiguous), world.task.permuted(rng, permuted)]
    ids = torch.from_numpy(np.concatenate([p[0] for p in parts]))
    labels = torch.from_numpy(np.concatenate([p[1] for p in parts]))
    shape = world.shape()

    def evaluate(state: State) -> Losses:
        logits = stacked.classify(shape, state, ids)
        each = functional.cross_entropy(logits.mT, labels.expand(len(logits), -1), reduction="none").double().numpy()
        wrong = (logits.argmax(-1) != labels).double().numpy()
        split = slice(0, ambiguous), slice(ambiguous, None)
        return {
            name: np.stack([values[:, part], np.ones_like(values[:, part])], -1) if by_example else values[:, part].mean(1)
            for name, values, part in (
                ("loss", each, split[0]),
                ("error", wrong, split[0]),
                ("ood loss", each, split[1]),
                ("ood error", wrong, split[1]),
            )
        }

    return evaluate


def run_plan(groups: Sequence[str], init: int | Sequence[int] = 0, seed: int = 0) -> pd.DataFrame:
    """A table of runs, one per entry of `groups`, with seeds derived from `seed`."""
    inits = [init] * len(groups) if isinstance(init, int) else list(init)
    first = 1000 * (seed + 1)
    return pd.DataFrame(
        {
            "run": [f"{group.replace(' ', '-')}-{i:02d}" for i, group in enumerate(groups)],
            "init": inits,
            "group": list(groups),
            "head_seed": range(first, first + len(groups)),
            "data_seed": range(first + 500, first + 500 + len(groups)),
        }
    )
