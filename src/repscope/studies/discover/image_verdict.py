"""The verdict of `discover` on an image generator: does what was found on language models hold where the objectives come from?

On language models, 1. a contrastive objective alone finds nothing that random directions do not, and 2. beside a magnitude it makes
directions that overlap less than L2's. Here "finds" is by the selectivity of directions for known factors, compared with random
directions of equal norm, paired by seed.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from repscope.conditions import RANDOM, over
from repscope.discovery.generators.judges import KNOWN
from repscope.report.verdict import Verdict, joined, side, thresholds
from repscope.results import select
from repscope.studies.discover import image_names as names

_SELECTIVITY = "selectivity"


def of_images(table: pd.DataFrame) -> bool:
    """Whether the rows are of an image generator."""
    return bool((table["metric"] == _SELECTIVITY).any())


def image_verdict(table: pd.DataFrame) -> Verdict:
    """One verdict per finding on language models, and whether both hold."""
    readable = _readable(table)
    if readable is not None:
        return readable
    parts = {"A contrastive objective alone finds nothing": _alone(table), "Beside a magnitude it separates": _beside(table)}
    alone, beside = parts.values()
    reply = joined([alone, beside])
    if reply == "Cannot tell" and alone.reply != beside.reply:
        return Verdict(reply, "The intervals over seeds leave open whether the findings on language models hold here.", parts)
    first = {
        "Yes": "a contrastive objective alone finds no more than random directions",
        "No": "a contrastive objective alone finds more than random directions",
        "Cannot tell": "whether a contrastive objective alone finds anything is open",
    }[alone.reply]
    second = {
        "Yes": "beside a magnitude it separates directions",
        "No": "beside a magnitude it does not separate directions",
        "Cannot tell": "whether it separates directions beside a magnitude is open",
    }[beside.reply]
    said = "As on language models" if reply == "Yes" else "Unlike on language models" if reply == "No" else "On this generator"
    return Verdict(reply, f"{said}, {first}; {second}.", parts)


def _readable(table: pd.DataFrame) -> Verdict | None:
    """Cannot tell, where images are not sprites whose factors can be read, or no digits."""
    limits = thresholds("discover")
    for known in KNOWN.values():
        own = select(table, metric=known.readable, item="generator").to_dict("records")
        if own and side(own[0], limits[known.data]) != "above":
            read = "classes" if known.exclusive else "factors"
            return Verdict(
                "Cannot tell", f"The generator's images are not close enough to {known.data} to read their {read}; train it longer."
            )
    return None


def _alone(table: pd.DataFrame) -> Verdict:
    """Selectivity of contrastive objectives, ours or published, over random directions."""
    limit = thresholds("discover")["selective"]
    found = [
        row
        for name in (names.CONTRASTIVE, *names.PUBLISHED.values())
        if (row := _gain(table, name, _SELECTIVITY, RANDOM)) is not None
    ]
    if not found:
        return Verdict("Cannot tell", "No contrastive objective was compared with random directions.")
    if any(side(row) == "above" and side(row, limit) == "above" for row in found):
        return Verdict("No", "Its directions are more selective for one factor than random directions of equal norm.")
    searched = _gain(table, names.BASELINE, "factor change", RANDOM)
    if searched is None:
        return Verdict(
            "Cannot tell", "Without L2 and random directions nothing shows that the search is long enough to find anything."
        )
    if side(searched) != "above":
        return Verdict("Cannot tell", "The search is too short: not even L2's directions change factors more than random ones.")
    if all(side(row, limit) == "below" for row in found):
        return Verdict("Yes", "Its directions are hardly more selective for one factor than random directions of equal norm.")
    return Verdict("Cannot tell", "The intervals over seeds do not show whether its directions are more selective.")


def _beside(table: pd.DataFrame) -> Verdict:
    row = _gain(table, names.BOTH, "overlap", names.BASELINE)
    if row is None:
        return Verdict("Cannot tell", "L2 or its sum with a contrastive objective was not run.")
    where = side(row)
    if where == "unclear":
        return Verdict("Cannot tell", "The interval of the change in overlap contains zero, or there is none.")
    if where == "below":
        return Verdict("Yes", "Changes of images overlap less than those of L2 alone.")
    return Verdict("No", "Changes of images overlap more than those of L2 alone.")


def _gain(table: pd.DataFrame, method: str, metric: str, base: str) -> Mapping[Any, Any] | None:
    rows = select(table, metric=names.GAIN, definition=metric, item=names.gained(method, metric), condition=over(base)).to_dict(
        "records"
    )
    return rows[0] if rows else None
