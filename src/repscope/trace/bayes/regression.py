"""In-context linear regression: do small transformers predict as the Bayes predictor of their pretraining tasks, or as ridge?

1. Networks of each task diversity M (several seeds each, all stacked) learn to predict y from the pairs before it.
2. On prompts of pretraining tasks and of unseen ones, after every number of pairs k: squared error against y without noise; squared
   distance to dMMSE (exact for the M tasks) and to ridge (exact for w ~ N(0, I)). All are divided by the dimension of x, so that
   predicting 0 has an error of 1.
3. "Nearer to ridge": distance to dMMSE minus distance to ridge, paired by prompt, mean over k ≥ 1. Positive: nearer to ridge. The
   Bayes predictor of the pretraining tasks is dMMSE; one that generalises beyond them is ridge (Raventós et al. 2023).

Controls: the two predictors themselves, and the networks before training. Without a finite M (`None`) ridge alone is exact.
Intervals are over prompts, of the mean over seeds; the side table has each network's own numbers.
Where dMMSE and ridge predict almost the same (many tasks), nearness tells little: compare it with that of untrained networks.
It does not know: larger networks, or where the transition lies at full training.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from repscope import stats
from repscope.conditions import ESTIMATE
from repscope.errors import UserError
from repscope.models.loading.stacked_weights import State, arrays_of
from repscope.results import Result, Row
from repscope.worlds.regression import Regression, discrete_mmse, network, ridge
from repscope.worlds.regression.tasks import Source
from repscope.worlds.small_lm import Training, train_by

ERROR, DISTANCE, NEARER = "regression error", "regression distance", "nearer to ridge"
DMMSE, RIDGE, UNTRAINED = "dMMSE", "ridge", "untrained network"
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True)
class RegressionOptions:
    """Sizes of the comparison.

    world: of tasks and prompts. diversities: numbers of pretraining tasks; None for a new task per prompt. seeds: networks per
    diversity. width, layers: of the networks. steps, batch, rate: updates, prompts per update and network, peak learning rate.
    prompts: evaluated per source. seed: of everything drawn.

    Raises a `UserError` when there is nothing to train or to evaluate.
    """

    world: Regression = field(default_factory=lambda: Regression(2, 8))
    diversities: tuple[int | None, ...] = (2, 4, 8, 16, 32, 128, None)
    seeds: int = 2
    width: int = 32
    layers: int = 2
    steps: int = 2200
    batch: int = 32
    rate: float = 4e-3
    prompts: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not self.diversities or min(self.seeds, self.steps, self.batch) < 1 or self.prompts < 2:
            raise UserError(f"{self} trains or evaluates nothing: seeds, steps and batch are at least 1, and prompts at least 2.")
        if len(set(self.diversities)) < len(self.diversities):
            raise UserError(f"The diversities {self.diversities} name one number twice; name each once.")

    @classmethod
    def short(cls, seed: int = 0) -> "RegressionOptions":
        """Less than a minute of one core."""
        return cls(diversities=(2, 16, None), seeds=1, steps=1600, prompts=300, seed=seed)

    @classmethod
    def tiny(cls, seed: int = 0) -> "RegressionOptions":
        """A test that ends in seconds."""
        return cls(Regression(2, 4), (2, None), 1, 8, 1, 20, 8, prompts=40, seed=seed)

    @property
    def shape(self) -> network.Shape:
        """Sizes of the networks."""
        return network.Shape(self.world.dimension, self.world.examples, self.width, self.layers)


def regression_result(options: RegressionOptions, *, saved: Path | None = None) -> Result:
    """Train the networks and compare them with both predictors; rows in the schema of all studies.

    Parameters
    ----------
    options
        What is trained and evaluated.
    saved
        File for the state of an interrupted training; removed at the end.

    Returns
    -------
    Result
        Rows by item ("32 tasks, unseen tasks, k = 4"; without k: mean over k ≥ 1); the weights; side tables `losses` (by step) and
        `networks`.

    Raises
    ------
    UserError
        When a loss is not a number.
    """
    start = network.initial(options.shape, [options.seed * 7919 + i for i in range(len(options.diversities) * options.seeds)])
    schedule = Training(options.steps, options.rate, min(100, max(1, options.steps // 10)), decay=0.0)
    trained = train_by(network.squared_error(options.shape, _Pairs(options)), start, schedule, saved=saved, title="regression")
    rows: list[Row] = []
    own: list[dict[str, object]] = []
    for i, diversity in enumerate(options.diversities):
        part = slice(i * options.seeds, (i + 1) * options.seeds)
        states = [{name: value[part] for name, value in s.items()} for s in (trained.state, start)]
        for source in SOURCES:
            if diversity is None and source == SOURCES[0]:
                continue  # every task is new
            found, networks = _compared(options, diversity, source, *states)
            rows += found
            own += networks
    stride = max(1, options.steps // 100)
    columns = [f"{_named(m)}, {seed}" for m in options.diversities for seed in range(options.seeds)]
    losses = pd.DataFrame(trained.losses[::stride], columns=columns)
    losses.insert(0, "step", np.arange(0, options.steps, stride))
    arrays = arrays_of(trained.state)
    return Result.of(rows, arrays=arrays, side={"losses": losses, "networks": pd.DataFrame(own)})


@dataclass(frozen=True)
class _Pairs:
    """Step → prompts of every network, from the tasks of its diversity."""

    options: RegressionOptions

    def __call__(self, step: int) -> network.Pairs:
        o = self.options
        held = [
            o.world.prompts(o.batch, None if m is None else o.world.tasks(m), np.random.default_rng([o.seed, 3, step, i, s]))
            for i, m in enumerate(o.diversities)
            for s in range(o.seeds)
        ]
        x, y = (torch.from_numpy(np.stack([getattr(h, part) for h in held])).float() for part in "xy")
        return x, y


def _compared(
    options: RegressionOptions, diversity: int | None, source: Source, state: State, start: State
) -> tuple[list[Row], list[dict[str, object]]]:
    world, d = options.world, options.world.dimension
    tasks = None if diversity is None else world.tasks(diversity)
    rng = np.random.default_rng([options.seed, 5, SOURCES.index(source)])
    held = world.prompts(options.prompts, tasks if source == SOURCES[0] else None, rng)
    exact = {RIDGE: ridge(held.x, held.y, world.noise)}
    if tasks is not None:
        exact[DMMSE] = discrete_mmse(held.x, held.y, tasks, world.noise)
    answers = {c: network.answers(options.shape, s, held.x, held.y) for c, s in ((ESTIMATE, state), (UNTRAINED, start))}
    where: dict[str, Any] = {"split": source, "seed": options.seed}
    name, rows = f"{_named(diversity)}, {source}", list[Row]()

    def add(values: Float[np.ndarray, "prompt example"], **what: str) -> None:
        for k, column in _columns(values):
            item = name if k is None else f"{name}, k = {k}"
            rows.append(Row.of(stats.mean(column, unit="prompt", seed=options.seed), item=item, **what, **where))

    for condition, given in (answers | {c: p[None] for c, p in exact.items()}).items():
        add(((given - held.clean) ** 2).mean(0) / d, metric=ERROR, condition=condition, definition="squared, per dimension of x")
    far = {(c, to): ((given - p) ** 2) / d for c, given in answers.items() for to, p in exact.items()}  # network, prompt, example
    for (condition, to), values in far.items():
        add(values.mean(0), metric=DISTANCE, condition=condition, definition=f"to {to}, squared, per dimension of x")
    if tasks is not None:
        for condition in answers:
            paired = (far[condition, DMMSE] - far[condition, RIDGE])[:, :, 1:].mean((0, 2))
            estimate = stats.mean(paired, unit="prompt", seed=options.seed)
            definition = "distance to dMMSE minus distance to ridge"
            rows.append(Row.of(estimate, metric=NEARER, condition=condition, item=name, definition=definition, **where))
    own: list[dict[str, object]] = [
        {"tasks": _named(diversity), "source": source, "network": i}
        | {ERROR: float(((given - held.clean) ** 2)[:, 1:].mean() / d)}
        | {f"to {to}": float(far[ESTIMATE, to][i][:, 1:].mean()) for to in exact}
        for i, given in enumerate(answers[ESTIMATE])
    ]
    return rows, own


def _columns(values: Float[np.ndarray, "prompt example"]) -> Iterator[tuple[int | None, Float[np.ndarray, "prompt"]]]:
    """The mean over k ≥ 1 (as None), and each number of pairs: 0, the powers of two, the most."""
    if values.shape[1] > 1:
        yield None, values[:, 1:].mean(1)
    most = values.shape[1] - 1
    for k in sorted({0, most, *(2**i for i in range(12) if 2**i < most)}):
        yield k, values[:, k]


def _named(diversity: int | None) -> str:
    return "new tasks" if diversity is None else f"{diversity} task{'s' * (diversity != 1)}"
