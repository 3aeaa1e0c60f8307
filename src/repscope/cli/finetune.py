"""`repscope finetune`: a series of checkpoints of one model, by SFT, DPO, REINFORCE or GRPO."""

import json as jsonlib
from math import isnan
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from repscope.cli.shared import Count, Finite, Json, ModelName, Seed, app, print_notes, print_table


@app.command
def finetune(
    model: ModelName = "smollm2-135m-instruct-q4",
    *,
    method: Literal["sft", "dpo", "reinforce", "grpo"],
    out: Path,
    data: Path | None = None,
    task: str = "short-sentence",
    reward: str | None = None,
    lora: Count = 8,
    full: Annotated[bool, Parameter(negative="")] = False,
    rate: Finite | None = None,
    steps: Count = 60,
    batch: Count = 8,
    keep: Count = 4,
    beta: Finite | None = None,
    group: Count = 4,
    new_tokens: Count = 24,
    max_length: Count = 512,
    samples: Count = 4,
    seed: Seed = 0,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str | None = None,
    json: Json = False,
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
        Built-in task whose rows and reward are used without data: short-sentence.
    reward
        Your own reward as module:function of prompt and answer, from 0 to 1. The module is imported, so name only code you trust.
    lora
        Rank of the adapters on all linear layers.
    full
        Train all weights, without adapters.
    rate
        Learning rate of AdamW, constant; by default 2e-4 for adapters and 1e-5 for all weights.
    steps
        Optimiser steps.
    batch
        Rows per step; for reinforce and grpo answers per step.
    keep
        Checkpoints, evenly spaced, the last included.
    beta
        Weight of the KL to the base; for dpo its beta. By default 0.1 for dpo and 0 for reinforce and grpo.
    group
        Answers per prompt in reinforce and grpo.
    new_tokens
        Most tokens of a sampled answer; an answer that has not ended by then has reward 0.
    max_length
        Most tokens of a row; longer rows are left out and counted.
    samples
        Answers per prompt from which the preference pairs of a task are made.
    dtype
        Precision of the trained weights. Small updates vanish in bfloat16; the table has the share of weights that changed.
    device
        cpu, cuda, cuda:1 or mps.
    """
    from repscope.trace.finetuning.examples import reward_named
    from repscope.trace.finetuning.options import FineTuning
    from repscope.trace.finetuning.run import RECORD
    from repscope.trace.finetuning.run import finetune as run

    options = FineTuning(
        method=method,
        lora=None if full else lora,
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
    found = run(model, options, out, data=data, task=task, reward=given, device=device)
    record = jsonlib.loads((found.folder / RECORD).read_text(encoding="utf-8"))
    rows = [{str(k): v for k, v in row.items()} for row in found.table.drop(columns="path").to_dict("records")]
    if json:
        rows = [{k: None if isinstance(v, float) and isnan(v) else v for k, v in row.items()} for row in rows]  # JSON has no NaN
        told = {"set": str(out), "checkpoints": rows, "facts": record["facts"], "notes": record["notes"]}
        print(jsonlib.dumps(told, default=str))
        return
    print_notes(record["notes"])
    print_table([{k: row[k] for k in _SHOWN if k in row} for row in rows], title=f"{method} of {record['model']}: {record['says']}")
    print_table([{"check": k, "value": v} for k, v in record["facts"].items()], title="Checks")
    print(out)


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
