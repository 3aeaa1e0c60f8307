"""Shifts at the last token of each query, per site: cosines with the few-shot shift, and how much of a shift one vector is.

shift               state in one way minus the state of the base after neutral text of as many tokens
cosine per query    mean over queries of cos(shift a, shift b); at `attn_out` the SimAOU of Dai et al. 2023 (arXiv:2212.10559)
cosine of means     of the mean shifts over all queries
share of rank 1     1 - Σ‖Δ - μ‖² / Σ‖Δ‖² over the reporting half, μ the mean shift of the choosing half; negative where μ misleads
relative norm       mean of ‖Δ‖ / ‖state of the base‖
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from repscope import stats
from repscope.conditions import ESTIMATE, RANDOM
from repscope.models.sites import Site
from repscope.results import Row, at

DEFINITIONS = {
    "cosine per query": "cosine with the shift that k examples make, mean over queries",
    "cosine of means": "cosine with the shift that k examples make, of mean shifts over queries",
    "share of rank 1": "1 - Σ‖Δ - μ‖² / Σ‖Δ‖² over half of the queries, μ the mean shift of the other half",
    "relative norm": "norm of the shift over that of the base's state, mean over queries",
}
Rows3 = Float[np.ndarray, "site query feature"]
Half = Int[np.ndarray, "query"]


_ROUNDING = 1e-5  #: shifts below this share of the base's norm at all queries are rounding


def moved(rows: Rows3, base: Rows3) -> Rows3:
    """Shifts from the base; exactly zero at sites where they are rounding at all queries."""
    shift: np.ndarray = rows - base
    norms, own = (np.linalg.norm(x, axis=-1) for x in (shift, base))
    shift[(norms <= _ROUNDING * own).all(1)] = 0
    return shift


def shift_rows(pairs: Sequence[tuple[str, str, Rows3, Rows3]], sites: Sequence[Site], *, seed: int, **where: Any) -> list[Row]:
    """Cosines of pairs of shifts, (item, condition, shifts a, shifts b), at each site; interval over queries.

    Each item's estimate has a control of its own: b replaced by a random direction of equal norm (`random direction`).
    """
    rows, rng = list[Row](), np.random.default_rng([seed, 17])
    for item, condition, a, b in pairs:
        drawn = rng.standard_normal(b.shape) if condition == ESTIMATE else None
        for i, site in enumerate(sites):
            if not (a[i].any() and b[i].any()):  # one of the two has not moved, so a control would stand alone
                continue
            place = {"item": item, "seed": seed, **at(site), **where}
            kinds = [(condition, b[i]), *([(RANDOM, drawn[i])] if drawn is not None else [])]
            for name, other in kinds:
                each = _cosine(a[i], other)
                if not np.isfinite(each).any():  # one of the two has not moved
                    continue
                estimate = stats.mean(each[np.isfinite(each)], unit="query", seed=seed)
                rows.append(
                    Row.of(estimate, metric="cosine per query", definition=DEFINITIONS["cosine per query"], condition=name, **place)
                )
            value = float(_cosine(a[i].mean(0, dtype=np.float64), b[i].mean(0, dtype=np.float64)))
            if not np.isfinite(value):
                continue
            place |= {"metric": "cosine of means", "definition": DEFINITIONS["cosine of means"], "condition": condition}
            rows.append(Row(value=value, n=a.shape[1], unit="query", **place))
    return rows


def size_rows(
    shifts: Mapping[str, Rows3],
    base: Mapping[str, Rows3],
    halves: tuple[Half, Half],
    sites: Sequence[Site],
    *,
    seed: int,
    **where: Any,
) -> list[Row]:
    """Share of rank 1 and relative norm of each way's shifts at each site."""
    rows = []
    choosing, reporting = halves
    for way, shift in shifts.items():
        for i, site in enumerate(sites):
            place = {"condition": way, "seed": seed, **at(site), **where}
            x, own = shift[i].astype(np.float64), base[way][i].astype(np.float64)
            mean, left = x[choosing].mean(0), x[reporting]
            total = (left**2).sum(1)
            if total.any():
                share = stats.ratio(total - ((left - mean) ** 2).sum(1), total, unit="query", seed=seed)
                rows.append(Row.of(share, metric="share of rank 1", definition=DEFINITIONS["share of rank 1"], **place))
            norm = np.linalg.norm(x, axis=1) / np.linalg.norm(own, axis=1)
            made = stats.mean(norm, unit="query", seed=seed)
            rows.append(Row.of(made, metric="relative norm", definition=DEFINITIONS["relative norm"], **place))
    return rows


def _cosine(a: Float[np.ndarray, "*row feature"], b: Float[np.ndarray, "*row feature"]) -> Float[np.ndarray, "*row"]:
    """Cosines of rows in float64; NaN for a row of zeros."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = (x * y).sum(-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))
    return found
