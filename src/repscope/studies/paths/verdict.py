"""The verdict of `paths`: do runs of one recipe end in one basin, and does the basin predict how they generalise?"""

from dataclasses import replace
from typing import Any

import pandas as pd

from repscope.conditions import ESTIMATE, NO_BIAS, SHUFFLED_GROUPS, WITHIN_TERMS
from repscope.report.verdict import Verdict, side, thresholds
from repscope.results import records, select
from repscope.studies.paths.order_names import BLIMP, ORDER
from repscope.studies.paths.order_verdict import order_verdict
from repscope.studies.paths.published import IN_DOMAIN, LEFT
from repscope.trace.barriers import GAP


def verdict(table: pd.DataFrame) -> Verdict:
    """Of the runs trained here; of a published table where none were trained."""
    rows = {(r["condition"], r["metric"], r["item"]): r for r in records(table, step="summary")}
    if not rows and select(table, metric="auc").empty and not select(table, split=BLIMP).empty:
        return _summary(table)
    found, order = _trained(rows) if rows else _published(table), order_verdict(table)
    return found if order is None else replace(found, parts={"One place": found, "One order of learning": order})


def _summary(table: pd.DataFrame) -> Verdict:
    """Of a summary of models alone: whether all pairs of models share an order beyond wider phenomena."""
    held = select(table, metric=ORDER, split=BLIMP)
    sides = {c: {side(r, 0.0) for r in records(held, condition=c)} for c in (ESTIMATE, WITHIN_TERMS)}
    if sides[ESTIMATE] == sides[WITHIN_TERMS] == {"above"}:
        return Verdict("Yes", "All pairs of models find the same paradigms hard, also within wider phenomena.")
    if "above" in sides[ESTIMATE]:
        return Verdict("Partly", "Models find the same paradigms hard, but not every pair of them does within wider phenomena.")
    return Verdict("Cannot tell", "The accuracies do not show that models find the same paradigms hard.")


def _trained(rows: dict[tuple[str, str, str], dict[Any, Any]]) -> Verdict:
    limits = thresholds("paths")
    ratio, shuffled = (rows.get((c, "ratio", GAP)) for c in (ESTIMATE, SHUFFLED_GROUPS))
    shares = [rows.get((ESTIMATE, "share of the rule", group)) for group in ("rule", "lexical overlap")]
    if ratio is None or side(shares[0], 0.5) != "above" or side(shares[1], 0.5) != "below":
        return Verdict(
            "Cannot tell",
            "The early bias did not last in every pretraining, so the runs do not form two strategies that could be compared.",
        )
    early = side(ratio, limits["separated"])
    if early == "above" and shuffled is not None and not ratio["lo"] > shuffled["hi"]:
        early = "unclear"
    seeds = side(rows.get((NO_BIAS, "mantel rho", GAP)), limits["predicts"])
    if early == "above" and seeds == "above":
        return Verdict("No", "Runs end in different basins, which predict how they generalise, even when they differ only in seed.")
    if early == "above":
        rest = "do not" if seeds == "below" else "show no evidence of it"
        return Verdict(
            "Partly", f"Runs whose first steps differed end in different basins; runs that differ only in their seed {rest}."
        )
    if side(ratio, limits["one_basin"]) == "below":
        return Verdict("Yes", "Even runs whose first steps differed, and that generalise differently, end in one basin.")
    return Verdict("Cannot tell", "The intervals over pretrainings do not show whether runs with different first steps end apart.")


def _published(table: pd.DataFrame) -> Verdict:
    """Whether clusters separate a score, and still do when in-domain accuracy is regressed out with both slopes."""
    auc = select(table, metric="auc")
    scores = list(dict.fromkeys(auc[auc["condition"] == ESTIMATE]["item"]))
    if not scores:
        return Verdict("Cannot tell", "No score of the published table could be compared between the clusters.")
    first = {r["condition"]: r for r in records(auc[auc["item"] == scores[0]])}
    if side(first[ESTIMATE], 0.5) == "unclear":
        return Verdict("Cannot tell", "The published clusters may separate the runs' scores no better than chance.")
    left = [side(first.get(name), 0.5) for name in LEFT]
    if set(left) == {side(first[ESTIMATE], 0.5)}:
        return Verdict("No", f"The published clusters separate how runs generalise, beyond what {IN_DOMAIN} explains.")
    return Verdict("Partly", f"The published clusters separate how runs generalise; {IN_DOMAIN} may explain it.")
