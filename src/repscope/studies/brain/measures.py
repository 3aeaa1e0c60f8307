"""Rows of `brain`: similarities, families found, layers found."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repscope import stats
from repscope.align import FamilyComparison
from repscope.conditions import (
    ESTIMATE,
    LOWER_CEILING,
    OTHER_FAMILY,
    RANDOM_RECORDING,
    UNTRAINED,
    UNTRAINED_RECORDING,
    UPPER_CEILING,
    over,
)
from repscope.results import Row
from repscope.studies.brain import names
from repscope.worlds.brain import FAMILIES, LAYERS

Found = Mapping[tuple[str, str], Sequence[FamilyComparison]]  #: (generating family, region) → one comparison per recording
_WINS = "more similar than every other family, by 95 % intervals over networks and stimuli"


def simulated_rows(found: Found, method: str, seed: int) -> list[Row]:
    """Rows of all simulated recordings; units are recordings, each of a network and of stimuli of its own."""
    rows = list[Row]()
    for (truth, region), comparisons in found.items():
        where: dict[str, Any] = {"split": region, "seed": seed}
        definition = comparisons[0].scores.what
        for family in FAMILIES:
            values = np.array([c.similarity[family].value for c in comparisons])
            at = where | {"item": names.item(method, truth, family), "condition": names.condition_of(truth, family)}
            rows.append(Row.over(values, "recording", metric=names.SIMILARITY, definition=definition, **at))
        for condition, of in ((LOWER_CEILING, "lower"), (UPPER_CEILING, "upper")):
            values = np.array([getattr(c.scores, of) for c in comparisons])
            if np.isfinite(values).all():
                at = where | {"item": names.item(method, truth), "condition": condition}
                rows.append(Row.over(values, "recording", metric=names.SIMILARITY, definition=definition, **at))
        if truth in names.TRAINED:
            rows += _of_truth(comparisons, method, truth, where)
    for region in names.REGIONS:
        rows += _of_region({t: cs for (t, r), cs in found.items() if r == region}, method, region, seed)
    return rows


def _of_truth(comparisons: Sequence[FamilyComparison], method: str, truth: str, where: Mapping[str, Any]) -> list[Row]:
    """Of recordings that a trained family generated: whether it was found, by how much, and its layer."""
    item, region = names.item(method, truth), where["split"]
    hits = np.array([c.winner == truth for c in comparisons], dtype=float)
    rows = [_share(hits, item, ESTIMATE, where)]
    own = np.array([c.similarity[truth].value for c in comparisons])
    best = np.array([max(c.similarity[f].value for f in names.TRAINED if f != truth) for c in comparisons])
    none = np.array([c.similarity[names.CONTROL].value for c in comparisons])
    for control, values in ((OTHER_FAMILY, own - best), (UNTRAINED, own - none)):
        at = dict(where) | {"item": item, "condition": over(control)}
        rows.append(Row.over(values, "recording", metric=names.GAIN, definition=names.SIMILARITY, **at))
    layer = names.REGIONS.index(region)
    right = np.array(
        [np.mean([c.scores.layers[:, i] == layer for i, label in enumerate(c.labels) if label == truth]) for c in comparisons]
    )
    definition = f"share of choices of {LAYERS[layer]}, networks of the generating family"
    rows.append(Row.over(right, "recording", metric=names.LAYER, definition=definition, item=item, **where))
    return rows


def _of_region(found: Mapping[str, Sequence[FamilyComparison]], method: str, region: str, seed: int) -> list[Row]:
    """Over all trained families, and of the recordings that none of them generated."""
    where: dict[str, Any] = {"split": region, "seed": seed}
    item = names.item(method, names.ALL)
    hits = np.array([c.winner == truth for truth in names.TRAINED for c in found[truth]], dtype=float)
    random = np.array([c.winner is not None for c in found[names.RANDOM]], dtype=float)
    untrained = np.array([c.winner in names.TRAINED for c in found[names.CONTROL]], dtype=float)
    return [
        _share(hits, item, ESTIMATE, where),
        _share(random, item, RANDOM_RECORDING, where),
        _share(untrained, item, UNTRAINED_RECORDING, where),
    ]


def _share(hits: np.ndarray, item: str, condition: str, where: Mapping[str, Any]) -> Row:
    estimate = stats.proportion(hits, unit="recording", seed=where["seed"])
    return Row.of(estimate, metric=names.FOUND, definition=_WINS, item=item, condition=condition, **where)
