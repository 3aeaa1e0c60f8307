"""In-context linear regression: tasks of a given diversity, exact predictors, small transformers that read real numbers."""

from repscope.worlds.regression.predictors import discrete_mmse, ridge
from repscope.worlds.regression.tasks import Prompts, Regression

__all__ = ["Prompts", "Regression", "discrete_mmse", "ridge"]
