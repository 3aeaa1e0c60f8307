"""The verdict of `drift`: one per claim, and that on the conditional claim for the study.

Each rule reads whole intervals over seeds; thresholds are in `report/verdicts.toml`.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from repscope.conditions import BFLOAT16, ESTIMATE, FITTED_VECTORS, PERMUTED_GAPS, RANDOM
from repscope.report.verdict import Side, Verdict, count, side, thresholds
from repscope.results import records
from repscope.studies.drift import names

Rows = Mapping[tuple[str, str, str, str], dict[Any, Any]]  #: (metric, item, condition, split) → row

FEWER = "RL updates fewer weights than SFT"
ARTEFACT = "Sparsity is a bfloat16 artefact"
BARELY = "DPO barely changes the weights"
STEERS = "Fine-tuning only steers"
SMALLER = "The smaller the gap, the less drift"


def verdict(table: pd.DataFrame) -> Verdict:
    """The verdicts on the claims, and that on the conditional claim as the study's."""
    whole = table[(table["site"] == "") & ((table["token"] == "") | (table["metric"] == names.SLOPE))]
    rows: Rows = {(r["metric"], r["item"], r["condition"], r["split"]): r for r in records(whole)}
    gap = smaller(rows)
    parts = {FEWER: fewer(rows), ARTEFACT: artefact(rows), BARELY: barely(rows), STEERS: steers(rows), SMALLER: gap}
    return Verdict(gap.reply, gap.why, parts)


def fewer(rows: Rows) -> Verdict:
    """RL minus SFT in the share of unchanged weights, at equal reward and rate, in float32 and after rounding to bfloat16."""
    least = thresholds("drift")["fewer"]
    differences = [(names.DIFFERENCE, f"{m}: RL − SFT", ESTIMATE, names.AT_REWARD) for m in (names.SAME32, names.SAME16)]
    sides = [side(rows.get(d), least) for d in differences]
    if sides == ["above", "above"]:
        return Verdict("Yes", "At equal reward RL leaves more weights exactly as they were, in float32 and in bfloat16.")
    if "above" in sides:
        more = "float32" if sides[0] == "above" else "bfloat16"
        return Verdict("Partly", f"At equal reward RL leaves more weights unchanged in {more}, not in the other precision.")
    if sides == ["below", "below"]:
        return Verdict("No", "At equal reward and learning rate RL and SFT change nearly the same share of weights.")
    return Verdict("Cannot tell", "The intervals over seeds do not show whether RL leaves more weights unchanged than SFT.")


def artefact(rows: Rows) -> Verdict:
    """Where training in bfloat16 leaves most weights unchanged, does the same training in float32 leave them, too?"""
    limits = thresholds("drift")
    replies = []
    for (metric, item, condition, split), row in rows.items():
        if metric != names.SAME16 or condition != BFLOAT16:
            continue
        twin = rows.get((names.SAME32, item, ESTIMATE, split))
        if side(row, limits["sparse"]) == "above":
            replies.append({"below": "artefact", "above": "real"}.get(side(twin, limits["dense"]), "unclear"))
    if not replies or set(replies) == {"unclear"}:
        return Verdict("Cannot tell", "No run in bfloat16 left most weights unchanged while its float32 twin could be compared.")
    if set(replies) == {"artefact"}:
        return Verdict(
            "Yes", "Training in bfloat16 leaves most weights unchanged at small rates; the same updates in float32 do not."
        )
    if set(replies) == {"real"}:
        return Verdict("No", "Where bfloat16 leaves most weights unchanged, the same updates in float32 leave many, too.")
    return Verdict("Partly", f"In {replies.count('artefact')} of {len(replies)} sparse runs the same updates in float32 are dense.")


def barely(rows: Rows) -> Verdict:
    """Relative norm of DPO's change over the mean of the other methods at equal reward."""
    limits = thresholds("drift")
    row = rows.get((names.RATIO, f"{names.NORM}: {names.DPO} / others", ESTIMATE, names.AT_REWARD))
    small, equal = side(row, limits["barely"]), side(row, limits["as_much"])
    if small == "below":
        return Verdict("Yes", "At equal reward DPO changes the weights less than half as much as the other methods do.")
    if equal == "above":
        return Verdict("No", "At equal reward DPO changes the weights about as much as the other methods, or more.")
    if small == "above" and equal == "below":
        return Verdict("Partly", "At equal reward DPO changes the weights less than the other methods, but not less than half.")
    return Verdict("Cannot tell", "The interval over seeds does not show how much DPO changes the weights beside other methods.")


def steers(rows: Rows) -> Verdict:
    """Share of the KL that constant vectors recover, by method: of one vector, or fitted at every site."""
    limits = thresholds("drift")
    methods = [i for (m, i, c, _) in rows if m == names.RECOVERED and c == FITTED_VECTORS]
    parts = {name: _steered(rows, name, limits) for name in methods}
    replies = [p.reply for p in parts.values()]
    if replies and set(replies) == {"Yes"}:
        return Verdict("Yes", "Constant vectors recover nearly all of what every method changed in next tokens.", parts)
    if replies and set(replies) == {"No"}:
        return Verdict(
            "No", "Even fitted constant vectors recover less than half of what any method changed in next tokens.", parts
        )
    if {"Yes", "Partly"} & set(replies):
        some = count(parts.values(), "Yes")
        return Verdict(
            "Partly",
            f"Constant vectors recover nearly all of the change in next tokens for {some} methods, part for others.",
            parts,
        )
    return Verdict("Cannot tell", "The intervals over seeds do not show how much constant vectors recover.", parts)


def _steered(rows: Rows, name: str, limits: Mapping[str, float]) -> Verdict:
    fitted, random = (rows.get((names.RECOVERED, name, c, names.AT_REWARD)) for c in (FITTED_VECTORS, RANDOM))
    high, half = side(fitted, limits["steers"]), side(fitted, limits["half"])
    beyond = fitted is not None and (random is None or not fitted["lo"] <= random["value"])
    if high == "above" and beyond:
        return Verdict("Yes", "Fitted constant vectors recover nearly all of the change in next tokens.")
    if half == "below":
        return Verdict("No", "Fitted constant vectors recover less than half of the change in next tokens.")
    if half == "above" and beyond:
        return Verdict("Partly", "Fitted constant vectors recover more than half of the change in next tokens.")
    return Verdict("Cannot tell", "The interval over seeds contains the threshold.")


def smaller(rows: Rows) -> Verdict:
    """Slopes of RL's drift on the gap: in weights, representations and next tokens."""
    items = [f"{names.REINFORCE}: {m}" for m in (names.NORM, f"1 − {names.CKA}", names.KL)]
    sides = [_slope(rows, item) for item in items]
    if sides == ["above"] * 3:
        return Verdict(
            "Yes", "The smaller the reward gap that imitation leaves, the less RL changes weights, representations and next tokens."
        )
    if "above" in sides:
        where = [w for w, s in zip(("weights", "representations", "next tokens"), sides) if s == "above"]
        return Verdict("Partly", f"A smaller gap in reward goes with less drift under RL in {' and '.join(where)} only.")
    if sides == ["below"] * 3 or ("below" in sides and "unclear" not in sides):
        return Verdict("No", "A smaller gap in reward does not go with less drift under RL.")
    return Verdict(
        "Cannot tell", "The intervals over seeds do not show whether RL changes less where imitation left a smaller gap."
    )


def _slope(rows: Rows, item: str) -> Side:
    """Side of zero, where it is beyond the range of the permuted gaps; inside that range it is unclear."""
    row, null = (rows.get((names.SLOPE, item, c, "gap")) for c in (ESTIMATE, PERMUTED_GAPS))
    found = side(row)
    if row is None or null is None or found == "unclear":
        return "unclear"
    beyond = row["value"] > null["hi"] if found == "above" else row["value"] < null["lo"]
    return found if beyond else "unclear"
