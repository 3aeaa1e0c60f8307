"""Two checkpoints: what tuning changed in the weights, in the representations of prompts, and in the next tokens.

1. Weights, streamed tensor by tensor; tensors that are finished are kept, so that a killed run continues after them.
2. With `--floor`: another checkpoint that was tuned the same way with another seed.
3. Unless only weights are compared: both networks read the same prompts.
"""

from functools import partial

import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.results import Result, Row
from repscope.studies.compare.names import ALL, SETTINGS
from repscope.studies.compare.options import CompareOptions
from repscope.studies.compare.task import CompareTask, compare_task
from repscope.studies.run.provenance import beside_weights
from repscope.studies.run.study import Context, Cost, Setup, Step, Subject
from repscope.trace.drift.next_tokens import next_tokens
from repscope.trace.drift.representations import representations
from repscope.trace.drift.seed_floor import seed_floor
from repscope.trace.drift.weights import weight_drift

_KEPT = "tensors.jsonl"
_PER_ENTRY = 12.0  #: operations per entry of the sums
_TOKENS = 40  #: guess of the length of a prompt


def subject(setup: Setup[CompareOptions]) -> Subject:
    """All checkpoints."""
    task = _task(setup)
    facts = {"model": f"{task.names[0]} → {task.names[1]}", "precision": "", "fingerprint": task.fingerprint}
    name = "-".join(n.rsplit("/", 1)[-1].removesuffix(".safetensors")[-24:].strip("-") for n in task.names[:2])
    return Subject(
        name, task.fingerprint, facts | {"names": list(task.names)}, {"fingerprint": task.fingerprint}, beside_weights(task.folders)
    )


def steps(setup: Setup[CompareOptions]) -> list[Step]:
    """Weights; the noise floor, representations and next tokens where they are wanted."""
    task = _task(setup)
    function = ("top", "spectra", "weights_only")
    prompts = ("data", "text", "prompts", "new_tokens", "device", "dtype", "decimal", "na", "quote", "weights_only")
    found = [Step("weights", partial(_weights, setup), lambda: _weights_cost(task), version=2, ignores=prompts)]
    if task.floor is not None:
        found.append(Step("floor", partial(_floor, setup), lambda: _sums_cost(task, 3), ignores=(*prompts, *function)))
    if task.runs_networks:
        cost = partial(_network_cost, task)
        found.append(Step("representations", partial(_representations, setup), lambda: cost(1), ignores=(*function, "new_tokens")))
        found.append(Step("next tokens", partial(_next_tokens, setup), lambda: cost(3), ignores=function))
    return found


def _task(setup: Setup[CompareOptions]) -> CompareTask:
    """The task, created once per run."""
    return setup.once("compare", lambda: compare_task(setup.options))


def _weights(setup: Setup[CompareOptions], context: Context) -> Result:
    o, task = setup.options, _task(setup)
    context.partial.mkdir(parents=True, exist_ok=True)
    kept = context.partial / _KEPT
    found = weight_drift(task.pair, spectra=o.spectra, rounding=True, top=o.top, seed=o.seed, kept=kept)
    table = found.table
    if keys := task.pair.settings:
        listed = ", ".join(keys)
        row = Row(value=len(keys), metric=SETTINGS, definition=listed, condition=ESTIMATE, item=ALL, unit="key", n=len(keys))
        table = pd.concat([table, Result.of([row]).table], ignore_index=True)
    return Result(table, found.arrays, found.side, (*found.notes, *task.notes))


def _floor(setup: Setup[CompareOptions], context: Context) -> Result:
    task = _task(setup)
    assert task.floor is not None
    return seed_floor(task.pair, task.floor, seed=setup.options.seed)


def _representations(setup: Setup[CompareOptions], context: Context) -> Result:
    task = _task(setup)
    base, tuned, other = task.networks
    return representations(base, tuned, task.prompts, other=other, seed=setup.options.seed)


def _next_tokens(setup: Setup[CompareOptions], context: Context) -> Result:
    o, task = setup.options, _task(setup)
    base, tuned, other = task.networks
    return next_tokens(base, tuned, task.prompts, new_tokens=o.new_tokens, other=other, seed=o.seed)


# --------------------------------------------------------------------------------------------------------------- forecasts


def _entries(task: CompareTask) -> int:
    return sum(stored.entries for stored in task.pair.base.stored.values())


def _sums_cost(task: CompareTask, passes: int) -> Cost:
    return Cost(fit_flops=_PER_ENTRY * _entries(task) * passes)


def _weights_cost(task: CompareTask) -> Cost:
    flops = _PER_ENTRY * _entries(task)
    if task.options.spectra:
        shapes = [s.shape for s in task.pair.base.stored.values() if len(s.shape) == 2]
        flops += sum(2.0 * min(s) * s[0] * s[1] + 4.0 * min(s) ** 3 for s in shapes)
    largest = max((min(s.shape) ** 2 * 16.0 for s in task.pair.base.stored.values() if len(s.shape) == 2), default=0.0)
    return Cost(fit_flops=flops, memory_bytes=largest)


def _network_cost(task: CompareTask, passes: int) -> Cost:
    networks = 2 + (task.floor is not None)
    tokens = task.options.prompts * (_TOKENS + task.options.new_tokens * (passes > 1)) * networks * passes
    return Cost(tokens, 2.0 * _entries(task) * tokens, memory_bytes=4.0 * _entries(task) * networks)
