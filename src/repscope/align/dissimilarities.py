"""Representational dissimilarity matrices (RDMs): the dissimilarity of every pair of conditions, from their responses.

With x_i the responses to condition i in P channels (features, neurons, voxels):

    euclidean     ‖x_i - x_j‖² / P                                    per channel, so that populations of any size compare
    correlation   1 - corr(x_i, x_j)                                  over channels
    mahalanobis   (x_i - x_j)ᵀ Σ⁻¹ (x_i - x_j) / P                    Σ⁻¹ the precision of the noise
    crossnobis    mean over pairs of different runs r, s of (x_ir - x_jr)ᵀ Σ⁻¹ (x_is - x_js) / P
    poisson       Σ (λ_i - λ_j)(log λ_i - log λ_j) / P                symmetrised KL of Poisson rates λ = (x + λ₀ w) / (1 + w)

Crossnobis is unbiased: noise adds to no distance, so values below 0 are ordinary where the truth is 0 (Walther et al. 2016). With R
runs and S = Σ X_r,

    G = (S Sᵀ - Σ_r X_r X_rᵀ) / (R (R - 1)),   d_ij = (G_ii + G_jj - G_ij - G_ji) / P

is R + 1 products of (condition, channel) matrices, block of channels by block: memory does not grow with them. The Poisson
dissimilarity across runs is the mean over *all* runs left out.

All RDMs are the entries above the diagonal, row after row ("pair"), in float64. Products are made where the responses are: numpy
arrays on the CPU, tensors on their own device.
"""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from repscope.align.rows import as_rows
from repscope.errors import UserError, unknown

Dissimilarity = Literal["euclidean", "correlation", "mahalanobis", "poisson"]
Crossvalidated = Literal["crossnobis", "poisson"]
RDM = Float[np.ndarray, "pair"]
_EQUAL = 1e-12  #: of the squared norms: a distance below it is rounding, between equal rows
_BLOCK = 16_384  #: channels in float64 at a time
_RATE, _WEIGHT = 1.0, 0.1  #: λ₀ and w of the Poisson rates


def rdm(
    x: Any, dissimilarity: Dissimilarity = "euclidean", *, precision: Float[np.ndarray, "channel channel"] | None = None
) -> RDM:
    """Dissimilarities of all pairs of conditions.

    Parameters
    ----------
    x : Float[Array, "condition channel"]
        One row per condition; further axes are flattened into channels.
    precision : Float[np.ndarray, "channel channel"], optional
        Σ⁻¹ of "mahalanobis".

    Raises
    ------
    UserError
        For fewer than 3 conditions, an unknown dissimilarity, values that are not finite, a constant row with "correlation", rates
        below 0 with "poisson", or a precision that is not symmetric and positive definite.

    >>> rdm([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    array([1., 2., 1.])
    """
    if dissimilarity not in get_args(Dissimilarity):
        raise unknown("dissimilarity", dissimilarity, get_args(Dissimilarity))
    if (precision is not None) != (dissimilarity == "mahalanobis"):
        raise UserError(
            "'mahalanobis' needs precision=, the inverse covariance of the noise (`noise_precision`); others take none."
        )
    rows = _responses(x, "The representation")
    if dissimilarity == "poisson":
        return _distances(_poisson_gram(rows, rows), rows.shape[1])
    rows = rows if precision is None else _channels(rows) @ _root(precision, rows.shape[1])
    if dissimilarity == "correlation":
        return _correlation(rows)
    gram: Any = sum(_product(block - block.mean(0)) for block in _blocks(rows))
    return _distances(_numpy(gram), rows.shape[1])


def crossvalidated_rdm(
    runs: Any, dissimilarity: Crossvalidated = "crossnobis", *, precision: Float[np.ndarray, "channel channel"] | None = None
) -> RDM:
    """Dissimilarities across independent runs of the same conditions, with no bias by noise.

    Parameters
    ----------
    runs : Float[Array, "run condition channel"]
        Mean responses per run, the same conditions in the same order.
    precision : Float[np.ndarray, "channel channel"], optional
        Σ⁻¹ of the noise ("crossnobis"); the identity by default.

    Raises
    ------
    UserError
        For fewer than 2 runs, and as `rdm`.
    """
    if dissimilarity not in get_args(Crossvalidated):
        raise unknown("dissimilarity across runs", dissimilarity, get_args(Crossvalidated))
    if dissimilarity == "poisson" and precision is not None:
        raise UserError("precision= belongs to 'crossnobis'; leave it out for Poisson rates.")
    if getattr(runs, "ndim", np.ndim(runs)) < 3 or len(runs) < 2:
        shape = tuple(np.shape(runs))
        raise UserError(f"The responses have shape {shape}; give (run, condition, channel), with at least two runs.")
    x = [_responses(run, f"Run {i}") for i, run in enumerate(runs)]
    count, channels = len(x), x[0].shape[1]
    total = sum(x[1:], x[0])
    if dissimilarity == "poisson":
        folds = [_poisson_gram((total - run) / (count - 1), run) for run in x]
        return _distances(np.mean(folds, axis=0), channels, exact_zero=False)
    if precision is not None:
        root = _root(precision, channels)
        x, total = [_channels(run) @ root for run in x], _channels(total) @ root
    both = sum(_product(block) for block in _blocks(total)) - sum(_product(block) for run in x for block in _blocks(run))
    return _distances(_numpy(both) / (count * (count - 1)), channels, exact_zero=False)


def noise_precision(residuals: Any) -> Float[np.ndarray, "channel channel"]:
    """Σ⁻¹ from residuals (observation, channel) by the shrinkage of Ledoit & Wolf (2004).

    Raises
    ------
    UserError
        For fewer than 2 residuals, or values that are not finite.
    """
    from sklearn.covariance import LedoitWolf

    rows = _numpy(_responses(residuals, "The residuals", 2))
    found: np.ndarray = LedoitWolf(assume_centered=True).fit(rows - rows.mean(0)).precision_
    return found


def as_pairs(matrix: Any, what: str = "The RDM") -> RDM:
    """The entries above the diagonal of a square matrix of dissimilarities.

    Raises
    ------
    UserError
        For a matrix that is not square, of fewer than 3 conditions, not symmetric, or with a diagonal other than 0.
    """
    found = np.asarray(matrix, dtype=np.float64)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or len(found) < 3:
        raise UserError(f"{what} has shape {found.shape}; give a square matrix of at least 3 conditions.")
    size = np.nanmax(np.abs(found), initial=0)
    if not np.allclose(found, found.T, atol=1e-9 * size, rtol=0, equal_nan=True):
        i, j = np.unravel_index(int(np.nanargmax(np.abs(found - found.T))), found.shape)
        raise UserError(f"{what} is not symmetric: ({i}, {j}) is {found[i, j]:.4g} and ({j}, {i}) is {found[j, i]:.4g}.")
    if not (np.abs(np.diag(found)) <= 1e-9 * size).all():
        raise UserError(f"{what} has a diagonal other than 0; give dissimilarities, not similarities.")
    return _above(found)


def conditions_of(pairs: int) -> int:
    """Number of conditions n with n (n - 1) / 2 pairs.

    Raises
    ------
    UserError
        If there is none.
    """
    n = round((1 + float(np.sqrt(1 + 8 * pairs))) / 2)
    if n * (n - 1) // 2 != pairs or n < 3:
        raise UserError(f"An RDM of {pairs} pairs belongs to no number of conditions; give the entries above its diagonal.")
    return n


def above_diagonal(pairs: Float[np.ndarray, "... pair"]) -> Float[np.ndarray, "... condition condition"]:
    """Matrices with these entries above the diagonal and zeros elsewhere."""
    n = conditions_of(pairs.shape[-1])
    above = np.zeros((*pairs.shape[:-1], n, n))
    for i, end in enumerate(np.arange(n - 1, 0, -1).cumsum()):  # whole rows: single entries take ten times as long
        above[..., i, i + 1 :] = pairs[..., end - (n - 1 - i) : end]
    return above


def _above(matrix: Float[np.ndarray, "condition condition"]) -> RDM:
    """Entries above the diagonal. A mask takes a sixteenth of the memory of two lists of indices."""
    found: np.ndarray = matrix[~np.tri(len(matrix), dtype=bool)]
    return found


def square(pairs: Float[np.ndarray, "... pair"]) -> Float[np.ndarray, "... condition condition"]:
    """Symmetric matrices with a zero diagonal, from their entries above it."""
    above = above_diagonal(pairs)
    return np.asarray(above + above.swapaxes(-1, -2))


def _responses(x: Any, what: str, least: int = 3) -> Any:
    """Checked (condition, channel): a float64 array, or a tensor on its own device."""
    if hasattr(x, "is_cuda") and x.device.type != "cpu":
        rows = x.detach().reshape(len(x), -1)
        finite = bool(rows.isfinite().all())
        if rows.shape[0] < least or not rows.shape[1]:
            raise UserError(f"{what} has {rows.shape[0]} rows of {rows.shape[1]} features; at least {least} rows are needed.")
    else:
        rows = as_rows(x if hasattr(x, "shape") else np.asarray(x), what, least)
        finite = bool(np.isfinite(rows).all())
    if not finite:
        raise UserError(f"Some values of {what[:1].lower() + what[1:]} are not finite; leave those conditions or channels out.")
    return rows


def _blocks(rows: Any) -> Iterator[Any]:
    """Blocks of channels in float64."""
    for start in range(0, rows.shape[1], _BLOCK):
        yield _channels(rows[:, start : start + _BLOCK])


def _channels(rows: Any) -> Any:
    return rows.double() if hasattr(rows, "is_cuda") else rows.astype(np.float64, copy=False)


def _product(block: Any) -> Any:
    return block @ block.T


def _numpy(x: Any) -> Float[np.ndarray, "..."]:
    found: np.ndarray = x.cpu().numpy() if hasattr(x, "is_cuda") else np.asarray(x, dtype=np.float64)
    return found


def _root(precision: Any, channels: int) -> Any:
    """L with L Lᵀ = precision."""
    found = np.asarray(precision, dtype=np.float64)
    if found.shape != (channels, channels):
        raise UserError(f"The precision has shape {found.shape} for {channels} channels; give one row and column a channel.")
    if not np.allclose(found, found.T, rtol=1e-8, atol=1e-10 * np.abs(found).max()):
        raise UserError("The precision of the noise is not symmetric; give the inverse of a covariance.")
    try:
        return np.linalg.cholesky(found)
    except np.linalg.LinAlgError:
        raise UserError("The precision of the noise is not positive definite; give the inverse of a covariance.") from None


def _correlation(rows: Any) -> RDM:
    """1 - corr over channels, block by block: moments about the mean of the first block, which keeps their digits."""
    shift = _channels(rows[:, :_BLOCK]).mean(1)[:, None]
    gram: Any = 0.0
    sums: Any = 0.0
    for block in _blocks(rows):
        block = block - shift
        gram, sums = gram + _product(block), sums + block.sum(1)
    del block  # as large as the responses
    gram, sums = _numpy(gram), _numpy(sums)
    gram -= np.outer(sums, sums / rows.shape[1])
    squares = np.diag(gram).copy()
    flat = squares <= _EQUAL * (squares + (_numpy(shift)[:, 0] ** 2) * rows.shape[1])
    if flat.any():
        raise UserError(f"Row {int(np.argmax(flat))} is constant and has no correlation; leave it out or use 'euclidean'.")
    gram /= np.outer(norms := np.sqrt(squares), norms)
    apart = 1 - _above(gram)
    return np.where(apart > _EQUAL, apart, 0.0)


def _poisson_gram(rates: Any, others: Any) -> Float[np.ndarray, "condition condition"]:
    """Σ_channels λ_i log λ′_j."""
    gram = np.zeros((len(rates), len(rates)))
    for a, b in zip(_blocks(rates), _blocks(others)):
        if bool((a < 0).any()) or bool((b < 0).any()):
            raise UserError("Some rates are below 0; 'poisson' needs spike counts or rates.")
        a, b = ((part + _RATE * _WEIGHT) / (1 + _WEIGHT) for part in (a, b))
        gram += _numpy(a @ (b.log() if hasattr(b, "is_cuda") else np.log(b)).T)
    return gram


def _distances(gram: Float[np.ndarray, "condition condition"], channels: int, *, exact_zero: bool = True) -> RDM:
    squares = np.diag(gram)
    sums = _above(np.add.outer(squares, squares))
    found: np.ndarray = sums - _above(gram + gram.T)
    if exact_zero:
        found = np.where(np.abs(found) > _EQUAL * np.abs(sums), found, 0.0)
    return found / channels
