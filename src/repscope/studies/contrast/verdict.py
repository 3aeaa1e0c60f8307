"""The verdict of `contrast`: does the direction steer more than random directions of equal norm, while the text stays fluent?"""

import pandas as pd

from repscope.conditions import PROMPTING, RANDOM, over
from repscope.report.verdict import Verdict, side
from repscope.results import CHOSEN, records


def verdict(table: pd.DataFrame) -> Verdict:
    """From the second half of the choices, at the strength chosen on the first."""
    gains = {r["condition"]: r for r in records(table, metric="gain", site=CHOSEN, split="halves")}
    if over(RANDOM) not in gains:
        return Verdict("No", "At no strength does the direction steer more than random directions while the text stays fluent.")
    found = side(gains[over(RANDOM)])
    if found == "unclear":
        return Verdict("Cannot tell", "On the second half of the choices, the gain over random directions may be zero.")
    if found == "below":
        return Verdict("No", "On the second half of the choices, random directions of equal norm steer more.")
    compared = {"above": ", and more than prompting", "below": ", but less than prompting", "unclear": ""}
    prompting = compared[side(gains.get(over(PROMPTING)))]
    return Verdict(
        "Yes", f"The direction steers more than random directions of equal norm{prompting}, while the text stays fluent."
    )
