"""Rows of representations as arrays (row, feature), checked; and their split into batches of nearly equal size."""

from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope.errors import UserError

Rows = Float[np.ndarray, "row feature"]


def as_rows(given: Any, what: str, least: int = 1) -> Rows:
    """Numbers as an array (row, feature) in float32, or float64 where they are; further feature axes are flattened.

    Raises
    ------
    UserError
        For anything but numbers, fewer rows than `least`, or no feature.
    """
    if hasattr(given, "detach"):  # a tensor, without importing torch here
        given = given.detach().cpu()
        given = given.float() if str(given.dtype) == "torch.bfloat16" else given
    x = np.asarray(given)
    if x.dtype.kind not in "fiu" or x.ndim < 2:
        raise UserError(f"{what} is an array of {x.dtype} with {x.ndim} axes; give numbers (row, feature).")
    x = x.reshape(len(x), -1) if len(x) else x.reshape(0, int(np.prod(x.shape[1:])))
    if len(x) < least or not x.shape[1]:
        raise UserError(f"{what} has {len(x)} rows of {x.shape[1]} features; at least {least} rows of one feature are needed.")
    return x.astype(np.float32 if x.dtype.itemsize < 4 else np.float64, copy=False) if x.dtype != np.float32 else x


def same_rows(x: Rows, y: Rows) -> None:
    """Refuse two representations of different numbers of rows."""
    if len(x) != len(y):
        raise UserError(f"One representation has {len(x)} rows and the other {len(y)}; give both for the same inputs.")


def slices(rows: int, batch: int) -> list[slice]:
    """Consecutive batches of at most `batch` rows whose sizes differ by at most one, so that none is a small remainder.

    >>> slices(10, 4)
    [slice(0, 4, None), slice(4, 7, None), slice(7, 10, None)]
    """
    count = -(-rows // batch)
    ends = [(i * rows + count - 1) // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(ends)]
