"""Do networks learn the phenomena of a grammar in one order, beyond frequency and distance?

1. GPT-2 layouts and GRUs (each run with its own initial weights and corpus) and n-gram models learn the English grammar, and the
   matched one, whose phenomena share one frequency and one distance.
2. At losses that all networks pass, and at steps: Spearman's rho of the accuracies of phenomena between runs, over all pairs and
   across architectures; the same for what frequency, distance and length leave (linear in their ranks).
3. Kendall's W, share of the first principal component, agreement on single pairs (Fleiss' and Cohen's kappa).
4. n-gram models: rho with the networks at their last checkpoints.
"""

from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope.conditions import ESTIMATE, MATCHED_GRAMMAR, PERMUTED_PHENOMENA, REGRESSED_OUT
from repscope.results import Result, Row
from repscope.stats.permutation import mean_of_pairs
from repscope.studies.paths import order_names as names
from repscope.studies.paths.options import PathsOptions
from repscope.studies.run.study import Context, Setup
from repscope.trace import learning_order as order
from repscope.worlds.grammar import ENGLISH, MATCHED, Grammar, learn, make_pairs
from repscope.worlds.grammar.learners import NETWORKS, NGRAMS

WORLDS: dict[str, Grammar] = dict(zip(names.GRAMMARS, (ENGLISH, MATCHED)))
_TARGETS = 4  #: losses at which runs are compared


def kinds(o: PathsOptions) -> tuple[str, ...]:
    """The learners of a run: all of them, or the quick ones."""
    return ("GRU 64", "2-gram") if o.tiny else ("GPT-2 64 × 2", "GRU 64", "2-gram") if o.short else (*NETWORKS, *NGRAMS)


def train_grammar(setup: Setup[PathsOptions], grammar: str, kind: str, context: Context) -> Result:
    """Learners of one kind of one grammar: their losses, and their accuracies on each phenomenon by both scores."""
    o = setup.options
    pairs = make_pairs(WORLDS[grammar], o.pairs, o.seed)
    found = learn(kind, WORLDS[grammar], pairs, o.grammar_runs, o.grammar_steps, o.checkpoints, seed=o.seed)
    sums, means = ((margin > 0) + 0.5 * (margin == 0) for margin in (found.sums.round(9), found.means.round(9)))
    rows = []
    for score, right in (("summed log-probability", sums), ("log-probability per token", means)):
        last = pairs.by_phenomenon(right)[:, -1]
        rows += [
            Row.over(values, "run", seed=o.seed, metric="pair accuracy", item=name, definition=score, split=grammar, token=kind)
            for name, values in zip(pairs.names, last.T)
        ]
    arrays = {"steps": found.steps, "losses": found.losses, "accuracy": pairs.by_phenomenon(sums), "right": sums[:, -1]}
    return Result.of(rows, arrays=arrays)


def grammar_order(setup: Setup[PathsOptions], context: Context) -> Result:
    """Orders of both grammars."""
    o = setup.options
    rows: list[Row] = []
    side = {}
    for grammar, world in WORLDS.items():
        held = {kind: context.inputs[f"{grammar}, {kind}"].arrays for kind in kinds(o)}
        rows += _orders(grammar, world, held, o.seed)
        side[f"curves {grammar}"] = _curves(held, list(world.phenomena))
    return Result.of(rows, side=side)


def _orders(grammar: str, world: Grammar, held: dict[str, Any], seed: int) -> list[Row]:
    networks = [kind for kind in held if kind in NETWORKS]
    accuracy = np.concatenate([held[kind]["accuracy"] for kind in networks])
    losses = np.concatenate([held[kind]["losses"] for kind in networks])
    of = [kind for kind in networks for _ in held[kind]["losses"]]
    at: dict[str, Any] = {"split": grammar, "seed": seed}
    condition = ESTIMATE if grammar == names.GRAMMARS[0] else MATCHED_GRAMMAR
    covariates = _covariates(world)
    targets = order.common_losses(losses, _TARGETS)
    matched = order.matched(accuracy, losses, targets)
    rows: list[Row] = []
    for k, target in enumerate(targets):
        where = at | {"token": f"{k + 1} of {_TARGETS}", "item": f"loss {target:.2f}"}
        rows += _correlations(matched[:, k], of, condition, names.LOSS, where)
        if condition == ESTIMATE:
            rows += _correlations(order.residuals(matched[:, k], covariates), of, REGRESSED_OUT, names.LOSS, where)
    settings = [(condition, matched)]
    if condition == ESTIMATE:
        left = np.stack([order.residuals(matched[:, k], covariates) for k in range(_TARGETS)], axis=1)
        settings.append((REGRESSED_OUT, left))
    for name, values in settings:
        rows += _mean_correlations(values, of, name, at)
    steps = held[networks[0]]["steps"]
    for k in sorted({len(steps) // 2, len(steps) - 1}):
        rows += _correlations(accuracy[:, k], of, condition, names.STEP, at | {"item": f"step {steps[k]}"})
    middle = matched[:, _TARGETS // 2]
    if _varies(middle):
        w, p = order.kendall_w(middle, seed=seed)
        rows.append(Row.of(w, metric=names.CONCORDANCE, condition=condition, item="all runs", definition=names.LOSS, **at))
        where = at | {"item": "all runs", "condition": condition}
        rows.append(Row(value=p, n=order.PERMUTATIONS, metric="W p", unit="permutation", **where))
    share, null = order.first_component(matched.reshape(-1, matched.shape[-1]), seed=seed)
    component = {"metric": names.COMPONENT, "item": "all runs", "definition": f"{names.LOSS}, {grammar}", **at}
    rows.append(Row(value=share, n=len(matched), unit="run", condition=condition, **component))
    rows.append(Row.of(null, condition=PERMUTED_PHENOMENA, **component))
    rows += _kappas(held, networks, condition, at)
    last = {kind: held[kind]["accuracy"][:, -1] for kind in held}
    for a, b in combinations(held, 2):
        if a in NGRAMS or b in NGRAMS:
            rows += _across(np.concatenate([last[a], last[b]]), [a] * len(last[a]) + [b] * len(last[b]), a, b, condition, at)
    return rows


def _covariates(world: Grammar) -> Float[np.ndarray, "phenomenon covariate"]:
    """Frequency, distance, and whether the bad sentence is the longer one, which a sum of log-probabilities penalises by itself."""
    frequency, rows = world.frequency(), []
    for name, phenomenon in world.phenomena.items():
        good, bad = phenomenon.pair(np.random.default_rng(0))
        rows.append([frequency[name], phenomenon.distance, float(len(bad) > len(good))])
    return np.array(rows)


def _correlations(values: Float[np.ndarray, "run item"], of: list[str], condition: str, how: str, at: dict[str, Any]) -> list[Row]:
    """Order correlation over all pairs of runs, and across architectures where there are two; none where a run does not vary."""
    if not _varies(values):
        return []
    seed = int(at["seed"])
    made = [(names.ALL_RUNS, order.order_correlation(values, unit="run", seed=seed))]
    if len(kinds_held := list(dict.fromkeys(of))) >= 2:
        some = np.isin(of, kinds_held[:1] + kinds_held[-1:])
        groups = [kind for kind, kept in zip(of, some) if kept]
        made.append((names.ACROSS, order.order_correlation(values[some], groups, unit="run", seed=seed)))
    return [Row.of(e, metric=names.ORDER, condition=condition, definition=f"{how}, {pairs}", **at) for pairs, e in made]


def _mean_correlations(
    values: Float[np.ndarray, "run target item"], of: list[str], condition: str, at: dict[str, Any]
) -> list[Row]:
    """Order correlation averaged over the losses, first for every pair of runs."""
    if not all(_varies(values[:, k]) for k in range(values.shape[1])):
        return []
    each = np.mean([order.rank_correlations(values[:, k], unit="run") for k in range(values.shape[1])], axis=0)
    made = [(names.ALL_RUNS, mean_of_pairs(each, seed=int(at["seed"])))]
    if len(held := list(dict.fromkeys(of))) >= 2:
        rows = np.flatnonzero(np.isin(of, [held[0], held[-1]]))
        made.append((names.ACROSS, mean_of_pairs(each[np.ix_(rows, rows)], [of[i] for i in rows], seed=int(at["seed"]))))
    where = at | {"metric": names.ORDER, "condition": condition, "item": names.OVER_LOSSES}
    return [Row.of(e, definition=f"{names.LOSS}, {pairs}", **where) for pairs, e in made]


def _across(values: np.ndarray, of: list[str], a: str, b: str, condition: str, at: dict[str, Any]) -> list[Row]:
    if not _varies(values):
        return []
    found = order.order_correlation(values, of, unit="run", seed=int(at["seed"]))
    where = at | {"item": f"{a} – {b}", "definition": f"last step, {names.ACROSS}"}
    return [Row.of(found, metric=names.ORDER, condition=condition, **where)]


def _kappas(held: dict[str, Any], networks: list[str], condition: str, at: dict[str, Any]) -> list[Row]:
    right = {kind: (held[kind]["right"] > 0.5).astype(np.int64) for kind in networks}
    where = at | {"unit": "run", "condition": condition}
    rows = [Row(value=order.fleiss_kappa(r), n=len(r), metric=names.FLEISS, item=kind, **where) for kind, r in right.items()]
    for a, b in combinations(networks, 2):
        kappa = order.cohen_kappa(right[a][0], right[b][0])
        rows.append(Row(value=kappa, n=2, metric=names.COHEN, item=f"{a} – {b}", **where))
    return [row for row in rows if np.isfinite(row.value)]


def _varies(values: Float[np.ndarray, "run item"]) -> bool:
    return bool((np.ptp(values.round(9), axis=1) > 0).all()) and len(values) > 1


def _curves(held: dict[str, Any], phenomena: list[str]) -> Any:
    """Mean accuracy over runs by learner, step and phenomenon."""
    import pandas as pd

    return pd.DataFrame(
        [
            {"learner": kind, "step": int(step), "phenomenon": name, "value": float(value)}
            for kind, arrays in held.items()
            for step, values in zip(arrays["steps"], arrays["accuracy"].mean(0))
            for name, value in zip(phenomena, values)
        ]
    )


def forecast(o: PathsOptions, kind: str) -> float:
    """Floating-point operations of the learners of one kind."""
    tokens = o.grammar_runs * o.grammar_steps * 16 * 24
    return tokens * (6.0 * 110e3 if kind.startswith("GPT-2 64") else 6.0 * 30e3) if kind in NETWORKS else tokens * 2e4
