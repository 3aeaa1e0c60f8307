"""`Direction`: a unit vector with its site, working scale, provenance and measured effects.

    weights = scale · vector            the vector that an edit adds, float32; `Direction.of(w, …).weights` is w, bit for bit
    score   = scale · (row · vector) + offset
    a + b, a - b, -a, 2 * a, a / 2      arithmetic on weights (and on scores), at one site
    a.without(b, c)                     weights minus their part in the span of b and c

The vector is float64: the two roundings on the way to float32 weights (division by the norm, product with it) then stay far below
half a step of float32. Measurements (`does`, `works`) do not transfer to another vector; a positive multiple has the same vector
and preserves `works`.
"""

import html
import math
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope.arrays import as_array
from repscope.errors import UserError
from repscope.models.sites import Site

_LENGTH = 1e-3  #: tolerance of a unit vector's norm
_LARGEST = float(np.finfo(np.float32).max)
_NOTHING = 1e-6  #: remainder of a unit vector that counts as rounding


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in a network.

    vector: (feature), unit norm, float64. site: where it applies. name: its name. scale: norm at which it works, in the site's own
    units. offset: of a probe's score. found_by: the method and its settings. does: measured effects by name. tokens: where an edit
    adds it. norm: median norm of activations at the site, so that scale / norm is the relative strength; nan if not measured.
    works: lowest and highest norm at which it works, in the site's own units. trained_on: its data. model: fingerprint of the
    network, empty if unknown.
    """

    vector: Float[np.ndarray, "feature"]
    site: str
    name: str
    scale: float = 1.0
    offset: float = 0.0
    found_by: str = ""
    does: dict[str, float] = field(default_factory=dict)
    tokens: str = "all"
    norm: float = math.nan
    works: tuple[float, float] | None = None
    trained_on: str = ""
    model: str = ""

    __array_ufunc__ = None  # so that numpy scalars defer arithmetic to this class

    def __post_init__(self) -> None:
        vector = np.array(as_array(self.vector, "features"), dtype=np.float64)
        with np.errstate(over="ignore"):
            length = float(np.linalg.norm(vector))
        if vector.ndim != 1 or not abs(length - 1) <= _LENGTH:
            raise UserError(
                f"The vector of the direction {self.name!r} has shape {vector.shape} and length {length:.6g}, not (feature) and 1; "
                "make it with Direction.of, which takes a vector of any length."
            )
        if not 0 < self.scale < math.inf:
            raise UserError(f"The scale of the direction {self.name!r} is {self.scale}; a length is positive and finite.")
        if self.scale * np.abs(vector).max() > _LARGEST * (1 + 2**-26):  # what rounds to the largest is the largest
            raise UserError(
                f"The direction {self.name!r} has length {self.scale:.4g}; float32, in which edits add, ends at {_LARGEST:.3g}."
            )
        vector.flags.writeable = False
        object.__setattr__(self, "vector", vector)
        object.__setattr__(self, "site", str(Site.parse(self.site)))

    @classmethod
    def of(cls, weights: Float[np.ndarray, "feature"], site: str, name: str, **rest: Any) -> "Direction":
        """A direction from a vector of any norm; the norm becomes the scale.

        Raises
        ------
        UserError
            If the vector is zero, not finite, or too large for float32.
        """
        wide = np.asarray(as_array(weights, f"weights of {name!r}"), dtype=np.float64)
        with np.errstate(over="ignore"):
            length = float(np.linalg.norm(wide))
        if not np.isfinite(length) or length == 0:
            raise UserError(f"The direction {name!r} has norm {length}; give one with a finite norm above zero.")
        return cls(wide / length, site, name, scale=length, **rest)

    def __repr__(self) -> str:
        return f"Direction({self.name!r} at {self.site}, {self.width} features, scale {self.scale:.4g})"

    def __str__(self) -> str:
        return self.card()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.card())}</pre>"

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.vector)

    @property
    def weights(self) -> Float[np.ndarray, "feature"]:
        """The vector that an edit adds: scale × vector, float32, in the site's own units."""
        return np.asarray(self._wide.astype(np.float32))

    @property
    def _wide(self) -> Float[np.ndarray, "feature"]:
        result: np.ndarray = self.scale * self.vector
        return result

    def score(self, rows: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, "row"]:
        """Score of a probe with these weights per row: scale × (row · vector) + offset."""
        result: np.ndarray = self.scale * self.coordinates(rows) + self.offset
        return result

    def coordinates(self, rows: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, "row"]:
        """Projection of each row, row · vector, in the rows' units."""
        given = as_array(rows, "rows")
        if given.shape[-1:] != self.vector.shape:
            raise UserError(f"The rows have shape {given.shape}, and {self.name!r} has {self.width} features.")
        result: np.ndarray = given @ self.vector
        return result

    def cosine(self, other: "Direction") -> float:
        """The cosine of the angle with another direction of the same width, from -1 to 1; their sites may differ."""
        _same_width(self, other)
        return float(np.clip(self.vector @ other.vector, -1, 1))

    def without(self, *others: "Direction") -> "Direction":
        """These weights minus their part in the span of `others`.

        Raises
        ------
        UserError
            If widths differ, or less than a millionth of the vector remains.
        """
        if not others:
            return self
        for other in others:
            _same_width(self, other)
        _, lengths, basis = np.linalg.svd(np.stack([o.vector for o in others]), full_matrices=False)
        basis = basis[lengths > lengths.max() * 1e-10]
        left = self.vector
        for _ in range(2):  # the second time removes what rounding left
            left = left - (left @ basis.T) @ basis
        names = ", ".join(o.name for o in others[:4]) + (" …" if len(others) > 4 else "")
        if np.linalg.norm(left) < _NOTHING:
            raise UserError(f"Nothing of the direction {self.name!r} remains without {names}; it lies in their span.")
        return Direction.of(
            self.scale * left,
            self.site,
            f"{_term(self.name)} without {names}",
            tokens=self.tokens,
            norm=self.norm,
            found_by=_history(self.found_by, "orthogonalised"),
            trained_on=self.trained_on,
            model=self.model,
        )

    def __add__(self, other: object) -> "Direction":
        return _sum(self, other, 1) if isinstance(other, Direction) else NotImplemented

    def __sub__(self, other: object) -> "Direction":
        return _sum(self, other, -1) if isinstance(other, Direction) else NotImplemented

    def __neg__(self) -> "Direction":
        return replace(
            self,
            vector=-self.vector,
            offset=-self.offset,
            name=f"-{_term(self.name)}",
            does={},
            works=None,
            found_by=_history(self.found_by, "reversed"),
        )

    def __mul__(self, factor: object) -> "Direction":
        if not isinstance(factor, Real):
            return NotImplemented
        by = float(factor)
        if not math.isfinite(by) or by == 0:
            raise UserError(f"{by} times the direction {self.name!r} has norm zero or infinity; use another factor.")
        scale = abs(by) * self.scale
        name = f"{by:g} * {_term(self.name)}"
        turned = -self if by < 0 else self
        return replace(turned, scale=scale, offset=by * self.offset, name=name, does={})

    def __rmul__(self, factor: object) -> "Direction":
        return self.__mul__(factor)

    def __truediv__(self, divisor: object) -> "Direction":
        if not isinstance(divisor, Real):
            return NotImplemented
        if divisor == 0:
            raise UserError(f"The direction {self.name!r} cannot be divided by zero.")
        made = self * (1 / float(divisor))
        return replace(made, scale=self.scale / abs(float(divisor)), name=f"{_term(self.name)} / {float(divisor):g}")

    def card(self) -> str:
        """Summary for readers: site, scale, effects, side effects and provenance."""
        known = not math.isnan(self.norm) and self.norm > 0
        share = f", {self.scale / self.norm:.2g} of the median length {self.norm:.4g} there" if known else ""
        lines = [f"{self.name} at {self.site}, added at {self.tokens} tokens", f"  scale       {self.scale:.4g}{share}"]
        if self.works is not None:
            low, high = self.works
            shares = f" ({low / self.norm:.2g} to {high / self.norm:.2g} of the median length)" if known else ""
            lines.append(f"  works       from {low:.4g} to {high:.4g}{shares}")
        intervals = {key + end for key in self.does for end in ("_lo", "_hi")}
        for key, value in self.does.items():
            if key in intervals and key[:-3] in self.does:
                continue
            unit = " nats" if key in _NATS else ""
            ends = [self.does.get(key + end) for end in ("_lo", "_hi")]
            between = f" [{ends[0]:.4g}, {ends[1]:.4g}]" if ends[0] is not None and ends[1] is not None else ""
            lines.append(f"  {key:<11} {value:.4g}{unit}{between}")
        lines += [f"  {head:<11} {text}" for head, text in (("found by", self.found_by), ("trained on", self.trained_on)) if text]
        return "\n".join(lines)


_NATS = ("effect", "damage")  #: measurements in nats


def _same_width(a: Direction, b: Direction) -> None:
    if a.width != b.width:
        raise UserError(f"The direction {a.name!r} has {a.width} features and {b.name!r} has {b.width}; they must be the same.")


def _sum(a: Direction, b: Direction, sign: int) -> Direction:
    if a.site != b.site:
        raise UserError(f"The direction {a.name!r} lives at {a.site} and {b.name!r} at {b.site}; add directions of one site.")
    _same_width(a, b)
    second = f"({b.name})" if sign < 0 and (" + " in b.name or " - " in b.name) else b.name
    name = f"{a.name} {'+' if sign > 0 else '-'} {second}"
    norms = {n for n in (a.norm, b.norm) if not math.isnan(n)}
    sources = dict.fromkeys(text for text in (a.trained_on, b.trained_on) if text)
    methods = dict.fromkeys(text for text in (a.found_by, b.found_by) if text)
    return Direction.of(
        a._wide + sign * b._wide,
        a.site,
        name,
        offset=a.offset + sign * b.offset,
        found_by=_history("; ".join(methods), "sum" if sign > 0 else "difference"),
        tokens=a.tokens if a.tokens == b.tokens else "all",
        norm=norms.pop() if len(norms) == 1 else math.nan,
        trained_on="; ".join(sources),
        model=a.model if a.model == b.model else "",
    )


def _term(name: str) -> str:
    return f"({name})" if " " in name else name


def _history(before: str, step: str) -> str:
    return f"{step} of: {before}" if before else step
