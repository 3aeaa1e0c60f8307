"""Random walks over knowledge graphs, and what sums over the paths of a graph predict of edges that were left out."""

from repscope.worlds.random_walks.graphs import WalkGraphs
from repscope.worlds.random_walks.path_sums import PathSums, nearest_neighbours, unigram

__all__ = ["PathSums", "WalkGraphs", "nearest_neighbours", "unigram"]
