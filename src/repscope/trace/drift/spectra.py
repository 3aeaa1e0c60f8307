"""Singular values of a change of weights, exactly, and what they say.

1. Of a matrix: the square roots of the eigenvalues of its Gram matrix on the shorter side, added up in float64 over parts.
   Eigenvalues below n ε of the largest are zero within rounding and become zero: singular values below 4e-7 of the largest for
   n = 576, which is less than what float32 itself leaves in a difference of weights.
2. Of a product of two thin matrices (LoRA): from the QR decompositions of the factors, in float64; the others are zero.
3. Effective rank: exp H(p) with p = s / Σ s (Roy & Vetterli 2007). It is r for r equal singular values, and between 1 and the
   rank otherwise; 0 for no change. Top-k energy: Σ_{i ≤ k} s² / Σ s².

Memory beyond one part: two matrices of the shorter side squared in float64; a matrix with more columns than rows is held in
float32.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float

TOP = 10  #: default k of the energy

Matrix = Float[np.ndarray, "row column"]
Spectrum = Float[np.ndarray, "value"]
_STRIP = 1 << 20  #: entries that are converted to float64 at once


def of_matrix(parts: Iterable[Matrix], shape: tuple[int, int]) -> Spectrum:
    """Singular values in descending order.

    Parameters
    ----------
    parts
        Consecutive rows of the matrix, at least one part; a part is read before the next is asked for.
    shape
        Rows and columns.
    """
    rows, columns = shape
    gram = np.zeros((min(shape), min(shape)))
    if columns <= rows:
        for part in parts:
            wide = part.astype(np.float64)
            gram += wide.T @ wide
    else:
        held, at = np.empty(shape, dtype=np.float32), 0
        for part in parts:
            held[at : at + len(part)] = part
            at += len(part)
        step = max(1, _STRIP // rows)
        for first in range(0, columns, step):
            wide = held[:, first : first + step].astype(np.float64)
            gram += wide @ wide.T
    values = torch.linalg.eigvalsh(torch.from_numpy(gram)).numpy()[::-1]
    least = len(values) * np.finfo(np.float64).eps * max(values[0], 0.0)
    return np.sqrt(np.where(values > least, values, 0.0))


def of_product(b: Float[np.ndarray, "row rank"], a: Float[np.ndarray, "rank column"]) -> Spectrum:
    """Singular values of b @ a in descending order, min(rows, columns) of them."""
    left, right = (torch.linalg.qr(torch.from_numpy(m.astype(np.float64)), mode="r")[1] for m in (b, np.ascontiguousarray(a.T)))
    values = torch.linalg.svdvals(left @ right.T).numpy()
    full = np.zeros(min(b.shape[0], a.shape[1]))
    full[: min(len(values), len(full))] = values[: len(full)]
    return full


def of_random(shape: tuple[int, int], seed: int) -> Spectrum:
    """Singular values in descending order of a matrix of independent normal entries, without drawing all of them.

    The Gram matrix on the shorter side is L L' with L lower triangular: √χ² on the diagonal, normal below it (Bartlett 1933).
    """
    rng, long, short = np.random.default_rng(seed), max(shape), min(shape)
    lower = np.tril(rng.standard_normal((short, short)), -1)
    np.fill_diagonal(lower, np.sqrt(rng.chisquare(long - np.arange(short))))
    return np.asarray(torch.linalg.svdvals(torch.from_numpy(lower)).numpy())


def effective_rank(values: Spectrum) -> float:
    """exp of the entropy of the singular values over their sum; 0 if all are zero.

    >>> round(effective_rank(np.array([2.0, 2.0, 2.0, 0.0])), 6)
    3.0
    """
    total = values.sum()
    if total == 0:
        return 0.0
    p = values[values > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))


def top_energy(values: Spectrum, k: int = TOP) -> float:
    """Share of the k largest singular values in the sum of squares; 0 if all are zero.

    >>> top_energy(np.array([2.0, 1.0, 1.0]), 1)
    0.6666666666666666
    """
    squares = values**2
    return float(squares[:k].sum() / squares.sum()) if squares.sum() else 0.0
