"""Does a prompt full of examples do what fine-tuning on them does, and how much of it is one vector?

A killed run continues at its group of tasks, or at its task.

1. Vectors, per group of three or more tasks: the function vector and the task vector of each task, with blocks and heads from train
   and dev items; accuracy of test queries without examples, with each vector, with k examples, with permuted outputs, with vectors
   of as many random heads and with other tasks' vectors (`steer.function_vectors`).
2. Shifts, per task: what k examples in the prompt and fine-tuning on the same k examples move, with permuted outputs, another
   task's examples and neutral text as controls; step curves; KL recovered by one vector (`trace.task_shift`).
3. Summary over all tasks: the share of the few-shot gain that a vector gives; the match of shifts after centring over tasks, by
   block, and of each task at the block that the other tasks choose.
4. With `--tuned` and `--prompt-file`: how much of what tuning changed in next tokens a constant prompt gives
   (`trace.constant_prompt`).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from repscope.data.tasks import EncodedTask
from repscope.results import Result
from repscope.steer.function_vectors import direction_set, evaluate_vectors, function_vector, task_vector
from repscope.studies.context import summary
from repscope.studies.context.options import ContextOptions
from repscope.studies.context.task import ContextTask
from repscope.studies.run.study import Context, Cost, Setup, Step
from repscope.trace.constant_prompt import constant_prompt, read_prompt
from repscope.trace.task_shift import measure_task, over_tasks
from repscope.trace.task_shift.matching import LEAST

_DRAWS = 2  #: sets of random heads, and other tasks, per vector


def steps(setup: Setup[ContextOptions]) -> list[Step]:
    """Vectors per group of tasks, shifts per task, the summary, and a constant prompt."""
    task, o = ContextTask(setup), setup.options
    _ = task.tasks, task.tunings, task.vector_sites  # what is wrong with them is said before anything runs
    task.check_heads()
    made = list[Step]()
    for i, group in enumerate(task.groups, 1):
        made.append(Step(f"vectors {i}", partial(_vectors, task, group, i), partial(_vectors_cost, task, len(group))))
    for i, one in enumerate(task.tasks):
        before = (f"shifts {task.tasks[i - 1].name}",) if i else ()  # its vectors are a control
        made.append(Step(f"shifts {one.name}", partial(_shifts, task, i), partial(_shifts_cost, task), needs=before))
    needs = tuple(step.name for step in made)
    made.append(Step("summary", partial(_summary, task), lambda: Cost(fit_flops=1e10), needs=needs))
    if o.prompt_file is not None:
        _ = read_prompt(o.prompt_file), task.documents
        made.append(Step("constant prompt", partial(_constant_prompt, task), partial(_prompt_cost, task)))
    return made


def _flops(task: ContextTask) -> float:
    """Operations of the network per token."""
    width, blocks = task.lm.anatomy.width if task.lm.anatomy else 1, task.lm.blocks
    return 2.0 * 12 * width**2 * blocks


def _head_flops(task: ContextTask) -> float:
    """Operations of the unembedding per row."""
    return 2.0 * (task.lm.anatomy.width if task.lm.anatomy else 1) * len(task.lm.tokenizer)


def _vectors_cost(task: ContextTask, tasks: int) -> Cost:
    o, t = task.options, task.example_tokens
    heads = sum(task.lm.tap(site).heads for site in task.lm.resolve("z"))
    tokens = 2 * o.mean_prompts * (o.k + 1) * t + o.effect_prompts * ((o.k + 1) * t + heads / 2)
    tokens += 2 * o.dev_items * (t + task.lm.blocks / 2) + o.queries * t * (3 * (o.k + 1) + 3 + 2 * _DRAWS)
    rows = o.effect_prompts * heads + 2 * o.dev_items * task.lm.blocks + o.queries * (6 + 2 * _DRAWS)
    flops = tokens * _flops(task) + rows * _head_flops(task)
    return Cost(round(tasks * tokens), tasks * flops, 0.0, 0.0, task.lm.blocks)


def _shifts_cost(task: ContextTask) -> Cost:
    o, t, methods = task.options, task.example_tokens, len(task.options.methods)
    whole = (o.k + o.queries) * t  # the examples are read once for all queries
    tokens = 8 * whole + methods * (6 * o.steps[-1] * o.k * t + len(o.steps) * (o.queries + o.dev_items) * t + 4 * whole)
    rows = (1 + methods) * 3 * 3 * len(task.vector_sites) * o.queries / 2
    flops = (tokens + rows / 2) * _flops(task) + (rows + 20 * o.queries) * _head_flops(task)
    return Cost(round(tokens), flops, 0.0, 0.0, task.lm.blocks)


def _prompt_cost(task: ContextTask) -> Cost:
    o = task.options
    prompt = len(task.lm.tokenizer(read_prompt(o.prompt_file or ""))["input_ids"])
    tokens = len(task.documents[0]) * (4 * (40 + o.new_tokens) + 2 * prompt)
    rows = 4 * len(task.documents[0]) * o.new_tokens
    return Cost(tokens, tokens * _flops(task) + rows * _head_flops(task), 0.0, 0.0, task.lm.blocks)


def _vectors(task: ContextTask, group: Sequence[EncodedTask], number: int, context: Context) -> Result:
    """Function vectors, task vectors and their controls."""
    o, lm = task.options, task.lm
    adding = [
        function_vector(lm, one, heads=o.heads, mean_prompts=o.mean_prompts, effect_prompts=o.effect_prompts, dev_items=o.dev_items)
        for one in group
    ]
    replacing = [task_vector(lm, one, prompts=o.mean_prompts, dev_items=o.dev_items) for one in group]
    found = evaluate_vectors(
        lm, adding, replacing, queries=o.queries, random_draws=_DRAWS, other_tasks=min(_DRAWS, len(group) - 1), seed=o.seed
    )
    context.artifacts.mkdir(parents=True, exist_ok=True)
    direction_set(lm, adding).save(context.artifacts / f"function-vectors-{number}.safetensors")
    made = pd.DataFrame(
        [
            {
                "task": one.name,
                "function vector at": str(added.direction.site),
                "norm": added.direction.scale,
                "dev accuracy": float(added.sweep.accuracy.max()),
                "heads": ", ".join(str(head) for head in added.heads),
                "task vector at": str(replaced.direction.site),
                "dev accuracy of it": float(replaced.sweep.accuracy.max()),
            }
            for one, added, replaced in zip(group, adding, replacing)
        ]
    )
    return Result(found.table, found.arrays, {"vectors": made}, found.notes)


def _shifts(task: ContextTask, number: int, context: Context) -> Result:
    """In-context learning and fine-tuning on the same examples, for one task."""
    o, tasks = task.options, task.tasks
    before = context.inputs.get(f"shifts {tasks[number - 1].name}") if number else None
    return measure_task(
        task.lm,
        tasks[number],
        tasks[(number + 1) % len(tasks)],
        tunings=task.tunings,
        at=task.sites,
        vectors_at=task.vector_sites,
        queries=o.queries,
        dev_items=o.dev_items,
        other_vectors=before,
        seed=o.seed,
    )


def _summary(task: ContextTask, context: Context) -> Result:
    """All tasks together."""
    seed, tasks = task.options.seed, [one.name for one in task.tasks]
    vectors = [result for name, result in context.inputs.items() if name.startswith("vectors ")]
    found = over_tasks(tasks, [context.inputs[f"shifts {name}"] for name in tasks], seed=seed)
    rows, notes = summary.vector_rows(vectors, tasks, seed)
    rows += summary.chosen_rows(found, task.tunings, seed)
    rows += summary.accuracy_gains([context.inputs[f"shifts {name}"] for name in tasks], task.tunings, seed)
    table = pd.concat([found.table, Result.of(rows).table], ignore_index=True)
    if len(tasks) == LEAST:
        few = f"With {LEAST} tasks the match has a p of 0.17 at least, so no match can be told from chance; name four or more."
        notes = [*notes, few]
    return Result(table, found.arrays, found.side, (*notes, *found.notes))


def _constant_prompt(task: ContextTask, context: Context) -> Result:
    """A constant prompt, compared with tuning."""
    o = task.options
    assert o.prompt_file is not None
    prompt = read_prompt(o.prompt_file)
    documents, notes = task.documents
    found = constant_prompt(task.lm, task.tuned, prompt, documents, chat=o.chat, new_tokens=o.new_tokens, seed=o.seed)
    return replace(found, notes=(*notes, *found.notes))
