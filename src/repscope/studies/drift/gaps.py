"""Gap → RL → drift: imitation checkpoints at several compute levels, each brought to one reward by RL, DPO and expert SFT.

1. Imitation: SFT on demonstrations of another process. Its checkpoints after some numbers of updates are the levels.
2. Each checkpoint is trained until its reward is the target, the same for all levels of a seed: by REINFORCE; by DPO on pairs of
   the checkpoint's own samples, with the checkpoint as reference; by SFT on samples of the expert that RL trained from the base.
3. x: target minus the reward of the checkpoint. y: drift from that checkpoint. Also the reward gained per FLOP.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

from repscope.models.loading.stacked_weights import State, arrays_of, select_runs, state_of
from repscope.results import Result, Row, records
from repscope.studies.drift import names
from repscope.studies.drift.drifts import compared
from repscope.studies.drift.measures import relative_norm
from repscope.studies.drift.networks import BATCH, Lab, base_of, data_of, pairs_for, run_rows, trained
from repscope.studies.run.study import Context
from repscope.worlds.rewarded.methods import METHODS as ALL
from repscope.worlds.rewarded.methods import OFF_POLICY, Method, Tuning

METHODS: dict[str, Method] = {
    names.REINFORCE: ALL[names.REINFORCE],
    names.DPO: ALL[names.DPO],
    names.EXPERT: Method(names.EXPERT, "sft", "samples of RL"),
}


def imitation(lab: Lab, context: Context) -> Result:
    """Imitation of the demonstrations: the networks at each level, their reward, and what the updates cost."""
    o, base = lab.options, base_of(context)
    tuning = Tuning(lab.shape, base, lab.worlds, ALL[OFF_POLICY], data_of(context, range(o.seeds)), o.rate, BATCH, seed=o.seed + 1)
    report = lab.evaluator(lab.worlds, base, "report")
    arrays: dict[str, np.ndarray] = {}
    rows, frames = [], []
    for level in sorted(set(o.levels)):
        while tuning.step < level:
            tuning.update()
        state = tuning.state
        reward = report(state)["reward"]
        arrays |= arrays_of(state, f"{level}/")
        where: dict[str, Any] = {"item": "imitation", "token": str(level), "seed": o.seed}
        rows.append(Row.over(reward, "seed", metric=names.REWARD, **where))
        rows.append(Row(metric=names.GFLOP, value=level * tuning.flops / 1e9, n=o.seeds, unit="seed", **where))
        frames.append(pd.DataFrame({"seed": range(o.seeds), "level": level, "reward": reward, "gflop": level * tuning.flops / 1e9}))
    return Result.of(rows, arrays=arrays, side={"imitation": pd.concat(frames, ignore_index=True)})


def closed(lab: Lab, name: str, context: Context) -> Result:
    """Each imitation checkpoint, trained to the target by one method; drift from the checkpoint, and in weights from the base."""
    o, base = lab.options, base_of(context)
    levels = sorted(set(o.levels))
    stages = [state_of(context.inputs["imitation"].arrays, f"{level}/") for level in levels]
    place = [s for s in range(o.seeds) for _ in levels]
    start = _interleaved(stages)
    worlds = lab.worlds.select(place)
    method = METHODS[name]
    data = data_of(context, place) if method.loss == "sft" else {}
    if method.loss == "dpo":
        data = {method.source: pairs_for(lab, start, worlds, "checkpoints")}
    first = context.inputs["pretraining"].arrays["reward"]
    targets = {"reward": first[place] + o.gap_gain}
    course, tuning = trained(lab, start, worlds, method, data, o.rate, targets, " (gap)")
    known = pd.DataFrame({"method": name, "rate": o.rate, "seed": place, "repeat": 0, "level": np.tile(levels, o.seeds)})
    table = run_rows(lab, course, tuning, worlds, targets, known)
    before = lab.evaluator(worlds, start, "report")(start)["reward"]
    table = table.assign(gap=targets["reward"] - before)
    places = np.flatnonzero(table["matched"].to_numpy(dtype=bool)).tolist()
    values = {metric: np.full(len(table), np.nan) for metric in (*names.GAP_METRICS, "norm from base")}
    rows: list[Row] = []
    if places:
        here = select_runs(course.matched["reward"].state, places)
        total, *_ = compared(lab, select_runs(start, places), here, worlds.select(places), "gap")
        for metric in names.GAP_METRICS:
            values[metric][places] = total[metric].to_numpy(dtype=float)
        values["norm from base"][places] = relative_norm(select_runs(base, [place[i] for i in places]), here)
    table = table.assign(**values)
    if places:
        rows = list(_rows(table, o.seed, name))
    missed = table[~table["matched"]]
    notes = [
        f"gap: {name} from seed {r['seed']} level {r['level']} "
        + (
            f"begins {-r['gap']:.2f} beyond the target."
            if r["gap"] <= 0
            else f"missed the target ({r['reward']:.2f} of {r['target']:.2f})."
        )
        for r in records(missed)
    ]
    return Result.of(rows, side={f"gap-{name}": table}, notes=tuple(notes))


def _interleaved(stages: list[State]) -> State:
    """Networks in the order seed, level."""
    return {name: torch.stack([s[name] for s in stages], 1).flatten(0, 1) for name in stages[0]}


def _rows(table: pd.DataFrame, seed: int, name: str) -> Iterator[Row]:
    for level, some in table[table["matched"]].groupby("level"):
        where: dict[str, Any] = {"item": name, "token": str(level), "split": "gap", "seed": seed}
        for metric in ("gap", *names.GAP_METRICS, "norm from base"):
            label = f"{names.NORM} from base" if metric == "norm from base" else metric
            yield Row.over(some[metric].to_numpy(dtype=float), "seed", metric=label, **where)
