"""Function vectors and task vectors: how much of in-context learning one vector gives."""

from repscope.steer.function_vectors.evaluation import evaluate_vectors
from repscope.steer.function_vectors.indirect_effects import IndirectEffects, indirect_effects, mean_head_activations, top_heads
from repscope.steer.function_vectors.vectors import FunctionVector, TaskVector, direction_set, function_vector, task_vector

__all__ = [
    "FunctionVector",
    "IndirectEffects",
    "TaskVector",
    "direction_set",
    "evaluate_vectors",
    "function_vector",
    "indirect_effects",
    "mean_head_activations",
    "task_vector",
    "top_heads",
]
