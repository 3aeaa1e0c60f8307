"""Connectomes: who is wired to whom as matrices with names, from users' tables and from public data in local files."""

from repscope.data.connectomes.mouse import Functional, microns, microns_folder
from repscope.data.connectomes.named_matrices import edges_to_matrix, named_matrix
from repscope.data.connectomes.pair_files import read_pairs, symmetric
from repscope.data.connectomes.worm import SignalPropagation, Worm, celegans

__all__ = [
    "Functional",
    "SignalPropagation",
    "Worm",
    "celegans",
    "edges_to_matrix",
    "microns",
    "microns_folder",
    "named_matrix",
    "read_pairs",
    "symmetric",
]
