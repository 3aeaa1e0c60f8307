"""Structure and function as rows of the shared schema: every estimate with its controls.

Conditions: `permuted cells` (the null of the test), `pairs taken as independent` (the interval that is too narrow), `rewired,
degrees kept`, `matched pairs`, `exposure, no synapse`, `no exposure`, `no exposure offset`, `effects of presynaptic cells alone`.
"""

from contextlib import suppress
from typing import Literal

import numpy as np

from repscope import stats
from repscope.align.structure_function.conditional_poisson import Effects, fit
from repscope.align.structure_function.node_permutation import PERMUTATIONS, NodePermutation
from repscope.align.structure_function.pairs import Dyads
from repscope.align.structure_function.rewiring import matched_pairs, rewired
from repscope.align.structure_function.signals import APART, NO_EXPOSURE, SYNAPSE, as_outcome, groups, signal_given_synapse
from repscope.align.structure_function.slopes import LikeToLike, Scale, like_to_like
from repscope.conditions import ESTIMATE
from repscope.errors import UserError
from repscope.results import Result, Row

Kind = Literal["similarity", "signal"]
PERMUTED, NAIVE = "permuted cells", "pairs taken as independent"
REWIRED, MATCHED = "rewired, degrees kept", "matched pairs"
NO_OFFSET, PRE_ALONE = "no exposure offset", "effects of presynaptic cells alone"
REWIRINGS = 20
SLOPE, AXONAL, SHARE, DIFFERENCE, RATIO, P = (
    "like-to-like slope",
    "axonal slope",
    "share with a signal",
    "difference with a synapse",
    "log ratio with a synapse",
    "node permutation p",
)


def compare_wiring(
    d: Dyads,
    kind: Kind = "similarity",
    *,
    item: str = "",
    permutations: int = PERMUTATIONS,
    rewirings: int = REWIRINGS,
    seed: int = 0,
    unit: str = "cell",
) -> Result:
    """All numbers of one connectome and one functional measure, as a result.

    Parameters
    ----------
    kind
        What the functional measure is: the `"similarity"` of two cells' responses, or the `"signal"` that one evokes in the other.
    item
        Name of the data, for the column `item`.
    rewirings
        Number of rewired connectomes.

    Raises
    ------
    UserError
        As `like_to_like` and `signal_given_synapse`.
    """
    rows = (_similarity if kind == "similarity" else _signal)(d, item, permutations, rewirings, seed, unit)
    notes = d.notes
    if kind == "signal" and d.function.min() >= 0 and not any(row.metric == RATIO for row in rows):
        notes += ("The ratio with effects of both cells is not determined: too few signals per cell.",)
    if kind == "similarity" and d.has_exposure and not any(row.metric == AXONAL for row in rows):
        notes += ("The axonal scale is not determined: too few pairs have an exposure and no synapse.",)
    return Result.of(rows, notes=notes)


def _similarity(d: Dyads, item: str, permutations: int, rewirings: int, seed: int, unit: str) -> list[Row]:
    def slope(of: Dyads, effects: Effects = "both", scale: Scale = "synaptic") -> LikeToLike:
        return like_to_like(of, effects=effects, scale=scale, permutations=permutations, seed=seed, unit=unit)

    rows = _of_slope(slope(d), SLOPE, item, seed)
    others = {PRE_ALONE: slope(d, "pre")}
    if d.has_exposure:
        others[NO_OFFSET] = slope(d.without_exposure())
        others[f"{PRE_ALONE}, no offset"] = slope(d.without_exposure(), "pre")
    for condition, found in others.items():
        rows.append(Row.of(found.slope, metric=SLOPE, item=item, condition=condition, seed=seed))
        rows.append(_p(found.permutation, SLOPE, item, condition))
    drawn = [fit(r.synapses, r.function, r.exposure).slope for r in _rewirings(d, rewirings, seed)]
    if drawn:
        rows.append(Row.of(stats.null(drawn, unit="rewiring"), metric=SLOPE, item=item, condition=REWIRED, seed=seed))
    if d.has_exposure:
        with suppress(UserError):  # no exposed pair without a synapse, or too few
            rows += _of_slope(slope(d, scale="axonal"), AXONAL, item, seed)
    return rows + _matched(d, item, seed, unit)


def _signal(d: Dyads, item: str, permutations: int, rewirings: int, seed: int, unit: str) -> list[Row]:
    found = signal_given_synapse(d, permutations=permutations, seed=seed, unit=unit, ratio=False)
    named = {SYNAPSE: ESTIMATE, APART: APART, NO_EXPOSURE: NO_EXPOSURE}
    rows = [Row.of(e, metric=SHARE, item=item, condition=named[name], seed=seed) for name, e in found.groups.items()]
    rows += [Row.of(e, metric=SHARE, definition=name, item=item, condition=NAIVE, seed=seed) for name, e in found.naive.items()]
    rows.append(Row.of(found.difference, metric=DIFFERENCE, item=item, seed=seed))
    rows.append(Row(metric=P, definition=DIFFERENCE, item=item, value=found.p, unit="permutation", n=permutations, seed=seed))
    drawn, f = [], np.nan_to_num(d.given[1])
    for other in _rewirings(d, rewirings, seed):
        parts = groups(other)
        drawn.append(float(f[parts[SYNAPSE]].mean() - f[parts[APART]].mean()))
    if drawn:
        rows.append(Row.of(stats.null(drawn, unit="rewiring"), metric=DIFFERENCE, item=item, condition=REWIRED, seed=seed))
    if f.min() >= 0:
        with suppress(UserError):  # not determined where some cells have no signal without another cell
            rows += _of_slope(like_to_like(as_outcome(d), permutations=permutations, seed=seed, unit=unit), RATIO, item, seed)
    return rows + _matched(d, item, seed, unit)


def _of_slope(found: LikeToLike, metric: str, item: str, seed: int) -> list[Row]:
    null = stats.null(found.permutation.slopes, unit="permutation")
    return [
        Row.of(found.slope, metric=metric, definition="Poisson, effects of both cells", item=item, seed=seed),
        Row.of(found.naive, metric=metric, definition="Poisson, effects of both cells", item=item, condition=NAIVE, seed=seed),
        Row.of(null, metric=metric, definition="Poisson, effects of both cells", item=item, condition=PERMUTED, seed=seed),
        _p(found.permutation, metric, item, ESTIMATE),
    ]


def _p(found: NodePermutation, metric: str, item: str, condition: str) -> Row:
    return Row(metric=P, definition=metric, item=item, condition=condition, value=found.p, unit="permutation", n=len(found.null))


def _rewirings(d: Dyads, number: int, seed: int) -> list[Dyads]:
    """Rewired connectomes; none if this one has none."""
    try:
        return [rewired(d, seed=seed + k) for k in range(number)]
    except UserError:
        return []


def _matched(d: Dyads, item: str, seed: int, unit: str) -> list[Row]:
    if not d.has_exposure:
        return []
    try:
        found = matched_pairs(d, unit=unit)
    except UserError:
        return []
    where = {
        "metric": DIFFERENCE,
        "definition": "measure of connected pairs minus that of matched pairs",
        "item": item,
        "seed": seed,
    }
    return [Row.of(found.difference, condition=MATCHED, **where)]
