"""A worker of a harvest by the tiny model, for processes that tests start and kill."""

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401  (loaded once, by the server that forks)

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
