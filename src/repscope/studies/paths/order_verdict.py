"""The verdict of `paths` on the order of learning: is it shared beyond what class, frequency, distance and length explain?

Digits: every architecture's order correlation within classes is above the limit, and that of orthogonal inputs is small. Grammar:
the order correlation between runs that frequency, distance and length leave is above the limit, and that of the matched grammar
is below it.
"""

import pandas as pd

from repscope.conditions import MATCHED_GRAMMAR, ORTHOGONAL, REGRESSED_OUT
from repscope.report.verdict import Side, Verdict, side, thresholds
from repscope.results import records, select
from repscope.studies.paths import order_names as names


def order_verdict(table: pd.DataFrame) -> Verdict | None:
    """From the rows of the steps on the order of learning; None where there are none."""
    if select(table, metric=names.ORDER, split=names.DIGITS).empty:
        return None
    digits, grammar = _digits(table), _grammar(table)
    if digits == grammar == "above":
        return Verdict(
            "Yes", "Networks share an order within classes of digits, and in grammar beyond frequency, distance and length."
        )
    if "above" in (digits, grammar):
        found, other = ("digits within classes", "grammar") if digits == "above" else ("grammar", "digits")
        rest = "is not" if "below" in (digits, grammar) else "may not be"
        return Verdict("Partly", f"The order is shared in {found}; in {other} it {rest} shared beyond what the controls explain.")
    if digits == grammar == "below":
        return Verdict("No", "Class, frequency, distance and length explain the order that networks share.")
    return Verdict("Cannot tell", "The intervals do not show whether networks share an order beyond the controls.")


def _digits(table: pd.DataFrame) -> Side:
    limits = thresholds("paths")
    held = select(table, metric=names.ORDER, split=names.DIGITS)
    control = records(held[held["condition"] == ORTHOGONAL])
    if any(abs(row["value"]) > limits["no_order"] for row in control) or not control:
        return "unclear"
    sides = {side(row, limits["order"]) for row in records(held[held["definition"] == names.CLASSES])}
    return sides.pop() if len(sides) == 1 else "unclear"


def _grammar(table: pd.DataFrame) -> Side:
    limits = thresholds("paths")
    held = select(table, metric=names.ORDER, item=names.OVER_LOSSES, definition=f"{names.LOSS}, {names.ALL_RUNS}")
    rows = {row["condition"]: row for row in records(held)}
    if REGRESSED_OUT not in rows or MATCHED_GRAMMAR not in rows or rows[MATCHED_GRAMMAR]["value"] > limits["no_order"]:
        return "unclear"
    found = side(rows[REGRESSED_OUT], limits["order"])
    if found == "above" and not rows[REGRESSED_OUT]["lo"] > rows[MATCHED_GRAMMAR]["hi"]:
        return "unclear"
    return found
