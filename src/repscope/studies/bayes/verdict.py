"""The verdict of `bayes`: how many nats are the networks from exact Bayes, and does the distance shrink with examples?"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from repscope.conditions import ESTIMATE, over
from repscope.report.verdict import Verdict, side, thresholds
from repscope.results import first_row, records, select
from repscope.studies.bayes import names

_TITLES = (names.UNIFORM, names.ASKED, names.GIVEN)


def verdict(table: pd.DataFrame) -> Verdict:
    """Of the networks at the shortest examples of the world with the uniform delimiter, or on documents of the user's models."""
    at = select(table, metric=names.KL, condition=ESTIMATE)
    kinds = [names.parts(item) for item in at["item"]]
    own = [(title, n, dose, row) for (title, n, dose), row in zip(kinds, records(at)) if title in _TITLES]
    if not own:
        return _NONE
    title, length, most, last = min(own, key=lambda one: (one[1], -one[2]))
    series, dose = names.series(title, length), names.dose_name(length)
    split = f"{dose} = 1 to {most}"
    change = first_row(table, metric=names.CHANGE, condition=ESTIMATE, item=series, split=split)
    rise, ceiling = (first_row(table, metric=names.RISE, condition=c, item=series) for c in (ESTIMATE, names.MIXTURE))
    found = _Found(
        f"{most} {'examples' if length else 'symbols'}", "examples" if length else "symbols", last, change, rise, ceiling
    )
    if not select(table, metric=names.TOKEN_KL, item=names.MODEL).empty:
        beyond = select(table, metric=names.KL, condition=over(names.COUNTS), item=names.item(title, length, most))
        return _of_model(found, first_row(beyond))
    token, untrained = (
        first_row(table, metric=names.TOKEN_KL, condition=c, item=names.NETWORKS) for c in (ESTIMATE, names.UNTRAINED)
    )
    return _NONE if token is None else _of_networks(found, token, untrained)


_NONE = Verdict("Cannot tell", "No network was compared with the exact predictor.")
_Row = dict[Any, Any] | None


@dataclass(frozen=True)
class _Found:
    """most, noun: how far texts went. last: KL to Bayes there. change: of it from the first on. rise, ceiling: of accuracy."""

    most: str
    noun: str
    last: dict[Any, Any]
    change: _Row
    rise: _Row
    ceiling: _Row


def _of_networks(found: _Found, token: dict[Any, Any], untrained: _Row) -> Verdict:
    limits, rise, noun = thresholds("bayes"), found.rise, found.noun
    if untrained is not None and not token["hi"] < limits["learned"] * untrained["lo"]:
        return Verdict("Cannot tell", "The networks have hardly learned to predict documents; train them longer.")
    said = f"Networks are {token['value']:.2f} nats per token from exact Bayes; after {found.most} {found.last['value']:.2f},"
    document, prompt = side(token, limits["near"]), side(found.last, limits["near"])
    if document == "above":
        return Verdict("No", f"{said} too far to be called Bayesian.")
    if side(found.ceiling) != "above":
        return Verdict("Cannot tell", f"In this world even the exact predictor does not learn from {noun}.")
    if side(rise) == "below" or (side(rise) == "unclear" and side(rise, limits["learns"]) == "below"):
        return Verdict("No", f"{said} and {noun} do not help them, while they help the exact predictor.")
    if document == "unclear" or side(rise) == "unclear":
        return Verdict("Cannot tell", f"{said} but the intervals do not show whether they learn from {noun}.")
    shrinks = {"below": "shrinking", "above": "growing", "unclear": "with no clear trend"}[side(found.change)]
    if side(found.change) == "below" and prompt == "below":
        return Verdict("Yes", f"{said} shrinking with their number, and accuracy rises with {noun} as Bayes' does.")
    return Verdict("Partly", f"{said} {shrinks} from the first on, while accuracy rises with {noun}.")


def _of_model(found: _Found, beyond: _Row) -> Verdict:
    """A model that never saw the world: beyond is its distance from Bayes minus that of counts of symbol pairs."""
    limits, noun = thresholds("bayes"), found.noun
    if side(found.ceiling) != "above":
        return Verdict("Cannot tell", f"In this world even the exact predictor does not learn from {noun}.")
    said = f"After {found.most} the model is {found.last['value']:.2f} nats from exact Bayes"
    if side(found.change) == "above":
        return Verdict("No", f"{said}, and farther than after the first.")
    if side(found.change) == "unclear" or side(beyond) == "unclear":
        return Verdict("Cannot tell", f"{said}, but the intervals do not show whether it learns from {noun}.")
    if side(beyond) == "above":
        return Verdict("No", f"{said}, farther than counts of symbol pairs in the same text.")
    if side(found.last, limits["near"]) == "below":
        return Verdict("Yes", f"{said}, nearer than counts of symbol pairs, and the distance shrinks with {noun}.")
    return Verdict("Partly", f"{said}: the distance shrinks with {noun} and is below that of symbol pair counts, but remains.")
