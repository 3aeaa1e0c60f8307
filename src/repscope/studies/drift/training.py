"""Steps of `drift` that train: pretraining, samples for the methods, and each method at each rate."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from repscope.models.loading.stacked_weights import State, arrays_of, select_runs, state_of
from repscope.results import Result, Row
from repscope.studies.drift import names
from repscope.studies.drift.measures import corpus_loss
from repscope.studies.drift.networks import (
    Lab,
    base_of,
    best_of,
    curve_rows,
    data_of,
    pairs_for,
    pool_size,
    pretrained,
    run_rows,
    trained,
)
from repscope.studies.run.study import Context
from repscope.worlds.rewarded.evaluation import samples
from repscope.worlds.rewarded.methods import METHODS, REINFORCE
from repscope.worlds.rewarded.task import generator_of

_EXPERT = 0.12  #: reward of the expert above the higher of both targets


def pretraining(lab: Lab, context: Context) -> Result:
    """The base networks, their loss on other documents beside the entropy of the corpus, and their reward."""
    seed = lab.options.seed
    base, losses = pretrained(lab)
    documents, _ = lab.worlds.corpus(1024, generator_of(seed, "corpus"))
    loss = corpus_loss(lab.shape, base, documents)
    found = lab.evaluator(lab.worlds, base, "report")(base)
    rows = [
        Row.over(loss, "seed", metric=names.LOSS, item="corpus", condition=names.BEFORE, seed=seed),
        Row.over(found["reward"], "seed", metric=names.REWARD, item="base", condition=names.BEFORE, seed=seed),
        Row.over(lab.worlds.entropy, "seed", metric="entropy", item="corpus", seed=seed),
    ]
    curve = pd.DataFrame({"step": range(len(losses)), **{f"seed {i}": losses[:, i] for i in range(losses.shape[1])}})
    return Result.of(rows, arrays=arrays_of(base, "base/") | {"reward": found["reward"]}, side={"pretraining": curve})


def sampling(lab: Lab, context: Context) -> Result:
    """Completions for the methods: demonstrations, samples of an expert that RL trained, the best of the base's, and pairs."""
    o, worlds, base = lab.options, lab.worlds, base_of(context)
    first = context.inputs["pretraining"].arrays["reward"]
    target = first + max(o.gain, o.gap_gain) + (_EXPERT if not o.tiny else 0.05)
    course, _ = trained(lab, base, worlds, METHODS[REINFORCE], {}, o.rate, {"reward": target}, " (expert)")
    expert = course.matched["reward"]
    pool = pairs_for(lab, base, worlds, "base")
    drawn = {
        "pairs": pool,
        "best of base": best_of(pool, worlds),
        "samples of RL": samples(lab.shape, expert.state, worlds, pool_size(lab), (o.seed, "expert")),
        "demonstrations": worlds.demonstrations(pool_size(lab), generator_of(o.seed, "demonstrations")),
    }
    rows = [
        Row.over(worlds.reward(v).mean(1).double().numpy(), "seed", metric=names.REWARD, item=name, seed=o.seed)
        for name, v in drawn.items()
    ]
    missed = np.flatnonzero(~expert.reached).tolist()
    notes = (f"The expert did not reach its reward in {_worlds(missed)}; its samples are from its last update.",) if missed else ()
    arrays = {f"data/{name}": v.numpy().astype(np.int16) for name, v in drawn.items()}
    return Result.of(rows, arrays=arrays, notes=notes)


def method(lab: Lab, name: str, context: Context) -> Result:
    """A method at each rate: networks of equal reward, and of equal KL from the base; those that miss are named."""
    o, base = lab.options, base_of(context)
    first = context.inputs["pretraining"].arrays["reward"]
    arrays: dict[str, np.ndarray] = {}
    runs, curves = [], []
    for rate in o.all_rates:
        repeats = 2 if rate == o.rate else 1
        place = [s for s in range(o.seeds) for _ in range(repeats)]
        worlds = lab.worlds.select(place)
        targets = {"reward": first[place] + o.gain, "KL": np.full(len(place), o.divergence)}
        course, tuning = trained(lab, select_runs(base, place), worlds, METHODS[name], data_of(context, place), rate, targets)
        known = pd.DataFrame({"method": name, "rate": rate, "seed": place, "repeat": np.tile(np.arange(repeats), o.seeds)})
        runs.append(run_rows(lab, course, tuning, worlds, targets, known))
        curves.append(curve_rows(course, known))
        for match, value in names.MATCHES.items():
            arrays |= arrays_of(course.matched[value].state, f"{match}/{rate:g}/")
    table = pd.concat(runs, ignore_index=True)
    side = {f"runs-{name}": table, f"curve-{name}": pd.concat(curves, ignore_index=True)}
    return Result.of(list(_rows(lab, table, name)), arrays=arrays, side=side, notes=tuple(_missed(table, name)))


def loaded(context: Context, name: str, match: str, rate: float) -> tuple[pd.DataFrame, State]:
    """The rows and the weights of a method's networks of one rate, matched or not."""
    result = context.inputs[f"train {name}"]
    table = result.side[f"runs-{name}"]
    rows = table[(table["match"] == match) & (table["rate"] == rate)].reset_index(drop=True)
    return rows, state_of(result.arrays, f"{match}/{rate:g}/")


def _rows(lab: Lab, table: pd.DataFrame, name: str) -> Iterator[Row]:
    o = lab.options
    for (match, rate), some in table[table["repeat"] == 0].groupby(["match", "rate"], sort=False):
        split = names.at_rate(str(match), float(str(rate)), o.rate)
        where: dict[str, Any] = {"item": name, "split": split, "seed": o.seed}
        yield Row.over(some["matched"].to_numpy(dtype=float), "seed", metric=names.REACHED, **where)
        there = some[some["matched"]]
        if len(there):
            for metric, column in ((names.REWARD, "reward"), (names.UPDATES, "updates"), (names.GFLOP, "gflop")):
                yield Row.over(there[column].to_numpy(dtype=float), "seed", metric=metric, **where)


def _missed(table: pd.DataFrame, name: str) -> Iterator[str]:
    for (match, rate), some in table.groupby(["match", "rate"], sort=False):
        left = some[~some["matched"]]
        if len(left):
            which = (
                ", ".join(f"seed {r.seed} run {r.repeat} ({r.reward:.2f} of {r.target:.2f})" for r in left.itertuples())
                if match == names.AT_REWARD
                else ", ".join(f"seed {r.seed} run {r.repeat}" for r in left.itertuples())
            )
            yield f"{name} at rate {rate:g} missed {match} in {len(left)} of {len(some)} runs, which are left out there: {which}."


def _worlds(places: list[int]) -> str:
    return f"world{'s' * (len(places) != 1)} {', '.join(map(str, places))}"
