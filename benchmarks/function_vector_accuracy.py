"""Accuracy of function vectors and task vectors on tasks that the default model can do, with controls: the table of the docs.

Five examples per prompt. Heads and blocks come from train and dev items, numbers from test items.

    python benchmarks/function_vector_accuracy.py --write      # minutes on one core; --tasks singular-plural: one task
"""

import argparse
import datetime
import sys
import time

import machine
import torch

import repscope as rs
from repscope.data.tasks import encode_task, task
from repscope.results import select
from repscope.steer import evaluate_vectors, function_vector, task_vector

TASKS = ("singular-plural", "present-past", "present-gerund", "capitalize", "first-letter")
CONDITIONS = (
    "zero-shot",
    "estimate",
    "task vector",
    "few-shot",
    "permuted shots",
    "vector after permuted shots",
    "random heads",
    "vector of another task",
)
METRIC = "first-token accuracy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm = rs.load()
    started = time.process_time()
    vectors, replacing = [], []
    for name in options.tasks:
        held = encode_task(lm.tokenizer, task(name), shots=5)
        vectors.append(function_vector(lm, held, heads=10, mean_prompts=12, effect_prompts=8, dev_items=12))
        replacing.append(task_vector(lm, held, prompts=8, dev_items=12))
        heads = ", ".join(str(head) for head in vectors[-1].heads[:5])
        for made in (vectors[-1], replacing[-1]):
            best = made.sweep.accuracy.max()
            print(f"{made.direction.found_by}: {name} at {made.direction.site}, dev accuracy {best:.2f}", file=sys.stderr)
        print(f"heads {heads} …, norm {vectors[-1].direction.scale:.1f}", file=sys.stderr, flush=True)
    result = evaluate_vectors(lm, vectors, replacing, queries=options.queries)
    text = _report(options, lm, result, vectors, replacing, time.process_time() - started)
    print(text)
    if options.write:
        machine.write_section("accuracy of function vectors", text)


def _report(options, lm, result, vectors, replacing, seconds) -> str:
    held = {v.task.name: (v.direction.site, t.direction.site) for v, t in zip(vectors, replacing)}
    lines = [
        f"## Accuracy of function vectors\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}. {lm.name}, "
        f"{machine.versions(('torch', 'transformers'))}; {seconds:.0f} s of CPU. First-token accuracy on test queries, 95 % "
        "intervals over queries; five examples per prompt.",
        "",
        "| | " + " | ".join(options.tasks) + " |",
        "|---" * (len(options.tasks) + 1) + "|",
    ]
    for condition in CONDITIONS:
        cells = []
        for name in options.tasks:
            rows = select(result.table, item=name, condition=condition, metric=METRIC)
            cells += [f"{r.value:.2f} [{r.lo:.2f}, {r.hi:.2f}]" for r in rows.itertuples()] or ["–"]
        lines.append(f"| {'function vector' if condition == 'estimate' else condition} | " + " | ".join(cells) + " |")
    for i, kind in enumerate(("function vector", "task vector")):
        lines.append(f"| block of the {kind} | " + " | ".join(held[name][i].split(".")[-1] for name in options.tasks) + " |")
    lines.append(
        "| test queries | " + " | ".join(str(result.select(item=n, metric=METRIC)["n"].max()) for n in options.tasks) + " |"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
