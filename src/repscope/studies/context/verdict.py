"""The verdict of `context`: do examples in the prompt move a network where fine-tuning on them does, and what does one vector give?

Of shifts: the match after centring over tasks, each task at the block that the other tasks choose, its permutation p, and
the paired gain over examples with permuted outputs, which have the format, the inputs and the kind of output. Of
vectors: the share of the few-shot gain in accuracy, over tasks, and the paired gain over random heads of equal number and norm.
"""

import pandas as pd

from repscope.conditions import ESTIMATE, RANDOM_HEADS, SHUFFLED_SHOTS, TASK_VECTOR, over
from repscope.report.verdict import Reply, Verdict, joined, side, thresholds
from repscope.results import first_row
from repscope.studies.context import names

FUNCTION, TASK = "Function vector", "Task vector"
_KINDS = {FUNCTION: (ESTIMATE, ""), TASK: (TASK_VECTOR, names.SIDE)}
_MOVES: dict[Reply, str] = {
    "Yes": "Examples in the prompt move the network where fine-tuning on them does",
    "Partly": "Examples in the prompt move the network partly where fine-tuning on them does",
    "No": "Examples in the prompt move the network elsewhere than fine-tuning on them does",
    "Cannot tell": "Whether examples in the prompt move the network where fine-tuning does is open",
}


def verdict(table: pd.DataFrame) -> Verdict:
    """The reply is that on the comparison; the parts are each way of fine-tuning, and each kind of vector."""
    moves = {way[0].upper() + way[1:]: found for way in names.WAYS if (found := _moves(table, way)) is not None}
    vectors = {kind: _vector(table, *which) for kind, which in _KINDS.items()}
    reply = joined(moves.values()) if moves else "Cannot tell"
    said = _MOVES[reply]
    shares = {kind: first_row(table, metric=names.SHARE, item=names.ALL, condition=which[0]) for kind, which in _KINDS.items()}
    known = {kind: row["value"] for kind, row in shares.items() if row is not None}
    if not known:
        return Verdict(reply, f"{said}.", moves | vectors)
    best = max(known, key=lambda kind: known[kind])
    return Verdict(
        reply, f"{said}; one {best.lower()} gives {100 * known[best]:.0f} % of what they add to accuracy.", moves | vectors
    )


def _moves(table: pd.DataFrame, way: str) -> Verdict | None:
    """Whether the shifts of a way of fine-tuning match those of examples in the prompt, task by task; None without them."""
    limits = thresholds("context")
    at = {"site": names.CHOSEN, "item": way, "condition": ESTIMATE}
    match, p = first_row(table, metric=names.MATCH, **at), first_row(table, metric=names.P, **at)
    if match is None or p is None:
        return None
    where = f"at a block chosen on other tasks, mostly {int(match['layer'])}"
    if side(match, limits["apart"]) == "below":
        return Verdict("No", f"Centred over tasks, shifts of examples and of {way} do not match {where}.")
    if p["value"] > limits["chance"] or side(match) != "above":
        return Verdict("Cannot tell", f"Shifts of examples and of {way} match no better than permuted tasks may, {where}.")
    beyond = side(first_row(table, metric=names.GAIN, site=names.CHOSEN, item=way, condition=over(SHUFFLED_SHOTS)))
    if beyond != "above":
        return Verdict(
            "Partly", f"Shifts of examples and of {way} match, but those of examples with permuted outputs may match as well."
        )
    if side(match, limits["alike"]) == "above":
        return Verdict("Yes", f"Centred over tasks, shifts of examples and of {way} match {where}.")
    return Verdict("Partly", f"Shifts of examples and of {way} match better than those of permuted tasks, but weakly, {where}.")


def _vector(table: pd.DataFrame, condition: str, named: str) -> Verdict:
    """Whether one vector gives most of the accuracy that examples add."""
    limits = thresholds("context")
    share = first_row(table, metric=names.SHARE, item=names.ALL, condition=condition)
    item = names.sided(names.ALL, named)
    beyond = first_row(table, metric=names.GAIN, definition=names.ACCURACY, item=item, condition=over(RANDOM_HEADS))
    if share is None:
        return Verdict("Cannot tell", "Examples raise accuracy in fewer than two tasks.")
    if side(share, limits["little"]) == "below":
        return Verdict("No", f"It gives {100 * share['value']:.0f} % of what examples add to accuracy.")
    if side(beyond) != "above":
        return Verdict("Cannot tell", "Whether it gives more accuracy than vectors of random heads is open.")
    if side(share, limits["most"]) == "above":
        return Verdict("Yes", f"It gives {100 * share['value']:.0f} % of what examples add to accuracy, more than random heads.")
    return Verdict("Partly", f"It gives {100 * share['value']:.0f} % of what examples add to accuracy, more than random heads.")
