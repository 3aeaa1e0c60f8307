"""The stacked networks of the `drift` study: worlds, pretraining, samples, and training by each method to a target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from repscope.models.loading.stacked_weights import State, runs_of, select_runs, state_of
from repscope.progress import progress
from repscope.studies.drift import names
from repscope.studies.drift.measures import relative_norm
from repscope.studies.drift.options import DriftOptions
from repscope.studies.run.study import Context
from repscope.worlds.hans.stacked import one_thread
from repscope.worlds.rewarded.descent import Descent
from repscope.worlds.rewarded.evaluation import Evaluator, samples
from repscope.worlds.rewarded.matching import Course, train_to
from repscope.worlds.rewarded.methods import Method, Tuning
from repscope.worlds.rewarded.task import RewardedWorlds, generator_of
from repscope.worlds.small_lm import transformer as stacked
from repscope.worlds.small_lm.transformer import Shape

BATCH = 64  #: documents per step of pretraining and per update
POOL = 4096  #: documents from which batches of SFT and DPO are drawn
BEST_SHARE = 1 / 32  #: of the base's samples, by reward, that "best of base" trains on
_PRETRAINING_RATE = 3e-3
_EVERY = 4  #: updates between evaluations at the main rate


@dataclass(frozen=True)
class Lab:
    """Sizes and worlds of a run. worlds: one per seed."""

    options: DriftOptions

    @property
    def worlds(self) -> RewardedWorlds:
        """One world per seed."""
        return RewardedWorlds(tuple(1009 * self.options.seed + i for i in range(self.options.seeds)))

    @property
    def shape(self) -> Shape:
        """Two blocks of the GPT-2 layout."""
        return Shape(self.worlds.vocabulary, self.worlds.length, self.options.width)

    def evaluator(self, worlds: RewardedWorlds, reference: State | None, stage: str) -> Evaluator:
        """What chooses ("choose") or reports ("report", twice as many other documents)."""
        documents = self.options.documents * (2 if stage == "report" else 1)
        return Evaluator(self.shape, worlds, reference, documents, self.options.seed, stage)

    def most(self, rate: float) -> int:
        """Most updates at a rate."""
        return max(4, round(self.options.updates * self.options.rate / rate))


def pretrained(lab: Lab) -> tuple[State, np.ndarray]:
    """A network per world, and its loss at each step."""
    o, worlds = lab.options, lab.worlds
    start = stacked.initial(lab.shape, list(worlds.seeds))
    weights = {name: v.clone().requires_grad_() for name, v in start.items()}
    descent = Descent(weights)
    losses = []
    with progress("pretraining", o.pretraining) as advance:
        for step in range(o.pretraining):
            documents, _ = worlds.corpus(BATCH, generator_of(o.seed, "pretraining", step))
            rate = _PRETRAINING_RATE * min(1, (step + 1) / 20) * (1 - 0.95 * step / o.pretraining)
            with one_thread(), torch.enable_grad():
                found = stacked.logits(lab.shape, weights, documents[..., :-1]).log_softmax(-1)
                each = -found.gather(-1, documents[..., 1:, None])[..., 0].mean((1, 2))
                descent.update(each.sum(), rate)
            losses.append(each.detach().double().numpy())
            advance(1)
    return {name: v.detach() for name, v in weights.items()}, np.stack(losses)


def base_of(context: Context) -> State:
    """The pretrained networks, one per world."""
    return state_of(context.inputs["pretraining"].arrays, "base/")


def data_of(context: Context, worlds: Sequence[int]) -> dict[str, Int[Tensor, "network document token"]]:
    """Completions by source, for networks in these worlds."""
    arrays = context.inputs["samples"].arrays
    return {k.removeprefix("data/"): torch.from_numpy(v)[list(worlds)].long() for k, v in arrays.items() if k.startswith("data/")}


def best_of(pool: Int[Tensor, "network document token"], worlds: RewardedWorlds) -> Int[Tensor, "network best token"]:
    """The documents of each pool with the most reward."""
    best = worlds.reward(pool).topk(max(4, round(BEST_SHARE * pool.shape[1])), 1).indices
    return pool.gather(1, best[..., None].expand(*best.shape, pool.shape[-1]))


def pairs_for(lab: Lab, start: State, worlds: RewardedWorlds, part: str) -> Int[Tensor, "network document token"]:
    """Samples of networks before training, of which DPO makes its pairs."""
    return samples(lab.shape, start, worlds, pool_size(lab), (lab.options.seed, part))


def pool_size(lab: Lab) -> int:
    """Documents per pool."""
    return min(POOL, 4 * lab.options.documents)


def trained(
    lab: Lab,
    start: State,
    worlds: RewardedWorlds,
    method: Method,
    data: Mapping[str, Tensor],
    rate: float,
    targets: Mapping[str, np.ndarray],
    part: str = "",
) -> tuple[Course, Tuning]:
    """Train stacked networks until each has each target."""
    o = lab.options
    tuning = Tuning(lab.shape, start, worlds, method, data, rate, BATCH, seed=o.seed)
    choose = lab.evaluator(worlds, start if "KL" in targets else None, "choose")
    most, every = lab.most(rate), max(2, round(_EVERY * o.rate / rate))
    with progress(f"{method.name}{part}, rate {rate:g}", most) as advance:
        norm = lambda state: {names.NORM: relative_norm(start, state)}  # noqa: E731
        course = train_to(tuning, choose, targets, most, every, tick=advance, alone={"reward": choose.reward}, also=norm)
    return course, tuning


def run_rows(
    lab: Lab, course: Course, tuning: Tuning, worlds: RewardedWorlds, targets: Mapping[str, np.ndarray], known: pd.DataFrame
) -> pd.DataFrame:
    """One row per network and target: whether it was reached, after how many updates, and its reward and KL on other samples.

    known: one row per network, with what identifies it.
    """
    report, frames = lab.evaluator(worlds, tuning.start, "report"), []
    for match, value in names.MATCHES.items():
        if value not in course.matched:
            continue
        found = course.matched[value]
        reported = report(found.state)
        miss = np.abs(reported[value] - targets[value])
        near = miss < (0.01 if value == "reward" else 0.1 * targets[value])
        frames.append(
            known.assign(
                match=match,
                reached=found.reached,
                matched=found.reached & near,
                updates=found.updates,
                gflop=found.updates * tuning.flops / 1e9,
                target=targets[value],
                miss=miss,
                **reported,
            )
        )
    return pd.concat(frames, ignore_index=True)


def curve_rows(course: Course, known: pd.DataFrame) -> pd.DataFrame:
    """Reward, KL and weight drift along training: one row per network and evaluation."""
    frames = [known.assign(updates=int(e["updates"]), **{k: v for k, v in e.items() if k != "updates"}) for e in course.curve]
    return pd.concat(frames, ignore_index=True)


def matched_state(state: State, rows: pd.DataFrame) -> tuple[State, np.ndarray]:
    """The networks of those rows (one per network, in the order of the stack) that are at their target, and their places."""
    places = np.flatnonzero(rows["matched"].to_numpy(dtype=bool))
    assert runs_of(state) == len(rows)
    return select_runs(state, places.tolist()), places
