"""The verdict of `features`: do sparse features stand for a layer, and do a few of them tell of a name what a dense probe tells?"""

import pandas as pd

from repscope.conditions import over
from repscope.report.verdict import Verdict, count, joined, side, thresholds
from repscope.results import records, select
from repscope.studies.features.names import CLAIMED, COMPONENTS, DENSE, DICTIONARY, RECOVERED, attribute, probed, title

LAYER = "Layer"


def verdict(table: pd.DataFrame) -> Verdict:
    """One verdict on the layer, one per attribute of names, and one over all."""
    gains = select(table, metric="gain")
    layer = _layer(gains)
    items = dict.fromkeys(item for item in gains["item"] if ": " in item and item == probed(attribute(item), CLAIMED))
    names = {title(item): _attribute(gains[gains["item"] == item]) for item in items}
    told = count(names.values())
    recovered = {
        "Yes": "The features keep more of the model's loss than principal components",
        "No": "The features keep less of the model's loss than principal components",
        "Cannot tell": "Whether the features keep more loss than principal components is open",
    }[layer.reply]
    why = f"{recovered}; {CLAIMED} of them tell {told} attributes of names as well as a dense probe." if names else f"{recovered}."
    return Verdict(joined([layer, *names.values()]), why, {LAYER: layer} | names)


def _layer(gains: pd.DataFrame) -> Verdict:
    """Whether every autoencoder recovers more of the loss than as many principal components."""
    rows = records(gains, item=RECOVERED, condition=over(COMPONENTS))
    sides = {side(row) for row in rows}
    if sides == {"above"}:
        return Verdict("Yes", "Spliced in, the features keep more of the model's loss than as many principal components.")
    if sides == {"below"}:
        return Verdict("No", "Spliced in, the features keep less of the model's loss than as many principal components.")
    return Verdict("Cannot tell", "The intervals do not separate the features from as many principal components.")


def _attribute(rows: pd.DataFrame) -> Verdict:
    """Whether a few features tell more than those of a random dictionary, and as much as a dense probe."""
    limits = thresholds("features")
    at = {r["condition"]: r for r in records(rows)}
    chance, dense = at.get(over(DICTIONARY)), at.get(over(DENSE))
    if side(chance) != "above":
        if side(chance, limits["beyond_random"]) == "below":
            return Verdict("No", f"{CLAIMED} features tell no more than as many latents of a random dictionary.")
        return Verdict("Cannot tell", f"Whether {CLAIMED} features tell more than latents of a random dictionary is open.")
    if side(dense, -limits["as_dense"]) == "above":
        return Verdict("Yes", f"{CLAIMED} features tell about as much as a dense probe, and more than a random dictionary.")
    if side(dense, -limits["as_dense"]) == "below":
        return Verdict("Partly", f"{CLAIMED} features tell more than a random dictionary, but less than a dense probe.")
    return Verdict("Partly", f"{CLAIMED} features tell more than a random dictionary; whether as much as a dense probe is open.")
