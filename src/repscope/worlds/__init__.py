"""Synthetic tasks and models with a known answer.

`rs.worlds.train` makes runs of a recipe (a `Training`) in a small world (`World`), `evaluator` what their losses are measured with.
"""

from repscope.worlds.hans.fine_tuning import World, evaluator
from repscope.worlds.hans.recipes import Training, train

__all__ = ["Training", "World", "evaluator", "train"]
