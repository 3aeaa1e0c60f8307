"""The verdict of `relations`: does one linear map give the object of most subjects, more often than its controls?"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from repscope.conditions import RANDOM, RAW_ATTRIBUTE, over
from repscope.report.verdict import Verdict, count, joined, side, thresholds
from repscope.results import CHOSEN, ESTIMATE, select
from repscope.studies.relations.names import ALL_RELATIONS

_CONTROLS = (over("map on another subject's vector"), over("majority object"))  #: what remains without the subject
_BASELINES = {
    over("map from the embedding"): "a map from the embedding",
    over("ridge map, whole half"): "ridge regression on the whole half",
    over("ridge map, the same examples"): "ridge regression on the same examples",
    over("translation"): "a translation",
    over("logit lens"): "the logit lens",
}  #: other ways to the object from the same subject, as figure 1 shows them


def verdict(table: pd.DataFrame) -> Verdict:
    """One verdict per relation with a map, and one over all."""
    chosen = select(table, metric="faithfulness", site=CHOSEN, split="halves", condition=ESTIMATE)
    parts = {str(r["item"]): _relation(table, r) for r in chosen.to_dict("records")}
    edited = remedi(table)
    more = {"Editing facts by REMEDI": edited} if edited is not None else {}
    if not parts:
        return Verdict("Cannot tell", "The model knows too few facts of any relation to estimate and test a map.")
    if len(parts) == 1:
        only = next(iter(parts.values()))
        return Verdict(only.reply, only.why, more) if more else only
    each = list(parts.values())
    why = {
        "Yes": "For every relation, one linear map gives the object of most subjects, more often than every control and baseline.",
        "No": "For no relation is a linear map right more often than its controls.",
        "Cannot tell": "For no relation do the intervals separate the linear map from its controls.",
        "Partly": f"For {count(each)} relations, one linear map gives the object of most subjects, more often than all controls; "
        "for others, one of the two fails or is open.",
    }[joined(each)]
    return Verdict(joined(each), why, parts | more)


def remedi(table: pd.DataFrame) -> Verdict | None:
    """Whether a sentence about a subject becomes an edit of it; None where no editor was trained."""
    rows = table[table["metric"].str.startswith("REMEDI ")]
    items = set(rows[rows["metric"] == "REMEDI efficacy"]["item"])
    if not items:
        return None
    limits = thresholds("relations")
    here = rows[rows["item"] == (ALL_RELATIONS if ALL_RELATIONS in items else min(items))]
    at = {(r["metric"], r["condition"], r["definition"]): r for r in here.to_dict("records")}
    gains = [side(at.get(("REMEDI gain", over(c), "REMEDI efficacy"))) for c in (RANDOM, RAW_ATTRIBUTE)]
    if "below" in gains:
        return Verdict("No", "The editor edits fewer facts than the attribute's raw vector or a random editor of equal norm.")
    efficacy = side(at.get(("REMEDI efficacy", ESTIMATE, "")), limits["edited"])
    if "unclear" in gains:
        if efficacy == "below":
            return Verdict("No", "The editor edits fewer than half of the facts, and shows no gain over its controls.")
        return Verdict("Cannot tell", "The gain over the attribute's raw vector or a random editor of equal norm may be zero.")
    if efficacy != "above":
        why = "edits fewer than half of the facts" if efficacy == "below" else "may edit fewer than half of the facts"
        return Verdict("Partly", f"The editor does more than its controls, but {why}.")
    spread = side(at.get(("REMEDI generalisation", ESTIMATE, "")), limits["edited"])
    alone = [side(r, limits["unchanged"]) for (metric, c, _), r in at.items() if metric == "REMEDI specificity" and c == ESTIMATE]
    if spread == "above" and alone and set(alone) == {"above"}:
        return Verdict(
            "Yes", "A sentence becomes an edit: it holds in paraphrases, leaves other facts alone, and beats its controls."
        )
    missing = [
        *(["it is not shown to hold in paraphrases"] if spread != "above" else []),
        *(["other facts may change too"] if not alone or set(alone) != {"above"} else []),
    ]
    return Verdict("Partly", f"Most facts are edited, more than by controls, but {' and '.join(missing)}.")


def _relation(table: pd.DataFrame, chosen: Mapping[Any, Any]) -> Verdict:
    limits = thresholds("relations")
    gains = select(table, metric="gain", definition="faithfulness", item=str(chosen["item"])).to_dict("records")
    sides = [side(r, limits["above_control"]) for r in gains if r["condition"] in _CONTROLS]
    if not sides or "below" in sides:
        return Verdict("No", "The map is right no more often than a map on another subject's vector or the most common object.")
    if "unclear" in sides:
        return Verdict("Cannot tell", "The gain over another subject's vector or the most common object may be zero.")
    most, rival = side(chosen, limits["faithful"]), _rival(gains)
    if most == "above" and not rival:
        return Verdict("Yes", "One linear map gives the object of most known subjects, more often than every control and baseline.")
    if most == "above":
        return Verdict("Partly", f"One linear map gives the object of most known subjects, but {rival}.")
    if rival and most == "below":
        return Verdict("Partly", f"A linear map is right for fewer than half of the subjects, and {rival}.")
    if rival:
        return Verdict("Partly", f"A linear map may be right for fewer than half of the subjects, and {rival}.")
    why = ", but for fewer than half of the subjects" if most == "below" else "; whether for most subjects is open"
    return Verdict("Partly", f"A linear map is right more often than its controls{why}.")


def _rival(gains: Sequence[Mapping[Any, Any]]) -> str:
    """How the map stands to the best of the baselines over which its gain is not shown, and how many more there are."""
    unbeaten = [r for r in gains if r["condition"] in _BASELINES and side(r, thresholds("relations")["above_control"]) != "above"]
    if not unbeaten:
        return ""
    best = min(unbeaten, key=lambda r: float(r["value"]))
    than = (
        "less often than" if side(best) == "below" else "no more often than" if best["value"] <= 0 else "perhaps no more often than"
    )
    others = len(unbeaten) - 1
    more = f" and {others} other{'s' * (others > 1)}" if others else ""
    return f"{than} {_BASELINES[best['condition']]}{more}"
