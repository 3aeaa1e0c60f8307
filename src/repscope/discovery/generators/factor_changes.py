"""Directions judged by known factors: which factor of an image does a direction change, and only that one?

read[a, k, i, j] is factor j of image i with direction k at dose a; factors have the standard deviation `SPREAD` in the data.

| metric | definition |
|---|---|
| `top factor` | the factor whose mean change from the lowest to the highest dose is largest, on the first half of the images |
| `factor change` | mean change of the top factor per unit of dose, in standard deviations of the data |
| `selectivity` | that change over the sum over factors of mean absolute changes: 1 if only one factor changes, equally signed |
| `monotonicity` | mean over images of Spearman's correlation of the top factor with the dose, signed as the mean change |
| `distinct factors` | factors that are the top factor of a direction with a selectivity above 0.5 and a change above 0.5 |
| `factors reached` | the same without the condition on selectivity: other factors may change too |

All but the choice of the top factor and its sign are on the second half of the images.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from repscope.arrays import as_array
from repscope.errors import UserError

SPREAD = 1 / np.sqrt(3)  #: standard deviation of a uniform factor on [-1, 1]
SELECTIVE, CHANGED = 0.5, 0.5
DOSES = (-1.0, -0.5, 0.0, 0.5, 1.0)  #: times the scale

Read = Float[np.ndarray, "dose direction image factor"]


@dataclass(frozen=True, eq=False)
class FactorChanges:
    """Changes of factors.

    matrix: mean change per unit of dose, in standard deviations, on the second half. top: the top factor per direction.
    selectivity, change, monotonicity: per direction. distinct, reached: numbers of factors.
    """

    matrix: Float[np.ndarray, "direction factor"]
    top: Int[np.ndarray, "direction"]
    change: Float[np.ndarray, "direction"]
    selectivity: Float[np.ndarray, "direction"]
    monotonicity: Float[np.ndarray, "direction"]
    distinct: int
    reached: int


def factor_changes(
    read: Read, doses: Float[np.ndarray, "dose"], spread: Float[np.ndarray, "factor"] | float = SPREAD, *, exclusive: bool = False
) -> FactorChanges:
    """Judge directions.

    Parameters
    ----------
    read
        Factors at each dose.
    doses
        Ascending.
    spread
        Standard deviation of every factor in the data.
    exclusive
        Whether factors are probabilities of classes, which sum to one: what one class gains others lose, so the sum of absolute
        changes counts half, and a direction that moves every image into one class has a selectivity of 1.

    Raises
    ------
    UserError
        For fewer than two doses or four images, doses that do not ascend, factors that are not finite, and a spread that is not
        above zero.
    """
    read, doses = as_array(read, "factors", "dose direction image factor"), as_array(doses, "doses", "dose")
    spread = as_array(spread, "spreads")
    if len(doses) < 2 or len(doses) != len(read) or not (np.diff(doses) > 0).all():
        raise UserError(f"The doses are {list(doses)} for {len(read)} sets of factors; give two or more, ascending, one per set.")
    images = read.shape[2]
    if images < 4:
        raise UserError(f"There are {images} images; give four or more, as one half chooses what the other half reports.")
    if not np.isfinite(read).all():
        raise UserError("Some factors are not finite; see that the edited images are.")
    if not (np.isfinite(spread) & (spread > 0)).all():
        raise UserError("The spread of every factor must be finite and above 0.")
    slope = (read[-1] - read[0]).astype(np.float64) / (doses[-1] - doses[0]) / spread
    chosen, reported = slope[:, : images // 2], slope[:, images // 2 :]
    each = np.arange(len(slope))
    top = np.abs(chosen.mean(1)).argmax(1)
    sign = np.sign(chosen.mean(1)[each, top])
    matrix = reported.mean(1)
    change = sign * matrix[each, top]
    total = np.abs(reported).mean(1).sum(1) / (2 if exclusive else 1)
    selectivity = np.divide(change, total, out=np.zeros_like(change), where=total > 0)
    steps = read[:, each, images // 2 :, top]  # (direction, dose, image): the advanced indices come first
    monotonicity = sign * _spearman(steps, doses).mean(1)
    large = change > CHANGED
    distinct, reached = (len(set(top[some].tolist())) for some in (large & (selectivity > SELECTIVE), large))
    return FactorChanges(matrix, top, change, selectivity, monotonicity, distinct, reached)


def _spearman(
    values: Float[np.ndarray, "direction dose image"], doses: Float[np.ndarray, "dose"]
) -> Float[np.ndarray, "direction image"]:
    """Correlation of ranks with the dose; 0 where a value is the same at all doses."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=1) - (len(doses) + 1) / 2
    along = (rankdata(doses) - (len(doses) + 1) / 2)[None, :, None]
    norms = np.sqrt((ranks**2).sum(1) * (along**2).sum())
    found: np.ndarray = np.divide((ranks * along).sum(1), norms, out=np.zeros_like(norms), where=norms > 0)
    return found
