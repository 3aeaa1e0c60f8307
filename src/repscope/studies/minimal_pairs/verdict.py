"""The verdict of `minimal-pairs`: does the model prefer acceptable sentences, and more than a preference for short ones would?

By the summed log-probability, over phenomena (over pairs where there is one phenomenon), of the last checkpoint of a series.
"""

import pandas as pd

from repscope.conditions import ESTIMATE, FEWER_TOKENS, over
from repscope.read.pair_scores import ACCURACY, ALL, SUM
from repscope.report.verdict import Verdict, side, thresholds
from repscope.results import records, select


def verdict(table: pd.DataFrame) -> Verdict:
    """From all rows of a run."""
    limits = thresholds("minimal-pairs")
    held = last_checkpoint(table)
    accuracy = select(held, metric=ACCURACY, definition=SUM, condition=ESTIMATE)
    rows = accuracy[accuracy["item"] == ALL] if (accuracy["item"] == ALL).any() else accuracy
    gains = records(held, metric="gain", definition=f"accuracy, {SUM}", condition=over(FEWER_TOKENS))
    if len(rows) != 1:
        return Verdict("Cannot tell", "The pairs have no accuracy by summed log-probability.")
    chance = side(records(rows)[0], limits["chance"])
    shorter = side(gains[0] if gains else None, limits["beyond_length"])
    if chance == "above" and shorter == "above":
        return Verdict(
            "Yes", "The model gives acceptable sentences the higher probability, more often than chance and than length explain."
        )
    if chance == "above":
        return Verdict("Partly", "Acceptable sentences have the higher probability above chance, but length alone may explain it.")
    if chance == "below":
        return Verdict("No", "The model gives unacceptable sentences the higher probability more often than acceptable ones.")
    return Verdict("Cannot tell", "The model's preference for acceptable sentences cannot be told from chance.")


def last_checkpoint(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last step of the first run; all rows where there is no series."""
    steps = pd.to_numeric(table["token"], errors="coerce")
    if steps.isna().all():
        return table
    held = table[table["split"] == table["split"].iloc[0]]
    steps = pd.to_numeric(held["token"], errors="coerce")
    last: pd.DataFrame = held[steps == steps.max()]
    return last
