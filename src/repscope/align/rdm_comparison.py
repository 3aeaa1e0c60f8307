"""Similarity of RDMs, and the ceiling that noise sets to it.

For vectors a, b of the entries above the diagonals:

    cosine           aᵀb / (‖a‖ ‖b‖)
    pearson          the cosine of centred entries
    spearman         Pearson's r of ranks, ties with mean ranks
    rho-a            expected Spearman's rho when ties are broken at random: 12 Σ (r_a - r̄)(r_b - r̄) / (m³ - m); for models that
                     predict ties, which tie-corrected measures favour (Schütt et al. 2023)
    tau-a            Kendall's: (concordant - discordant) / (m (m - 1) / 2)
    whitened cosine  cosine under the inverse covariance of the entries when responses have independent noise (Diedrichsen et al.
                     2020); it equals linear CKA of the double-centred Gram matrices -½ H D H
    whitened pearson the same of centred entries

The noise ceiling of subjects' RDMs (Nili et al. 2014): mean similarity of each subject to the mean RDM of all (upper) and of the
others (lower), the mean made as suits the measure. Where subjects do not agree, the lower ceiling can be below 0.
"""

from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.stats import kendalltau, rankdata

from repscope.align.dissimilarities import Dissimilarity, conditions_of, rdm, square
from repscope.align.rows import as_rows, same_rows
from repscope.errors import UserError, unknown

Measure = Literal["cosine", "pearson", "spearman", "rho-a", "tau-a", "whitened cosine", "whitened pearson"]
MEASURES: tuple[str, ...] = get_args(Measure)
RDMs = Float[np.ndarray, "rdm pair"]


def compare_rdms(first: Any, second: Any, measure: Measure = "cosine") -> Float[np.ndarray, "first second"]:
    """Similarity of every RDM of one set to every one of the other. A constant RDM has no correlation: NaN.

    Parameters
    ----------
    first, second : Float[Array, "rdm pair"] or Float[Array, "pair"]
        Entries above the diagonals, of the same conditions.

    Raises
    ------
    UserError
        For an unknown measure, different numbers of pairs, or values that are not finite.

    >>> compare_rdms([1.0, 2.0, 3.0], [[2.0, 4.0, 6.0], [3.0, 2.0, 1.0]], "pearson").round(6)
    array([[ 1., -1.]])
    """
    a, b = as_rdms(first, "The first RDMs"), as_rdms(second, "The second RDMs")
    if a.shape[1] != b.shape[1]:
        raise UserError(f"The RDMs have {a.shape[1]} and {b.shape[1]} pairs; give RDMs of the same conditions.")
    check_measure(measure)
    return similarities(a, b, measure)


def similarities(a: RDMs, b: RDMs, measure: Measure) -> Float[np.ndarray, "first second"]:
    """`compare_rdms` of checked entries; for measures that are not whitened, of any subset of the pairs."""
    if measure == "tau-a":
        return np.array([[_tau_a(x, y) for y in b] for x in a])
    one, other = _prepared(a, measure), _prepared(b, measure)
    if measure == "rho-a":
        found: np.ndarray = one @ other.T * (12 / (a.shape[1] ** 3 - a.shape[1]))
        return found
    return cosines(one @ other.T, np.einsum("ij,ij->i", one, one), np.einsum("ij,ij->i", other, other))


def cosines(
    products: Float[np.ndarray, "... first second"], first: Float[np.ndarray, "... first"], second: Float[np.ndarray, "... second"]
) -> Float[np.ndarray, "... first second"]:
    """Cosines from products and squared norms; NaN where a norm is 0."""
    scale = np.sqrt(first[..., :, None] * second[..., None, :])
    return np.asarray(np.divide(products, scale, out=np.full_like(products, np.nan), where=scale > 0).clip(-1, 1))


def noise_ceiling(subjects: Any, measure: Measure = "cosine") -> tuple[float, float]:
    """Lower and upper noise ceiling of RDMs of several subjects.

    Raises
    ------
    UserError
        For fewer than 2 subjects, and as `compare_rdms`.
    """
    rdms = as_rdms(subjects, "The subjects' RDMs")
    check_measure(measure)
    if len(rdms) < 2:
        raise UserError("A noise ceiling needs the RDMs of at least two subjects.")
    each = _poolable(rdms, measure)
    total = each.sum(0)
    lower = [compare_rdms(total - own, rdm, measure)[0, 0] for own, rdm in zip(each, rdms)]
    upper = [compare_rdms(total, rdm, measure)[0, 0] for rdm in rdms]
    return min(float(np.mean(lower)), float(np.mean(upper))), float(np.mean(upper))  # equal up to rounding for equal subjects


def rsa(x: Any, y: Any, dissimilarity: Dissimilarity = "euclidean") -> float:
    """Spearman's rho between the dissimilarities of two representations of the same rows; NaN where all are equal.

    Raises
    ------
    UserError
        As `rdm`, and for different numbers of rows.

    >>> x = np.random.default_rng(0).standard_normal((20, 4))
    >>> rsa(x, 5 * x + 1)
    1.0
    """
    first, second = as_rows(x, "The first representation", 3), as_rows(y, "The second representation", 3)
    same_rows(first, second)
    return rank_correlation(rdm(first, dissimilarity), rdm(second, dissimilarity))


def rank_correlation(a: Float[np.ndarray, "pair"], b: Float[np.ndarray, "pair"]) -> float:
    """Spearman's rho; NaN where one side is constant."""
    ranks = [rankdata(side) - (len(side) + 1) / 2 for side in (a, b)]
    norms = [np.sqrt(r @ r) for r in ranks]
    return float(np.clip(ranks[0] @ ranks[1] / (norms[0] * norms[1]), -1, 1)) if all(norms) else float("nan")


def as_rdms(given: Any, what: str) -> RDMs:
    """Checked float64 (rdm, pair)."""
    rdms = np.atleast_2d(np.asarray(given, dtype=np.float64))
    if rdms.ndim != 2:
        raise UserError(f"{what} have {rdms.ndim} axes; give (rdm, pair), the entries above the diagonals (`as_pairs`).")
    conditions_of(rdms.shape[1])
    if not np.isfinite(rdms).all():
        bad = int((~np.isfinite(rdms)).any(1).argmax())
        count = int((~np.isfinite(rdms[bad])).sum())
        raise UserError(f"{what}: RDM {bad} has {count} values that are not finite; leave their conditions out of all RDMs.")
    return rdms


def check_measure(measure: str) -> None:
    """Refuse an unknown measure."""
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)


def _prepared(rdms: RDMs, measure: str) -> Float[np.ndarray, "rdm entry"]:
    """Entries whose cosine is the measure."""
    if measure in ("spearman", "rho-a"):
        rdms = rankdata(rdms, axis=1)
    if measure in ("pearson", "spearman", "rho-a", "whitened pearson"):
        rdms = rdms - rdms.mean(1, keepdims=True)
    return whitened(rdms) if measure.startswith("whitened") else rdms


def whitened(rdms: RDMs) -> Float[np.ndarray, "rdm entry"]:
    """Entries of the double-centred Gram matrices, off-diagonal ones √2 times: their cosine is linear CKA."""
    gram = -0.5 * square(rdms)
    row = gram.mean(2, keepdims=True)
    gram = gram - row - row.swapaxes(1, 2) + row.mean(1, keepdims=True)
    i, j = np.triu_indices(gram.shape[1], 1)
    return np.concatenate([np.sqrt(2) * gram[:, i, j], np.diagonal(gram, axis1=1, axis2=2)], axis=1)


def _tau_a(x: np.ndarray, y: np.ndarray) -> float:
    """From tau-b, which divides by the pairs without ties: τ_a = τ_b √((n₀ - n₁)(n₀ - n₂)) / n₀."""
    all_pairs = len(x) * (len(x) - 1) / 2
    free = [all_pairs - sum(c * (c - 1) / 2 for c in np.unique(side, return_counts=True)[1].tolist()) for side in (x, y)]
    if not all(free):
        return 0.0
    return float(kendalltau(x, y).statistic * np.sqrt(free[0] * free[1]) / all_pairs)


def _poolable(rdms: RDMs, measure: str) -> RDMs:
    """RDMs on the scale on which their mean is the best RDM for all (for tau-a, approximately)."""
    if measure in ("spearman", "rho-a", "tau-a"):
        return np.asarray(rankdata(rdms, axis=1))
    if measure.endswith("pearson"):
        rdms = rdms - rdms.mean(1, keepdims=True)
    size = np.sqrt((rdms**2).mean(1, keepdims=True))
    return np.asarray(np.divide(rdms, size, out=np.zeros_like(rdms), where=size > 0))
