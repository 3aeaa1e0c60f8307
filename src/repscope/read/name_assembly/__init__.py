"""How a network turns the tokens of a name into one vector: which parts build it, and how much of it is a sum over tokens.

`ablation`: outputs of MLPs or attention replaced, or attention cut, at the name's tokens in a range of blocks. `recombination`:
tokens of real names combined again, and the vector split into functions of single tokens, pairs and triples. `shared_tokens`: names
that share a token and differ in an attribute. `bases`: neurons compared with random rotations of them. `text_features`: plain
binary features of text beside the attributes.
"""

from repscope.read.name_assembly.ablation import Ablation, NameRuns, name_runs, ranges
from repscope.read.name_assembly.bases import Basis, basis_scores
from repscope.read.name_assembly.recombination import Grid, Recombined, grids, recombined
from repscope.read.name_assembly.shared_tokens import Conflicts, conflicts
from repscope.read.name_assembly.text_features import TextFeature, text_features, word_features

__all__ = [
    "Ablation",
    "Basis",
    "Conflicts",
    "Grid",
    "NameRuns",
    "Recombined",
    "TextFeature",
    "basis_scores",
    "conflicts",
    "grids",
    "name_runs",
    "ranges",
    "recombined",
    "text_features",
    "word_features",
]
