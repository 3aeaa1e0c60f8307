"""Intervals, permutation tests, comparisons of groups and clusterings: arrays in, estimates out. Knows no model and no table."""

from repscope.stats.bootstrap import (
    DRAWS,
    LEVEL,
    Estimate,
    change_of_proportion,
    functions_of_ratios,
    mean,
    null,
    of_draws,
    proportion,
    ratio,
    wilson,
)
from repscope.stats.permutation import p_value
from repscope.stats.variance import variance_shares

__all__ = [
    "DRAWS",
    "LEVEL",
    "Estimate",
    "change_of_proportion",
    "functions_of_ratios",
    "mean",
    "null",
    "of_draws",
    "p_value",
    "proportion",
    "ratio",
    "variance_shares",
    "wilson",
]
