"""A worker of a harvest by the tiny model, for processes that tests start and kill."""

import torch

from repscope.store.files import files_at
from repscope.store.plan import read_plan
from repscope.store.workers import finish, work
from repscope.worlds.tiny import tiny


def help_harvest(place):
    """Write what is missing; says so when the model is loaded."""
    torch.set_num_threads(1)
    files = files_at(place)
    plan, lm = read_plan(files), tiny()
    print("begins", flush=True)
    work(files, lm, plan)
    finish(files, plan)
