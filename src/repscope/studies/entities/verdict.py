"""The verdict of `entities`: is each attribute read out linearly by an early block, and better than from the tokens alone?"""

from typing import Any

import pandas as pd

from repscope.conditions import ABLATED_ATTENTION, ABLATED_MLPS, NOISE_MLPS, over
from repscope.report.verdict import Verdict, count, joined, side, thresholds
from repscope.results import select
from repscope.studies.entities.names import attributes, first_block, of_attributes, of_mechanism, title


def verdict(table: pd.DataFrame) -> Verdict:
    """One verdict per attribute, one over all, and one per set on what builds the vector."""
    readout = of_attributes(table)
    parts = {title(item): _attribute(readout[readout["item"] == item]) for item in attributes(readout)}
    built = {f"How the vector of {name} is built": found for name, found in mechanism(table).items()}
    if len(parts) == 1:
        only = next(iter(parts.values()))
        return Verdict(only.reply, only.why, built) if built else only
    each = list(parts.values())
    why = {
        "Yes": "Every attribute reads out linearly by an early block, better than from the name's tokens or from random weights.",
        "No": "No attribute reads out linearly better than from the tokens of the name.",
        "Cannot tell": "For no attribute do the intervals show whether the network adds to the tokens of the name.",
        "Partly": f"{count(each)} attributes read out linearly by an early block, better than from tokens or random weights; for "
        f"{count(each, 'Cannot tell').partition(' ')[0]} the intervals decide nothing.",
    }[joined(each)]
    return Verdict(joined(each), why, parts | built)


def mechanism(table: pd.DataFrame) -> dict[str, Verdict]:
    """Per set with ablations: do the early MLPs build the vector of its names? By the first attribute of the set."""
    rows = of_mechanism(table)
    extra = select(rows, metric="extra loss")
    found: dict[str, Verdict] = {}
    for item in dict.fromkeys(extra["item"]):
        name = str(item).rpartition(".")[0]
        if name not in found:
            found[name] = _built(rows[rows["item"] == item])
    return found


def _built(rows: pd.DataFrame) -> Verdict:
    """Replaced MLP outputs: what is lost at all, more than by random changes, more than by replacing those of attention."""
    limits = thresholds("entities")
    extra = {
        r["condition"]: r for r in select(rows, metric="extra loss").to_dict("records") if r["definition"].startswith(ABLATED_MLPS)
    }
    replaced = select(rows, condition=ABLATED_MLPS)
    means = replaced["metric"].isin(["accuracy lost", "R² lost"]) & replaced["definition"].str.startswith("mean")
    lost: list[dict[Any, Any]] = replaced[means].to_dict("records")
    widest = max(lost, key=lambda r: _blocks(str(r["site"])), default=None)
    noise, attention = extra.get(over(NOISE_MLPS)), extra.get(over(ABLATED_ATTENTION))
    if side(widest, limits["lost"]) == "below":
        return Verdict("No", "Without the outputs of the early MLPs at its tokens, the name's vector holds nearly as much.")
    if side(widest, limits["lost"]) != "above":
        return Verdict("Cannot tell", "Whether much is lost without the outputs of the early MLPs is open.")
    if side(noise) != "above":
        return Verdict(
            "Cannot tell", "Much is lost without the early MLPs' outputs, but random changes of equal energy cost as much."
        )
    of_attention = side(attention)
    if of_attention == "above":
        return Verdict("Yes", "The early MLPs' outputs are needed, more than random changes would tell, and more than attention's.")
    if of_attention == "below":
        return Verdict("Partly", "The early MLPs' outputs are needed, but those of attention are needed more.")
    return Verdict("Partly", "The early MLPs' outputs are needed; whether more than those of attention is open.")


def _blocks(site: str) -> int:
    """How many blocks a range has, such as "blocks 0–8"."""
    first, _, last = site.removeprefix("blocks ").partition("–")
    return int(last) - int(first) + 1


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
    found = first_block(rows, limits["of_largest"])
    if found is None:
        return Verdict("Partly", "It reads out linearly, better than from the tokens; by which block was not measured.")
    block, blocks = found
    where = f"from block {block} of {blocks} on" if block >= 0 else "at the embedding already"
    if block + 1 > limits["early"] * blocks:
        return Verdict("Partly", f"It reads out linearly, better than from the tokens, but fully only {where}.")
    return Verdict("Yes", f"It reads out linearly {where}, better than from the tokens or from random weights.")
