"""Metrics of a set of directions.

found: (direction, width), of any norm. effects: (direction, prompt, feature), of vectors at their scale.

| metric | definition |
|---|---|
| `mmcs` | mean over planted features of the best |cos| with any direction found |
| `recovered` | share of planted features with a direction at |cos| > .9 |
| `duplicates`, `false` | share of directions that repeat a feature already found, that are at |cos| > .9 of none |
| `overlap` | mean |cos| between mean effects of two directions |
| `rank` | effective rank of mean effects: exp of the entropy of the normalised singular values |
| `clusters` | number of clusters of mean effects at |cos| > .8 (single linkage) |
| `consistency` | mean cos of one direction's effects on two prompts, the injected vector subtracted; control: the same between directions |
| `effect_norm` | mean norm of effects, also in standard deviations of the target's coordinates |
| `dose_curve` | cos and ratio of effects at half the scale (twice, 1 where linear), cos at minus the scale (-1 where linear) |
| `stability` | mean |cos| between directions of two runs, matched one to one (Hungarian) |
"""  # noqa: E501

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components

from repscope.arrays import as_array
from repscope.errors import UserError

RECOVERED = 0.9
CLUSTERED = 0.8

Matrix = Float[np.ndarray, "direction width"]


@dataclass(frozen=True)
class Recovery:
    """Directions compared with planted features. mmcs, recovered: over features. distinct, duplicates, false: shares of directions;
    they sum to one."""

    mmcs: float
    recovered: float
    distinct: float
    duplicates: float
    false: float


def recovery(found: Matrix, truth: Float[np.ndarray, "feature width"], at: float = RECOVERED) -> Recovery:
    """Recovery of planted features; see the table."""
    cos = _cosines(found, truth)
    hit = cos.max(1) > at
    distinct = len(set(cos.argmax(1)[hit])) / len(found)
    return Recovery(
        float(cos.max(0).mean()), float((cos.max(0) > at).mean()), distinct, float(hit.mean()) - distinct, float((~hit).mean())
    )


@dataclass(frozen=True)
class Diversity:
    """Diversity of the effects of directions; see the table."""

    overlap: float
    rank: float
    clusters: int


def diversity(effects: Float[np.ndarray, "direction prompt feature"], at: float = CLUSTERED) -> Diversity:
    """Of mean effects over prompts."""
    means = _effects(effects).mean(1, dtype=np.float64)
    cos = np.abs(unit(means) @ unit(means).T)
    sizes = np.linalg.svd(means, compute_uv=False)
    p = sizes[sizes > 0] / sizes.sum() if sizes.sum() else np.ones(1)
    others = ~np.eye(len(means), dtype=bool)
    overlap = float(cos[others].mean()) if len(means) > 1 else 0.0
    return Diversity(overlap, float(np.exp(-(p * np.log(p)).sum())), int(connected_components(cos > at)[0]))


@dataclass(frozen=True)
class Consistency:
    """same: a direction's effects on two prompts, mean cos over directions and pairs. other: the control, effects of two directions
    on two prompts. each: (direction)."""

    same: float
    other: float
    each: Float[np.ndarray, "direction"]


def consistency(
    effects: Float[np.ndarray, "direction prompt feature"], vectors: Float[np.ndarray, "direction width"] | None = None
) -> Consistency:
    """Consistency of effects on held-out prompts; the injected vectors are subtracted if widths are equal.

    Raises
    ------
    UserError
        For a single prompt.
    """
    effects = _effects(effects)
    vectors = None if vectors is None else as_array(vectors, "vectors", "direction width")
    k, n = effects.shape[:2]
    if n < 2:
        raise UserError("Consistency compares effects on several prompts; give two or more.")
    moved = effects if vectors is None or vectors.shape[1] != effects.shape[2] else effects - vectors[:, None]
    hat = unit(moved.astype(np.float64))
    sums = hat.sum(1)
    own = np.einsum("knf,knf->k", hat, hat)
    each = ((sums * sums).sum(1) - own) / (n * (n - 1))
    every = sums.sum(0)
    across = (every @ every - (sums * sums).sum()) - sum(_off(hat[:, i]) for i in range(n))
    other = float(across / (k * (k - 1) * n * (n - 1))) if k > 1 else 0.0
    return Consistency(float(each.mean()), other, each)


def effect_norm(
    effects: Float[np.ndarray, "direction prompt feature"], spread: Float[np.ndarray, "feature"]
) -> tuple[float, float]:
    """Mean norm of effects, and their root mean square in standard deviations of the target's coordinates."""
    effects, spread = _effects(effects), as_array(spread, "spreads", "feature")
    z = effects / np.maximum(spread, 1e-6 * spread.max())
    return float(np.linalg.norm(effects, axis=-1).mean()), float(np.sqrt(np.mean(z**2, axis=-1)).mean())


@dataclass(frozen=True)
class DoseCurve:
    """Means over directions: cos between effects at half and full scale; twice the norm at half scale over the norm at full scale;
    cos between effects at minus the scale and at the scale."""

    half_cos: float
    half_ratio: float
    minus_cos: float


def dose_curve(
    half: Float[np.ndarray, "direction prompt feature"],
    whole: Float[np.ndarray, "direction prompt feature"],
    minus: Float[np.ndarray, "direction prompt feature"],
) -> DoseCurve:
    """From mean effects at half the scale, the scale and minus the scale."""
    a, b, c = (_effects(x).mean(1, dtype=np.float64) for x in (half, whole, minus))
    ratio = 2 * np.linalg.norm(a, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-30)
    return DoseCurve(float((unit(a) * unit(b)).sum(1).mean()), float(ratio.mean()), float((unit(c) * unit(b)).sum(1).mean()))


def stability(a: Matrix, b: Matrix) -> float:
    """Mean |cos| between directions of two runs, matched one to one."""
    cos = _cosines(a, b)
    rows, columns = linear_sum_assignment(cos, maximize=True)
    return float(cos[rows, columns].mean())


def unit(rows: Float[np.ndarray, "*row feature"]) -> Float[np.ndarray, "*row feature"]:
    """Rows normalised to unit norm; zeros stay zero."""
    rows = as_array(rows, "rows")
    hat: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-30)
    return hat


def _effects(given: Float[np.ndarray, "direction prompt feature"]) -> Float[np.ndarray, "direction prompt feature"]:
    found = as_array(given, "effects", "direction prompt feature")
    if not found.size or not np.isfinite(found).all():
        raise UserError("The effects are to be finite numbers, of a direction and a prompt at least.")
    return found


def _cosines(a: Matrix, b: Matrix) -> Float[np.ndarray, "direction direction"]:
    """Absolute cosines of all pairs."""
    a, b = as_array(a, "directions", "direction width"), as_array(b, "directions", "direction width")
    if a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise UserError(f"The directions have the shapes {a.shape} and {b.shape}; give two sets of one width.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("Some directions are not finite; leave them out.")
    found: np.ndarray = np.abs(unit(a) @ unit(b).T)
    return found


def _off(hat: Float[np.ndarray, "direction feature"]) -> float:
    """Sum of products of different rows."""
    total = hat.sum(0)
    return float(total @ total - (hat * hat).sum())
