"""Step of `emergence` on effective compute: a ladder of pre-trainings, known gains, imitation and RL as multiples of compute.

1. Worlds of rewarded corpora (`worlds.rewarded`), whose pre-training corpus contains the expert's demonstrations as one document in
   eight. The score is the loss on the expert's completions, a skill that pre-training alone would learn, too.
2. The ladder: networks trained for several numbers of updates, each with a schedule of its own; compute is 6 · weights · tokens.
3. Gains of known size, on networks of another seed: nothing changed (1), four times the training relabelled (4), half of it (1/2).
4. The network of the base compute, fine-tuned for several numbers of updates: on demonstrations (imitation), on the best of its own
   samples, and by REINFORCE. Gains are without the compute of fine-tuning, which is beside them.
5. The reward is a second score: 1 minus the share of good tokens, as a loss. Where pre-training does not raise it, no gain is
   given.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.models.loading.stacked_weights import State
from repscope.progress import progress
from repscope.results import Result, Row
from repscope.studies.emergence import names
from repscope.studies.emergence.options import EmergenceOptions
from repscope.studies.run.study import Context, Cost
from repscope.trace.effective_compute import Gain, Ladder, gain, law_intervals
from repscope.worlds.rewarded.evaluation import Evaluator, of_completions, samples
from repscope.worlds.rewarded.methods import BEST, METHODS, OFF_POLICY, REINFORCE, Tuning
from repscope.worlds.rewarded.task import RewardedWorlds, generator_of
from repscope.worlds.small_lm import Training, train, transformer
from repscope.worlds.small_lm.transformer import Shape

SHARE = 8  #: one document in this many is a demonstration
BATCH = 64  #: documents per update and network
WIDTH = 32
TUNED = (OFF_POLICY, BEST, REINFORCE)
_RATE, _TUNING_RATE = 3e-3, 3e-4
_POOL = 2048
SCORES = (names.LOSS, names.REWARD)


@dataclass(frozen=True)
class ComputeLadder:
    """Worlds, rungs and the base of a run."""

    options: EmergenceOptions

    @property
    def worlds(self) -> RewardedWorlds:
        """One world per seed; at least three, as intervals are over them."""
        return RewardedWorlds(tuple(1009 * self.options.seed + i for i in range(max(3, self.options.seeds))))

    @property
    def shape(self) -> Shape:
        """Two blocks of the GPT-2 layout."""
        width = WIDTH if not self.options.tiny else 8
        return Shape(self.worlds.vocabulary, self.worlds.length, width)

    @property
    def base(self) -> int:
        """Updates of the network that is fine-tuned: a rung with two above and one below."""
        return self.options.rungs[-3]

    @property
    def doses(self) -> tuple[int, ...]:
        """Updates of fine-tuning."""
        return (1, 2) if self.options.tiny else (2, 4, 8, 16, 32) if self.options.short else (1, 2, 4, 8, 16, 32, 64)

    def compute(self, updates: float) -> float:
        """Pre-training FLOPs of one network."""
        return 6.0 * self.shape.parameters * updates * BATCH * self.worlds.length

    def corpus(self, purpose: str, step: int) -> Int[Tensor, "world document token"]:
        """Documents of one update: the corpus, and demonstrations as one in `SHARE`."""
        generator = generator_of(self.options.seed, purpose, step)
        documents, _ = self.worlds.corpus(BATCH - BATCH // SHARE, generator)
        return torch.cat([documents, self.worlds.demonstrations(BATCH // SHARE, generator)], 1)


def climb(task: ComputeLadder, context: Context) -> Result:
    """Train the ladder, measure known gains, and those of fine-tuning."""
    o, rungs = task.options, task.options.rungs
    score = _Score.of(task)
    states: dict[int, State] = {}
    rows: list[dict[str, Any]] = []
    for updates in rungs:
        states[updates] = _trained(task, updates, "ladder")
        rows.append({"updates": updates, "compute": task.compute(updates), **score(states[updates])})
    ladders = {name: Ladder(np.array([r["compute"] for r in rows]), np.stack([r[name] for r in rows])) for name in SCORES}
    gains: list[tuple[str, str, float, Gain]] = []  # score, item, known gain, found
    for factor in (1.0, 4.0, 0.5):
        measured = score(_trained(task, round(factor * task.base), "known"))
        for name in SCORES:
            found = gain(ladders[name], task.compute(task.base), measured[name], draws=o.draws, seed=o.seed)
            gains.append((name, known_item(factor), factor, found))
    tuned = list(_tuned(task, states[task.base], score))
    for method, dose, flops, measured in tuned:
        rows.append(
            {"updates": task.base, "compute": task.compute(task.base), "method": method, "dose": dose, "tuning": flops, **measured}
        )
        for name in SCORES:
            found = gain(ladders[name], task.compute(task.base), measured[name], draws=o.draws, seed=o.seed)
            gains.append((name, tuned_item(method, dose), np.nan, found))
    return Result.of(
        [*_loss_rows(task, rows), *_law_rows(task, ladders), *_gain_rows(task, gains)],
        side={"ladder": _frame(rows), "gains": gain_frame(gains), "law": _law_frame(ladders)},
        notes=tuple(f"{item}, {name}: {found.refusal}" for name, item, _, found in gains if found.refusal and name == names.LOSS),
    )


def known_item(factor: float) -> str:
    """A calibration whose gain is known."""
    named = {1.0: "another seed", 4.0: "four times the training", 0.5: "half the training"}
    return f"{named[factor]} (known: {factor:g})"


def tuned_item(method: str, dose: int) -> str:
    """A fine-tuning of so many updates."""
    return f"{method}, {dose} update{'s' * (dose != 1)}"


def gain_frame(gains: list[tuple[str, str, float, Gain]]) -> pd.DataFrame:
    """Gains and refusals as a side table."""
    found = []
    for name, item, known, one in gains:
        e = one.estimate
        numbers = {"gain": e.value, "lo": e.lo, "hi": e.hi} if e is not None else dict.fromkeys(("gain", "lo", "hi"), np.nan)
        found.append({"score": name, "item": item, "known": known, **numbers, "refusal": one.refusal})
    return pd.DataFrame(found)


def cost(task: ComputeLadder) -> Cost:
    """Forecast."""
    updates = sum(task.options.rungs) + 5.5 * task.base + 3 * max(task.doses)
    tokens = int(updates * BATCH * task.worlds.length * len(task.worlds.seeds))
    return Cost(tokens, 6.0 * tokens * task.shape.parameters, fit_flops=2e10, memory_bytes=4e8)


@dataclass(frozen=True)
class _Score:
    """Loss on the expert's completions and 1 − reward of own samples, per world; the same random numbers for every network."""

    task: ComputeLadder
    demonstrations: Int[Tensor, "world document token"]
    evaluator: Evaluator

    @classmethod
    def of(cls, task: ComputeLadder) -> "_Score":
        """Held-out demonstrations and prompts."""
        documents = 64 if task.options.tiny else 512
        held = task.worlds.demonstrations(documents, generator_of(task.options.seed, "held out"))
        return cls(task, held, Evaluator(task.shape, task.worlds, None, documents // 2, task.options.seed, "report"))

    @torch.no_grad()
    def __call__(self, state: State) -> dict[str, Float[np.ndarray, "world"]]:
        """Both, per world."""
        nats = -of_completions(self.task.shape, state, self.demonstrations).mean((1, 2)).double().numpy()
        return {names.LOSS: nats, names.REWARD: 1 - self.evaluator.reward(state)}


def _trained(task: ComputeLadder, updates: int, purpose: str) -> State:
    seeds = [seed + (500 if purpose == "known" else 0) for seed in task.worlds.seeds]
    start = transformer.initial(task.shape, seeds)
    schedule = Training(updates, _RATE, warm_up=max(1, updates // 10))
    documents = partial(task.corpus, f"{purpose} {updates}")
    return train(partial(transformer.logits, task.shape), start, documents, schedule, title=f"{updates} updates ({purpose})").state


def _tuned(task: ComputeLadder, base: State, score: _Score) -> Iterator[tuple[str, int, float, dict[str, np.ndarray]]]:
    """Method, updates, FLOPs of fine-tuning, and scores."""
    o, worlds = task.options, task.worlds
    pool = samples(task.shape, base, worlds, _POOL if not o.tiny else 64, (o.seed, "base"))
    best = worlds.reward(pool).topk(max(4, pool.shape[1] // 32), 1).indices
    data = {
        "demonstrations": worlds.demonstrations(_POOL if not o.tiny else 64, generator_of(o.seed, "tuning")),
        "best of base": pool.gather(1, best[..., None].expand(*best.shape, pool.shape[-1])),
    }
    with progress("fine-tuning", len(TUNED) * max(task.doses)) as advance:
        for name in TUNED:
            tuning = Tuning(task.shape, base, worlds, METHODS[name], data, _TUNING_RATE, BATCH, seed=o.seed)
            for dose in range(1, max(task.doses) + 1):
                tuning.update()
                advance(1)
                if dose in task.doses:
                    yield name, dose, tuning.flops * dose, score(tuning.state)


def _loss_rows(task: ComputeLadder, rows: list[dict[str, Any]]) -> Iterator[Row]:
    for row in rows:
        item = f"ladder, {row['updates']} updates" if "method" not in row else tuned_item(row["method"], row["dose"])
        for name in SCORES:
            values = row[name] if name == names.LOSS else 1 - row[name]
            yield Row.over(values, "world", metric=name, item=item, split="expert's completions", seed=task.options.seed)


def _law_rows(task: ComputeLadder, ladders: Mapping[str, Ladder]) -> Iterator[Row]:
    found = law_intervals(ladders[names.LOSS], draws=task.options.draws, seed=task.options.seed)
    for metric, name in ((names.FLOOR, "floor"), (names.EXPONENT, "exponent")):
        yield Row.of(found[name], metric=metric, item="ladder", seed=task.options.seed)


def _gain_rows(task: ComputeLadder, gains: list[tuple[str, str, float, Gain]]) -> Iterator[Row]:
    for name, item, known, found in gains:
        where: dict[str, Any] = {"metric": names.GAIN, "item": item, "split": f"by {name}", "seed": task.options.seed}
        if np.isfinite(known):
            yield Row(value=known, condition=names.KNOWN, **where)
        if found.estimate is not None:
            yield Row.of(found.estimate, **where)
        elif name == names.LOSS:
            yield Row(value=float("nan"), unit="world", n=len(task.worlds.seeds), **where)


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    held = []
    for row in rows:
        known = {k: v for k, v in row.items() if k not in SCORES}
        held += [known | {"world": i, **{name: row[name][i] for name in SCORES}} for i in range(len(row[names.LOSS]))]
    return pd.DataFrame(held)


def _law_frame(ladders: Mapping[str, Ladder]) -> pd.DataFrame:
    found = []
    for name, ladder in ladders.items():
        grid = np.geomspace(ladder.compute[0] / 2, ladder.compute[-1] * 4, 40)
        found += [{"score": name, "compute": c, "value": v} for c, v in zip(grid, ladder.law.loss(grid))]
    return pd.DataFrame(found)
