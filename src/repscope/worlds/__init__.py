"""Synthetic tasks and models with a known answer.

`rs.worlds.train` trains runs of a recipe (a `Training`) in a synthetic task (`World`); `evaluator` gives their loss function.
"""

from repscope.worlds.hans.fine_tuning import World, evaluator
from repscope.worlds.hans.recipes import Training, train

__all__ = ["Training", "World", "evaluator", "train"]
