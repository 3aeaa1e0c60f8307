"""The noise floor of drift in weights: how far two tuned checkpoints that differ in their seed alone are from each other.

With D₁ and D₂ the changes of both from the base, and their distance ‖D₁ − D₂‖ measured entry by entry:

1. relative Frobenius norm under the condition "another seed": ‖D₁ − D₂‖ / ‖W‖;
2. cosine of the changes: ⟨D₁, D₂⟩ / (‖D₁‖ ‖D₂‖) = (‖D₁‖² + ‖D₂‖² − ‖D₁ − D₂‖²) / (2 ‖D₁‖ ‖D₂‖). Changes that have nothing in
   common have 0, and then their distance is √2 times as large as either of them: most of a change in weights can be the seed's.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope import stats
from repscope.conditions import ANOTHER_SEED, ESTIMATE
from repscope.results import Result, Row
from repscope.trace.drift.pair import Pair
from repscope.trace.drift.weights import NORM, UNIT, TensorDrift, groups_of, measured

SHARED = "cosine of the changes"


def seed_floor(tuned: Pair, other: Pair, *, seed: int = 0) -> Result:
    """Distance between two tuned checkpoints of one base, and what their changes have in common, by kind and for all weights.

    Parameters
    ----------
    tuned, other
        The base with either of them.
    seed
        Of the intervals.

    Raises
    ------
    UserError
        As `weights.weight_drift`.
    """
    first, second = list(measured(tuned)), list(measured(other))
    between = list(measured(Pair.of(tuned.tuned, other.tuned)))
    a, b = ({t.name: t for t in found} for found in (second, between))
    return Result.of(_rows(first, [a[t.name] for t in first], [b[t.name] for t in first], seed))


def _rows(first: list[TensorDrift], second: Sequence[TensorDrift], between: Sequence[TensorDrift], seed: int) -> Iterator[Row]:
    places = {t.name: i for i, t in enumerate(first)}
    sums = np.array(
        [[a.sums.base, a.sums.change, b.sums.change, c.sums.change] for a, b, c in zip(first, second, between)], dtype=np.float64
    )
    of = {(NORM, ANOTHER_SEED): _distance, (SHARED, ESTIMATE): _shared}
    for (kind, block), tensors in groups_of(first).items():
        if block is not None:
            continue
        own = sums[[places[t.name] for t in tensors]]
        where: dict[str, Any] = {"item": kind, "layer": None, "seed": seed}
        if len(own) > 1:
            named = {metric: function for (metric, _), function in of.items()}
            found = stats.functions_of_ratios(own, np.ones_like(own), named, unit=UNIT, seed=seed)
            yield from (Row.of(found[metric], metric=metric, condition=condition, **where) for metric, condition in of)
        else:
            for (metric, condition), function in of.items():
                yield Row(value=float(function(own)[0]), metric=metric, condition=condition, unit=UNIT, n=1, **where)


def _distance(means: Float[np.ndarray, "draw 4"]) -> Float[np.ndarray, "draw"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(means[:, 3] == 0, 0.0, np.sqrt(means[:, 3] / means[:, 0]))


def _shared(means: Float[np.ndarray, "draw 4"]) -> Float[np.ndarray, "draw"]:
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN where either has no change: there is no direction
        return np.asarray((means[:, 1] + means[:, 2] - means[:, 3]) / (2 * np.sqrt(means[:, 1] * means[:, 2])))
