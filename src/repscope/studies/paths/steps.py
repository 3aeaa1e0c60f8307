"""Do runs of one recipe end in one place, and does that predict how they generalise?

In a small world (HANS in miniature) where the answer can be planted:

1. Pretraining: several networks, saved at several steps (forks), and the skill that matters later: filling in shuffled words.
2. Phase diagram: unbiased fine-tuning runs from every fork at several learning rates: the share of the rule, and its spread over
   runs. On these runs the fork of each pretraining is chosen: the one at which runs disagree most.
3. Planted: two groups of runs with an early bias, towards the rule or towards lexical overlap; afterwards both train on the same
   distribution. Barriers and convexity gaps between all runs, how well they separate the groups, and what else does
   (`trace.run_table`).
4. Controls: unbiased runs at the same rate; the groups at checkpoints of equal ID loss, chosen on other examples; runs from
   independent pretrainings, before and after weight matching.
5. Summary over pretrainings. With `--published`, the same analysis of published tables (`published`).
6. Attribution: a crossed design over pretrained network, head, order of data and early data (`attribution`).
7. Shared order of learning: digits (`digits_order`) and the phenomena of a grammar (`grammar_order`).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from repscope import stats
from repscope.conditions import COPY, COPY_MATCHED, ESTIMATE, INDEPENDENT, MATCHED, NO_BIAS, REBASIN
from repscope.data.model_summary import is_model_summary
from repscope.data.reading import OPTIONS as READING
from repscope.errors import UserError
from repscope.models.checkpoints import CheckpointSet
from repscope.models.loading.stacked_weights import Evaluate, State, arrays_of, stack, state_of, unstack
from repscope.progress import progress
from repscope.results import Result, Row, concat, records
from repscope.stats.clustering import average_linkage, double_centred
from repscope.studies.paths import attribution
from repscope.studies.paths.blimp_order import blimp_order
from repscope.studies.paths.digits_order import digits_order
from repscope.studies.paths.grammar_order import WORLDS, forecast, grammar_order, kinds, train_grammar
from repscope.studies.paths.options import PathsOptions
from repscope.studies.run.study import Context, Cost, Setup, Step, Subject, trained_here
from repscope.trace.barriers import GAP, HEIGHTS, height
from repscope.trace.interpolation import Curves, all_pairs, curves
from repscope.trace.run_table import RunMeasurements, rows
from repscope.trace.unit_symmetries import symmetries
from repscope.trace.weight_matching import match, permute
from repscope.worlds.hans import classifier, fine_tuning, recipes
from repscope.worlds.hans.fine_tuning import FineTuning, World
from repscope.worlds.hans.training import Schedule

_CHECKPOINTS = 10  #: of the second part of a run; those of equal ID loss are chosen among them
_TABLES = ("published", "clusters", "train", "orders", *READING)
_OF_ORDERS = ("networks", "grammar_runs", "grammar_steps", "pairs", "checkpoints")
_OF_RUNS = ("pretrainings", "runs", "points", "forks", "rate", "rates", "steps", "early_bias", "unbiased_runs", "apart", "texts")
_CHOOSE, _REPORT = 0, 1  #: seeds of the held-out examples for selection and for reporting


def steps(setup: Setup[PathsOptions]) -> list[Step]:
    """Pretraining; phase diagram; runs with and without early bias of each pretraining; independent pretrainings; summary."""
    o = setup.options
    _check(o)
    published = []
    if any(not is_model_summary(path) for path in o.published):
        published.append(Step("published", partial(_published, setup), lambda: Cost(fit_flops=1e9)))
    for i, path in enumerate(path for path in o.published if is_model_summary(path)):
        compute = partial(_summary_of_models, path, o.seed)
        published.append(Step("BLiMP summary" + (f" {i + 1}" if i else ""), compute, lambda: Cost(fit_flops=1e8)))
    return [*([] if o.table_alone else [*_trained(setup, o), *(_orders(setup, o) if o.orders else [])]), *published]


def subject(setup: Setup[PathsOptions]) -> Subject:
    """The models trained in the study, or those of a published table."""
    if setup.options.table_alone:
        return Subject("published-table", "published table", {"model": "published table", "precision": ""})
    return trained_here(setup, "small-transformers")


def _trained(setup: Setup[PathsOptions], o: PathsOptions) -> list[Step]:
    """The steps that train runs."""
    unaffected = (*_TABLES, *_OF_ORDERS, "crossed")  # tables and orders do not change the trained runs
    earlier = (*unaffected, "runs")
    made = [Step("pretraining", partial(_pretraining, setup), _cost(o.pretrainings * max(o.forks) * 4), ignores=earlier)]
    cells = o.pretrainings * len(o.forks) * len(o.rates) * o.unbiased_runs
    made.append(Step("phases", partial(_phases, setup), _cost(cells * o.steps), needs=("pretraining",), ignores=earlier))
    sets = []
    for init in range(o.pretrainings):
        for name, compute in ((f"planted {init}", _planted), (f"plain {init}", _plain)):
            cost = _cost(2 * o.runs * o.steps + 2 * o.runs**2 * o.points)
            needs = ("pretraining", "phases")
            made.append(Step(name, partial(compute, setup, init), cost, version=2, needs=needs, ignores=unaffected))
            sets.append(name)
    if o.apart:
        cost = _cost(o.apart * (o.steps + 4 * max(o.forks)))
        made.append(Step("apart", partial(_apart, setup), cost, needs=("phases",), ignores=earlier))
    if o.crossed:
        groups = 3  # two with early data, and one without
        cost = _cost(groups * o.pretrainings * o.crossed**2 * o.steps)
        ignored = (*_TABLES, *_OF_ORDERS, "runs", "apart")
        made.append(
            Step("attribution", partial(_attribution, setup), cost, version=2, needs=("pretraining", "phases"), ignores=ignored)
        )
    made.append(Step("summary", partial(_summary, setup), lambda: Cost(fit_flops=1e8), needs=tuple(sets), ignores=unaffected))
    return made


def _orders(setup: Setup[PathsOptions], o: PathsOptions) -> list[Step]:
    """The steps on the order of learning."""
    others = (*_TABLES, *_OF_RUNS, "crossed")
    grammar = tuple(name for name in _OF_ORDERS if name != "networks")
    made = [Step("digits", partial(digits_order, setup), lambda: Cost(fit_flops=o.networks * 3e9), ignores=(*others, *grammar))]
    learned = []
    for name in WORLDS:
        for kind in kinds(o):
            cost, step = partial(Cost, fit_flops=forecast(o, kind)), f"{name}, {kind}"
            made.append(Step(step, partial(train_grammar, setup, name, kind), cost, ignores=(*others, "networks")))
            learned.append(step)
    cost, ignored = partial(Cost, fit_flops=1e9), (*others, "networks")
    return [*made, Step("grammar order", partial(grammar_order, setup), cost, needs=tuple(learned), ignores=ignored)]


def _check(o: PathsOptions) -> None:
    if not o.forks or not o.rates:
        raise UserError("No fork or no rate was given; give at least one of each.")
    for rate in o.rates:
        Schedule(o.steps, rate)  # refuses invalid rates before anything runs
    if max(o.forks) > World().pretraining.steps or min(o.forks) < 0:
        raise UserError(
            f"--forks must be between 0 and {World().pretraining.steps}, the number of pretraining steps; {max(o.forks)} is not."
        )
    if o.early_bias > o.steps:
        raise UserError(f"An early bias of {o.early_bias} steps is longer than the {o.steps} steps of fine-tuning.")
    if 2 * o.runs < 4:
        raise UserError("Groups of one run have no pair within a group; take at least 2 runs per group.")
    for path in o.files():
        if not path.is_file():
            raise UserError(f"There is no file {path}; check the path.")


def _cost(run_steps: float) -> Callable[[], Cost]:
    """Cost per run and step: 32 examples of 10 tokens through 26,000 weights, forward and backward."""
    return lambda: Cost(tokens=int(run_steps * 320), network_flops=run_steps * 6 * 320 * 26e3 * 3, memory_bytes=3e8)


def world(o: PathsOptions) -> World:
    """The task and the network of a run of this study."""
    return World(width=16, batch=16) if o.tiny else World()


def _tuning(o: PathsOptions, rate: float | None = None) -> FineTuning:
    return FineTuning(Schedule(o.steps, o.rate if rate is None else rate), o.early_bias)


def _evaluators(o: PathsOptions) -> tuple[Evaluate, Evaluate]:
    """Evaluators for selection and for reporting, on different examples."""
    choose, report = (fine_tuning.evaluator(world(o), 10 * o.seed + part, o.texts, o.texts // 2) for part in (_CHOOSE, _REPORT))
    return choose, report


def _base(context: Context, fork: int) -> State:
    return state_of(context.inputs["pretraining"].arrays, f"{fork}/")


def _pretraining(setup: Setup[PathsOptions], context: Context) -> Result:
    o = setup.options
    seeds = [1009 * o.seed + i for i in range(o.pretrainings)]
    forks = sorted(set(o.forks))
    with progress("pretraining", max(forks)) as advance:
        held = fine_tuning.pretrain(world(o), seeds, forks, advance)
    found = []
    for fork, state in held.items():
        at: dict[str, Any] = {"metric": "skill", "definition": "accuracy of filling in a word", "token": str(fork), "seed": o.seed}
        for name, values in fine_tuning.heldout_accuracy(world(o), state).items():
            found += [Row(item=name, split=f"pretraining {i}", value=float(v), **at) for i, v in enumerate(values)]
    return Result.of(found, arrays={k: v for f, state in held.items() for k, v in arrays_of(state, f"{f}/").items()})


def _phases(setup: Setup[PathsOptions], context: Context) -> Result:
    """Unbiased runs of every fork and rate; for each pretraining, the fork at which runs disagree most."""
    o = setup.options
    rates = list(dict.fromkeys([*o.rates, o.rate]))
    choose, _ = _evaluators(o)
    found, shares = [], []
    for rate in rates:
        for f, fork in enumerate(sorted(set(o.forks))):
            table = fine_tuning.run_plan(
                ["none"] * (o.unbiased_runs * o.pretrainings),
                [i for i in range(o.pretrainings) for _ in range(o.unbiased_runs)],
                o.seed * 7 + 20 + f,
            )
            state = fine_tuning.fine_tune(world(o), _base(context, fork), table, _tuning(o, rate))[o.steps]
            losses = choose(state)
            rule = (1 - losses["ood error"]).reshape(o.pretrainings, -1)
            for i in range(o.pretrainings):
                where: dict[str, Any] = {"item": f"{rate:g}", "token": str(fork), "split": f"pretraining {i}", "seed": o.seed}
                found.append(Row.of(stats.mean(rule[i], unit="run", seed=o.seed), metric="share of the rule", **where))
                spread: dict[str, Any] = {"metric": "spread", "definition": "standard deviation over runs of the share of the rule"}
                found.append(Row(value=float(rule[i].std(ddof=1)), n=o.unbiased_runs, unit="run", **spread, **where))
                error = losses["error"].reshape(o.pretrainings, -1)[i]
                found.append(Row.of(stats.mean(error, unit="run", seed=o.seed), metric="ID error", **where))
                shares.append({"rate": rate, "fork": fork, "init": i, "rule": float(rule[i].mean())})
    frame = pd.DataFrame(shares)
    frame = frame[frame["rate"] == o.rate].assign(off=lambda t: (t["rule"] - 0.5).abs())
    best = frame.loc[frame.groupby("init")["off"].idxmin()]
    definition = "most open: the unbiased runs' share of the rule is nearest one half"
    for r in records(best):
        split = f"pretraining {r['init']:.0f}"
        found.append(Row(metric="fork", definition=definition, split=split, value=float(r["fork"]), seed=o.seed))
    return Result.of(found, arrays={"forks": best.sort_values("init")["fork"].to_numpy()})


def _fork(context: Context, init: int) -> int:
    return int(context.inputs["phases"].arrays["forks"][init])


def _planted(setup: Setup[PathsOptions], init: int, context: Context) -> Result:
    """Runs with early bias at their last step, and at checkpoints of equal ID loss."""
    o = setup.options
    fork = _fork(context, init)
    table = fine_tuning.run_plan(["rule"] * o.runs + ["lexical overlap"] * o.runs, init, o.seed * 7 + 40 + init)
    rest = o.steps - o.early_bias
    keep = sorted({o.early_bias + round(rest * (i + 1) / _CHECKPOINTS) for i in range(_CHECKPOINTS)} | {o.steps})
    with progress("fine-tuning", o.steps) as advance:
        held = fine_tuning.fine_tune(world(o), _base(context, fork), table, _tuning(o), keep, advance)
    CheckpointSet.written(
        context.artifacts / f"planted-{init}", world(o).shape(), table.assign(fork=fork), {o.steps: held[o.steps]}
    )
    choose, _ = _evaluators(o)
    groups = table["group"].to_numpy().astype(str)
    losses = np.stack([choose(state)["loss"] for state in held.values()])
    state, chosen = recipes.matched(list(held.values()), losses, groups)
    first = _measured(setup, held[o.steps], ESTIMATE, init, groups)
    second = _measured(setup, state, MATCHED, init, groups)
    second.side[f"runs-{init}-{MATCHED}"]["step"] = np.array(list(held))[chosen]
    return concat([first, second])


def _plain(setup: Setup[PathsOptions], init: int, context: Context) -> Result:
    """As many runs from the same fork and rate without an early bias; groups are the strategies that they took."""
    o = setup.options
    table = fine_tuning.run_plan(["none"] * (2 * o.runs), init, o.seed * 7 + 60 + init)
    with progress("fine-tuning", o.steps) as advance:
        state = fine_tuning.fine_tune(world(o), _base(context, _fork(context, init)), table, _tuning(o), (), advance)[o.steps]
    return _measured(setup, state, NO_BIAS, init, None)


def _measured(setup: Setup[PathsOptions], state: State, condition: str, init: int, groups: np.ndarray | None) -> Result:
    o = setup.options
    _, report = _evaluators(o)
    found = curves(state, report, points=o.points)
    flat = torch.cat([v.flatten(1) for v in state.values()], 1).double()
    apart = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    held = RunMeasurements(found, apart, 1 - found.ends("ood error"), found.ends("loss"), groups)
    split = f"pretraining {init}"
    table = pd.DataFrame(
        {
            "run": range(len(held.behaviour)),
            "group": held.groups,
            "rule": held.behaviour,
            "loss": held.quality,
            "error": found.ends("error"),
            "cluster": average_linkage(double_centred(found.matrix("loss", GAP))),
            "condition": condition,
            "split": split,
        }
    )
    return Result.of(
        rows(held, seed=o.seed, condition=condition, split=split, permutations=99 if o.tiny else 1000),
        arrays={f"{condition}/{init}/{k}": v for k, v in _arrays(found).items()},
        side={f"runs-{init}-{condition}": table},
    )


def _arrays(found: Curves) -> dict[str, np.ndarray]:
    return {"pairs": found.pairs, "alphas": found.alphas} | {f"losses/{k}": v for k, v in found.losses.items()}


def _apart(setup: Setup[PathsOptions], context: Context) -> Result:
    """Barriers between runs from independent pretrainings, before and after weight matching of each pair."""
    o = setup.options
    _, report = _evaluators(o)
    fork = int(np.median(context.inputs["phases"].arrays["forks"]))
    seeds = [1009 * o.seed + 500 + i for i in range(o.apart)]
    with progress("pretraining", max(fork, 1)) as advance:
        base = fine_tuning.pretrain(world(o), seeds, [fork], advance)[fork]
    table = fine_tuning.run_plan(["none"] * o.apart, list(range(o.apart)), o.seed * 7 + 80)
    state = fine_tuning.fine_tune(world(o), base, table, _tuning(o))[o.steps]
    pairs = all_pairs(o.apart)
    spec = symmetries(classifier.as_module(world(o).shape(), unstack(state, 0)))
    found = [match(unstack(state, i), unstack(state, j), spec) for i, j in pairs]
    singles = [unstack(state, i) for i in range(o.apart)]
    copies = [permute(single, spec, o.seed + i) for i, single in enumerate(singles)]
    refound = [match(single, copy, spec).apply(copy) for single, copy in zip(singles, copies)]
    fitted = stack([*singles, *(m.apply(singles[j]) for m, (_, j) in zip(found, pairs)), *copies, *refound])
    own = np.arange(o.apart)
    first = o.apart + len(pairs)  # where the copies begin
    ends = {
        INDEPENDENT: pairs,
        REBASIN: np.column_stack([pairs[:, 0], o.apart + np.arange(len(pairs))]),
        COPY: np.column_stack([own, first + own]),
        COPY_MATCHED: np.column_stack([own, first + o.apart + own]),
    }
    held = {condition: curves(fitted, report, some, o.points) for condition, some in ends.items()}
    rule = 1 - report(state)["ood error"]
    share = stats.mean(rule, unit="run", seed=o.seed)
    made = [Row.of(share, metric="share of the rule", item="none", condition=INDEPENDENT, seed=o.seed)]
    numbers: list[tuple[str, str, str, Any]] = [
        ("height", f"all pairs: {how}", condition, height(c.losses["loss"], how))
        for condition, c in held.items()
        for how in HEIGHTS
    ]
    numbers.append(("units moved", "by weight matching", REBASIN, [m.moved for m in found]))
    numbers.append(("cosine of weights", "before", REBASIN, [m.before for m in found]))
    numbers.append(("cosine of weights", "after", REBASIN, [m.after for m in found]))
    for metric, item, condition, each in numbers:
        value = float(np.mean(each))
        made.append(Row(metric=metric, item=item, condition=condition, value=value, n=len(each), unit="pair", seed=o.seed))
    arrays = {f"{condition}/0/{k}": v for condition, c in held.items() for k, v in _arrays(c).items()}
    return Result.of(made, arrays=arrays)


def _attribution(setup: Setup[PathsOptions], context: Context) -> Result:
    """The crossed designs with and without early bias, from the chosen fork of every pretraining."""
    o = setup.options
    _, report = _evaluators(o)
    found = {}
    for condition, groups in ((ESTIMATE, ("rule", "lexical overlap")), (NO_BIAS, ("none",))):
        plan = attribution.design(o.pretrainings, o.crossed, groups, o.seed)
        rule = np.empty(len(plan))
        for init in range(o.pretrainings):
            rows = np.flatnonzero(plan["init"] == init)
            state = fine_tuning.fine_tune(world(o), _base(context, _fork(context, init)), plan.iloc[rows], _tuning(o))[o.steps]
            rule[rows] = 1 - report(state)["ood error"]
        found[condition] = plan, rule
    cells = attribution.path_dependence_rows(context.inputs["phases"].table, o.texts // 2, o.seed)
    return attribution.result(found, o.seed, cells)


def _summary_of_models(path: Path, seed: int, context: Context) -> Result:
    return blimp_order(path, seed)


def _summary(setup: Setup[PathsOptions], context: Context) -> Result:
    """Every number over pretrainings: its mean and interval, as far as they are several."""
    o = setup.options
    each = pd.concat([r.table for name, r in context.inputs.items() if name.startswith(("planted", "plain "))], ignore_index=True)
    found = []
    for (condition, metric, item, definition), some in each.groupby(["condition", "metric", "item", "definition"], sort=False):
        where: dict[str, Any] = {"condition": str(condition), "metric": str(metric), "item": str(item), "seed": o.seed}
        where["definition"] = str(definition)
        values = some["value"].to_numpy(dtype=np.float64)
        if where["metric"].endswith(" p"):  # a mean of p says nothing; how often one is small does
            where |= {"metric": f"{where['metric']} ≤ .05", "definition": "share of pretrainings"}
            found.append(Row.of(stats.proportion(values <= 0.05, unit="pretraining", seed=o.seed), **where))
            continue
        found.append(Row.over(values, "pretraining", **where))
    return Result.of(found)


def _published(setup: Setup[PathsOptions], context: Context) -> Result:
    from repscope.studies.paths.published import published

    tables = [path for path in setup.options.published if not is_model_summary(path)]
    return published(tables, setup.options.clusters, **setup.options.how())
