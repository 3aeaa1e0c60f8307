"""Steps of `drift` that measure: drift of each matched network, survival of a direction, recovery by constant vectors."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from repscope.conditions import ANOTHER_HALF, ANOTHER_SEED, ESTIMATE, FITTED_VECTORS, RANDOM
from repscope.models.loading.stacked_weights import State, select_runs
from repscope.results import Result, Row
from repscope.studies.drift import measures, names
from repscope.studies.drift.directions import survival
from repscope.studies.drift.measures import sites
from repscope.studies.drift.networks import Lab, base_of, matched_state
from repscope.studies.drift.steering import placed, recovered
from repscope.studies.drift.steering import steering as steered
from repscope.studies.drift.training import loaded
from repscope.studies.run.study import Context
from repscope.worlds.rewarded.evaluation import log_probabilities, samples
from repscope.worlds.rewarded.methods import METHODS
from repscope.worlds.rewarded.task import RewardedWorlds, generator_of
from repscope.worlds.small_lm.files import write_folder

_CORPUS = 64  #: documents for representations
_SAMPLES = 256  #: for next tokens


def compared(
    lab: Lab, start: State, tuned: State, worlds: RewardedWorlds, part: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Drift from `start` to `tuned`: totals (one row per network), by tensor, by site, and token shift by position."""
    o = lab.options
    documents, _ = worlds.corpus(_documents(lab, _CORPUS), generator_of(o.seed, "drift", part))
    sampled = samples(lab.shape, tuned, worlds, _documents(lab, _SAMPLES), (o.seed, "drift", part))
    tensors = measures.weights(start, tuned)
    places = measures.representations(lab.shape, start, tuned, documents)
    tokens = measures.next_tokens(lab.shape, start, tuned, sampled)
    prompts = worlds.prompts(_documents(lab, _SAMPLES), generator_of(o.seed, "prompts", part))
    shift = measures.token_shift(lab.shape, start, tuned, prompts, worlds.completion)
    total = tensors[tensors["module"] == "all"].set_index("network")[[names.NORM, names.RANK, names.SAME32, names.SAME16]]
    blocks = places[places["site"] != "embed"].groupby("network").mean(numeric_only=True)
    for name in (names.CKA, names.SHIFT):
        total[name] = blocks[name]
    total[f"{names.CKA}, halves"] = (blocks[f"{names.CKA}, half 0"] - blocks[f"{names.CKA}, half 1"]).abs()
    for name, by_half in tokens.items():
        total[name] = by_half.mean(1)
        total[f"{name}, halves"] = np.abs(by_half[:, 0] - by_half[:, 1])
    for k, name in enumerate((names.UNSHIFTED, names.MARGINAL, names.SHIFTED)):
        total[name] = shift[:, k].mean(1)
    total[names.LOSS] = measures.corpus_loss(lab.shape, tuned, documents)
    return total.reset_index(), tensors[tensors["module"] != "all"], places, shift


def drift(lab: Lab, context: Context) -> Result:
    """Rows over seeds for each method, rate and match; at the main rate by module, site and position, and beside another seed."""
    o, base = lab.options, base_of(context)
    rows: list[Row] = []
    side = []
    for name in METHODS:
        for match in names.MATCHES:
            for rate in o.all_rates:
                runs, state = loaded(context, name, match, rate)
                tuned, places = matched_state(state, runs)
                if not len(places):
                    continue
                known = runs.iloc[places].reset_index(drop=True)
                worlds, start = lab.worlds.select(known["seed"].tolist()), select_runs(base, known["seed"].tolist())
                total, tensors, at_sites, shift = compared(lab, start, tuned, worlds, "base")
                split = names.at_rate(match, rate, o.rate)
                first = (known["repeat"] == 0).to_numpy(dtype=bool)
                where: dict[str, Any] = {"item": name, "split": split, "seed": o.seed}
                rows += _totals(total[first], where)
                side.append(pd.concat([known.drop(columns=names.KL), total.drop(columns="network")], axis=1))
                if split == names.AT_REWARD:
                    rows += _by_module(tensors[tensors["network"].isin(np.flatnonzero(first))], where)
                    rows += _by_site(at_sites[at_sites["network"].isin(np.flatnonzero(first))], where)
                    rows += _by_position(shift[first], where)
                if rate == o.rate:
                    rows += _floor(lab, known, tuned, base, where)
    return Result.of(rows, side={"drift": pd.concat(side, ignore_index=True)} if side else {})


def _totals(total: pd.DataFrame, where: dict[str, Any]) -> list[Row]:
    if total.empty:
        return []
    rows = [Row.over(total[name].to_numpy(dtype=float), "seed", metric=name, **where) for name in names.TOTALS]
    for name in (names.CKA, names.KL, names.JS):
        values = total[f"{name}, halves"].to_numpy(dtype=float)
        rows.append(Row.over(values, "seed", metric=name, condition=ANOTHER_HALF, **where))
    return rows


def _by_module(tensors: pd.DataFrame, where: dict[str, Any]) -> Iterator[Row]:
    """Weight drift of weights and biases of each module and layer."""
    for (module, layer), some in tensors.groupby(["module", "layer"], sort=False):
        each = some.groupby("network")[["change", "size"]].sum()
        at: dict[str, Any] = {"site": str(module), "layer": None if str(layer) == "-1" else int(str(layer))}
        yield Row.over(np.sqrt((each["change"] / each["size"]).to_numpy(dtype=float)), "seed", metric=names.NORM, **at, **where)
        rank = some[names.RANK].dropna()
        if len(rank):
            yield Row.over(rank.to_numpy(dtype=float), "seed", metric=names.RANK, **at, **where)


def _by_site(places: pd.DataFrame, where: dict[str, Any]) -> Iterator[Row]:
    for site, some in places.groupby("site", sort=False):
        layer = None if site == "embed" else int(str(site).rpartition(".")[2])
        for metric in (names.CKA, names.SHIFT):
            yield Row.over(some[metric].to_numpy(dtype=float), "seed", metric=metric, site=str(site), layer=layer, **where)


def _by_position(shift: np.ndarray, where: dict[str, Any]) -> Iterator[Row]:
    if not len(shift):
        return
    for k, name in enumerate((names.UNSHIFTED, names.MARGINAL, names.SHIFTED)):
        for position in range(shift.shape[2]):
            yield Row.over(shift[:, k, position], "seed", metric=name, token=str(position + 1), **where)


def _floor(lab: Lab, known: pd.DataFrame, tuned: State, base: State, where: dict[str, Any]) -> list[Row]:
    """Drift between the two training seeds of one method, of worlds in which both are matched; the norm relative to the base."""
    both = [int(str(s)) for s, some in known.groupby("seed") if len(some) == 2]
    if not both:
        return []
    a, b = (
        select_runs(tuned, [int(np.flatnonzero((known["seed"] == s) & (known["repeat"] == r))[0]) for s in both]) for r in (0, 1)
    )
    total, *_ = compared(lab, a, b, lab.worlds.select(both), "another seed")
    total[names.NORM] = total[names.NORM] * _ratio(a, select_runs(base, both))
    wanted = [n for n in names.TOTALS if n != names.LOSS]
    return [Row.over(total[name].to_numpy(dtype=float), "seed", metric=name, condition=ANOTHER_SEED, **where) for name in wanted]


def _ratio(state: State, base: State) -> np.ndarray:
    """‖W‖ of the networks over that of the base."""
    sizes = [sum(v.double().square().flatten(1).sum(1) for v in s.values()) for s in (state, base)]
    return np.asarray((torch.as_tensor(sizes[0]) / torch.as_tensor(sizes[1])).sqrt())


def _main(lab: Lab, context: Context, name: str) -> tuple[list[int], State, State, RewardedWorlds]:
    """Worlds, bases and networks of a method at the main rate and equal reward, first training seed."""
    runs, state = loaded(context, name, names.AT_REWARD, lab.options.rate)
    places = np.flatnonzero((runs["matched"] & (runs["repeat"] == 0)).to_numpy(dtype=bool))
    worlds = runs["seed"].iloc[places].tolist()
    return (
        worlds,
        select_runs(base_of(context), worlds),
        select_runs(state, places.tolist()),
        lab.worlds.select(worlds) if worlds else lab.worlds,
    )


def directions(lab: Lab, context: Context) -> Result:
    """Does the base's direction of the topic read, point and act in the tuned networks?"""
    o, rows, frames = lab.options, [], []
    for name in METHODS:
        seeds, start, tuned, worlds = _main(lab, context, name)
        if not seeds:
            continue
        found = survival(lab.shape, start, tuned, worlds, _documents(lab, 400), o.seed)
        frames.append(found.assign(method=name))
        for (site, metric, condition), some in found.groupby(["site", "metric", "condition"], sort=False):
            where: dict[str, Any] = {"site": str(site), "layer": int(str(site).rpartition(".")[2]), "condition": str(condition)}
            where |= {"metric": str(metric), "item": name, "split": names.AT_REWARD, "seed": o.seed}
            rows.append(Row.over(some["value"].to_numpy(dtype=float), "seed", **where))
    return Result.of(rows, side={"directions": pd.concat(frames, ignore_index=True)} if frames else {})


def steering(lab: Lab, context: Context) -> Result:
    """How much of each tuned network's KL constant vectors recover, beside random vectors and those of another method."""
    o, rows, frames = lab.options, [], []
    vectors: dict[str, tuple[list[int], Tensor]] = {}
    sampled: dict[str, Int[Tensor, "network document token"]] = {}
    found = {}
    for name in METHODS:
        seeds, start, tuned, worlds = _main(lab, context, name)
        if not seeds:
            continue
        sampled[name] = samples(lab.shape, tuned, worlds, _documents(lab, 192), (o.seed, "steering"))
        found[name] = steered(lab.shape, start, tuned, sampled[name], o.fitting, o.seed)
        vectors[name] = seeds, found[name].vectors
    order = list(found)
    for name, s in found.items():
        seeds, start, tuned, _ = _main(lab, context, name)
        other = order[(order.index(name) + 1) % len(order)]
        values = {ESTIMATE: s.one, FITTED_VECTORS: s.fitted, RANDOM: s.random}
        shared = [w for w in seeds if w in vectors[other][0]]
        if other != name and shared:
            mine = [seeds.index(w) for w in shared]
            theirs = vectors[other][1][:, [vectors[other][0].index(w) for w in shared]]
            half = sampled[name].shape[1] // 2
            report = sampled[name][mine][:, half:]
            with torch.no_grad():
                target = log_probabilities(lab.shape, select_runs(tuned, mine), report)
            at = placed(_rescaled(theirs, s.vectors[:, mine]), s.site[mine], s.scale[mine])
            values[names.OTHER_METHOD] = recovered(lab.shape, select_runs(start, mine), at, report, target)
        where: dict[str, Any] = {"metric": names.RECOVERED, "item": name, "split": names.AT_REWARD, "seed": o.seed}
        rows += [Row.over(value, "seed", condition=condition, **where) for condition, value in values.items()]
        site = [["embed", *sites(lab.shape)[1:]][i] for i in s.site]
        chosen = {"site": site, "scale": s.scale, "one": s.one, "fitted": s.fitted}
        frames.append(pd.DataFrame({"method": name, "seed": seeds, **chosen}))
    return Result.of(rows, side={"steering": pd.concat(frames, ignore_index=True)} if frames else {})


def losses(lab: Lab, base: State) -> Row:
    """Loss of the bases on the documents of `compared`."""
    documents, _ = lab.worlds.corpus(_documents(lab, _CORPUS), generator_of(lab.options.seed, "drift", "base"))
    loss = measures.corpus_loss(lab.shape, base, documents)
    return Row.over(loss, "seed", metric=names.LOSS, item="base", condition=names.BEFORE)


def _rescaled(vectors: Tensor, like: Tensor) -> Tensor:
    """Vectors with the norms of others."""
    size: Tensor = like.norm(dim=-1, keepdim=True) / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return vectors * size


def folder_of(name: str) -> str:
    """The folder of a method's network: "sft-best-of-base"."""
    return name.lower().replace(", ", "-").replace(" ", "-")


def folders(lab: Lab, context: Context) -> Result:
    """The base and the matched networks of the first world as Hugging Face folders, for `repscope compare` and other tools."""
    home = context.artifacts / "networks"
    write_folder(lab.shape, base_of(context), 0, home / "base")
    for name in METHODS:
        runs, state = loaded(context, name, names.AT_REWARD, lab.options.rate)
        for i, run in enumerate(runs.itertuples()):
            if run.seed == 0 and run.matched:
                write_folder(lab.shape, state, i, home / (folder_of(name) + ("-another-seed" if run.repeat else "")))
    return Result.of([])


def _documents(lab: Lab, n: int) -> int:
    return min(n, lab.options.documents)
