"""Step of `drift` that joins the others: orders of the methods, paired differences, ratios, and slopes of drift on the gap."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from repscope import stats
from repscope.conditions import ESTIMATE, PERMUTED_GAPS, PERMUTED_METHODS
from repscope.results import Result, Row
from repscope.studies.drift import gaps, names
from repscope.studies.drift.networks import Lab
from repscope.studies.drift.statistics import over_seeds, rank_correlation, slope
from repscope.studies.run.study import Context

_FUNCTIONAL = (names.KL, names.CKA, names.SHIFTED)  #: what the weight drift is compared with
_LEAST_METHODS = 4


def summary(lab: Lab, context: Context) -> Result:
    """All numbers that the verdicts read."""
    seed = lab.options.seed
    side = context.inputs["drift"].side
    drift = _main(lab, side["drift"]) if side else pd.DataFrame(columns=["method", "seed", "match", "rate", "repeat"])
    rows = [*_orders(drift, seed), *_differences(drift, seed), *_ratios(drift, seed)]
    table = pd.concat([context.inputs[f"gap {name}"].side[f"gap-{name}"] for name in gaps.METHODS], ignore_index=True)
    rows += [*_slopes(table, seed), *_per_flop(context, table, lab)]
    return Result.of(rows)


def _main(lab: Lab, drift: pd.DataFrame) -> pd.DataFrame:
    """Networks at equal reward, main rate, first training seed."""
    return drift[(drift["match"] == names.AT_REWARD) & (drift["rate"] == lab.options.rate) & (drift["repeat"] == 0)]


def _grown(values: pd.Series, metric: str) -> np.ndarray:
    """The measure as drift: what is 1 for no drift becomes 1 minus it."""
    found = values.to_numpy(dtype=float)
    return 1 - found if metric == names.CKA else found


def _orders(drift: pd.DataFrame, seed: int) -> Iterable[Row]:
    """Do weight drift and functional drift order the methods alike?"""
    for metric in _FUNCTIONAL:
        pairs = [
            (_grown(some[names.NORM], names.NORM), _grown(some[metric], metric))
            for _, some in drift.groupby("seed")
            if len(some) >= _LEAST_METHODS
        ]
        item = f"weights and {'1 − ' if metric == names.CKA else ''}{metric}"
        for condition, estimate in zip((ESTIMATE, PERMUTED_METHODS), over_seeds(rank_correlation, pairs, seed)):
            if estimate is not None:
                yield Row.of(estimate, metric=names.CORRELATION, item=item, condition=condition, split=names.AT_REWARD, seed=seed)


def _by_seed(drift: pd.DataFrame, methods: Iterable[str], metric: str) -> pd.Series:
    """Mean over these methods, per seed in which all of them are matched."""
    methods = list(methods)
    wide = drift[drift["method"].isin(methods)].pivot(index="seed", columns="method", values=metric)
    return wide.dropna().mean(axis=1) if set(methods) <= set(wide.columns) else pd.Series(dtype=float)


def _differences(drift: pd.DataFrame, seed: int) -> Iterable[Row]:
    """RL minus SFT, paired over seeds: share of unchanged weights."""
    for metric in (names.SAME32, names.SAME16):
        for item, first, second in (
            ("RL − SFT", names.POLICY, names.IMITATION),
            ("RL − SFT on samples of RL", names.POLICY, (names.RL_SAMPLES,)),
        ):
            difference = (_by_seed(drift, first, metric) - _by_seed(drift, second, metric)).dropna()
            if len(difference) > 1:
                where: dict[str, Any] = {"item": f"{metric}: {item}", "split": names.AT_REWARD, "seed": seed}
                yield Row.over(difference.to_numpy(dtype=float), "seed", metric=names.DIFFERENCE, **where)


def _ratios(drift: pd.DataFrame, seed: int) -> Iterable[Row]:
    """Drift of a method over the mean of the others at equal reward, paired over seeds; its own sources of data left in."""
    methods = list(dict.fromkeys(drift["method"]))
    for name in methods:
        others = [m for m in methods if m != name]
        for metric in (names.NORM, names.KL):
            own, rest = _by_seed(drift, [name], metric), _by_seed(drift, others, metric)
            both = own.index.intersection(rest.index)
            if len(both) > 1:
                estimate = stats.ratio(own[both].to_numpy(dtype=float), rest[both].to_numpy(dtype=float), unit="seed", seed=seed)
                yield Row.of(estimate, metric=names.RATIO, item=f"{metric}: {name} / others", split=names.AT_REWARD, seed=seed)


def _slopes(table: pd.DataFrame, seed: int) -> Iterable[Row]:
    """Drift by gap: slope over the levels of a seed."""
    for name in gaps.METHODS:
        some = table[(table["method"] == name) & table["matched"]]
        for metric in (*names.GAP_METRICS, "norm from base"):
            pairs = [
                (each["gap"].to_numpy(dtype=float), _grown(each[metric], metric))
                for _, each in some.groupby("seed")
                if len(each) >= 3
            ]
            said = {names.CKA: f"1 − {names.CKA}", "norm from base": f"{names.NORM} from base"}.get(metric, metric)
            for condition, estimate in zip((ESTIMATE, PERMUTED_GAPS), over_seeds(slope, pairs, seed)):
                if estimate is not None:
                    yield Row.of(estimate, metric=names.SLOPE, item=f"{name}: {said}", condition=condition, split="gap", seed=seed)


def _per_flop(context: Context, table: pd.DataFrame, lab: Lab) -> Iterable[Row]:
    """Reward gained per GFLOP: by imitation up to each level, and by each method from the lowest level."""
    seed = lab.options.seed
    stages = context.inputs["imitation"].side["imitation"]
    first = stages[stages["level"] == stages["level"].min()].set_index("seed")
    for level, some in stages[stages["level"] > stages["level"].min()].groupby("level"):
        gained = some.set_index("seed")["reward"] - first["reward"]
        value = (gained / (some["gflop"].iloc[0] - first["gflop"].iloc[0])).to_numpy(dtype=float)
        yield Row.over(value, "seed", metric=names.PER_FLOP, item="imitation", token=str(level), seed=seed)
    for (name, level), some in table[table["matched"]].groupby(["method", "level"], sort=False):
        value = (some["gap"] / some["gflop"]).to_numpy(dtype=float)
        yield Row.over(value, "seed", metric=names.PER_FLOP, item=str(name), token=str(level), seed=seed)
