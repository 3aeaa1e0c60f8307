"""Intervals of statistics of pairs of nodes. Takes a statistic and its values without each node, never a network or a table.

Pairs that share a node are not independent, so pairs are not a unit over which a result generalises; nodes are.

1. `jackknife`: the statistic is computed again without each node (all pairs that the node takes part in are left out). With values
   t_k without node k of n nodes and their mean t̄, the variance is (n - 1)/n · Σ (t_k - t̄)². A pair is left out with each of its two
   nodes, so what is noise of single pairs is counted twice; `pair_variance`, the variance if pairs were independent, is subtracted
   once (the decomposition of Aronow, Samii & Assenova 2015, Political Analysis 23:564, eq. 6). The interval is Student's t.
2. `too_narrow`: the interval of a maximum-likelihood fit, as if all pairs were independent. It is shown beside the other as a
   warning, under a name that says so.
"""

from statistics import NormalDist

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from repscope.stats.bootstrap import LEVEL, Estimate, student

NAIVE = "Wald, pairs taken as independent"  #: the method of an interval that ignores shared nodes


def jackknife(
    value: float, without: Float[ArrayLike, "node"], *, unit: str, pair_variance: float = 0.0, freedom: int | None = None
) -> Estimate:
    """A statistic of pairs with its interval over nodes.

    Parameters
    ----------
    value
        The statistic of all pairs.
    without
        The statistic without the pairs of each node in turn.
    pair_variance
        Its variance if pairs were independent, subtracted once; never so much that less than half of the variance is left.
    freedom
        Nodes that the interval is over, if fewer than were left out: of few presynaptic cells and many postsynaptic ones, the few.

    >>> e = jackknife(0.5, [0.4, 0.5, 0.6, 0.5], unit="neuron")
    >>> (round(e.lo, 2), round(e.hi, 2), e.n)
    (0.11, 0.89, 4)
    """
    t = np.asarray(without, dtype=np.float64).ravel()
    n = t.size
    if n < 3 or not np.isfinite(t).all():
        return Estimate(value, float("nan"), float("nan"), LEVEL, "jackknife over nodes", unit, n)
    nodes = (n - 1) / n * float(((t - t.mean()) ** 2).sum())
    found = student(value, max(nodes - pair_variance, nodes / 2), unit=unit, n=min(n, freedom or n))
    return Estimate(value, found.lo, found.hi, LEVEL, "jackknife over nodes", unit, n)


def too_narrow(value: float, error: float, *, pairs: int, unit: str = "pair") -> Estimate:
    """A value with the interval that holds if pairs were independent: shown as a warning, never as the result."""
    half = NormalDist().inv_cdf(0.5 + LEVEL / 2) * error
    return Estimate(value, value - half, value + half, LEVEL, NAIVE, unit, pairs)
