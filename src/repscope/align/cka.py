"""Linear CKA (centered kernel alignment) with the unbiased estimator, over minibatches and all pairs of layers at once.

For one batch of n rows, K = X Xᵀ and L = Y Yᵀ with their diagonals set to zero (Song et al. 2012, JMLR 13:1393, eq. 5):

    HSIC₁(K, L) = [ tr(K L) + (1ᵀK1)(1ᵀL1) / ((n-1)(n-2)) - 2/(n-2) · 1ᵀK L 1 ] / (n (n-3))
    CKA = Σ_b HSIC₁(K_b, L_b) / √( Σ_b HSIC₁(K_b, K_b) · Σ_b HSIC₁(L_b, L_b) )

The three HSICs are summed over batches, then divided once (Nguyen, Raghu & Kornblith 2021, arXiv:2010.15327, eq. 3). Independent
representations give 0 on average, possibly less; the biased estimator gives n and the widths away. Nothing is added to the
denominator. A representation that does not vary has no CKA: NaN.

1. Rows are centred on the batch's mean, which changes nothing but rounding; a scale outside float32's comfortable range is divided
   out by a power of two that all batches of a layer share.
2. HSIC₁ is an inner product: with U(K) = K minus its row and column parts (Székely & Rizzo 2014, U-centring), off the diagonal,
   HSIC₁(K, L) = ⟨U(K), U(L)⟩ / (n (n-3)). So all pairs of layers are one matrix product of the packed upper triangles.
3. Memory: the Grams of one batch, and three sums per pair of layers for at most `KEPT` groups of batches, over which the
   bootstrap interval is drawn. It does not grow with the number of rows.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from repscope import stats
from repscope.align.rows import Rows, as_rows, same_rows, slices
from repscope.errors import UserError
from repscope.stats import Estimate

BATCH = 256  #: rows; the cost of all Grams grows with it, the variance falls little beyond
KEPT = 64  #: groups of batches; batch b belongs to group b mod KEPT
LEAST = 4  #: rows of a batch: HSIC₁ divides by n - 3
_COMFORT = 2.0**20  #: root mean square norms from its inverse to it need no scale


class CKAAccumulator:
    """CKA between all layers of two networks, batch by batch; of one network with itself if `y` is left out.

    >>> rng = np.random.default_rng(0)
    >>> cka = CKAAccumulator()
    >>> for _ in range(8):
    ...     x = rng.standard_normal((64, 5))
    ...     cka.update([x, x**2], [2 * x])
    >>> cka.matrix().round(1).tolist()
    [[1.0], [-0.0]]
    """

    def __init__(self) -> None:
        self.batches = 0  #: batches seen
        self._layers: tuple[int, int] | None = None
        self._itself = False
        self._scales: list[np.ndarray] = []  #: per network, factor of each layer; NaN until a batch varies
        self._sums: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  #: xy, xx, yy, per group
        self._counts = np.zeros(KEPT, dtype=np.int64)

    def update(self, x: Sequence[Any], y: Sequence[Any] | None = None) -> None:
        """Add one batch: per layer an array or tensor (row, feature), all of the same inputs in the same order.

        Raises
        ------
        UserError
            For fewer than 4 rows, layers with different numbers of rows, another number of layers than before, or values that are
            not finite.
        """
        first = [as_rows(layer, f"Layer {i} of the first network", LEAST) for i, layer in enumerate(x)]
        second = first if y is None else [as_rows(layer, f"Layer {i} of the second network", LEAST) for i, layer in enumerate(y)]
        layers = len(first), len(second)
        if not all(layers):
            raise UserError("A network without a layer was given; give one array per layer.")
        if self._layers is None:
            self._layers, self._itself = layers, y is None
            self._scales = [np.full(n, np.nan) for n in layers]
            self._sums = np.zeros((KEPT, *layers)), np.zeros((KEPT, layers[0])), np.zeros((KEPT, layers[1]))
        if layers != self._layers or (y is None) != self._itself:
            raise UserError(f"This batch has {layers} layers and those before {self._layers}; give the same layers in every batch.")
        for layer in (*first, *second):
            same_rows(first[0], layer)
        n = len(first[0])
        a, aa = _packed(first, self._scales[0], "first")
        b, bb = (a, aa) if y is None else _packed(second, self._scales[1], "second")
        assert self._sums is not None
        group, pairs = self.batches % KEPT, n * (n - 3) / 2  # each pair of rows is held once
        for total, found in zip(self._sums, (a @ b.T, aa, bb)):
            total[group] += found / pairs
        self._counts[group] += 1
        self.batches += 1

    def matrix(self) -> Float[np.ndarray, "x y"]:
        """CKA of each layer of the first network with each of the second; NaN where one does not vary.

        Raises
        ------
        UserError
            Before the first batch.
        """
        xy, xx, yy = (s.sum(0) for s in self._seen())
        with np.errstate(divide="ignore", invalid="ignore"):
            found: np.ndarray = xy / np.sqrt(np.outer(xx, yy))
        return found

    def estimate(self, i: int, j: int, *, seed: int = 0) -> Estimate:
        """CKA of layer i of the first and layer j of the second network, with its bootstrap interval over (groups of) batches.

        Raises
        ------
        UserError
            Before the first batch.
        """
        xy, xx, yy = self._seen()
        held = self._counts > 0
        top = np.stack([xy[held, i, j], xx[held, i], yy[held, j]], axis=1)
        bottom = np.repeat(self._counts[held, None].astype(np.float64), 3, axis=1)
        found = stats.functions_of_ratios(top, bottom, {"cka": _cka}, unit="batch", seed=seed)["cka"]
        return found if held.sum() > 1 else replace(found, lo=float("nan"), hi=float("nan"))  # one batch has no spread

    def _seen(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._sums is None:
            raise UserError("No batch was given to this CKA; call update first.")
        return self._sums


def unbiased_cka(x: Any, y: Any, *, batch: int = BATCH) -> float:
    """Unbiased minibatch CKA of two representations (row, feature) of the same rows; widths may differ.

    Rows are cut into consecutive batches of nearly equal size, at most `batch`; up to so many rows are one batch. Shuffle rows that
    are sorted by anything, the same way in both.

    Raises
    ------
    UserError
        For different numbers of rows, fewer than 4, batches of fewer than 4, or values that are not finite.

    >>> x = np.random.default_rng(0).standard_normal((100, 8))
    >>> round(unbiased_cka(x, 1e-6 * x[:, ::-1]), 6)
    1.0
    """
    first, second = as_rows(x, "The first representation", LEAST), as_rows(y, "The second representation", LEAST)
    same_rows(first, second)
    parts = slices(len(first), batch) if batch >= LEAST else []
    if not parts or min(part.stop - part.start for part in parts) < LEAST:
        raise UserError(f"Batches of {batch} rows leave fewer than {LEAST} in one of them; take larger batches.")
    found = CKAAccumulator()
    for part in parts:
        found.update([first[part]], [second[part]])
    return float(found.matrix()[0, 0])


def _cka(means: Float[np.ndarray, "draw 3"]) -> Float[np.ndarray, "draw"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(means[:, 0] / np.sqrt(means[:, 1] * means[:, 2]))


def _packed(
    layers: Sequence[Rows], scales: Float[np.ndarray, "layer"], which: str
) -> tuple[Float[np.ndarray, "layer pair"], Float[np.ndarray, "layer"]]:
    """The U-centred Gram of each layer above its diagonal, and its squared norm."""
    n = len(layers[0])
    above = _above(n)
    kind = np.result_type(*layers)
    packed, gram = np.empty((len(layers), len(above)), kind), np.empty((n, n), kind)
    squares = np.empty(len(layers))
    for i, layer in enumerate(layers):
        x = _centred(layer, scales, i).astype(kind, copy=False)
        np.matmul(x, x.T, out=gram)  # numpy computes one triangle of a product with its own transpose (syrk)
        _u_centre(gram)
        np.take(gram.reshape(-1), above, out=packed[i], mode="clip")
        squares[i] = np.dot(packed[i], packed[i])
        if not np.isfinite(squares[i]):
            finite = bool(np.isfinite(layer).all())
            why = "differ too much in size between batches" if finite else "are not finite"
            raise UserError(f"Values in layer {i} of the {which} network {why}; leave those rows out or give float64.")
    return packed, squares


def _centred(layer: Rows, scales: Float[np.ndarray, "layer"], i: int) -> Rows:
    """Rows minus their mean, times the layer's factor: 1 unless its values are very small or very large."""
    if scales[i] == 1:  # the usual case
        return np.asarray(layer - layer.mean(0))
    if np.isnan(scales[i]):
        wide = layer.astype(np.float64)
        size = float(np.sqrt(((wide - wide.mean(0)) ** 2).sum(1).mean()))
        if size > 0 and np.isfinite(size):
            scales[i] = 1.0 if 1 / _COMFORT < size < _COMFORT else 2.0 ** -round(np.log2(size))
    factor = 1.0 if np.isnan(scales[i]) else scales[i]
    wide = layer.astype(np.float64) * factor
    return np.asarray((wide - wide.mean(0)).astype(layer.dtype))


def _u_centre(gram: Float[np.ndarray, "row row"]) -> None:
    """In place; the diagonal is left undefined, as it is not read."""
    n = len(gram)
    np.fill_diagonal(gram, 0)
    rows = gram.sum(1, dtype=np.float64)
    part = (rows / (n - 2) - rows.sum() / (2 * (n - 1) * (n - 2))).astype(gram.dtype)
    gram -= part[:, None]
    gram -= part


@lru_cache(maxsize=8)
def _above(n: int) -> Int[np.ndarray, "pair"]:
    """Flat indices of the entries above the diagonal of an n × n matrix."""
    i, j = np.triu_indices(n, 1)
    flat: np.ndarray = i * n + j
    return flat
