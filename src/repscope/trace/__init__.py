"""What differs between trained networks: drift by tuning, loss curves, barriers, basins and weight matching.

`rs.trace.curves` gives the losses on the lines between runs, `barrier` and `convexity_gap` their loss increase, `mantel` tests
whether it predicts behaviour; `symmetries` and `match` permute one network's units to fit another's. `compare` measures what tuning
changed between two checkpoints; `finetune` makes such checkpoints.
"""

from repscope.stats.permutation import mantel
from repscope.trace.barriers import barrier, convexity_gap
from repscope.trace.drift.compare import compare
from repscope.trace.finetuning import FineTuning, finetune
from repscope.trace.interpolation import curves
from repscope.trace.unit_symmetries import symmetries
from repscope.trace.weight_matching import match

__all__ = ["FineTuning", "barrier", "compare", "convexity_gap", "curves", "finetune", "mantel", "match", "symmetries"]
