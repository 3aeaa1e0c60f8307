"""What training does to a network: the paths between runs of one recipe, and the basins that they end in.

`rs.trace.curves` gives the losses on the lines between runs, `barrier` and `convexity_gap` how high they rise, `mantel` whether
that predicts behaviour; `symmetries` and `match` permute one network's units to fit another's.
"""

from repscope.stats.permutation import mantel
from repscope.trace.barriers import barrier, convexity_gap
from repscope.trace.interpolation import curves
from repscope.trace.unit_symmetries import symmetries
from repscope.trace.weight_matching import match

__all__ = ["barrier", "convexity_gap", "curves", "mantel", "match", "symmetries"]
