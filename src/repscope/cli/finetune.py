"""`repscope finetune`: a series of checkpoints of one model, by SFT, DPO, REINFORCE or GRPO."""

import json as jsonlib
from math import isfinite
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from repscope.cli.shared import Count, Finite, Json, ModelName, Seed, app, print_notes, print_table, say
from repscope.errors import UserError

_JSON = "Print one JSON object: the series' folder (set), one row per checkpoint, facts of the checks, and notes."


@app.command
def finetune(
    model: ModelName = "smollm2-135m-instruct-q4",
    *,
    method: Literal["sft", "dpo", "reinforce", "grpo"],
    out: Path,
    data: Path | None = None,
    task: str | None = None,
    reward: str | None = None,
    lora: Count | None = None,
    full: Annotated[bool, Parameter(negative="")] = False,
    rate: Finite | None = None,
    steps: Count = 60,
    batch: Count = 8,
    keep: Count | None = None,
    beta: Finite | None = None,
    group: Count | None = None,
    new_tokens: Count = 24,
    max_length: Count = 512,
    samples: Count | None = None,
    seed: Seed = 0,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str | None = None,
    json: Annotated[Json, Parameter(help=_JSON)] = False,
) -> None:
    """Fine-tune a model and save a series of checkpoints with reward, KL to the base and loss. Needs repscope[finetune].

    The same command resumes an interrupted run, with the weights of one that was not interrupted.

    Parameters
    ----------
    method
        sft (demonstrations), dpo (preference pairs), reinforce (leave-one-out baseline) or grpo (group-relative advantages).
    out
        Folder of the series, a set of checkpoints.
    data
        Your own rows as JSON lines, CSV, TSV or Parquet: prompt and completion (sft); prompt, chosen and rejected (dpo); prompt
        (reinforce, grpo). A fifth of the prompts is held out.
    task
        Built-in task whose rows and reward are used without data; by default short-sentence, the only one.
    reward
        Your own reward as module:function of prompt and answer, from 0 to 1. The module is imported, so name only code you trust.
    lora
        Rank of the adapters on all linear layers; by default 8.
    full
        Train all weights, without adapters; not together with lora.
    rate
        Learning rate of AdamW, constant; by default 2e-4 for adapters and 1e-5 for all weights.
    steps
        Optimiser steps.
    batch
        Rows per step; for reinforce and grpo answers per step.
    keep
        Checkpoints, evenly spaced, the last included; by default 4, or one per step where there are fewer steps.
    beta
        Weight of the KL to the base; for dpo its beta. By default 0.1 for dpo and 0 for reinforce and grpo; sft has none.
    group
        Answers per prompt in reinforce and grpo; by default 4.
    new_tokens
        Most tokens of a sampled answer; an answer that has not ended by then has reward 0.
    max_length
        Most tokens of a row; longer rows are left out and counted.
    samples
        Answers per prompt from which dpo's preference pairs of a task are made; by default 4.
    dtype
        Precision of the trained weights. Small updates vanish in bfloat16; the table has the share of weights that changed.
    device
        cpu, cuda, cuda:1 or mps.
    """
    from repscope.trace.finetuning.examples import reward_named
    from repscope.trace.finetuning.options import RECORD, FineTuning
    from repscope.trace.finetuning.run import finetune as run

    if full and lora is not None:
        raise UserError("--full trains all weights and --lora adapters only; give one of them.")
    if data is not None and task is not None:
        raise UserError("--data and --task both name the rows to learn from; give one of them.")
    options = FineTuning(
        method=method,
        lora=None if full else 8 if lora is None else lora,
        rate=rate,
        steps=steps,
        batch=batch,
        keep=keep,
        beta=beta,
        group=group,
        new_tokens=new_tokens,
        max_length=max_length,
        samples=samples,
        seed=seed,
        dtype=dtype,
    )
    given = None if reward is None else reward_named(reward)
    found = run(model, options, out, data=data, task="short-sentence" if task is None else task, reward=given, device=device)
    record = jsonlib.loads((found.folder / RECORD).read_text(encoding="utf-8"))
    rows = [{str(k): v for k, v in row.items()} for row in found.table.drop(columns="path").to_dict("records")]
    if json:
        rows = [
            {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in row.items()} for row in rows
        ]  # JSON has no NaN
        told = {"set": str(out), "checkpoints": rows, "facts": record["facts"], "notes": record["notes"]}
        print(jsonlib.dumps(told, default=str))
        return
    print_notes(record["notes"])
    print_table([{k: row[k] for k in _SHOWN if k in row} for row in rows], title=f"{method} of {record['model']}: {record['says']}")
    print_table([{"check": k, "value": v} for k, v in record["facts"].items()], title="Checks")
    say(out)


_SHOWN = (
    "step",
    "reward",
    "reward_lo",
    "reward_hi",
    "kl",
    "kl_lo",
    "kl_hi",
    "loss",
    "ended",
    "changed_float32",
    "changed_bfloat16",
)
