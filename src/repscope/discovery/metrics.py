"""Judged: what a set of directions is worth, in numbers that need no reader. Takes arrays, never a network.

found: (direction, width), length not looked at. effects: (direction, prompt, feature), of vectors at their scale.

| number | what it is |
|---|---|
| `mmcs` | mean over planted features of the best |cos| with any direction found |
| `recovered` | share of planted features with a direction at |cos| > .9 |
| `duplicates`, `false` | share of directions that repeat a feature already found, that are at |cos| > .9 of none |
| `overlap` | mean |cos| between mean effects of two directions |
| `rank` | exp of the entropy of their singular values, as shares: how many directions' worth of effects there are |
| `clusters` | groups of directions whose mean effects hang together at |cos| > .8 |
| `consistency` | mean cos of one direction's effects on two prompts, the injected vector taken off; beside it the same between directions |
| `effect_norm` | mean length of effects, also in standard deviations of the target's coordinates |
| `dose_curve` | cos and ratio of effects at half the scale (twice, 1 where linear), cos at minus the scale (-1 where linear) |
| `stability` | mean |cos| between directions of two runs, matched one to one (Hungarian) |
"""  # noqa: E501

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components

from repscope.errors import UserError

RECOVERED = 0.9
CLUSTERED = 0.8

Matrix = Float[np.ndarray, "direction width"]


@dataclass(frozen=True)
class Recovery:
    """Directions against what was planted. mmcs, recovered: over features. distinct, duplicates, false: shares of directions,
    which add up to one."""

    mmcs: float
    recovered: float
    distinct: float
    duplicates: float
    false: float


def recovery(found: Matrix, truth: Float[np.ndarray, "feature width"], at: float = RECOVERED) -> Recovery:
    """How much of the truth was found; see the table."""
    cos = np.abs(unit(found) @ unit(truth).T)
    hit = cos.max(1) > at
    distinct = len(set(cos.argmax(1)[hit])) / len(found)
    return Recovery(
        float(cos.max(0).mean()), float((cos.max(0) > at).mean()), distinct, float(hit.mean()) - distinct, float((~hit).mean())
    )


@dataclass(frozen=True)
class Diversity:
    """How different the effects of directions are: see the table."""

    overlap: float
    rank: float
    clusters: int


def diversity(effects: Float[np.ndarray, "direction prompt feature"], at: float = CLUSTERED) -> Diversity:
    """Of mean effects over prompts."""
    means = effects.mean(1, dtype=np.float64)
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
    """Effects on prompts that took no part in the search; the vectors as injected, to be taken off, where widths are equal.

    Raises
    ------
    UserError
        For a single prompt.
    """
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
    """Mean length of effects, and per standard deviation of the target's coordinates: root of the mean squared z."""
    z = effects / np.maximum(spread, 1e-6 * spread.max())
    return float(np.linalg.norm(effects, axis=-1).mean()), float(np.sqrt(np.mean(z**2, axis=-1)).mean())


@dataclass(frozen=True)
class DoseCurve:
    """Means over directions: cos of effects at half the scale with those at the whole; twice the length at half over that at the
    whole; cos of effects at minus the scale with those at the scale."""

    half_cos: float
    half_ratio: float
    minus_cos: float


def dose_curve(
    half: Float[np.ndarray, "direction prompt feature"],
    whole: Float[np.ndarray, "direction prompt feature"],
    minus: Float[np.ndarray, "direction prompt feature"],
) -> DoseCurve:
    """From mean effects at half the scale, the scale and minus the scale."""
    a, b, c = (x.mean(1, dtype=np.float64) for x in (half, whole, minus))
    ratio = 2 * np.linalg.norm(a, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-30)
    return DoseCurve(float((unit(a) * unit(b)).sum(1).mean()), float(ratio.mean()), float((unit(c) * unit(b)).sum(1).mean()))


def stability(a: Matrix, b: Matrix) -> float:
    """Directions of two runs, matched one to one."""
    cos = np.abs(unit(a) @ unit(b).T)
    rows, columns = linear_sum_assignment(cos, maximize=True)
    return float(cos[rows, columns].mean())


def unit(rows: Float[np.ndarray, "*row feature"]) -> Float[np.ndarray, "*row feature"]:
    """Rows at length one; zeros stay zero."""
    hat: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-30)
    return hat


def _off(hat: Float[np.ndarray, "direction feature"]) -> float:
    """Sum of products of different rows."""
    total = hat.sum(0)
    return float(total @ total - (hat * hat).sum())
