"""The verdict of `relations`: does one linear map give the object of most subjects, more often than its controls?"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from repscope.conditions import over
from repscope.report.verdict import Verdict, count, joined, side, thresholds
from repscope.results import CHOSEN, ESTIMATE, select

_CONTROLS = (over("map on another subject's vector"), over("majority object"))


def verdict(table: pd.DataFrame) -> Verdict:
    """One verdict per relation with a map, and one over all."""
    chosen = select(table, metric="faithfulness", site=CHOSEN, split="halves", condition=ESTIMATE)
    parts = {str(r["item"]): _relation(table, r) for r in chosen.to_dict("records")}
    if not parts:
        return Verdict("Cannot tell", "The model knows too few facts of any relation to estimate and test a map.")
    if len(parts) == 1:
        return next(iter(parts.values()))
    each = list(parts.values())
    why = {
        "Yes": "For every relation, one linear map gives the object of most subjects, more often than its controls.",
        "No": "For no relation is a linear map right more often than its controls.",
        "Cannot tell": "For no relation do the intervals separate the linear map from its controls.",
        "Partly": f"For {count(each)} relations, one linear map gives the object of most subjects; for the others it does so less "
        "often, or the intervals decide nothing.",
    }[joined(each)]
    return Verdict(joined(each), why, parts)


def _relation(table: pd.DataFrame, chosen: Mapping[Any, Any]) -> Verdict:
    limits = thresholds("relations")
    gains = select(table, metric="gain", definition="faithfulness", item=str(chosen["item"])).to_dict("records")
    sides = [side(r, limits["above_control"]) for r in gains if r["condition"] in _CONTROLS]
    if not sides or "below" in sides:
        return Verdict("No", "The map is right no more often than a map on another subject's vector or the most common object.")
    if "unclear" in sides:
        return Verdict("Cannot tell", "The gain over another subject's vector or the most common object may be zero.")
    most = side(chosen, limits["faithful"])
    if most == "above":
        return Verdict("Yes", "One linear map gives the object of most known subjects, more often than its controls.")
    why = ", but for fewer than half of the subjects" if most == "below" else "; whether for most subjects is open"
    return Verdict("Partly", f"A linear map is right more often than its controls{why}.")
