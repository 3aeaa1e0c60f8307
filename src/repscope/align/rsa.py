"""Representational similarity analysis: the rank correlation of two matrices of dissimilarities between the same rows.

    RDM_ij = ‖x_i - x_j‖²                      "euclidean": unchanged by rotation and shift; ranks are those of the distance
    RDM_ij = 1 - corr(x_i, x_j)                "correlation": over features; unchanged by scale and shift of each row
    RSA    = Spearman's rho of the entries above the diagonals (Kriegeskorte, Mur & Bandettini 2008); ties have mean ranks

Pairs of rows share rows, so entries are not independent: take the mean and its interval over batches of rows. Memory grows with
the square of the rows of a batch.
"""

from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from repscope.align.rows import as_rows, same_rows
from repscope.errors import UserError, unknown

Dissimilarity = Literal["euclidean", "correlation"]
_EQUAL = 1e-12  #: of the squared norms: a distance below it is rounding, between equal rows


def rdm(x: Any, dissimilarity: Dissimilarity = "euclidean") -> Float[np.ndarray, "pair"]:
    """Dissimilarities of all pairs of rows (the entries above the diagonal, row after row).

    Raises
    ------
    UserError
        For fewer than 3 rows, an unknown dissimilarity, values that are not finite, or a constant row with "correlation".
    """
    if dissimilarity not in get_args(Dissimilarity):
        raise unknown("dissimilarity", dissimilarity, get_args(Dissimilarity))
    rows = as_rows(x, "The representation", 3).astype(np.float64)
    if not np.isfinite(rows).all():
        raise UserError("Some values of the representation are not finite; leave those rows out.")
    if dissimilarity == "correlation":
        rows = rows - rows.mean(1, keepdims=True)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        if not (norms > 0).all():
            raise UserError(f"Row {int(np.argmin(norms))} is constant and has no correlation; leave it out or use 'euclidean'.")
        rows = rows / norms
    else:
        rows = rows - rows.mean(0)
    gram = rows @ rows.T
    squares = np.diag(gram)
    i, j = np.triu_indices(len(rows), 1)
    sums = squares[i] + squares[j]
    found = sums - 2 * gram[i, j]
    apart = np.where(found > _EQUAL * sums, found, 0.0)
    return apart / 2 if dissimilarity == "correlation" else apart  # ‖a - b‖² = 2 - 2 cos of unit vectors


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
