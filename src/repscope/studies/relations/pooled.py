"""The splits of a relation together: each subject's mean over the splits that report it, intervals over subjects, paired gains.

Arrays of a split are named "family|condition|place"; "reported" holds which samples they are of.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from repscope import stats
from repscope.models.sites import Site
from repscope.results import CHOSEN, ESTIMATE, Row

METRICS = {"lre": "faithfulness", "lrc": "concept accuracy", "edit": "edit success"}
Arrays = Mapping[str, np.ndarray]


def pooled(item: str, parts: Sequence[Arrays], seed: int) -> list[Row]:
    """Rows of one relation: every condition at every place, gains at the chosen place, and each split by itself."""
    held = [p for p in parts if "reported" in p]
    found = {key: _pooled(held, key) for key in sorted({key for p in held for key in p if "|" in key})}
    rows = [row for key, values in found.items() for row in _row(item, key, values, seed)]
    return rows + _gains(item, found, seed) + _per_split(item, held, seed)


def _pooled(parts: Sequence[Arrays], key: str) -> dict[int, float]:
    """Each reported subject's mean over splits."""
    told: dict[int, list[float]] = {}
    for part in parts:
        if key in part:
            for subject, value in zip(part["reported"].tolist(), part[key].tolist()):
                if not np.isnan(value):
                    told.setdefault(int(subject), []).append(float(value))
    return {subject: float(np.mean(values)) for subject, values in told.items()}


def _row(item: str, key: str, values: dict[int, float], seed: int) -> list[Row]:
    if not values:
        return []
    family, name, at = key.split("|")
    held = np.array(list(values.values()))
    site = CHOSEN if at == "chosen" else at
    layer = None if at in ("chosen", "embed") or not at.startswith("resid") else Site.parse(at).layer
    metric, condition, definition = METRICS[family], name, ""
    if name == "agrees":
        metric, condition, definition = "agreement", ESTIMATE, "the map's most likely token is that of the model"
    if name == "kl":
        metric, condition, site, definition = ("damage", at, CHOSEN, "KL of the next token of a neutral text, nats")
        return [
            Row.of(
                stats.mean(held, unit="subject", seed=seed),
                metric=metric,
                definition=definition,
                site=site,
                item=item,
                condition=condition,
                seed=seed,
            )
        ]
    if name.startswith("unchanged: "):
        metric, condition, site, definition = ("unchanged", at, CHOSEN, name.removeprefix("unchanged: "))
    estimate = stats.proportion(held, unit="subject", seed=seed)
    return [
        Row.of(
            estimate,
            metric=metric,
            definition=definition,
            site=site,
            layer=layer,
            item=item,
            condition=condition,
            token="subject.last",
            split="halves",
            seed=seed,
        )
    ]


def _gains(item: str, pooled: dict[str, dict[int, float]], seed: int) -> list[Row]:
    """The estimate less each control at the chosen place, paired over subjects."""
    rows = []
    for family, metric in METRICS.items():
        ours = pooled.get(f"{family}|estimate|chosen", {})
        for key, values in pooled.items():
            if not key.startswith(f"{family}|") or not key.endswith("|chosen") or key.split("|")[1] in ("estimate", "agrees"):
                continue
            shared = sorted(set(ours) & set(values))
            name = key.split("|")[1]
            if len(shared) >= 2 and not name.startswith("dose"):
                gain = stats.mean([ours[s] - values[s] for s in shared], unit="subject", seed=seed)
                rows.append(
                    Row.of(
                        gain,
                        metric="gain",
                        definition=metric,
                        site=CHOSEN,
                        item=item,
                        condition=f"over {name}",
                        split="halves",
                        seed=seed,
                    )
                )
    return rows


def _per_split(item: str, parts: Sequence[Arrays], seed: int) -> list[Row]:
    rows = []
    for family, metric in METRICS.items():
        for k, part in enumerate(parts):
            values = part.get(f"{family}|estimate|chosen")
            if values is not None and not np.isnan(values).all():
                held = values[~np.isnan(values.astype(float))].astype(float)
                rows.append(
                    Row.of(
                        stats.proportion(held, unit="subject", seed=seed),
                        metric=metric,
                        site=CHOSEN,
                        item=item,
                        split=f"split {k}",
                        seed=seed,
                    )
                )
    return rows
