"""Leading singular triplets of a matrix given only by its products (block Krylov iteration).

Block Golub–Kahan iteration (Golub, Luk & Overton 1981; Musco & Musco 2015, arXiv 1504.05477), all but the products in float64:

1. V begins as random orthonormal columns. Half a step makes Y = JV and widens U to hold Y; the next makes W = JᵀU and widens V to
   hold W. U and V are orthogonalised against all of themselves, twice. Random columns take the place of directions in which a
   product adds nothing, so that a rank below k, or a start that misses a direction, does not end the iteration early.
2. After each half the small matrix UᵀJV is decomposed; its singular values σ are the Ritz values, which never exceed those of J in
   the same place (Cauchy), and its singular vectors give u and v.
3. Jv and Jᵀu are known, for all products are kept. With ρ² = (|Jv - σu|² + |Jᵀu - σv|²)/2 a singular value of J lies within ρ of σ:
   (u, v)/√2 is a unit vector with that residual for the symmetric matrix [[0, J], [Jᵀ, 0]] (Parlett 1998, The Symmetric Eigenvalue
   Problem, section 4.5). Where ρ ≥ σ the value nearby may be a zero that this matrix has only for J not being square; √2ρ holds
   then, for no |Jᵀu| (J wide) or |Jv| (J tall) of unit vectors is below the smallest singular value. UᵀJV is the mean of UᵀY and
   WᵀV, so that where the two kinds of product disagree, being of low precision, both residuals show it.
4. It ends when every ρ is small enough, when U or V spans the whole space, or when the limit on products is reached.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from repscope.errors import UserError

Product = Callable[[Float[np.ndarray, "vector d_in"]], Float[np.ndarray, "vector d_out"]]

_BLOCK = 8  #: vectors multiplied together; narrower blocks need fewer products, in more passes
_FLOOR = 1e-3  #: of the largest value; the tolerance of smaller ones is that of a value of this size
_NOTHING = 1e-12  #: of a block's largest singular value; directions below are rounding


@dataclass(frozen=True, eq=False)
class Triplets:
    """Leading singular triplets (Jv ≈ su, Jᵀu ≈ sv) found by `leading`, with what certifies them.

    Some singular value of J lies within `residual[i]` of `s[i]`, and `s[i]` does not exceed the i-th of J; both up to the precision
    of the products, of which `residual` shows where the two kinds disagree. The value is as a rule much nearer: its error is of
    second order in the residual, where values lie apart. Not certified: that none of the leading values was missed, which fewer
    products than J has rows cannot show (a random start makes it unlikely); nor the vectors of values closer than their residuals.

    u: (k, d_target), orthonormal rows. s: (k), descending, in units of the target per unit of the source. v: (k, d_source),
    orthonormal rows, the largest entry of each positive. residual: (k), in the units of s. products: vectors multiplied with J or
    Jᵀ. converged: whether every residual is within the tolerance; False says nothing worse than that.
    """

    u: Float[np.ndarray, "k d_target"]
    s: Float[np.ndarray, "k"]
    v: Float[np.ndarray, "k d_source"]
    residual: Float[np.ndarray, "k"]
    products: int
    converged: bool

    def __repr__(self) -> str:
        k, said = len(self.s), "converged" if self.converged else "not converged"
        values = f"s {self.s[0]:.3g} … {self.s[-1]:.3g}, residual up to {self.residual.max():.1g}"
        return f"Triplets({k}: {values}, {self.products} products, {said})"


def leading(
    jvp: Product,
    vjp: Product,
    shape: tuple[int, int],
    k: int = 16,
    *,
    seed: int = 0,
    tolerance: float = 0.01,
    products: int = 192,
    block: int | None = None,
    advance: Callable[[int], object] | None = None,
) -> Triplets:
    """The k leading singular triplets of J (d_target, d_source), given by its products `jvp` and `vjp` with rows of vectors.

    tolerance: largest residual relative to its value, or to a thousandth of the largest value if its own is smaller. products:
    maximum number of vectors multiplied with J or Jᵀ. block: vectors per product, at least the number of equal leading values; by
    default 8, or fewer if k or J is smaller. advance: called with the number of products just made.

    Raises a `UserError` for an invalid k, tolerance or block, for fewer products than k values need, and for products that have the
    wrong shape or are not finite.
    """
    d_target, d_source = shape
    small = min(shape)
    for name, value in (("k", k), ("products", products), ("block", 1 if block is None else block)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise UserError(f"{name} is {value!r}; it must be a whole number.")
    if not 1 <= k <= small:
        raise UserError(f"A matrix of {d_target} × {d_source} has no {k} singular values; ask for 1 to {small}.")
    if not tolerance > 0:
        raise UserError(f"No residual is within {tolerance}; choose a tolerance above 0.")
    width = min(small, _BLOCK, max(k, 4)) if block is None else min(small, block)
    if width < 1:
        raise UserError(f"A block of {block} vectors is none; choose at least 1.")
    if products < (least := 2 * width * -(-k // width)):
        raise UserError(f"{k} singular values take at least {least} products in blocks of {width}; {products} are allowed.")

    random = np.random.default_rng(seed)
    source, target = Side(jvp, d_source, d_target), Side(vjp, d_target, d_source)
    here, there = source, target
    made, found, newest = 0, None, random.standard_normal((d_source, width))
    while (more := min(newest.shape[1], here.left)) and made + more <= products:
        newest = here.widened(newest[:, :more], random)
        made += more
        if advance is not None:
            advance(more)
        if target.basis.shape[1] >= k:
            found = _ritz(source, target, k, tolerance, made)
            if found.converged:
                break
        here, there = there, here
    assert found is not None  # the least products are enough for k values
    return found


class Side:
    """The orthonormal basis on one side of J and what its vectors become on the other."""

    def __init__(self, product: Product, d: int, d_other: int) -> None:
        self.product, self.d_other = product, d_other
        self.basis: Float[np.ndarray, "d m"] = np.empty((d, 0))
        self.image: Float[np.ndarray, "d_other m"] = np.empty((d_other, 0))

    @property
    def left(self) -> int:
        """Dimensions that the basis does not span."""
        d, m = self.basis.shape
        return int(d - m)

    def widened(self, block: Float[np.ndarray, "d new"], random: np.random.Generator) -> Float[np.ndarray, "d_other new"]:
        """Widen the basis by as many vectors as `block` has, to hold it and random ones where it adds nothing; multiply them."""
        directions, size, _ = np.linalg.svd(self._rest(block), full_matrices=False)
        kept = directions[:, size > _NOTHING * np.linalg.norm(block, 2)]
        new = np.hstack([kept, random.standard_normal((len(block), block.shape[1] - kept.shape[1]))])
        for _ in range(2):  # what is left of a small direction has lost its orthogonality
            new = np.linalg.qr(self._rest(new))[0]
        image = np.asarray(self.product(np.ascontiguousarray(new.T)), dtype=np.float64).T
        if image.shape != (self.d_other, new.shape[1]):
            raise UserError(f"A product has the shape {image.T.shape}; it must be {(new.shape[1], self.d_other)}, a row a vector.")
        if not np.isfinite(image).all():
            raise UserError("A product with the matrix is not finite; see whether the matrix is, or take a wider type.")
        self.basis, self.image = np.hstack([self.basis, new]), np.hstack([self.image, image])
        return image

    def _rest(self, x: Float[np.ndarray, "d new"]) -> Float[np.ndarray, "d new"]:
        for _ in range(2):
            x = x - self.basis @ (self.basis.T @ x)
        return x


def _ritz(source: Side, target: Side, k: int, tolerance: float, made: int) -> Triplets:
    """The k leading triplets of J between the two bases, with residuals of both kinds of product."""
    p, s, r = np.linalg.svd((target.basis.T @ source.image + target.image.T @ source.basis) / 2, full_matrices=False)
    p, s, r = p[:, :k], s[:k], r[:k].T
    u, v = target.basis @ p, source.basis @ r
    parts = np.vstack([source.image @ r - u * s, target.image @ p - v * s])
    residual = np.sqrt((parts**2).sum(0) / 2)
    residual[residual >= s] *= np.sqrt(2)
    sign = np.sign(v[np.abs(v).argmax(0), np.arange(k)])
    converged = bool((residual <= tolerance * np.maximum(s, _FLOOR * s[0])).all())
    return Triplets((u * sign).T, s, (v * sign).T, residual, made, converged)
