"""What the judge says of sprites of which one factor changes and no other: the most that a direction can reach.

As many directions as factors. Along direction k, sprites are drawn again with factor k moved by `amount` standard deviations per
unit of dose; it starts in a narrower range, so that it stays within that of the data. Factors are then read from the images, as of
a generator. What is missing from a selectivity of 1 is the error of the regressors.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.discovery.generators.factor_changes import SPREAD, FactorChanges, factor_changes
from repscope.errors import UserError


def judge_ceiling(
    read: Callable[[Tensor], Tensor],
    redraw: Callable[[Tensor], Tensor],
    factors: Float[Tensor, "image factor"],
    doses: tuple[float, ...],
    amount: float = 1.0,
) -> FactorChanges:
    """Judge changes of single factors.

    Parameters
    ----------
    read
        Images (row, pixel) to factors (row, factor).
    redraw
        Factors to images.
    factors
        Of the sprites, from -1 to 1.
    doses
        Ascending.
    amount
        Change per unit of dose, in standard deviations of the data.

    Raises
    ------
    UserError
        For an amount that leaves the range of the data; as `factor_changes`.
    """
    step = amount * float(SPREAD)
    most = step * max(abs(dose) for dose in doses)
    if not 0 < most < 1:
        raise UserError(f"An amount of {amount:g} moves factors by {most:.2g}; take one that moves them by less than 1.")
    count = factors.shape[1]
    moved = factors.expand(len(doses), count, -1, -1).clone()
    for k in range(count):
        for i, dose in enumerate(doses):
            moved[i, k, :, k] = (1 - most) * factors[:, k] + dose * step
    found = read(redraw(moved.flatten(0, 2)))
    return factor_changes(torch.unflatten(found, 0, moved.shape[:3]).numpy(), np.asarray(doses))
