"""Steering: directions from labelled texts, their effects and side effects, and steered models.

`rs.steer.fit` fits directions of a contrast, `choose` selects the one with the largest effect at an acceptable cost, `dose`
measures effect and damage per strength, `learn` combines the first two, `steering` and `side_by_side` apply directions.
`function_vector` and `task_vector` make vectors of in-context learning, `evaluate_vectors` measures them.
"""

from repscope.steer.dose_response import dose
from repscope.steer.from_texts import fit
from repscope.steer.function_vectors import evaluate_vectors, function_vector, task_vector
from repscope.steer.quick import learn
from repscope.steer.selection import choose
from repscope.steer.steered_model import side_by_side, steering

__all__ = ["choose", "dose", "evaluate_vectors", "fit", "function_vector", "learn", "side_by_side", "steering", "task_vector"]
