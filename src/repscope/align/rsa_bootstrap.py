"""Similarity of models' RDMs to subjects' RDMs with its bootstrap over conditions, subjects or both.

A draw of conditions is a vector w of counts with sum N. Pairs of a condition with itself are left out, so the sums of a draw run
over pairs of different conditions with weight w_i w_j. With A, B the square matrices of two RDMs (zero diagonals):

    ⟨a, b⟩ = Σ_{i≠j} w_i w_j a_ij b_ij = wᵀ (A∘B) w

for all draws one matrix product per pair of RDMs, instead of an RDM and a comparison per draw. Cosine and Pearson follow. The
whitened measures are cosines of residuals of an additive fit g_ij ≈ m_i + m_j with g_ii = 0 (`rdm_comparison`: for w = 1 that is
double centring). Its normal equations have a diagonal matrix plus w wᵀ, so they are solved in closed form too (Sherman & Morrison):

    (D + w wᵀ) m = w ∘ (G w),   D = diag(w (N + 2 - 2 w)),   ⟨g, h⟩_V = wᵀ (G∘H) w - 2 m_hᵀ (w ∘ G w)

Measures of ranks are compared draw by draw.

Subjects and conditions together: the variance σ²_both of draws of both is too large, as it counts the noise of single responses
twice. The correction of Schütt et al. (2023), from the same draws of n subjects and m conditions:

    σ² = n/(n-1) σ²_subjects + m/(m-1) σ²_conditions - n m / ((n-1)(m-1)) (σ²_both - σ²_subjects - σ²_conditions)

limited to [max(n/(n-1) σ²_subjects, m/(m-1) σ²_conditions), σ²_both]. Intervals are Student's, with min(n, m) - 1 degrees of
freedom.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from repscope.align.dissimilarities import above_diagonal, conditions_of
from repscope.align.rdm_comparison import Measure, RDMs, as_rdms, check_measure, compare_rdms, cosines, noise_ceiling, similarities
from repscope.errors import UserError, unknown
from repscope.stats.bootstrap import Estimate, draw_weights, student

Over = Literal["conditions", "subjects", "both"]
_RANKS = ("spearman", "rho-a", "tau-a")
_LEAST = 3  #: different conditions that a draw needs
_HELD = 500_000  #: counts of draws at a time
_BLOCK = 256  #: conditions


@dataclass(frozen=True)
class RDMEvaluation:
    """Similarity of models' RDMs to subjects' RDMs.

    similarity: per model the mean over subjects, with its interval. draws: the same per draw; models share draws. lower, upper: the
    noise ceiling; NaN with one subject. over: what was drawn. conditions, subjects: their numbers.
    """

    similarity: tuple[Estimate, ...]
    draws: Float[np.ndarray, "kind draw model"]
    lower: float
    upper: float
    over: Over
    conditions: int
    subjects: int

    def difference(self, first: int, second: int) -> Estimate:
        """Similarity of one model minus another's: paired, as they share draws."""
        value = self.similarity[first].value - self.similarity[second].value
        return self._estimate(value, self.draws[:, :, first] - self.draws[:, :, second])

    def _estimate(self, value: float, draws: Float[np.ndarray, "kind draw"]) -> Estimate:
        variance = _variance(np.nanvar(draws, axis=1, ddof=1), self.over, self.subjects, self.conditions)
        sizes = {"conditions": self.conditions, "subjects": self.subjects, "both": min(self.subjects, self.conditions)}
        unit = {"conditions": "condition", "subjects": "subject", "both": "subject and condition"}[self.over]
        return student(value, variance, unit=unit, n=sizes[self.over])


def evaluate_rdms(
    models: Any, subjects: Any, measure: Measure = "cosine", *, over: Over | None = None, draws: int = 1000, seed: int = 0
) -> RDMEvaluation:
    """How similar is each model's RDM to those of the subjects, and how sure is that?

    Parameters
    ----------
    models : Float[Array, "model pair"]
        RDMs of models: the entries above the diagonals.
    subjects : Float[Array, "subject pair"]
        RDMs of the subjects for the same conditions.
    over
        What is drawn: the population to which the result should generalise. "both" by default, "conditions" with one subject.

    Raises
    ------
    UserError
        For different numbers of pairs, an unknown measure, one subject where subjects are drawn, or fewer than 4 conditions where
        conditions are drawn.
    """
    check_measure(measure)
    a, b = as_rdms(models, "The models' RDMs"), as_rdms(subjects, "The subjects' RDMs")
    full = compare_rdms(a, b, measure)
    n, count = conditions_of(b.shape[1]), len(b)
    over = over or ("both" if count > 1 else "conditions")
    if over not in get_args(Over):
        raise unknown("unit of draws", over, get_args(Over))
    if over != "conditions" and count < 2:
        raise UserError("One subject cannot be drawn; take over='conditions', which says nothing about other subjects.")
    if over != "subjects" and n <= _LEAST:
        raise UserError(f"{n} conditions are too few to draw from; give at least {_LEAST + 1}.")
    rng = np.random.default_rng(seed)
    weights = draw_weights(n, draws, rng)
    of_subjects = draw_weights(count, draws, rng) / count
    means = [of_subjects @ full.T] if over != "conditions" else []
    if over != "subjects":
        drawn = similarities_of_draws(a, b, measure, weights)
        means += [drawn.mean(2)]
        means = [np.einsum("dms,ds->dm", drawn, of_subjects), *means] if over == "both" else means
    lower, upper = noise_ceiling(b, measure) if count > 1 else (float("nan"), float("nan"))
    found = RDMEvaluation((), np.stack(means), lower, upper, over, n, count)
    each = (found._estimate(float(value), found.draws[:, :, i]) for i, value in enumerate(full.mean(1)))
    estimates = tuple(replace(e, lo=max(e.lo, -1.0), hi=min(e.hi, 1.0)) for e in each)  # a similarity is never beyond ±1
    return RDMEvaluation(estimates, found.draws, lower, upper, over, n, count)


def similarities_of_draws(
    first: RDMs, second: RDMs, measure: Measure, weights: Int[np.ndarray, "draw condition"]
) -> Float[np.ndarray, "draw first second"]:
    """Similarity of all RDMs of two sets in each draw of conditions; NaN for draws of fewer than 3 different conditions."""
    if measure in _RANKS:
        return np.stack([_one_draw(first, second, measure, w) for w in weights])
    if "pearson" in measure:  # a shift of all entries changes nothing, and this one keeps their digits
        first, second = (rdms - rdms.mean(1, keepdims=True) for rdms in (first, second))
    step = max(1, _HELD // weights.shape[1])
    parts = (weights[i : i + step].astype(np.float64) for i in range(0, len(weights), step))
    found = np.concatenate([_in_closed_form(first, second, measure, w) for w in parts])
    found[(weights > 0).sum(1) < _LEAST] = np.nan
    return found


def _one_draw(first: RDMs, second: RDMs, measure: Measure, w: Int[np.ndarray, "condition"]) -> Float[np.ndarray, "first second"]:
    """Entries between different conditions, as often as each was drawn, compared as they are."""
    if (w > 0).sum() < _LEAST:
        return np.full((len(first), len(second)), np.nan)
    drawn = np.repeat(np.arange(len(w)), w)
    i, j = (drawn[side] for side in np.triu_indices(len(drawn), 1))
    i, j = i[i < j], j[i < j]
    pair = i * len(w) - i * (i + 1) // 2 + j - i - 1
    return similarities(first[:, pair], second[:, pair], measure)


def _in_closed_form(
    first: RDMs, second: RDMs, measure: Measure, w: Float[np.ndarray, "draw condition"]
) -> Float[np.ndarray, "draw first second"]:
    m, k = len(first), len(first) + len(second)
    pairs = np.concatenate([first, second, np.ones((1, first.shape[1]))])  # the last: ones off the diagonal, for means
    rdms = above_diagonal(pairs)
    if measure.startswith("whitened"):
        rows = w * (w @ (rdms + rdms.swapaxes(1, 2)))  # (rdm, draw, condition)
        fits = _additive_fits(rows, w)

    def inner(a: int, b: int) -> Float[np.ndarray, "draw"]:
        plain = _quadratic_forms(w, rdms[a], rdms[b])
        return plain - 2 * np.einsum("dn,dn->d", fits[b], rows[a]) if measure.startswith("whitened") else plain

    products = np.stack([np.stack([inner(a, b) for b in range(m, k)], 1) for a in range(m)], 1)
    squares = np.stack([inner(a, a) for a in range(k)], 1)
    if "pearson" in measure:
        # ⟨g - μ e, h - ν e⟩ with e = 1 off the diagonal and μ, ν the weighted means of the entries
        weight = w.sum(1) ** 2 - (w**2).sum(1)
        means = np.stack([_quadratic_forms(w, rdms[a], rdms[k]) / weight for a in range(k)], 1)
        with_ones, ones = np.stack([inner(a, k) for a in range(k)], 1), inner(k, k)[:, None]
        squares = squares - 2 * means * with_ones + means**2 * ones
        one, other = (slice(None), slice(0, m), None), (slice(None), None, slice(m, k))
        products = (
            products - means[one] * with_ones[other] - means[other] * with_ones[one] + means[one] * means[other] * ones[..., None]
        )
    return cosines(products, squares[:, :m].clip(0), squares[:, m:].clip(0))


def _quadratic_forms(
    w: Float[np.ndarray, "draw condition"], a: Float[np.ndarray, "condition condition"], b: Float[np.ndarray, "condition condition"]
) -> Float[np.ndarray, "draw"]:
    """wᵀ (A∘B) w of every draw, A and B given above their diagonals: half of the products of whole matrices."""
    total = np.zeros(len(w))
    for start in range(0, len(a), _BLOCK):
        rows = slice(start, start + _BLOCK)
        total += np.einsum("dn,dn->d", w[:, rows] @ (a[rows, start:] * b[rows, start:]), w[:, start:])
    return 2 * total


def _additive_fits(
    rows: Float[np.ndarray, "rdm draw condition"], w: Float[np.ndarray, "draw condition"]
) -> Float[np.ndarray, "rdm draw condition"]:
    """m of g_ij ≈ m_i + m_j, by Sherman & Morrison: (D + w wᵀ)⁻¹ w∘(G w). Conditions that were not drawn have 0."""
    diagonal = w * (w.sum(1, keepdims=True) + 2 - 2 * w)
    inverse = np.divide(1.0, diagonal, out=np.zeros_like(w), where=w > 0)
    scaled = inverse * rows
    ahead = inverse * w
    found: np.ndarray = scaled - ahead * ((w * scaled).sum(2, keepdims=True) / (1 + (w * ahead).sum(1))[:, None])
    return found


def _variance(of: Float[np.ndarray, "kind"], over: Over, n: int, m: int) -> float:
    """Of the mean over subjects, from the variances of the draws."""
    if over != "both":
        size = {"subjects": n, "conditions": m}[over]
        return float(size / (size - 1) * of[0])
    both, subjects, conditions = of.tolist()
    alone = max(n / (n - 1) * subjects, m / (m - 1) * conditions)
    corrected = n / (n - 1) * subjects + m / (m - 1) * conditions - n * m / ((n - 1) * (m - 1)) * (both - subjects - conditions)
    return float(min(max(corrected, alone), both))
