"""Fine-tuning with supervised, preference and reward learning: series of checkpoints of one model, made for comparison."""

from repscope.trace.finetuning.options import METHODS, FineTuning, Method
from repscope.trace.finetuning.run import finetune

__all__ = ["METHODS", "FineTuning", "Method", "finetune"]
