"""Mode connectivity between training runs: loss curves, barriers, basins and weight matching.

`rs.trace.curves` gives the losses on the lines between runs, `barrier` and `convexity_gap` their loss increase, `mantel` tests
whether it predicts behaviour; `symmetries` and `match` permute one network's units to fit another's.
"""

from repscope.stats.permutation import mantel
from repscope.trace.barriers import barrier, convexity_gap
from repscope.trace.interpolation import curves
from repscope.trace.unit_symmetries import symmetries
from repscope.trace.weight_matching import match

__all__ = ["barrier", "convexity_gap", "curves", "mantel", "match", "symmetries"]
