"""Do networks learn handwritten digits in one order? Networks of four kinds, and three controls, of which one is not valid.

1. Eight networks per kind classify the test images as they learn. Order correlation: Spearman's rho of accessibility between
   networks of a kind, the same within classes, and between the means of two kinds (interval over images).
2. Bimodality of TP-agreement, and its null: correctness permuted over images within each network.
3. Controls: labels drawn for each network; one orthogonal input per example. Not valid as a control, and shown for what it is:
   random labels that all networks share, which they learn in a common order too.
"""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from repscope.conditions import ORTHOGONAL, OWN_LABELS, PERMUTED_CORRECTNESS, SHARED_LABELS
from repscope.results import Result, Row
from repscope.stats.permutation import spearman
from repscope.studies.paths import order_names as names
from repscope.studies.paths.options import PathsOptions
from repscope.studies.run.study import Context, Setup
from repscope.trace import learning_order as order
from repscope.worlds import digits

_STEPS, _EVERY = 240, 6
_CONTROL_EXAMPLES = 300
_KIND = "MLP 64"  #: of the controls


def digits_order(setup: Setup[PathsOptions], context: Context) -> Result:
    """All networks and controls."""
    o = setup.options
    images, n, share = digits.digits(o.seed), o.networks, 10 if o.tiny else 1
    rows: list[Row] = []
    held = {}
    for kind in list(digits.KINDS)[: 2 if o.tiny else None]:
        found = digits.learn(kind, images, n, steps=_STEPS // share, every=_EVERY // min(share, 3), seed=o.seed)
        held[kind] = order.accessibility(found.correct)
        rows += _of_kind(kind, found, held[kind], o.seed)
    for a, b in combinations(held, 2):
        both = spearman(held[a].mean(0), held[b].mean(0), seed=o.seed)
        estimate = replace(both.estimate, unit="image")
        rows.append(Row.of(estimate, **_at(f"{a} – {b}", names.ARCHITECTURES, o.seed)))
    for condition, made, how in _controls(images, n, 10 if o.tiny else 2 if o.short else 1, o):
        found = digits.learn(_KIND, made, n, seed=o.seed, **how)
        values = order.accessibility(found.correct)
        at = {**_at(_KIND, names.WITHIN, o.seed), "condition": condition}
        rows.append(Row.of(order.order_correlation(values, seed=o.seed), **at))
        rows += _bimodality(_KIND, found.correct, o.seed, condition)
    arrays = {f"accessibility/{kind}": values for kind, values in held.items()}
    return Result.of(rows, arrays=arrays)


def _controls(images: digits.Images, n: int, share: int, o: PathsOptions) -> list[tuple[str, digits.Images, dict[str, Any]]]:
    some = _CONTROL_EXAMPLES // (3 if o.tiny else 1)
    noise = {"steps": 1500 // share, "every": 38 // min(share, 4), "rate": 0.1}
    return [
        (SHARED_LABELS, digits.shared_random_labels(images, some, o.seed), noise),
        (OWN_LABELS, digits.own_random_labels(images, some, n, o.seed), noise),
        (ORTHOGONAL, digits.orthogonal(some), {"steps": 800 // share, "every": 20 // min(share, 5), "rate": 0.2}),
    ]


def _of_kind(kind: str, found: digits.Learned, values: np.ndarray, seed: int) -> list[Row]:
    rows = [
        Row.of(order.order_correlation(values, seed=seed), **_at(kind, names.WITHIN, seed)),
        Row.of(order.order_correlation(values, classes=found.labels, seed=seed), **_at(kind, names.CLASSES, seed)),
    ]
    accuracy = found.correct[:, -1].mean(1)
    rows.append(Row.over(accuracy, "network", seed=seed, metric="digit accuracy", item=kind, definition="at the last step"))
    return rows + _bimodality(kind, found.correct, seed)


def _bimodality(kind: str, correct: np.ndarray, seed: int, condition: str = "estimate") -> list[Row]:
    own, null, p = order.bimodality_test(correct, seed=seed)
    at: dict[str, Any] = {"metric": names.BIMODALITY, "item": kind, "seed": seed, "definition": condition}
    rows = [Row(value=own, n=len(correct), unit="network", condition=condition, **at)]
    rows.append(Row.of(null, condition=PERMUTED_CORRECTNESS, **at))
    rows.append(Row(value=p, n=order.PERMUTATIONS, unit="permutation", condition=condition, **{**at, "metric": "bimodality p"}))
    return rows


def _at(item: str, definition: str, seed: int) -> dict[str, Any]:
    return {"metric": names.ORDER, "item": item, "definition": definition, "split": names.DIGITS, "seed": seed}
