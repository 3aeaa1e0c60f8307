"""The verdict of `connect`: does the loss rise on the straight lines between the networks, and is that not trivial?"""

from typing import Any

import pandas as pd

from repscope.conditions import ESTIMATE, RANDOM
from repscope.report.verdict import Verdict, count, joined, side, thresholds
from repscope.results import records
from repscope.studies.connect.names import OWN, RISE, metric_of

_MOST_PARTS = 6  #: lines with a sentence of their own


def verdict(table: pd.DataFrame) -> Verdict:
    """From the first loss: chord barriers, and the loss increase of the random lines of equal norm."""
    loss = str(table[table["definition"] == OWN]["metric"].iloc[0])
    barriers = records(table, metric=metric_of(loss, "chord"), condition=ESTIMATE)
    controls = {r["item"]: r for r in records(table, metric=metric_of(loss, RISE), condition=RANDOM)}
    parts = {str(r["item"]): _line(r, controls.get(r["item"])) for r in barriers}
    if len(parts) == 1:
        return next(iter(parts.values()))
    each = list(parts.values())
    why = {
        "Yes": "The loss rises on every line between the networks.",
        "No": "The loss rises on no line between the networks, and it does in random directions of equal norm.",
        "Cannot tell": "The lines are flat, and no random line shows that the loss would rise elsewhere.",
        "Partly": f"The loss rises on {count(each)} lines between the networks; the others are flat or undecided.",
    }[joined(each)]
    return Verdict(joined(each), why, parts if len(parts) <= _MOST_PARTS else {})


def _line(barrier: dict[Any, Any], control: dict[Any, Any] | None) -> Verdict:
    flat = thresholds("connect")["flat"]
    if side(barrier, flat) == "above":
        return Verdict("Yes", "The loss rises between the networks: they lie in different basins.")
    if side(barrier, flat) == "unclear":
        return Verdict("Cannot tell", "The barrier may be zero, or an interval is missing.")
    if control is None:
        return Verdict("Cannot tell", "The loss stays flat; without a control, that may be so in every direction.")
    if side(control, flat) == "above":
        return Verdict("No", "The loss stays flat between the networks, and rises in a random direction of equal norm.")
    return Verdict("Cannot tell", "The loss stays flat in a random direction too: the networks are too close to tell.")
