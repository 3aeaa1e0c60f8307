"""Step of `drift`: the same updates at small rates, in float32 and with weights rounded to bfloat16 after every update.

A share of unchanged weights is a property of the method only if it is there in float32. Two counts for float32 training: entries
that are exactly equal, and entries that are equal after both networks are rounded to bfloat16, as checkpoints often are.
"""

from typing import Any

import numpy as np
import pandas as pd

from repscope.conditions import BFLOAT16, ESTIMATE
from repscope.progress import progress
from repscope.results import Result, Row
from repscope.studies.drift import names
from repscope.studies.drift.measures import weights
from repscope.studies.drift.networks import BATCH, Lab, base_of, data_of
from repscope.studies.run.study import Context
from repscope.worlds.rewarded.methods import METHODS, Tuning

_NETWORKS = {ESTIMATE: False, BFLOAT16: True}


def twins(lab: Lab, context: Context) -> Result:
    """Each method at each small rate, in both precisions, for the same number of updates."""
    o, base = lab.options, base_of(context)
    data = data_of(context, range(o.seeds))
    rows, frames = [], []
    with progress("bfloat16 twins", len(METHODS) * len(o.small_rates) * 2 * o.small_updates) as advance:
        for name, method in METHODS.items():
            for rate in o.small_rates:
                for condition, rounded in _NETWORKS.items():
                    tuning = Tuning(lab.shape, base, lab.worlds, method, data, rate, BATCH, seed=o.seed, rounded=rounded)
                    first = tuning.state
                    for _ in range(o.small_updates):
                        tuning.update()
                        advance(1)
                    found = weights(first, tuning.state)
                    whole = found[found["module"] == "all"]
                    where: dict[str, Any] = {"item": name, "condition": condition, "split": f"rate {rate:g}", "seed": o.seed}
                    for metric in (names.SAME32, names.SAME16, names.NORM):
                        rows.append(Row.over(whole[metric].to_numpy(dtype=float), "seed", metric=metric, **where))
                    frames.append(whole.assign(method=name, rate=rate, condition=condition))
    return Result.of(rows, side={"precision": pd.concat(frames, ignore_index=True).drop(columns=["tensor", "module", "layer"])})


def smallest(lab: Lab) -> float:
    """The smallest of the small rates."""
    return float(np.min(lab.options.small_rates))
