"""Sums over the entries of two tensors in one pass over parts that fit into the processor's cache.

For x of the base and y of the tuned checkpoint, d = y − x:

1. Σ x², Σ y², Σ d². The difference and the products are float32 (float64 if either tensor is stored so); sums of 2,048 of
   them are added up in float64. The relative error is below 5e-7 (tests compare with float64 throughout).
2. Entries of equal bits in float32; entries of equal bits after both are rounded to bfloat16 (to nearest, ties to even). The
   difference of the two is what a change did that bfloat16 does not show.
3. The cosine needs no pass of its own: 2 Σ xy = Σ x² + Σ y² − Σ d², which loses nothing where x and y are close. Where the change
   is almost parallel to the weights, as if they were scaled, what is left of it is smaller than the error of float32 products,
   and the part is added up again in float64.

4. For comparison, on request: Σ (r(x) − x)² for r the rounding to bfloat16, the change that storing x in bfloat16 would make.

A sum that is not finite means weights that are not (an error), or squares beyond float32 (computed again in float64).
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float

from repscope.errors import UserError

PART = 1 << 17  #: entries of a part: with all buffers about 2 MB
_PARALLEL = 1e-3  #: share of Σ d² across the weights below which sums are repeated in float64
_ERROR = 5e-7  #: relative error of sums of float32 products
_RUN = 2048  #: products that are added up in float32

Values = Float[np.ndarray, "entry"]


@dataclass
class Sums:
    """Sums over entries.

    entries: their number. base, tuned, change: Σ x², Σ y², Σ d². same32, same16: entries of equal bits, and of equal bits in
    bfloat16. rounding: Σ (r(x) − x)², 0 unless asked for.
    """

    entries: int = 0
    base: float = 0.0
    tuned: float = 0.0
    change: float = 0.0
    same32: int = 0
    same16: int = 0
    rounding: float = 0.0

    def __iadd__(self, other: "Sums") -> "Sums":
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))
        return self


class Audit:
    """Adds up parts of tensors; its buffers are made once.

    Parameters
    ----------
    part
        Largest number of entries of a part.
    rounding
        Whether to measure what rounding the base to bfloat16 changes.
    """

    def __init__(self, part: int = PART, rounding: bool = False) -> None:
        self._rounding = rounding
        self._d, self._x, self._y = (np.zeros(part, dtype=np.float32) for _ in range(3))
        self._equal = np.empty(part, dtype=bool)
        self._low = [torch.empty(part, dtype=torch.bfloat16) for _ in range(2)]
        self._bits = [low.view(torch.int16).numpy() for low in self._low]

    def sums(self, x: Values, y: Values, d: Values | None = None, *, name: str = "", labels: tuple[str, str] = ("", "")) -> Sums:
        """Sums over entries, a part at a time.

        Parameters
        ----------
        x, y
            Entries of base and tuned checkpoint in float32 or float64; the same array for a tensor that is not changed.
        d
            The change, where it is known more exactly than by the difference.
        name, labels
            Of the tensor and the checkpoints, for errors.

        Raises
        ------
        UserError
            For values that are not finite.
        """
        n, size = len(x), len(self._x)
        if n > size:  # a row of a matrix with many columns
            found = Sums()
            for first in range(0, n, size):
                cut = slice(first, first + size)
                a, c = x[cut], None if d is None else d[cut]
                found += self.sums(a, a if x is y else y[cut], c, name=name, labels=labels)
            return found
        if x is y:
            base = self._squares(x)
            found = Sums(n, base, base, 0.0, n, n)
        else:
            found = self._pair(x, y, d)
        if self._rounding:
            x32 = self._single(x, self._x)
            low = torch.from_numpy(x32).to(torch.bfloat16).float().numpy()
            found.rounding = self._squares(np.subtract(low, x32, out=low))
        if not np.isfinite(found.base + found.tuned + found.change):
            for values, label in zip((x, y), labels):
                if not np.isfinite(values).all():
                    raise UserError(f"{name} of {label} holds values that are not finite; its training diverged.")
            x64, y64 = x.astype(np.float64), y.astype(np.float64)
            d64 = y64 - x64 if d is None else d.astype(np.float64)
            found.base, found.tuned, found.change = (float(np.dot(v, v)) for v in (x64, y64, d64))
        return found

    def _pair(self, x: Values, y: Values, d: Values | None) -> Sums:
        n = len(x)
        x32, y32, equal = self._single(x, self._x), self._single(y, self._y), self._equal[:n]
        base = self._squares(x)
        self._low[0][:n].copy_(torch.from_numpy(x32))
        self._low[1][:n].copy_(torch.from_numpy(y32))
        same16 = int(np.count_nonzero(np.equal(self._bits[0][:n], self._bits[1][:n], out=equal)))
        same32 = 0  # no entry is equal in float32 and not in bfloat16
        if same16:
            same32 = int(np.count_nonzero(np.equal(x32.view(np.uint32), y32.view(np.uint32), out=equal)))
        wide = np.float64 in (x.dtype, y.dtype)
        if same32 == n and d is None and not wide:
            return Sums(n, base, base, 0.0, n, n)
        known = d is not None
        if d is None:
            d = np.subtract(y, x) if wide else np.subtract(y, x, out=self._d[:n])
        tuned, change = self._squares(y), self._squares(d)
        across = change - (tuned**0.5 - base**0.5) ** 2  # the part of Σ d² that turns the weights
        if across < _PARALLEL * change + 2 * _ERROR * (change * base) ** 0.5:
            x64, d64 = x.astype(np.float64), d.astype(np.float64)
            y64 = x64 + d64 if known else y.astype(np.float64)
            base, tuned, change = (float(np.dot(v, v)) for v in (x64, y64, d64 if known else y64 - x64))
        return Sums(n, base, tuned, change, same32, same16)

    def _single(self, values: Values, buffer: Values) -> Values:
        if values.dtype == np.float32:
            return values
        np.copyto(buffer[: len(values)], values, casting="same_kind")
        return buffer[: len(values)]

    @staticmethod
    def _squares(values: Values) -> float:
        whole = len(values) // _RUN * _RUN
        runs, total = values[:whole].reshape(-1, _RUN), 0.0
        with np.errstate(over="ignore", invalid="ignore"):  # seen in the sum
            if whole:
                total = float(np.vecdot(runs, runs).sum(dtype=np.float64))
            if whole < len(values):
                rest = values[whole:].astype(np.float64)
                total += float(np.dot(rest, rest))
        return total
