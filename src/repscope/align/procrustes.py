"""Orthogonal Procrustes distance between two representations of the same rows, fitted on some rows and scored on others.

With centred X and Y and ‖·‖ the Frobenius norm, over all rotations and reflections Q

    similarity  = max_Q ⟨X Q, Y⟩ / (‖X‖ ‖Y‖) = ‖Xᵀ Y‖_* / (‖X‖ ‖Y‖)       (nuclear norm; Schönemann 1966)
    distance    = min_Q ‖ X Q/‖X‖ - Y/‖Y‖ ‖ = √(2 - 2 similarity)          0 … √2
    angle       = arccos(similarity), in radians                           Williams et al. 2021, arXiv:2110.14739 (netrep)

With no more rows than features a rotation fits anything, and the distance on its own rows is near 0. So Q is fitted on some rows
and ⟨X Q, Y⟩ is taken on others, centred by the means of the first. Directions that the fitted rows do not determine are left as
they are (Q is the identity there) if both are equally wide. Memory: one matrix (feature, feature), however many rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope.align.rows import Rows, as_rows, same_rows
from repscope.errors import UserError

_UNDETERMINED = 1e-5  #: of the Frobenius norm: float32 products have no more to say there


@dataclass(frozen=True, eq=False)
class Rotation:
    """A fitted rotation. matrix: (x feature, y feature), orthonormal. mean_x, mean_y: means of the fitted rows."""

    matrix: Float[np.ndarray, "x y"]
    mean_x: Float[np.ndarray, "x"]
    mean_y: Float[np.ndarray, "y"]

    def sums(self, x: Any, y: Any) -> Float[np.ndarray, "3"]:
        """⟨X Q, Y⟩, ‖X‖² and ‖Y‖² of held-out rows; sums over several batches add up.

        Raises
        ------
        UserError
            For rows of another number or width.
        """
        first, second = _pair(x, y)
        if (first.shape[1], second.shape[1]) != self.matrix.shape:
            raise UserError(f"The rotation maps {len(self.matrix)} features to {self.matrix.shape[1]}; give rows of these widths.")
        a, b = first - self.mean_x, second - self.mean_y
        return np.array([np.vdot(a @ self.matrix, b), np.vdot(a, a), np.vdot(b, b)])

    def similarity(self, x: Any, y: Any) -> float:
        """⟨X Q, Y⟩ / (‖X‖ ‖Y‖) of held-out rows, at most 1; NaN where one does not vary."""
        return float(similarity(self.sums(x, y)))


class ProcrustesFit:
    """The rows that a rotation is fitted to, batch by batch.

    >>> rng = np.random.default_rng(0)
    >>> x, q = rng.standard_normal((50, 4)), np.linalg.qr(rng.standard_normal((4, 4)))[0]
    >>> fit = ProcrustesFit()
    >>> fit.update(x[:25], 3 * x[:25] @ q)
    >>> round(distance(fit.rotation().similarity(x[25:], 3 * x[25:] @ q)), 3)
    0.0
    """

    def __init__(self) -> None:
        self.rows = 0
        self._shift: tuple[np.ndarray, np.ndarray] | None = None
        self._sums: tuple[np.ndarray, np.ndarray] | None = None
        self._squares = np.zeros(2)
        self._xy: np.ndarray | None = None

    def update(self, x: Any, y: Any) -> None:
        """Add a batch (row, feature) of both representations.

        Raises
        ------
        UserError
            For different numbers of rows, another width than before, or values that are not finite.
        """
        first, second = _pair(x, y)
        if self._shift is None:  # near the mean, so that the sums below lose nothing
            self._shift = first.mean(0, dtype=np.float64), second.mean(0, dtype=np.float64)
            self._sums = np.zeros(first.shape[1]), np.zeros(second.shape[1])
            self._xy = np.zeros((first.shape[1], second.shape[1]))
        assert self._sums is not None
        assert self._xy is not None
        if (first.shape[1], second.shape[1]) != self._xy.shape:
            raise UserError(
                f"This batch is {first.shape[1]} and {second.shape[1]} wide, not {self._xy.shape}; give rows of one site."
            )
        with np.errstate(invalid="ignore", over="ignore"):
            a, b = (r - m.astype(r.dtype) for r, m in zip((first, second), self._shift))
            product = a.T @ b
        if not np.isfinite(product).all():
            raise UserError("Some values of a representation are not finite or too large; leave those rows out or give float64.")
        self._xy += product
        for k, part in enumerate((a, b)):
            self._sums[k][:] += part.sum(0, dtype=np.float64)
            self._squares[k] += np.vdot(part, part)
        self.rows += len(first)

    def rotation(self) -> Rotation:
        """The best rotation of the first representation onto the second.

        Raises
        ------
        UserError
            Before the first batch.
        """
        xy = self._centred()
        if xy.shape[0] == xy.shape[1]:
            xy = xy + _UNDETERMINED * np.linalg.norm(xy) * np.eye(len(xy))
        u, _, vt = np.linalg.svd(xy, full_matrices=False)
        assert self._shift is not None
        assert self._sums is not None
        return Rotation(u @ vt, *(m + s / self.rows for m, s in zip(self._shift, self._sums)))

    def similarity(self) -> float:
        """‖Xᵀ Y‖_* / (‖X‖ ‖Y‖) of the fitted rows themselves: too high unless there are many more rows than features."""
        nuclear = np.linalg.svd(self._centred(), compute_uv=False).sum()
        assert self._sums is not None
        xx, yy = (self._squares[k] - (self._sums[k] ** 2).sum() / self.rows for k in range(2))
        return float(similarity(np.array([nuclear, xx, yy])))

    def _centred(self) -> Float[np.ndarray, "x y"]:
        if self._xy is None or self._sums is None:
            raise UserError("No batch was given to this Procrustes fit; call update first.")
        return np.asarray(self._xy - np.outer(*self._sums) / self.rows)


def procrustes(x: Any, y: Any, *, held_out: tuple[Any, Any] | None = None) -> float:
    """Procrustes distance √(2 - 2 similarity) of two representations, scored on `held_out` rows of both, or on the fitted ones.

    Raises
    ------
    UserError
        For different numbers of rows, other widths held out, or values that are not finite.
    """
    fit = ProcrustesFit()
    fit.update(x, y)
    return distance(fit.similarity() if held_out is None else fit.rotation().similarity(*held_out))


def similarity(sums: Float[np.ndarray, "*draw 3"]) -> Float[np.ndarray, "*draw"]:
    """The ratio of `Rotation.sums`, possibly of many draws; NaN where a representation does not vary."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = sums[..., 0] / np.sqrt(sums[..., 1] * sums[..., 2])
    return np.asarray(np.minimum(found, 1.0))


def distance(similarity: float) -> float:
    """√(2 - 2 similarity): 0 for rotated copies, √2 for unrelated rows, up to 2 where held-out rows contradict the fit."""
    return float(np.sqrt(np.maximum(2 - 2 * np.float64(similarity), 0)))


def angle(similarity: float) -> float:
    """arccos(similarity), in radians: netrep's angular distance."""
    return float(np.arccos(np.clip(similarity, -1, 1)))


def _pair(x: Any, y: Any) -> tuple[Rows, Rows]:
    first, second = as_rows(x, "The first representation"), as_rows(y, "The second representation")
    same_rows(first, second)
    return first, second
