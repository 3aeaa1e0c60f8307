"""Barriers and the convexity gap of loss curves between two networks.

A curve is the loss at evenly spaced points of the straight line between two weight vectors (`interpolation`). Any loss or error
rate is valid; for an accuracy use one minus it. Last axis: points; leading axes: curves.

| name | height of curve L over points 0 … n |
|---|---|
| `chord` | max(0, max_i L_i − chord_i), chord: line between the ends; BH of Juneja et al. 2023 |
| `larger endpoint` | max_i L_i − max(L_0, L_n); never negative, as the ends are points of the curve |
| `mean endpoint` | max_i L_i − (L_0 + L_n) / 2: Entezari et al. 2022, Git Re-Basin |

They agree only if the ends have equal loss; always report a barrier with its definition. The *convexity gap* (Juneja et al. 2023)
is the largest chord barrier over all contiguous parts of the curve, hence at least the chord barrier of the whole.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from repscope.errors import UserError, unknown

Barrier = Literal["chord", "larger endpoint", "mean endpoint"]
GAP = "convexity gap"
HEIGHTS = (*get_args(Barrier), GAP)

Curve = Float[np.ndarray, "*curve point"]
Height = Float[np.ndarray, "*curve"]


def barrier(losses: Curve, *, definition: Barrier) -> Height:
    """Height of the barrier by one of three definitions, in units of the loss.

    Parameters
    ----------
    losses
        At evenly spaced points, the ends included.
    definition
        Required, as definitions differ by up to half the difference of the ends.

    Raises
    ------
    UserError
        For an unknown definition, or fewer than three points.

    >>> curve = np.array([0.0, 1.5, 1.0])
    >>> [float(barrier(curve, definition=d)) for d in ("chord", "larger endpoint", "mean endpoint")]
    [1.0, 0.5, 1.0]
    """
    x = _curves(losses)
    if definition not in get_args(Barrier):
        raise unknown("definition of a barrier", definition, get_args(Barrier))
    if definition == "chord":
        above: Height = np.maximum(0.0, _above_chord(x))
        return above
    a, b = x[..., 0], x[..., -1]
    base: Height = np.maximum(a, b) if definition == "larger endpoint" else (a + b) / 2
    found: Height = np.subtract(x.max(-1), base)
    return found


def convexity_gap(losses: Curve) -> Height:
    """The largest chord barrier over all contiguous parts of the curve (Juneja et al. 2023).

    >>> float(convexity_gap(np.array([4.0, 0.0, 1.0, 0.0, 4.0])))  # no barrier over the whole, one in the middle
    1.0
    """
    x = _curves(losses)
    n = x.shape[-1]
    found = np.zeros(x.shape[:-1])
    for a in range(n - 2):
        for b in range(a + 3, n + 1):
            found = np.maximum(found, _above_chord(x[..., a:b]))
    return found


def height(losses: Curve, how: str) -> Height:
    """A barrier or the convexity gap, by its name in `HEIGHTS`."""
    return convexity_gap(losses) if how == GAP else barrier(losses, definition=how)  # type: ignore[arg-type]  # is checked there


def _above_chord(x: Curve) -> Height:
    t = np.linspace(0.0, 1.0, x.shape[-1])
    highest: Height = (x - ((1 - t) * x[..., :1] + t * x[..., -1:])).max(-1)
    return highest


def _curves(losses: Curve) -> Curve:
    x = np.asarray(losses, dtype=np.float64)
    if x.ndim < 1 or x.shape[-1] < 3:
        raise UserError(f"A path of {x.shape[-1] if x.ndim else 0} points has no inside; take at least 3.")
    return x
