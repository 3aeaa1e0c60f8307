"""The verdict of `emergence`: does two-hop reasoning appear, when and where, and is imitation worth compute?

Of a run on networks that it trains: accuracy on held-out queries and on queries of two facts out of distribution at the largest phi
and the last step, and the lag. Of a user's table: the side of 1 on which the gains lie.
"""

from math import isfinite
from typing import Any

import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.report.verdict import Reply, Verdict, count, joined, side, thresholds
from repscope.results import first_row, records, select
from repscope.studies.emergence import names

_NONE = Verdict("Cannot tell", "Neither a curve over checkpoints nor a gain was measured.")
_Row = dict[Any, Any] | None


def verdict(table: pd.DataFrame) -> Verdict:
    """Of the largest phi, or of the user's ladder."""
    held = select(table, metric=names.ACCURACY, condition=ESTIMATE)
    gains = {str(r["item"]): _gain(r) for r in records(table, metric=names.GAIN, condition=ESTIMATE, split="by loss")}
    if held.empty:
        return _of_table(gains) if gains else _NONE
    if not any(isfinite(names.phi_of(item)) for item in held["item"]):
        return _of_probes(held)
    held = held.assign(phi=[names.phi_of(item) for item in held["item"]], step=[names.step_of(split) for split in held["split"]])
    last = records(held.sort_values(["phi", "step"]))[-1]
    where = {"item": last["item"], "split": last["split"]}
    outside = first_row(table, metric=names.ACCURACY, condition=names.OOD, **where)
    step, lag = (first_row(table, metric=m, condition=ESTIMATE, item=last["item"]) for m in (names.STEP, names.LAG))
    parts = {"Two-hop queries": _appearance(last, outside, step, lag)}
    tuned = {item: one for item, one in gains.items() if "known" not in item}
    return Verdict(parts["Two-hop queries"].reply, parts["Two-hop queries"].why, parts | tuned)


def _appearance(held: dict[Any, Any], outside: _Row, step: _Row, lag: _Row) -> Verdict:
    limits, phi = thresholds("emergence"), f"phi = {held['phi']:g}"
    there = side(held, limits["appeared"])
    if there == "below" and side(held, limits["absent"]) == "below":
        return Verdict("No", f"At {phi} networks memorise queries and never answer held-out ones.")
    if there != "above":
        return Verdict(
            "Cannot tell", f"At {phi} networks answer {100 * held['value']:.0f} % of held-out queries; train them longer."
        )
    when = f"from step {step['value']:.0f} on" if step is not None and isfinite(step["value"]) else "in the end"
    later = f", {lag['value']:.1f} times later than trained ones" if lag is not None and side(lag, 1.0) == "above" else ""
    said = f"Held-out two-hop queries are answered {when} at {phi}{later}"
    if side(outside, limits["absent"]) == "below":
        return Verdict("Partly", f"{said}, but never queries of facts outside the trained ones.")
    if side(outside, limits["appeared"]) == "above":
        return Verdict("Yes", f"{said}, also of facts out of distribution.")
    return Verdict("Partly", f"{said}; out of distribution the accuracy is {outside['value']:.2f}." if outside else f"{said}.")


def _gain(row: dict[Any, Any]) -> Verdict:
    if not isfinite(row["value"]):
        return Verdict("Cannot tell", "The ladder says nothing of its loss.")
    worth = side(row, thresholds("emergence")["worth"])
    said = f"It is worth {row['value']:.2g} times the compute"
    if worth == "above":
        return Verdict("Yes", f"{said}.")
    return Verdict("No", f"{said}, a loss.") if worth == "below" else Verdict("Cannot tell", f"{said}, and 1 is not excluded.")


def _of_probes(held: pd.DataFrame) -> Verdict:
    """Of the user's probes: which of them the last checkpoint answers more often than not."""
    held = held.assign(step=[names.step_of(split) for split in held["split"]])
    parts = {}
    for item, rows in held.groupby("item", sort=False):
        last = records(rows.sort_values("step"))[-1]
        found = side(last, 0.5)
        reply: Reply = "Yes" if found == "above" else "No" if found == "below" else "Cannot tell"
        parts[str(item)] = Verdict(reply, f"At step {last['step']:.0f} its accuracy is {last['value']:.2f}.")
    return Verdict(joined(parts.values()), f"{count(parts.values())} probes are answered more often than not in the end.", parts)


def _of_table(gains: dict[str, Verdict]) -> Verdict:
    reply = joined(gains.values())
    count = sum(one.reply == "Yes" for one in gains.values())
    return Verdict(reply, f"{count} of {len(gains)} enhancements are worth more than the compute they are measured at.", gains)
