"""The verdict of `brain`: does a trained family represent the stimuli as the recording does, and would the method have found it?"""

from dataclasses import replace
from typing import Any

import pandas as pd

from repscope.conditions import ESTIMATE, LOWER_CEILING, PIXELS, RANDOM_RECORDING, UNTRAINED, over
from repscope.report.verdict import Verdict, joined, side, thresholds
from repscope.results import first_row, records
from repscope.studies.brain import names, parts
from repscope.studies.brain.parts_verdict import verdicts


def verdict(table: pd.DataFrame) -> Verdict:
    """Of the representation, where that part ran, with the verdicts of the other parts; otherwise of the first of those."""
    others = verdicts(table)
    found = _representation(table)
    if found is not None:
        return replace(found, parts={**found.parts, **others})
    if not others:
        return Verdict("Cannot tell", "No recording was compared.")
    given = [parts.VERDICTS[name] for name in (parts.SIMILARITY_OF, parts.SIGNALS_OF, parts.TRIALS)]
    first = next((others[name] for name in given if name in others), next(iter(others.values())))
    return Verdict(first.reply, first.why, others)


def _representation(table: pd.DataFrame) -> Verdict | None:
    """Of the user's recording where there is one, by region; otherwise of the methods on recordings with a known truth."""
    methods = {m: found for m in names.METHODS if (found := _method(table, m)) is not None}
    regions = {region: _region(table, region) for region in _given_regions(table)}
    if regions:
        reply = joined(regions.values())
        beyond = {
            "Yes": "The most similar trained family is above untrained networks and pixels, and reaches the noise ceiling",
            "Partly": "Trained networks are above untrained networks and pixels, but not everywhere, or below the noise ceiling",
            "No": "No trained family is more similar to the recording than untrained networks and pixels",
            "Cannot tell": "Intervals do not show whether a trained family is above untrained networks and pixels",
        }[reply]
        return Verdict(reply, f"{beyond}.", regions | methods)
    if not methods:
        return None
    if names.RSA in methods:
        return Verdict(methods[names.RSA].reply, methods[names.RSA].why, methods)
    first = next(iter(methods.values()))
    return Verdict(first.reply, first.why, methods)


def _method(table: pd.DataFrame, method: str) -> Verdict | None:
    """Whether a method finds the family that generated a simulated recording of the late region; None if it did not run.

    Of recordings of random signals, the region counts in which a family is found more often.
    """
    limits = thresholds("brain")
    at: dict[str, Any] = {"metric": names.FOUND, "item": names.item(method, names.ALL)}
    found = first_row(table, condition=ESTIMATE, split=names.LATE, **at)
    if found is None:
        return None
    random = max(records(table, condition=RANDOM_RECORDING, **at), key=lambda row: (row["lo"], row["value"]), default=None)
    each = [
        first_row(table, metric=names.FOUND, item=names.item(method, f), split=names.LATE, condition=ESTIMATE)
        for f in names.TRAINED
    ]
    name = "RSA finds" if method == names.RSA else "Encoding models find"
    said = f"{name} the family that generated a recording in {100 * found['value']:.0f} % of simulated recordings"
    if random is None or random["lo"] > limits["by_chance"]:
        return Verdict("Cannot tell", f"{said}, but also finds one too often in recordings of random signals.")
    chance = f"{100 * random['value']:.1f} %".replace(".0 %", " %") + " of random ones"
    if side(found, limits["reliable"]) == "above" and all(row is not None and row["value"] > limits["reliable"] for row in each):
        return Verdict("Yes", f"{said}, and any family in {chance}.")
    if side(found, limits["rarely"]) == "below":
        return Verdict("No", f"{said}, and any family in {chance}.")
    if any(row is not None and side(row, limits["rarely"]) == "above" for row in each):
        return Verdict("Partly", f"{said}, and any in {chance}: not every family is found reliably.")
    return Verdict("Cannot tell", f"{said}; more recordings are needed to tell how reliably.")


def _given_regions(table: pd.DataFrame) -> list[str]:
    """Regions of the user's recording."""
    rows = table[(table["metric"] == names.GAIN) & (table["step"] == names.GIVEN)]
    return list(dict.fromkeys(names.parts(item)[1] for item in rows["item"]))


def _region(table: pd.DataFrame, region: str) -> Verdict:
    """The family that is most similar to a region, by RSA where it ran, beside the controls that there are."""
    rows = table[(table["step"] == names.GIVEN)]
    known = [names.parts(item) for item in rows["item"]]
    methods = dict.fromkeys(method for method, at, _ in known if at == region)
    method = names.RSA if names.RSA in methods else next(iter(methods))
    rows = rows[[p[:2] == (method, region) for p in known]]
    own = max(records(rows, metric=names.SIMILARITY, condition=ESTIMATE), key=lambda row: float(row["value"]))
    gains = [
        side(row)
        for control in (UNTRAINED, PIXELS)
        if (row := first_row(rows, metric=names.GAIN, item=own["item"], condition=over(control))) is not None
    ]
    family = names.parts(own["item"])[2]
    ceiling = first_row(rows, metric=names.SIMILARITY, condition=LOWER_CEILING)
    if side(own) == "below" or "below" in gains or (side(own, thresholds("brain")["alike"]) == "below"):
        return Verdict("No", f"The most similar family, {family}, is not above untrained networks and pixels.")
    if not gains or "unclear" in gains or side(own) != "above":
        return Verdict("Cannot tell", f"Whether {family} networks are above untrained networks and pixels is open.")
    if ceiling is not None and own["hi"] >= ceiling["value"]:
        return Verdict("Yes", f"{family.capitalize()} networks are above their controls and reach the noise ceiling.")
    return Verdict("Partly", f"{family.capitalize()} networks are above their controls, below the noise ceiling.")
