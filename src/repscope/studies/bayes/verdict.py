"""The verdict of `bayes`: how many nats are the networks from exact Bayes, and does the distance shrink with examples?"""

from typing import Any

import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.report.verdict import Verdict, side, thresholds
from repscope.results import select
from repscope.studies.bayes import names


def verdict(table: pd.DataFrame) -> Verdict:
    """Of the transformers on the world with the uniform delimiter, at the shortest examples."""
    limits = thresholds("bayes")
    token = _first(select(table, metric=names.TOKEN_KL, condition=ESTIMATE, item="transformers"))
    at = select(table, metric=names.KL, condition=ESTIMATE)
    kinds = [names.parts(item) for item in at["item"]]
    own = [(length, k, row) for (title, length, k), row in zip(kinds, at.to_dict("records")) if title == names.UNIFORM]
    if token is None or not own:
        return Verdict("Cannot tell", "No network was compared with the exact predictor.")
    length = min(one[0] for one in own)
    most, last = max(((k, row) for n, k, row in own if n == length), key=lambda pair: pair[0])
    series = names.series(names.UNIFORM, length)
    change = _first(select(table, metric=names.CHANGE, condition=ESTIMATE, item=series, split=f"k = 1 to {most}"))
    rise, ceiling = (_first(select(table, metric=names.RISE, condition=c, item=series)) for c in (ESTIMATE, names.MIXTURE))
    untrained = _first(select(table, metric=names.TOKEN_KL, condition=names.UNTRAINED, item="transformers"))
    if untrained is not None and not token["hi"] < limits["learned"] * untrained["lo"]:
        return Verdict("Cannot tell", "The networks have hardly learned to predict documents; train them longer.")
    said = f"Networks are {token['value']:.2f} nats per token from exact Bayes; after {most} examples {last['value']:.2f},"
    document, prompt = side(token, limits["near"]), side(last, limits["near"])
    if document == "above":
        return Verdict("No", f"{said} too far to be called Bayesian.")
    if side(ceiling) != "above":
        return Verdict("Cannot tell", "In this world even the exact predictor does not learn from examples.")
    if side(rise) == "below" or (side(rise) == "unclear" and side(rise, limits["learns"]) == "below"):
        return Verdict("No", f"{said} and examples do not help them, while they help the exact predictor.")
    if document == "unclear" or side(rise) == "unclear":
        return Verdict("Cannot tell", f"{said} but the intervals do not show whether they learn from examples.")
    shrinks = {"below": "shrinking", "above": "growing", "unclear": "with no clear trend"}[side(change)]
    if side(change) == "below" and prompt == "below":
        return Verdict("Yes", f"{said} shrinking with their number, and accuracy rises with examples as Bayes' does.")
    return Verdict("Partly", f"{said} {shrinks} from the first on, while accuracy rises with examples.")


def _first(rows: pd.DataFrame) -> dict[Any, Any] | None:
    found = rows.to_dict("records")
    return found[0] if found else None
