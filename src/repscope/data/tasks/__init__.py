"""Tasks of in-context learning: pairs of an input and an output, their prompts, and how a tokenizer encodes them."""

from repscope.data.tasks.definition import Split, Task, of_pairs
from repscope.data.tasks.encoding import EncodedTask, encode_task, tokenization_differences
from repscope.data.tasks.lookup import task, task_names
from repscope.data.tasks.shots import DEFAULT_TEMPLATE, Shots, Template

__all__ = [
    "DEFAULT_TEMPLATE",
    "EncodedTask",
    "Shots",
    "Split",
    "Task",
    "Template",
    "encode_task",
    "of_pairs",
    "task",
    "task_names",
    "tokenization_differences",
]
