"""Common input: do cells with input from the same cells respond alike, and does a synapse say more than common input does?

1. `shared_inputs`: c_ij = Σ_k n_ki n_kj, what cells i and j receive from the same cells. Activity that k sends to both makes them
   correlated with no synapse between them. `matched_pairs(d, on=shared_inputs(n) + 1)` compares connected pairs with unconnected
   pairs of the same presynaptic cell and of nearly equal common input.
2. `common_input`: mean similarity of pairs of cells, weighted with c_ij, minus the mean over all pairs. p: the cells of the
   similarity are permuted (rows and columns together); the interval is by the jackknife over cells.
3. `expected`: the same with c of the counts μ that the slope of `conditional_poisson` predicts. If each synapse follows the
   similarity of its own two cells, the targets of one cell are alike anyway; `beyond` is the difference, observed - expected (the
   question of Ding et al. 2025, Nature 640:459, about post-cohorts).
No permutation of cells tells a common cause from an effect of the synapse: see `worlds.wired_cells.common_input`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from repscope import stats
from repscope.align.structure_function.conditional_poisson import balance, fit
from repscope.align.structure_function.node_permutation import PERMUTATIONS
from repscope.align.structure_function.pairs import Dyads
from repscope.data.connectomes.named_matrices import named_matrix
from repscope.errors import UserError
from repscope.stats import Estimate
from repscope.stats.dyads import jackknife
from repscope.stats.groups import TIE
from repscope.stats.permutation import orders

Square = Float[np.ndarray, "cell cell"]


@dataclass(frozen=True)
class CommonInput:
    """similarity: of cells with common input minus that of all pairs, its interval over cells. expected: by the pairwise slope
    alone. beyond: similarity - expected. p: two-sided, cells permuted."""

    similarity: Estimate
    expected: float
    beyond: Estimate
    p: float


def shared_inputs(synapses: Any) -> pd.DataFrame:
    """What pairs of cells receive from the same cells, Σ_k n_ki n_kj, from a connectome [pre, post]; symmetric, diagonal 0.

    Presynaptic cells without a row, and pairs that were not examined, count as no input.

    Raises
    ------
    UserError
        As `named_matrix`.
    """
    n = named_matrix(synapses, what="connectome", self_loops="drop", signed=False).fillna(0.0)
    shared = n.to_numpy().T @ n.to_numpy()
    np.fill_diagonal(shared, 0)
    return pd.DataFrame(shared, index=n.columns, columns=n.columns)


def common_input(d: Dyads, *, permutations: int = PERMUTATIONS, seed: int = 0, unit: str = "cell") -> CommonInput:
    """Whether cells with common input respond alike, and more than like-to-like synapses predict.

    Raises
    ------
    UserError
        For a measure that was not measured for all pairs or is not symmetric, fewer than 20 permutations, or no common input.
    """
    s = d.given[1]
    if not d.complete or not np.allclose(s[off := ~np.eye(len(s), dtype=bool)], s.T[off]):
        raise UserError("Common input is about similarity: a symmetric measure of all pairs; leave out cells with missing pairs.")
    if permutations < 20:
        raise UserError(f"{permutations} permutations cannot show a p of .05; give at least 20.")
    s = np.where(off, s, 0.0)
    c = _shared(d.synapses)
    if not c.any():
        raise UserError("No two cells of this connectome have input from the same cell.")
    observed = _excess(c, s)
    slope = fit(d.synapses, d.function, d.exposure).slope
    expected = _expected(d.synapses, d.function, d.exposure, s, slope)
    apart, beyond = [], []
    for k in range(len(s)):
        keep = np.flatnonzero(np.arange(len(s)) != k)
        inside = np.ix_(keep, keep)
        n = d.synapses[inside]
        value = _excess(_shared(n), s[inside])
        left = fit(n, d.function[inside], d.exposure[inside], start=slope).slope
        apart.append(value)
        beyond.append(value - _expected(n, d.function[inside], d.exposure[inside], s[inside], left))
    drawn = np.array([_excess(c, s[np.ix_(one, one)]) for one in orders(len(s), permutations, np.random.default_rng(seed))])
    return CommonInput(
        jackknife(observed, apart, unit=unit),
        expected,
        jackknife(observed - expected, beyond, unit=unit),
        stats.p_value(abs(observed) - TIE, np.abs(drawn)),
    )


def _shared(n: Square) -> Square:
    c = n.T @ n
    np.fill_diagonal(c, 0)
    return np.asarray(c)


def _excess(c: Square, s: Square) -> float:
    """Mean of s weighted with c, minus its mean over all pairs of different cells."""
    return float((c * s).sum() / c.sum() - s.sum() / (len(s) * (len(s) - 1)))


def _expected(n: Square, function: Square, exposure: Square, s: Square, slope: float) -> float:
    return _excess(_shared(balance(n, exposure * np.exp(slope * function))), s)
