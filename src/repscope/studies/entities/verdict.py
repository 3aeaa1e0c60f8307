"""The verdict of `entities`: is each attribute read out linearly by an early block, and better than from the tokens alone?"""

import pandas as pd

from repscope.report.verdict import Verdict, count, joined, side, thresholds
from repscope.results import CHOSEN, ESTIMATE, select
from repscope.studies.entities.names import attributes, title, whole


def verdict(table: pd.DataFrame) -> Verdict:
    """One verdict per attribute, and one over all."""
    parts = {title(item): _attribute(table[table["item"] == item]) for item in attributes(table)}
    if len(parts) == 1:
        return next(iter(parts.values()))
    each = list(parts.values())
    why = {
        "Yes": "Every attribute reads out linearly by an early block, better than from the name's tokens or from random weights.",
        "No": "No attribute reads out linearly better than from the tokens of the name.",
        "Cannot tell": "For no attribute do the intervals show whether the network adds to the tokens of the name.",
        "Partly": f"{count(each)} attributes read out linearly by an early block, better than from tokens or random weights; for "
        f"{count(each, 'Cannot tell').partition(' ')[0]} the intervals decide nothing.",
    }[joined(each)]
    return Verdict(joined(each), why, parts)


def _attribute(rows: pd.DataFrame) -> Verdict:
    """The verdict on one attribute: readable at all, beyond the tokens, beyond random weights, early."""
    limits = thresholds("entities")
    gains = {r["condition"]: r for r in select(rows, metric="gain").to_dict("records") if r["split"] != "shared token"}
    shuffled = gains.get("over shuffled labels")
    if side(shuffled) != "above":
        if shuffled is not None and side(shuffled, limits["readable"]) == "below":
            return Verdict("No", "A linear probe reads it no better than one trained on shuffled labels.")
        return Verdict("Cannot tell", "The gain over shuffled labels may be zero.")
    tokens = gains.get("over bag of token embeddings")
    if side(tokens) != "above":
        if side(tokens, limits["beyond_tokens"]) == "below":
            return Verdict("No", "It reads out linearly, but no better than from the tokens without the network.")
        return Verdict("Cannot tell", "It reads out linearly; whether better than from the tokens without the network is open.")
    if "over random weights" in gains and side(gains["over random weights"]) != "above":
        return Verdict("Partly", "It reads out better than from the tokens, but perhaps no better than from random weights.")
    found = _first_block(rows, limits["of_largest"])
    if found is None:
        return Verdict("Partly", "It reads out linearly, better than from the tokens; by which block was not measured.")
    block, blocks = found
    where = f"from block {block} of {blocks} on" if block >= 0 else "at the embedding already"
    if block + 1 > limits["early"] * blocks:
        return Verdict("Partly", f"It reads out linearly, better than from the tokens, but fully only {where}.")
    return Verdict("Yes", f"It reads out linearly {where}, better than from the tokens or from random weights.")


def _first_block(rows: pd.DataFrame, share: float) -> tuple[int, int] | None:
    """The first block whose score is a share of the largest over blocks, and the number of blocks; −1 is the embedding."""
    curve = rows[
        (rows["condition"] == ESTIMATE)
        & rows["token"].isin(["last", "mean"])
        & (rows["site"] != CHOSEN)
        & rows["metric"].isin(["accuracy", "r2"])
        & whole(rows)
        & (rows["layer"].notna() | (rows["site"] == "embed"))
    ]
    curve = curve.assign(layer=curve["layer"].astype("float64").fillna(-1)).sort_values("layer")
    if curve.empty or curve["value"].max() <= 0:
        return None
    reached = curve[curve["value"] >= share * curve["value"].max()]
    return int(reached["layer"].iloc[0]), int(curve["layer"].max()) + 1
