"""What trl does to rows, weights and the reference without saying so: counted, refused where it would make a number wrong.

1. Rows after trl's preparation: as many as given; none longer than `max_length`; each completion with an end-of-text token; each
   prompt with the tokens from which answers are sampled.
2. The reference is the base in memory: DPO's loss before the first update is log 2; the KL of reinforce and grpo is 0 there.
3. Groups of answers with equal rewards, from which nothing is learned.
4. The precision of the trained weights, and the share of them that changed: exactly, and after rounding to bfloat16, where small
   updates vanish.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from repscope.errors import UserError
from repscope.models.engine.generation import ends_of
from repscope.trace.finetuning.examples import Examples, prompt_ids
from repscope.trace.finetuning.options import METHODS, FineTuning

_LOG2 = 1e-3  #: tolerance of DPO's first loss in float32, nats
_LOG2_HALF = 2e-2  #: and in half precision
_KL = 1e-4  #: of the first KL to the reference, nats per token


def prepared_rows(trainer: Any, examples: Examples, options: FineTuning, tokenizer: Any) -> dict[str, Any]:
    """Facts on the rows as trl tokenised them.

    Raises
    ------
    UserError
        When trl dropped or cut rows, or no completion ends.
    """
    if METHODS[options.method].samples:
        return {"rows": len(examples.train)}
    data = trainer.train_dataset
    given, kept = len(examples.train), len(data)
    if kept < given:
        raise UserError(f"trl dropped {given - kept} of {given} rows of {examples.name} for their length; raise --max-length.")
    stops = ends_of(trainer.accelerator.unwrap_model(trainer.model))
    started = ended = asked = longest = total = 0
    for row, prompt in zip(data, examples.train["prompt"]):
        if options.method == "sft":
            first = next((i for i, label in enumerate(row["labels"]) if label != -100), len(row["input_ids"]))
            before, answers = row["input_ids"][:first], [row["input_ids"][first:]]
        else:
            before, answers = row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]
        total += len(answers)
        ended += sum(bool(stops.intersection(ids)) for ids in answers)
        started += sum(bool(len(ids)) for ids in answers)
        asked += list(before) == prompt_ids(tokenizer, prompt).tolist()
        longest = max(longest, *(len(before) + len(ids) for ids in answers))
    if started < total or longest > options.max_length:
        raise UserError(
            f"trl cut rows of {examples.name} to {options.max_length} tokens (the longest has {longest}); raise --max-length."
        )
    if not ended:
        raise UserError(
            f"No completion of {examples.name} holds an end-of-text token after trl's tokenisation, so the model would never learn "
            "to stop; use a chat template that ends a turn with the tokenizer's eos_token."
        )
    return {
        "rows": kept,
        "rows dropped by trl": given - kept,
        "longest row, tokens": longest,
        "completions with an end-of-text token": ended / total,
        "prompts with the tokens that answers are sampled from": asked / kept,
    }


def first_step(log: Mapping[str, float], options: FineTuning) -> dict[str, Any]:
    """Facts of the first step, before any update.

    Raises
    ------
    UserError
        When the reference is not the base.
    """
    if options.method == "dpo":
        loss, tolerance = float(log["loss"]), _LOG2 if options.dtype == "float32" else _LOG2_HALF
        if abs(loss - math.log(2)) > tolerance:
            raise UserError(
                f"DPO's loss before the first update is {loss:.4f} and not log 2 = {math.log(2):.4f}, so its reference is not the "
                "base; remove layers that change from pass to pass, and report it."
            )
        return {"first loss of DPO minus log 2": loss - math.log(2)}
    if "kl" in log and log["kl"] is not None:
        kl = float(log["kl"])
        if abs(kl) > (_KL if options.dtype == "float32" else 1e2 * _KL):
            raise UserError(f"The KL to the reference before the first update is {kl:.2g}, so the reference is not the base.")
        return {"first KL to the reference": kl}
    return {}


def equal_rewards(history: Sequence[Mapping[str, Any]], options: FineTuning) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Facts and notes on the groups of answers of reinforce and grpo whose rewards were all equal: their advantages are 0.

    history: the trainer's log, one entry per step, in which trl gives the share of such groups.
    """
    if not METHODS[options.method].samples:
        return {}, ()
    per_step = options.batch // options.group_size
    shares = [float(entry["frac_reward_zero_std"]) for entry in history if "frac_reward_zero_std" in entry]
    groups, equal = per_step * len(shares), sum(round(share * per_step) for share in shares)
    facts = {"groups of answers to one prompt": groups, "groups with equal rewards": equal}
    if not groups or equal < groups:
        return facts, ()
    note = (
        f"All rewards of a prompt were equal in all {groups} groups, so nothing was learned; give a reward that differs between "
        "answers, raise --group, or raise --new-tokens if answers do not end (their reward is 0)."
    )
    return facts, (note,)


def trained_weights(model: Any) -> dict[str, Any]:
    """The number of trained weights, by precision."""
    counts: Counter[str] = Counter()
    for value in model.parameters():
        if value.requires_grad:
            counts[str(value.dtype).removeprefix("torch.")] += value.numel()
    return {"trained weights": sum(counts.values()), "precision of trained weights": ", ".join(sorted(counts))}


def changed(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> dict[str, float]:
    """Of the tensors that differ at all: the share of entries that changed, exactly and after rounding to bfloat16; and the norm of
    the difference over the base's norm, over all tensors. Tensor by tensor.
    """
    exact = rounded = count = 0
    squares = norm = 0.0
    for name in base:
        a, b = base[name], tuned[name]
        norm += float(a.double().square().sum())
        if torch.equal(a, b):
            continue
        count += a.numel()
        exact += int((a != b).sum())
        rounded += int((a.bfloat16() != b.bfloat16()).sum())
        squares += float((b.double() - a.double()).square().sum())
    return {
        "changed_float32": exact / count if count else 0.0,
        "changed_bfloat16": rounded / count if count else 0.0,
        "relative_norm": math.sqrt(squares / norm) if norm else 0.0,
    }
