"""Published accuracies of models on BLiMP's paradigms: do models find the same paradigms hard?

1. Spearman's rho of the accuracies of every pair of models over paradigms, with its interval over paradigms.
2. The same within wider phenomena (each one's mean subtracted), and p by permuting paradigms.
Read from `data.model_summary`; nothing is trained.
"""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from repscope.conditions import ESTIMATE, WITHIN_TERMS
from repscope.data.model_summary import model_summary
from repscope.results import Result, Row
from repscope.stats.permutation import spearman
from repscope.studies.paths import order_names as names


def blimp_order(file: Path, seed: int = 0) -> Result:
    """Order correlations of all pairs of models of a summary."""
    held = model_summary(file)
    centred = held.accuracies.copy()
    for term in set(held.terms):
        of = [t == term for t in held.terms]
        centred[:, of] -= centred[:, of].mean(1, keepdims=True)
    rows = []
    for a, b in combinations(range(len(held.models)), 2):
        for condition, values in ((ESTIMATE, held.accuracies), (WITHIN_TERMS, centred.round(12))):
            found = spearman(values[a], values[b], seed=seed)
            item = f"{held.models[a]} – {held.models[b]}"
            at: dict[str, Any] = {"item": item, "condition": condition, "split": names.BLIMP, "seed": seed}
            rho, said = replace(found.estimate, unit="paradigm"), "two-sided, paradigms permuted"
            rows.append(Row.of(rho, metric=names.ORDER, definition="published accuracies", **at))
            rows.append(Row(value=found.p, n=found.n, unit="paradigm", metric="order p", definition=said, **at))
    note = f"{held.name}: {len(held.models)} models, {len(held.paradigms)} paradigms of {len(set(held.terms))} wider phenomena."
    return Result.of(rows, notes=(note,))
