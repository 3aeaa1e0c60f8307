"""A worker of a harvest by the tiny model, for processes that tests start and kill. Their server imports what it needs once."""

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

from repscope.models.language import LanguageModel  # noqa: F401
from repscope.models.loading import folders, sources  # noqa: F401
from repscope.store.files import files_at
from repscope.store.plan import read_plan
from repscope.store.workers import finish, work
from repscope.worlds.tiny import tiny


def help_harvest(place, began):
    """Write what is missing; `began` is set when the model is loaded."""
    torch.set_num_threads(1)
    files = files_at(place)
    plan, lm = read_plan(files), tiny()
    began.set()
    work(files, lm, plan)
    finish(files, plan)
