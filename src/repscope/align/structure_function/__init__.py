"""Structure and function of pairs of neurons: do connected cells resemble each other more, and do synapses predict signals?"""

from repscope.align.structure_function.common_input import CommonInput, common_input, shared_inputs
from repscope.align.structure_function.node_permutation import NodePermutation, permute_nodes
from repscope.align.structure_function.pairs import Dyads, dyads
from repscope.align.structure_function.rewiring import Matched, matched_pairs, rewired
from repscope.align.structure_function.rows import compare_wiring
from repscope.align.structure_function.signals import Signals, signal_given_synapse
from repscope.align.structure_function.slopes import LikeToLike, like_to_like

__all__ = [
    "CommonInput",
    "Dyads",
    "LikeToLike",
    "Matched",
    "NodePermutation",
    "Signals",
    "common_input",
    "compare_wiring",
    "dyads",
    "like_to_like",
    "matched_pairs",
    "permute_nodes",
    "rewired",
    "shared_inputs",
    "signal_given_synapse",
]
