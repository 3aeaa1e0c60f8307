"""The verdict of `compare`: whether weights, representations and next tokens changed, each by a rule of its own.

Weights: by the relative Frobenius norm over all of them, which is exact: every entry was read, so that its spread over tensors is
no uncertainty. Equal bits of every entry are identical weights, and identical checkpoints if nothing else differs either (another
configuration makes another function of the same weights). Representations: by the site with the lowest CKA. Next tokens: by the
share of the tuned network's answer that is the base's first choice too.

The floor: a "Yes" on representations (1 − CKA at that site) or next tokens (KL) becomes "Partly" where the change is at most
`beyond_seed` times that between two seeds, and "Cannot tell" where it is larger and the intervals overlap. It has no say on
weights: two changes that have nothing in common are √2 times as far from each other as either is from the base, so that almost
every tuning would be within the floor. Their cosine is given instead: 0 for unrelated changes, 1 for equal ones.
"""

import math
from typing import Any, Literal

import pandas as pd

from repscope.conditions import ANOTHER_SEED, ESTIMATE, ROUNDING
from repscope.report.verdict import Verdict, joined, side, thresholds
from repscope.results import records, select
from repscope.studies.compare.names import ALL, NORM, SETTINGS, SHARED, UNCHANGED32

Floor = Literal["none", "within", "open", "beyond"]

_EQUAL = 1e-5  #: of float32 numbers that are equal up to rounding: products depend on where in memory their arrays lie
WEIGHTS, REPRESENTATIONS, TOKENS = "weights", "representations", "next tokens"
_CLAUSES = {
    (WEIGHTS, "Yes"): "the weights change",
    (WEIGHTS, "No"): "the weights barely change",
    (WEIGHTS, "Cannot tell"): "whether the weights change much is open",
    (REPRESENTATIONS, "Yes"): "representations change",
    (REPRESENTATIONS, "No"): "representations stay alike",
    (REPRESENTATIONS, "Cannot tell"): "whether representations change is open",
    (TOKENS, "Yes"): "next tokens change",
    (TOKENS, "No"): "next tokens stay the same",
    (TOKENS, "Cannot tell"): "whether next tokens change is open",
}


def verdict(table: pd.DataFrame) -> Verdict:
    """From all rows of a run."""
    identical = _value(table, UNCHANGED32) == 1.0
    keys = select(table, metric=SETTINGS, condition=ESTIMATE, item=ALL)["definition"].tolist()
    cka = records(table, metric="CKA", condition=ESTIMATE)
    unshifted = records(table, metric="unshifted", condition=ESTIMATE, item="")
    if identical and not keys and not _function_differs(table):
        of = "checkpoints" if cka or unshifted else "weights"
        return Verdict("No", f"The {of} are identical: every weight has the same bits.")
    found: dict[str, tuple[Verdict, Floor]] = {WEIGHTS: (_weights(table, identical), "none")}
    if cka:
        lowest = min(cka, key=lambda row: float(row["value"]))
        found[REPRESENTATIONS] = _representations(lowest), _floor(table, lowest, similarity=True)
    if unshifted:
        kl = records(table, metric="KL", condition=ESTIMATE, item="")
        row, similarity = (kl[0], False) if kl else (unshifted[0], True)
        found[TOKENS] = _tokens(unshifted[0]), _floor(table, row, similarity=similarity)
    parts = {name: _above_floor(part, floor) for name, (part, floor) in found.items()}
    if len(parts) == 1:
        only = parts[WEIGHTS]
        if keys:
            differ = f"only weights were compared, and settings differ ({_listed(keys[0])})"
            return Verdict(only.reply, f"{only.why.rstrip('.')}; {differ}.")
        return only
    clauses = [_CLAUSES[name, part.reply] for name, (part, _) in found.items()]
    if identical:
        clauses[0] = "the weights are identical"
    why = f"{', '.join(clauses[:-1])} and {clauses[-1]}{_floor_clause(found)}."
    return Verdict(joined(parts.values()), why[:1].upper() + why[1:], parts)


def _function_differs(table: pd.DataFrame) -> bool:
    """Whether anything that the networks compute differs."""
    changed = [select(table, metric=metric, condition=ESTIMATE)["value"] for metric in ("relative change", "KL")]
    alike = [select(table, metric=metric, condition=ESTIMATE)["value"] for metric in ("CKA", "unshifted")]
    return any((values > _EQUAL).any() for values in changed) or any((values < 1 - _EQUAL).any() for values in alike)


def _listed(keys: str) -> str:
    first, *more = keys.split(", ")
    return f"{first} and {len(more)} more" if more else first


# --------------------------------------------------------------------------------------------------------------- the floor


def _floor(table: pd.DataFrame, row: dict[Any, Any], *, similarity: bool) -> Floor:
    """Where a change lies compared with the same number between two seeds; of similarities, the distance from 1 counts."""
    where = {key: row[key] for key in ("metric", "site", "item")}
    rows = records(table, condition=ANOTHER_SEED, **where)
    if not rows:
        return "none"
    factor = thresholds("compare")["beyond_seed"]
    (low, value, _), (_, seeds, high) = (
        (1 - r["hi"], 1 - r["value"], 1 - r["lo"]) if similarity else (r["lo"], r["value"], r["hi"]) for r in (row, rows[0])
    )
    if value <= factor * seeds:
        return "within"
    return "beyond" if low > factor * high else "open"


def _above_floor(part: Verdict, floor: Floor) -> Verdict:
    if part.reply != "Yes" or floor not in ("within", "open"):
        return part
    if floor == "within":
        return Verdict("Partly", f"{part.why.rstrip('.')}, but no more than between two seeds.")
    return Verdict("Cannot tell", f"{part.why.rstrip('.')}; whether more than between two seeds is open.")


def _floor_clause(found: dict[str, tuple[Verdict, Floor]]) -> str:
    yes = [name for name, (part, _) in found.items() if part.reply == "Yes"]
    within, unclear = ([name for name in yes if found[name][1] == where] for where in ("within", "open"))
    if within:
        which = "" if within == yes else f"{' and '.join(within)} "
        return f", but {which}no more than between two seeds" + (f" ({' and '.join(unclear)}: open)" if unclear else "")
    return f"; whether {' and '.join(unclear)} differ more than between two seeds is open" if unclear else ""


# --------------------------------------------------------------------------------------------------------------- the parts


def _weights(table: pd.DataFrame, identical: bool) -> Verdict:
    if identical:
        return Verdict("No", "The weights are identical: every weight has the same bits.")
    value, barely = _value(table, NORM), thresholds("compare")["barely"]
    if value is None:
        return Verdict("Cannot tell", "The weights were not compared.")
    if math.isnan(value):
        return Verdict("Cannot tell", "The base's weights are zero, so their change has no relative norm.")
    if value > barely:
        return Verdict("Yes", f"The weights change by more than {barely * 100:g} % of their norm{_shared(table)}.")
    rounding = _value(table, NORM, ROUNDING)
    if rounding is not None and value < rounding:
        return Verdict("No", "The weights barely change: by less than rounding them to bfloat16 would.")
    return Verdict("No", f"The weights barely change: by less than {barely * 100:g} % of their norm.")


def _shared(table: pd.DataFrame) -> str:
    """What the change has in common with that of another seed, where there is one."""
    cosine = _value(table, SHARED)
    return "" if cosine is None or math.isnan(cosine) else f"; the cosine with another seed's change is {cosine:.2f}"


def _representations(lowest: dict[Any, Any]) -> Verdict:
    alike = thresholds("compare")["alike"]
    where = side(lowest, alike)
    site = str(lowest["site"])
    if where == "below":
        return Verdict("Yes", f"At {site} the CKA of base and tuned network is below {alike:.2f}.")
    if where == "above":
        return Verdict("No", f"At every site the CKA of base and tuned network is above {alike:.2f}.")
    return Verdict("Cannot tell", f"At {site} the interval of the CKA contains {alike:.2f}.")


def _tokens(row: dict[Any, Any]) -> Verdict:
    same = thresholds("compare")["same_tokens"]
    where = side(row, same)
    if where == "below":
        return Verdict("Yes", f"The base would choose fewer than {same * 100:g} % of the tuned network's tokens.")
    if where == "above":
        return Verdict("No", f"The base would choose more than {same * 100:g} % of the tuned network's tokens.")
    return Verdict("Cannot tell", f"Whether the base would choose {same * 100:g} % of the tuned network's tokens is open.")


def _value(table: pd.DataFrame, metric: str, condition: str = ESTIMATE) -> float | None:
    rows = select(table, metric=metric, condition=condition, item=ALL)
    return float(rows["value"].iloc[0]) if len(rows) else None
