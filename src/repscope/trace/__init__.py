"""What training does to a network: runs of one recipe, the paths between them, and the basins that they end in.

`rs.trace.train` makes runs of a recipe (a `Training`) in a small world, `curves` the losses on the lines between runs, `barrier`
and `convexity_gap` say how high they rise, `mantel` whether that predicts behaviour; `symmetries` and `match` permute one network's
units to fit another's.
"""

from repscope.trace.arms import World, judge
from repscope.trace.basins import mantel
from repscope.trace.connectivity import barrier, convexity_gap
from repscope.trace.interpolated import curves
from repscope.trace.recipes import Training, train
from repscope.trace.symmetries import symmetries
from repscope.trace.weight_matching import match

__all__ = ["Training", "World", "barrier", "convexity_gap", "curves", "judge", "mantel", "match", "symmetries", "train"]
