"""The verdict of `discover`: do the directions of each method change the next token more than random directions of equal norm?"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from repscope.discovery.comparison import RANDOM_METHOD
from repscope.report.verdict import Verdict, count, joined, side
from repscope.results import records
from repscope.studies.discover.image_verdict import image_verdict, of_images


def verdict(table: pd.DataFrame) -> Verdict:
    """One verdict per method, and one over all, and what a contrastive term adds to L2; of an image generator, `image_verdict`."""
    if of_images(table):
        return image_verdict(table)
    rows = {str(r["item"]): r for r in records(table, metric="kl")}  # the means over seeds come after the seeds
    chance = rows.pop(RANDOM_METHOD, None)
    parts = {item: _method(row, chance) for item, row in rows.items()}
    if not parts or chance is None:
        return Verdict("Cannot tell", "No method was compared with random directions.")
    each = list(parts.values())
    reply = joined(each)
    why = {
        "Yes": "The directions of every method change the next token more than random directions of equal norm",
        "No": "No method's directions change the next token more than random directions of equal norm do",
        "Cannot tell": "For no method do the intervals over seeds separate it from random directions",
        "Partly": f"The directions of {count(each)} methods change the next token more than random directions of equal norm",
    }[reply]
    return Verdict(reply, f"{why}{_contrast(table)}.", parts)


def _method(row: Mapping[Any, Any], chance: Mapping[Any, Any] | None) -> Verdict:
    if chance is None or pd.isna(row["lo"]) or pd.isna(chance["lo"]):
        return Verdict("Cannot tell", "It has no interval over seeds.")
    if side(row, chance["hi"]) == "above":
        return Verdict("Yes", "Its directions change the next token more than random directions of equal norm.")
    if side(row, chance["lo"]) == "below":
        return Verdict("No", "Its directions change the next token less than random directions of equal norm.")
    return Verdict("Cannot tell", "Its interval overlaps that of random directions.")


def _contrast(table: pd.DataFrame) -> str:
    """What contrastive objectives change in the overlap of effects, compared with L2."""
    gains = {r["item"]: r for r in records(table, metric="gain", definition="overlap")}
    for name in ("L2 + contrastive", "contrastive, skip removed"):
        if (row := gains.get(f"{name}: overlap")) is not None and side(row) != "unclear":
            return f"; a contrastive term makes effects overlap {'less' if side(row) == 'below' else 'more'}"
    return ""
