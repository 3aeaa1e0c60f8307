"""In-context learning compared with fine-tuning on the same k examples: shifts of the residual stream, with controls."""

from repscope.trace.task_shift.fine_tuning import FewShotTuning
from repscope.trace.task_shift.matching import Match, task_match
from repscope.trace.task_shift.measurement import measure_task
from repscope.trace.task_shift.tasks import over_tasks

__all__ = ["FewShotTuning", "Match", "measure_task", "over_tasks", "task_match"]
