"""The verdict of `compare`: whether weights, representations and next tokens changed, each by a rule of its own.

Weights: by the relative Frobenius norm over all of them; equal bits of every entry are identical weights, and identical checkpoints
if nothing else differs either (another configuration makes another function of the same weights). Representations: by the site
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
    same = _value(table, UNCHANGED32) == 1.0
    parts = {WEIGHTS: Verdict("No", "Every weight has the same bits.") if same else _weights(table)}
    cka = select(table, metric="CKA", condition=ESTIMATE).to_dict("records")
    if cka:
        parts[REPRESENTATIONS] = _representations(cka)
    unshifted = select(table, metric="unshifted", condition=ESTIMATE, item="").to_dict("records")
    if unshifted:
        parts[TOKENS] = _tokens(unshifted[0])
    if same and all(part.reply == "No" for part in parts.values()):
        of = "checkpoints" if len(parts) > 1 else "weights"
        return Verdict("No", f"The {of} are identical: every weight has the same bits.")
    if len(parts) == 1:
        return parts[WEIGHTS]
    clauses = [_CLAUSES[name, part.reply] for name, part in parts.items()]
    if same:  # another configuration: the same weights are another function
        clauses[0] = "the weights are identical"
    why = f"{', '.join(clauses[:-1])} and {clauses[-1]}."
    return Verdict(joined(parts.values()), why[:1].upper() + why[1:], parts)


def _weights(table: pd.DataFrame) -> Verdict:
    """By the value itself: both checkpoints are read whole, so the interval over tensors is no doubt about their total."""
    norm = _value(table, NORM)
    barely = thresholds("compare")["barely"]
    if norm is None:
        return Verdict("Cannot tell", "The weights were not compared.")
    if norm > barely:
        return Verdict("Yes", f"The weights change by more than {barely * 100:g} % of their norm.")
    rounding = _value(table, NORM, ROUNDING)
    if rounding is not None and norm < rounding:
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
