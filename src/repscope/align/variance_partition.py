"""Unique and shared variance of feature spaces: how much of R² needs this space, and how much could come from any of several?

With R²(S) the cross-validated R² of banded ridge regression from the spaces S, all of them being A:

    unique to s      R²(A) - R²(A without s)
    shared           R²(A) minus all unique parts: explained, and not by one space alone; R²(a) + R²(b) - R²(a, b) for two

Everything is per channel, then averaged over channels; intervals are over conditions, the same draws for all models, so differences
are paired. Cross-validated differences can be negative: an unneeded space costs a little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope import stats
from repscope.align.encoding import Encoding, encode_banded
from repscope.align.ridge import RidgeSettings
from repscope.errors import UserError
from repscope.stats import Estimate


@dataclass(frozen=True, eq=False)
class VariancePartition:
    """total: R² of all spaces. alone, unique: per space. shared: explained, and not by one space alone. models: by their spaces."""

    total: Estimate
    alone: Mapping[str, Estimate]
    unique: Mapping[str, Estimate]
    shared: Estimate
    models: Mapping[tuple[str, ...], Encoding]


def variance_partition(
    spaces: Mapping[str, Any],
    y: Any,
    *,
    folds: int = 5,
    groups: Sequence[Any] | None = None,
    settings: RidgeSettings | None = None,
    seed: int = 0,
) -> VariancePartition:
    """Fit all spaces, all but one, and each alone, and take R² apart.

    Parameters
    ----------
    spaces : Mapping[str, Float[Array, "condition feature"]]
        Two or more feature spaces of the same conditions.
    y : Float[Array, "condition channel"]
        Responses.

    Raises
    ------
    UserError
        For fewer than two spaces, and as `encoding.encode`.
    """
    names = tuple(spaces)
    if len(names) < 2:
        raise UserError("Unique and shared variance need at least two feature spaces; give a mapping with two names or more.")
    subsets = dict.fromkeys([names, *((n,) for n in names), *(tuple(m for m in names if m != n) for n in names)])
    how: Any = {"folds": folds, "groups": groups, "settings": settings, "seed": seed}
    models = {subset: encode_banded({n: spaces[n] for n in subset}, y, **how) for subset in subsets}
    order = list(models)
    parts = [models[s].columns("R²")[0] for s in order]  # the second column, squares about the training mean, is the same in all
    stacked = np.concatenate([np.stack([p[:, 0] for p in parts], 1), parts[0][:, 1:]], 1)
    channels = stacked.shape[2]

    def r2(sums: Float[np.ndarray, "draw column"]) -> dict[tuple[str, ...], Float[np.ndarray, "draw"]]:
        each = sums.reshape(len(sums), -1, channels)
        return {s: (1 - each[:, i] / each[:, -1]).mean(1) for i, s in enumerate(order)}

    def without(name: str) -> tuple[str, ...]:
        return tuple(n for n in names if n != name)

    functions: dict[str, Any] = {"total": lambda s: r2(s)[names]}
    for name in names:
        functions[f"alone {name}"] = lambda s, n=name: r2(s)[(n,)]
        functions[f"unique {name}"] = lambda s, n=name: r2(s)[names] - r2(s)[without(n)]
    functions["shared"] = lambda s: r2(s)[names] - sum(r2(s)[names] - r2(s)[without(n)] for n in names)
    flat = stacked.reshape(len(stacked), -1)
    found = stats.functions_of_ratios(flat, np.ones_like(flat), functions, unit="condition", seed=seed)
    alone, unique = ({n: found[f"{what} {n}"] for n in names} for what in ("alone", "unique"))
    return VariancePartition(found["total"], alone, unique, found["shared"], models)
