"""Structure and function of pairs of neurons: do connected cells resemble each other more, and do synapses predict signals?"""

from repscope.align.structure_function.dyads import Dyads, dyads
from repscope.align.structure_function.node_permutation import NodePermutation, permute_nodes
from repscope.align.structure_function.rewiring import Matched, matched_pairs, rewired
from repscope.align.structure_function.rows import structure_function
from repscope.align.structure_function.signals import Signals, signals
from repscope.align.structure_function.slopes import LikeToLike, like_to_like

__all__ = [
    "Dyads",
    "LikeToLike",
    "Matched",
    "NodePermutation",
    "Signals",
    "dyads",
    "like_to_like",
    "matched_pairs",
    "permute_nodes",
    "rewired",
    "signals",
    "structure_function",
]
