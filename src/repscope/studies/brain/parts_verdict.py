"""Verdicts of `brain` on digital twins, wiring and function, self and other; each is one sentence, by rule on its rows.

Simulated data say whether a method would find what was planted, and nothing else. The user's data have verdicts of their own.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from repscope.align.self_other.cross_decoding import DIRECTIONS, DISJOINT, MATCHED, REMOVED, WITHIN
from repscope.align.structure_function import rows as wiring
from repscope.bench import sharing
from repscope.bench import wiring as bench
from repscope.conditions import ESTIMATE, over
from repscope.report.verdict import Verdict, side, thresholds
from repscope.results import first_row, records, select
from repscope.studies.brain import parts

Found = dict[Any, Any] | None


def verdicts(table: pd.DataFrame) -> dict[str, Verdict]:
    """The verdict of each part whose rows are there, by its name on the page."""
    rules: Mapping[str, Callable[[pd.DataFrame], Verdict | None]] = {
        parts.TWIN: _twin,
        parts.WIRING: _wiring,
        parts.SIMILARITY_OF: _like_to_like,
        parts.SIGNALS_OF: _signals,
        parts.SELF_OTHER: _self_other,
        parts.TRIALS: _trials,
    }
    return {parts.VERDICTS[name]: found for name, rule in rules.items() if (found := rule(table)) is not None}


def _twin(table: pd.DataFrame) -> Verdict | None:
    """Does a twin recover what simulated neurons encode, beyond a model per neuron?"""
    limits = thresholds("brain")
    rows = select(table, step=parts.FITTED)
    score, near = (first_row(rows, metric=m, condition=ESTIMATE) for m in ("CCnorm", "centres within one pixel"))
    gain = first_row(rows, metric="gain", definition="CCnorm", condition=over("LN model"))
    if score is None or near is None or gain is None:
        return None
    said = f"CCnorm is {score['value']:.2f}, and {100 * near['value']:.0f} % of receptive fields lie where they were planted"
    good = [side(score, limits["twin"]), side(near, limits["centres"])]
    if side(gain) == "below" or "below" in good:
        return Verdict("No", f"The twin does not recover the simulated neurons: {said}.")
    if side(gain) != "above":
        return Verdict("Cannot tell", "Whether the twin is ahead of one linear filter per neuron is open.")
    if good == ["above", "above"]:
        return Verdict("Yes", f"The twin is ahead of one filter per neuron; {said}.")
    return Verdict("Partly", f"The twin is ahead of one filter per neuron, but {said}.")


def _wiring(table: pd.DataFrame) -> Verdict | None:
    """Do tests that respect shared cells find like-to-like where it was planted, and only there?"""
    limits = thresholds("brain")
    rows = select(table, step=parts.LIKE_TO_LIKE, metric=bench.LIKE)
    planted, none = (first_row(rows, item=item, condition=ESTIMATE) for item in (bench.PLANTED, bench.ABSENT))
    wald = first_row(rows, item=bench.ABSENT, condition=wiring.NAIVE)
    if planted is None or none is None or wald is None:
        return None
    said = f"finds planted like-to-like in {100 * planted['value']:.0f} % of connectomes"
    false = f"{100 * none['value']:.0f} % without (Wald: {100 * wald['value']:.0f} %)"
    if side(none, limits["false"]) == "above":
        return Verdict("No", f"Permuting cells {said}, but also too often where there is none: in {false}.")
    if side(planted, limits["reliable"]) == "above":
        return Verdict("Yes", f"Permuting cells {said}, and in {false}.")
    if side(planted, limits["rarely"]) == "below":
        return Verdict("No", f"Permuting cells {said} only.")
    return Verdict("Cannot tell", f"Permuting cells {said}; more connectomes are needed to tell how reliably.")


def _like_to_like(table: pd.DataFrame) -> Verdict | None:
    """Do connected cells of the user's connectome respond alike, at equal opportunity?"""
    rows = select(table, step=parts.SIMILARITY_OF, metric=wiring.SLOPE)
    own, rewired = (first_row(rows, condition=c) for c in (ESTIMATE, wiring.REWIRED))
    p = _p(table, parts.SIMILARITY_OF, wiring.SLOPE)
    if own is None or p is None:
        return None
    beyond = rewired is None or not (rewired["lo"] <= own["value"] <= rewired["hi"])
    without = [first_row(rows, condition=c) for c in (wiring.NO_OFFSET, f"{wiring.PRE_ALONE}, no offset")]
    if side(own) == "above" and p <= 0.05 and beyond and None in without:
        return Verdict("Partly", "Cells that respond alike have more synapses; without an exposure, closeness may explain it.")
    if side(own) == "above" and p <= 0.05 and beyond:
        return Verdict(
            "Yes", "Cells that respond alike have more synapses, beyond the number of partners of each cell and their exposure."
        )
    if side(own) == "below" and p <= 0.05:
        return Verdict("No", "Cells that respond alike have fewer synapses than others at equal opportunity.")
    if own["hi"] < thresholds("brain")["steep"]:
        said = f"the interval over cells ends below a slope of {thresholds('brain')['steep']:g}"
        return Verdict("No", f"Similar cells do not have markedly more synapses at equal opportunity: {said}.")
    if side(own) != "above" and "above" in [side(row) for row in without]:
        return Verdict("Partly", "Cells that respond alike have more synapses only if exposure is left out.")
    return Verdict(
        "Cannot tell", "The interval over cells, or permuting them, leaves open whether similar cells have more synapses."
    )


def _signals(table: pd.DataFrame) -> Verdict | None:
    """Do synapses of the user's connectome predict signals, beyond exposure and partners?"""
    rows = select(table, step=parts.SIGNALS_OF, metric=wiring.DIFFERENCE)
    own, matched, rewired = (first_row(rows, condition=c) for c in (ESTIMATE, wiring.MATCHED, wiring.REWIRED))
    p = _p(table, parts.SIGNALS_OF, wiring.DIFFERENCE)
    if own is None or p is None:
        return None
    if side(own) == "above" and p <= 0.05:
        held = rewired is None or own["value"] > rewired["hi"]
        if matched is None:
            return Verdict(
                "Partly", "Pairs with a synapse have more signals; without pairs of equal exposure, closeness may explain it."
            )
        if held and side(matched) == "above":
            return Verdict("Yes", "Pairs with a synapse have more signals, also compared with matched pairs and rewired synapses.")
        return Verdict("Partly", "Pairs with a synapse have more signals; exposure and the number of partners may explain it.")
    if side(own) == "below":
        return Verdict("No", "Pairs with a synapse have fewer signals than other pairs.")
    return Verdict("Cannot tell", "The interval over cells, or permuting them, leaves open whether synapses go along with signals.")


def _self_other(table: pd.DataFrame) -> Verdict | None:
    """Does cross-decoding find a planted shared code, and none where there is none?"""
    limits = thresholds("brain")
    rows = select(table, step=parts.DECODED, metric=sharing.FOUND)
    shared, separate = (first_row(rows, item=kind, split=sharing.ALL_TRIALS) for kind in ("shared", "separate"))
    stimulus = first_row(rows, item="stimulus", split=sharing.ALSO_MATCHED)
    if shared is None or separate is None or stimulus is None:
        return None
    said = f"finds a planted shared code in {100 * shared['value']:.0f} % of networks"
    false = f"{100 * separate['value']:.0f} % without one"
    if side(separate, limits["false"]) == "above" or side(stimulus, limits["false"]) == "above":
        return Verdict("No", f"Cross-decoding {said}, but also too often where there is none ({false}).")
    if side(shared, limits["reliable"]) == "above":
        return Verdict("Yes", f"Cross-decoding {said}, and in {false}.")
    if side(shared, limits["rarely"]) == "below":
        return Verdict("No", f"Cross-decoding {said} only.")
    return Verdict("Cannot tell", f"Cross-decoding {said}; more draws are needed to tell how reliably.")


def _trials(table: pd.DataFrame) -> Verdict | None:
    """Does the user's network code what happens to another as what happens to itself?"""
    rows = select(table, step=parts.TRIALS, metric=sharing.AUC)
    ways = [f"{source} to {target}" for source, target in DIRECTIONS]
    across = [first_row(rows, condition=ESTIMATE, split=way) for way in ways]
    if None in across:
        return None
    p = [row["value"] for way in ways for row in records(table, step=parts.TRIALS, metric=parts.P_DECODED, split=way)]
    within = [side(first_row(rows, condition=WITHIN, split=agent), 0.5) for agent in ("self", "other")]
    if "above" not in within:
        return Verdict("Cannot tell", "Outcomes cannot be decoded even within one agent.")
    found = [side(row, 0.5) == "above" and value <= 0.05 for row, value in zip(across, p, strict=True)]
    controls = {name: [first_row(rows, condition=name, split=way) for way in ways] for name in (REMOVED, MATCHED, DISJOINT)}
    failed = [name for name, held in controls.items() if None not in held and any(side(row, 0.5) != "above" for row in held)]
    if all(found) and not failed:
        missing = [name for name in (MATCHED, DISJOINT) if None in controls[name]]
        if missing:
            return Verdict(
                "Partly", f"A decoder of own outcomes works on the other's, and back; there is no control with {missing[0]}."
            )
        return Verdict(
            "Yes", "A decoder of own outcomes works on the other's, and back, also with matched and with disjoint stimuli."
        )
    if all(found):
        return Verdict("Partly", f"A decoder of own outcomes works on the other's, and back, but not with {failed[0]}.")
    if any(found):
        return Verdict("Partly", "A decoder works from one agent to the other in one direction only.")
    if all(row is not None and row["hi"] < thresholds("brain")["shared"] for row in across):
        return Verdict("No", "Outcomes can be decoded within an agent, and hardly across agents.")
    return Verdict("Cannot tell", "Intervals do not show whether a decoder of own outcomes works on the other's.")


def _p(table: pd.DataFrame, step: str, definition: str) -> float | None:
    row = first_row(table, step=step, metric=wiring.P, definition=definition, condition=ESTIMATE)
    return None if row is None else float(row["value"])
