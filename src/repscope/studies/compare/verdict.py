"""The verdict of `compare`: whether weights, representations and next tokens changed, each by a rule of its own.

Weights: by the relative Frobenius norm over all of them; equal bits of every entry are "identical". Representations: by the site
with the lowest CKA. Next tokens: by the share of the tuned network's answer that is the base's first choice too.
"""

from typing import Any

import pandas as pd

from repscope.conditions import ESTIMATE, ROUNDING
from repscope.report.verdict import Verdict, joined, side, thresholds
from repscope.results import select
from repscope.studies.compare.names import ALL, NORM, UNCHANGED32

WEIGHTS, REPRESENTATIONS, TOKENS = "weights", "representations", "next tokens"
_CLAUSES = {
    (WEIGHTS, "Yes"): "the weights change",
    (WEIGHTS, "No"): "the weights barely change",
    (WEIGHTS, "Cannot tell"): "whether the weights change much is open",
    (REPRESENTATIONS, "Yes"): "representations change",
    (REPRESENTATIONS, "No"): "representations stay alike",
    (REPRESENTATIONS, "Cannot tell"): "whether representations change is open",
    (TOKENS, "Yes"): "next tokens change",
    (TOKENS, "No"): "next tokens stay the same",
    (TOKENS, "Cannot tell"): "whether next tokens change is open",
}


def verdict(table: pd.DataFrame) -> Verdict:
    """From all rows of a run."""
    if _value(table, UNCHANGED32) == 1.0:
        return Verdict("No", "The checkpoints are identical: every weight has the same bits.")
    parts = {WEIGHTS: _weights(table)}
    cka = select(table, metric="CKA", condition=ESTIMATE).to_dict("records")
    if cka:
        parts[REPRESENTATIONS] = _representations(cka)
    unshifted = select(table, metric="unshifted", condition=ESTIMATE, item="").to_dict("records")
    if unshifted:
        parts[TOKENS] = _tokens(unshifted[0])
    if len(parts) == 1:
        return parts[WEIGHTS]
    clauses = [_CLAUSES[name, part.reply] for name, part in parts.items()]
    why = f"{', '.join(clauses[:-1])} and {clauses[-1]}."
    return Verdict(joined(parts.values()), why[:1].upper() + why[1:], parts)


def _weights(table: pd.DataFrame) -> Verdict:
    rows = select(table, metric=NORM, condition=ESTIMATE, item=ALL).to_dict("records")
    barely = thresholds("compare")["barely"]
    where = side(rows[0] if rows else None, barely)
    if where == "above":
        return Verdict("Yes", f"The weights change by more than {barely * 100:g} % of their norm.")
    if where == "unclear":
        return Verdict("Cannot tell", f"Whether the weights change by more than {barely * 100:g} % of their norm is open.")
    rounding = _value(table, NORM, ROUNDING)
    if rounding is not None and float(rows[0]["hi"]) < rounding:
        return Verdict("No", "The weights barely change: by less than rounding them to bfloat16 would.")
    return Verdict("No", f"The weights barely change: by less than {barely * 100:g} % of their norm.")


def _representations(rows: list[dict[Any, Any]]) -> Verdict:
    alike = thresholds("compare")["alike"]
    lowest = min(rows, key=lambda row: float(row["value"]))
    where = side(lowest, alike)
    site = str(lowest["site"])
    if where == "below":
        return Verdict("Yes", f"At {site} the CKA of base and tuned network is below {alike:.2f}.")
    if where == "above":
        return Verdict("No", f"At every site the CKA of base and tuned network is above {alike:.2f}.")
    return Verdict("Cannot tell", f"At {site} the interval of the CKA contains {alike:.2f}.")


def _tokens(row: dict[Any, Any]) -> Verdict:
    same = thresholds("compare")["same_tokens"]
    where = side(row, same)
    if where == "below":
        return Verdict("Yes", f"The base would choose fewer than {same * 100:g} % of the tuned network's tokens.")
    if where == "above":
        return Verdict("No", f"The base would choose more than {same * 100:g} % of the tuned network's tokens.")
    return Verdict("Cannot tell", f"Whether the base would choose {same * 100:g} % of the tuned network's tokens is open.")


def _value(table: pd.DataFrame, metric: str, condition: str = ESTIMATE) -> float | None:
    rows = select(table, metric=metric, condition=condition, item=ALL)
    return float(rows["value"].iloc[0]) if len(rows) else None
