"""Poisson regression of synapse counts on one measure of pairs, with an effect of every presynaptic and every postsynaptic cell.

    n_ij ~ Poisson(μ_ij),   μ_ij = e_ij · a_i · b_j · exp(β s_ij)

n: synapses, e: exposure (an offset), s: functional measure; a, b: free effects of the cells, so that cells with many synapses, or
with large neurites, explain nothing. Maximum likelihood gives the same β as conditioning on both degree sequences' sums.

1. `balance`: for a given β, a and b by iterative proportional fitting, until both margins of μ are those of n.
2. `projected`: the residual s̃ of s in a regression on row and column effects with weights μ. Then the score is U = Σ s (n - μ) and
   the information I = Σ μ s s̃.
3. `fit`: Newton's method, β ← β + U / I, from 0. The statistic of the permutation test is z = U / √I at β = 0: only margins of n
   enter the fit there, so that it is the same for all permutations of the cells of s.
Effects may be those of presynaptic cells alone (Ding et al. 2025 have a random intercept of these), of postsynaptic ones, or both.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from repscope.errors import UserError

Effects = Literal["both", "pre", "post", "none"]
Square = Float[np.ndarray, "pre post"]

SWEEPS = 2000  #: of proportional fitting
_CLOSE = 1e-9  #: margins of μ, relative to their sum
_RIDGE = 1e-11  #: of the Laplacian's largest entry: its null space, one constant per connected part, does not change s̃
_NEWTON = 60


@dataclass(frozen=True)
class Fit:
    """A fitted slope. slope: β, log rate per unit of s. information: I at β; its inverse root is the naive standard error."""

    slope: float
    information: float


@dataclass(frozen=True, eq=False)
class Margins:
    """What the fit at β = 0 leaves: expected counts μ, and the pieces that project out the cells' effects.

    expected: μ. rows, columns: sums of μ. factor: lower Cholesky factor of the columns' Laplacian; None without effects of columns.
    """

    expected: Square
    rows: Float[np.ndarray, "pre"] | None
    columns: Float[np.ndarray, "post"] | None
    factor: Float[np.ndarray, "post post"] | None


def balance(n: Square, weights: Square, effects: Effects = "both") -> Square:
    """Expected counts μ = weights · a_i · b_j whose margins are those of n. weights: 0 for pairs that do not count.

    Raises
    ------
    UserError
        If the margins cannot be met, as some cells' synapses leave no other way to place them.
    """
    rows, columns = n.sum(1), n.sum(0)
    if effects == "none":
        return np.asarray(weights * (n.sum() / weights.sum()))
    if effects == "pre":
        return np.asarray(weights * _divided(rows, weights.sum(1))[:, None])
    if effects == "post":
        return np.asarray(weights * _divided(columns, weights.sum(0))[None])
    b = np.ones(n.shape[1])
    for sweep in range(SWEEPS):
        a = _divided(rows, weights @ b)
        reached = a @ weights
        if sweep % 4 == 3 and np.abs(reached * b - columns).sum() <= _CLOSE * columns.sum():
            return np.asarray(weights * a[:, None] * b)
        b = _divided(columns, reached)
    off = float(np.abs(reached * b - columns).sum() / columns.sum())
    if off < 1e-4:  # cells whose synapses leave no choice converge slowly, towards 0
        return np.asarray(weights * a[:, None] * b)
    raise UserError(
        f"Effects of both cells of a pair cannot be fitted: after {SWEEPS} sweeps {off:.1%} of the synapses are in another column; "
        f"remove cells with very few examined pairs, or give effects='pre'."
    )


def margins(mu: Square, effects: Effects = "both") -> Margins:
    """The pieces of the projection with weights μ."""
    rows = mu.sum(1) if effects in ("both", "pre") else None
    columns = mu.sum(0) if effects in ("both", "post") else None
    factor = None
    if columns is not None:
        laplacian = np.diag(columns)
        if rows is not None:
            scaled = mu * np.sqrt(_divided(np.ones_like(rows), rows))[:, None]
            laplacian = laplacian - scaled.T @ scaled
        laplacian[np.diag_indices_from(laplacian)] += _RIDGE * columns.max() + (columns <= 0)
        factor = np.linalg.cholesky(laplacian)
    return Margins(mu, rows, columns, factor)


def projected(s: Square, held: Margins) -> Square:
    """s minus its regression on the cells' effects, with weights μ."""
    from scipy.linalg import cho_solve

    weighted = held.expected * s
    r, c = weighted.sum(1), weighted.sum(0)
    if held.rows is None and held.columns is None:
        return np.asarray(s - weighted.sum() / held.expected.sum())
    if held.columns is None:
        assert held.rows is not None
        return np.asarray(s - _divided(r, held.rows)[:, None])
    if held.rows is None:
        return np.asarray(s - _divided(c, held.columns)[None])
    gamma = cho_solve((held.factor, True), c - _divided(r, held.rows) @ held.expected)
    alpha = _divided(r - held.expected @ gamma, held.rows)
    return np.asarray(s - alpha[:, None] - gamma[None])


def information(s: Square, held: Margins) -> float:
    """I = Σ μ s̃²."""
    return float((held.expected * projected(s, held) ** 2).sum())


def score(n: Square, s: Square, held: Margins) -> tuple[float, float]:
    """U and I of a measure s at the fit that `held` is of."""
    return float((s * (n - held.expected)).sum()), information(s, held)


def fit(n: Square, s: Square, exposure: Square, effects: Effects = "both", start: float = 0.0) -> Fit:
    """The slope by maximum likelihood. exposure: 0 for pairs that do not count.

    Raises
    ------
    UserError
        If the slope is not determined: within cells, the measure does not vary among pairs, or separates them completely.
    """
    s = s - (s * (exposure > 0)).sum() / max(int((exposure > 0).sum()), 1)  # the effects absorb it; exp does not overflow
    slope, spread = start, float(np.abs(s[exposure > 0]).max())
    for _ in range(_NEWTON):
        mu = balance(n, exposure * np.exp(slope * s), effects)
        held = margins(mu, effects)
        u, i = score(n, s, held)
        if i <= 1e-12 * spread**2 * n.sum():
            break
        step = float(np.clip(u / i, -3 / spread, 3 / spread))
        slope += step
        if abs(step) * np.sqrt(i) < 1e-7:
            return Fit(slope, i)
        if abs(slope) * spread > 60:
            break
    raise UserError(
        "The slope is not determined: within cells the functional measure does not vary among these pairs, or separates connected "
        "pairs completely; give more pairs, or effects='pre'."
    )


def _divided(top: Float[np.ndarray, "*n"], bottom: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    return np.asarray(np.divide(top, bottom, out=np.zeros_like(np.asarray(top, dtype=np.float64)), where=bottom > 0))
