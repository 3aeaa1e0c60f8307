"""Permutation of nodes (QAP, the quadratic assignment procedure: Krackhardt 1988): is the functional measure independent of the
wiring?

The cells of the functional matrix are permuted, rows and columns together, so that every dependence of pairs that share a cell
stays as it is. For each permutation the statistic of the regression (`conditional_poisson`) is computed: z = U / √I at β = 0.

1. If the function was measured for all pairs, the fit at β = 0 is the same for all permutations: it knows only the synapses. So it
   is made once, and a permutation costs one pass over the pairs: U = Σ R s_π with R = n - μ, and I = Σ μ s_π² minus what the cells'
   effects explain, which depends on the weighted row and column sums of s_π alone (one triangular solve for all permutations).
2. Without an exposure, μ_ij = a_i b_j off the diagonal. Then these sums are matrix products of the unpermuted matrix with permuted
   a and b, and only connected pairs are looked up.
3. If some pairs were not measured, the pairs that count move with the permutation, and the fit is made again for each.

p is two-sided, from |z|. `slopes` are the one-step estimates U / I: their standard deviation is what the slope varies by if the
measure has nothing to do with the wiring.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from repscope import stats
from repscope.align.structure_function.conditional_poisson import Effects, Margins, Square, balance, margins, score
from repscope.align.structure_function.pairs import Dyads
from repscope.errors import UserError
from repscope.stats.groups import TIE
from repscope.stats.permutation import orders

PERMUTATIONS = 5000
_HELD = 4_000_000  #: numbers in one block of permutations
_ROWS = 60  #: cells in one block

Order = Int[np.ndarray, "order cell"]


@dataclass(frozen=True, eq=False)
class NodePermutation:
    """A permutation test of nodes.

    z: the observed statistic. p: two-sided. null: z of each permutation. slopes: one-step slopes of each permutation.
    """

    z: float
    p: float
    null: Float[np.ndarray, "order"]
    slopes: Float[np.ndarray, "order"]

    @property
    def null_sd(self) -> float:
        """Standard deviation of the slope over permutations."""
        return float(self.slopes.std(ddof=1))


def permute_nodes(
    d: Dyads, *, effects: Effects = "both", permutations: int = PERMUTATIONS, seed: int = 0, refit: bool = False
) -> NodePermutation:
    """Test of the slope of `conditional_poisson` by permuting the cells of the functional measure.

    Parameters
    ----------
    refit
        Fit again for every permutation although once would do: the slow twin.

    Raises
    ------
    UserError
        For fewer than 20 permutations, or a measure that does not vary within cells.
    """
    if permutations < 20:
        raise UserError(f"{permutations} permutations cannot show a p of .05; give at least 20.")
    order = orders(len(d.names), permutations, np.random.default_rng(seed))
    order = np.concatenate([np.arange(len(d.names))[None], order])  # the observed order first
    if refit or not d.complete:
        u, i = _refitted(d, effects, order)
    else:
        u, i = _at_once(d, effects, order)
    if i[0] <= 0:
        raise UserError(
            "The functional measure does not vary within cells, so that effects of cells explain all of it; give another one."
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        z, slopes = (np.where(i > 0, u / x, 0.0) for x in (np.sqrt(i), i))
    return NodePermutation(float(z[0]), stats.p_value(abs(z[0]) - TIE, np.abs(z[1:])), z[1:], slopes[1:])


def _at_once(d: Dyads, effects: Effects, order: Order) -> tuple[Float[np.ndarray, "order"], Float[np.ndarray, "order"]]:
    """U and I per order from one fit; the measure is complete."""
    off = ~np.eye(len(d.names), dtype=bool)
    s = np.where(off, d.given[1] - d.given[1][off].mean(), 0.0)  # the mean is for rounding only: the effects absorb it
    # Pairs may be fewer than those of the measure: synapses not examined, no exposure. They stay where they are.
    mu = balance(d.synapses, d.exposure, effects)
    held = margins(mu, effects)
    factors = _rank_one(mu) if not d.has_exposure and d.pairs.sum() == s.size - len(s) else None
    sums = _sums_of_products(s, d.synapses, *factors) if factors else _sums_of_pairs(s, d.synapses, mu)
    step = max(1, _HELD // s.size)
    blocks = [order[k : k + step] for k in range(0, len(order), step)]
    u, squares, rows, columns = (np.concatenate(part) for part in zip(*map(sums, blocks)))
    return u, squares - explained(rows, columns, held)


def explained(
    rows: Float[np.ndarray, "order pre"], columns: Float[np.ndarray, "order post"], held: Margins
) -> Float[np.ndarray, "order"]:
    """Σ μ s² that the cells' effects explain, from the row and column sums of μ s."""
    from scipy.linalg import solve_triangular

    if held.rows is None and held.columns is None:
        return np.asarray(rows.sum(1) ** 2 / held.expected.sum())
    found = np.zeros(len(rows))
    if held.rows is not None:
        inverse = np.divide(1.0, held.rows, out=np.zeros_like(held.rows), where=held.rows > 0)
        found += (rows**2) @ inverse
        columns = columns - (rows * inverse) @ held.expected
    if held.factor is not None:
        found += (solve_triangular(held.factor, columns.T, lower=True) ** 2).sum(0)
    return found


def _sums_of_pairs(s: Square, n: Square, mu: Square) -> Callable[[Order], tuple[np.ndarray, ...]]:
    """U, Σ μ s², and row and column sums of μ s, pair by pair; in blocks of rows that stay in the processor's cache."""
    pre, post = np.nonzero(n)
    counts, flat, size, ones = n[pre, post], np.ascontiguousarray(s).reshape(-1), len(s), np.ones(len(s))
    blocks = [slice(k, min(k + _ROWS, size)) for k in range(0, size, _ROWS)]
    taken, moved = np.empty((_ROWS, size)), np.empty((_ROWS, size))

    def sums(order: Order) -> tuple[np.ndarray, ...]:
        squares, rows, columns = np.zeros(len(order)), np.empty((len(order), size)), np.zeros((len(order), size))
        for k, one in enumerate(order):
            for block in blocks:
                a, b = taken[: block.stop - block.start], moved[: block.stop - block.start]
                np.take(s, one[block], axis=0, out=a, mode="clip")  # "clip": without a check of each index
                np.take(a, one, axis=1, out=b, mode="clip")
                np.multiply(mu[block], b, out=a)
                np.matmul(a, ones, out=rows[k, block])
                columns[k] += ones[: len(a)] @ a
                squares[k] += np.vdot(a, b)
        observed = np.array([flat.take(one[pre] * size + one[post]) @ counts for one in order])
        return observed - rows.sum(1), squares, rows, columns

    return sums


def _sums_of_products(
    s: Square, n: Square, a: Float[np.ndarray, "pre"], b: Float[np.ndarray, "post"]
) -> Callable[[Order], tuple[np.ndarray, ...]]:
    """The same where μ = a bᵀ off the diagonal: matrix products, and a look-up of connected pairs."""
    pre, post = np.nonzero(n)
    counts, flat, squared, size = n[pre, post], np.ascontiguousarray(s).reshape(-1), s * s, len(s)

    def sums(order: Order) -> tuple[np.ndarray, ...]:
        back = np.argsort(order, axis=1)
        p, q = a[back], b[back]  # of the cell of s that stands at each place
        along, across = q @ s.T, p @ s  # Σ_j b_j s_π(ij), Σ_i a_i s_π(ij), in the order of s
        rows = a * np.take_along_axis(along, order, 1)
        columns = b * np.take_along_axis(across, order, 1)
        observed = flat[order[:, pre] * size + order[:, post]] @ counts
        return observed - rows.sum(1), ((q @ squared.T) * p).sum(1), rows, columns

    return sums


def _rank_one(mu: Square) -> tuple[Float[np.ndarray, "pre"], Float[np.ndarray, "post"]] | None:
    """a and b with μ_ij = a_i b_j off the diagonal, or None."""
    if len(mu) < 3 or not (mu > 0).any():
        return None
    k = int(mu.sum(1).argmax())
    base = mu[k].copy()  # b, up to its own entry
    others = [i for i in np.argsort(-mu.sum(1)) if i != k][:1]
    i = int(others[0])
    usable = (base > 0) & (mu[i] > 0)
    usable[[i, k]] = False
    if not usable.any():
        return None
    share = mu[i, usable].sum() / base[usable].sum()
    base[k] = mu[i, k] / share
    weights = np.where(np.eye(len(mu), dtype=bool), 0.0, base)
    total = weights.sum(1)
    a = np.divide(mu.sum(1), total, out=np.zeros_like(total), where=total > 0)
    made = np.outer(a, base)
    np.fill_diagonal(made, 0)
    return (a, base) if np.allclose(made, mu, rtol=1e-7, atol=1e-9 * mu.max()) else None


def _refitted(d: Dyads, effects: Effects, order: Order) -> tuple[Float[np.ndarray, "order"], Float[np.ndarray, "order"]]:
    """U and I per order, each from a fit of its own to the pairs that count then."""
    synapses, function, exposure = d.given
    if not d.has_exposure:
        exposure = np.ones_like(synapses)
    off = ~np.eye(len(d.names), dtype=bool)
    examined = off & np.isfinite(synapses) & np.isfinite(exposure) & (exposure > 0)
    u, i = np.zeros(len(order)), np.zeros(len(order))
    for k, one in enumerate(order):
        moved = function[np.ix_(one, one)]
        pairs = examined & np.isfinite(moved)
        n, s = np.where(pairs, synapses, 0.0), np.where(pairs, moved, 0.0)
        if not n.any():
            continue
        s = np.where(pairs, s - s.sum() / pairs.sum(), 0.0)
        u[k], i[k] = score(n, s, margins(balance(n, np.where(pairs, exposure, 0.0), effects), effects))
    return u, i
