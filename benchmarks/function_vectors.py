"""Average indirect effects of all heads: replays of the last token beside one forward pass per head.

The default model (30 blocks of 9 heads), few-shot prompts of ten examples with shuffled outputs, every head's output at the last
token replaced by its mean. Each round takes other prompts:

1. *One forward per head, batch 1*: bare hooks on the Hugging Face model, logits at all positions, as in the reference code of Todd
   et al. (2024). Every `stride`-th head of one prompt, from the round's number on, so that `stride` rounds measure each head once.
2. *One forward per head, prompts in a batch*: the same hooks, the round's prompts padded on the left, logits at the last position.
3. *repscope*: `indirect_effects` of all heads and all prompts of the round.

Times are per prompt and head. Effects must agree to 1e-4 of the largest. The floor is the FLOPs of what 3 computes at the sgemm
rate of the round.

    python benchmarks/function_vectors.py --write      # some minutes on two idle cores; --rounds 2 --stride 45: quick
"""

import argparse
import datetime
import statistics
import sys
import time

import machine
import numpy as np
import torch
from torch import nn

import repscope as rs
from repscope.data.tasks import EncodedTask, encode_task, task
from repscope.steer.function_vectors.indirect_effects import EFFECTS, MEANS, indirect_effects, mean_head_activations

TASK = "singular-plural"
WAYS = ("one forward per head, batch 1", "one forward per head, prompts in a batch", "repscope")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4, help="prompts per round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--stride", type=int, default=10, help="every so many heads of one forward per head are measured per round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm = rs.load()
    first = encode_task(lm.tokenizer, task(TASK))
    means = mean_head_activations(lm, [s.prompt() for s in first.few_shot(first.queries("train", 8), stream=MEANS)])
    heads, values = list(means), [torch.from_numpy(mean).float() for mean in means.values()]
    indirect_effects(lm, first, means, prompts=1)  # first-call costs (proofs of the fast path) are nobody's
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    floors, rates, worst, largest = [], [], 0.0, 0.0
    for number in range(options.rounds):
        held = encode_task(lm.tokenizer, task(TASK), seed=number)
        prompts, targets = _prompts(held, options.prompts)
        some = range(number % options.stride, len(heads), options.stride)
        rates.append(machine.sgemm_rate(machine.linear_shapes(lm.block_list[0]), rows=128, repeats=20))

        started = time.perf_counter()
        found = indirect_effects(lm, held, means, prompts=options.prompts)
        ours = time.perf_counter() - started
        seconds[WAYS[2]].append(ours / found.effects.size)
        floors.append(sum(flops(lm, len(row), len(heads)) for row in prompts) / rates[-1] / ours)

        edits = [(_projection(lm, head), head.head, value) for head, value in zip(heads, values)]
        base = _logits(lm.model, prompts[:1], None, last_only=False)
        started = time.perf_counter()
        alone = [_logits(lm.model, prompts[:1], edits[i], last_only=False) for i in some]
        seconds[WAYS[0]].append((time.perf_counter() - started) / len(some))

        few = list(some)[:: len(prompts)]
        start = _logits(lm.model, prompts, None, last_only=True)
        started = time.perf_counter()
        batched = [_logits(lm.model, prompts, edits[i], last_only=True) for i in few]
        seconds[WAYS[1]].append((time.perf_counter() - started) / (len(few) * len(prompts)))

        for indices, changed, plain, rows in ((some, alone, base, 1), (few, batched, start, len(prompts))):
            for i, logits in zip(indices, changed):
                effect = _p(logits, targets[:rows]) - _p(plain, targets[:rows])
                worst = max(worst, float(np.abs(effect - found.effects[:rows, i]).max()))
                largest = max(largest, float(np.abs(effect).max()))
        print(f"round {number}: " + ", ".join(f"{way} {1e3 * s[-1]:.2f} ms" for way, s in seconds.items()), flush=True)
    assert worst < 1e-4 * largest, (worst, largest)
    text = _report(options, lm, heads, seconds, floors, rates, worst, largest)
    print(text)
    if options.write:
        machine.write_section("function vectors", text)


def _prompts(held: EncodedTask, count: int) -> tuple[list[list[int]], list[int]]:
    """The prompts that `indirect_effects` takes, as token ids, and the first token of each correct answer."""
    from transformers import PreTrainedTokenizerBase

    queries = held.queries("dev", count)
    shown = [shots.prompt().text for shots in held.few_shot(queries, shuffled=True, stream=EFFECTS)]
    tokenizer: PreTrainedTokenizerBase = rs.load().tokenizer
    return [list(row) for row in tokenizer(shown)["input_ids"]], [held.first(output) for _, output in queries]


def _projection(lm: rs.LanguageModel, head: rs.Site) -> nn.Module:
    return lm.model.model.layers[head.layer].self_attn.o_proj


def _logits(model: nn.Module, prompts: list[list[int]], change: tuple[nn.Module, int, torch.Tensor] | None, *, last_only: bool):
    """Logits at the last token, (prompt, vocab), with one head's output there replaced."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    named = {"input_ids": ids, "use_cache": False}
    if len(prompts) > 1:
        named |= {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
    with torch.no_grad(), _hooked(change):
        return model(**named, **({"logits_to_keep": 1} if last_only else {})).logits[:, -1]


class _hooked:  # noqa: N801 (a context manager)
    def __init__(self, change: tuple[nn.Module, int, torch.Tensor] | None) -> None:
        self.change = change

    def __enter__(self) -> None:
        if self.change is not None:
            module, head, value = self.change

            def put(_: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
                new = args[0].clone()
                new[:, -1, head * len(value) : (head + 1) * len(value)] = value
                return (new,)

            self.handle = module.register_forward_pre_hook(put)

    def __exit__(self, *_: object) -> None:
        if self.change is not None:
            self.handle.remove()


def _p(logits: torch.Tensor, targets: list[int]) -> np.ndarray:
    return np.array([float(row.double().softmax(-1)[target]) for row, target in zip(logits, targets)])


def flops(lm: rs.LanguageModel, tokens: int, heads: int) -> float:
    """Of products: a pass over the prefix, the last token's rows in each block, and the head for every row."""
    block = sum(2.0 * i * o for i, o in machine.linear_shapes(lm.block_list[0]))
    width = lm.anatomy.width
    rows = sum(1 + heads * (layer + 1) / lm.blocks for layer in range(lm.blocks))
    prefix = lm.blocks * ((tokens - 1) * block + 2.0 * (tokens - 1) ** 2 * width)
    return prefix + rows * (block + 4.0 * tokens * width) + (heads + 1) * 2.0 * width * lm.vocabulary


def _report(options, lm, heads, seconds, floors, rates, worst, largest) -> str:
    lines = [
        f"## Indirect effects of all heads\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}. {machine.describe()}. "
        f"{machine.versions(('torch', 'transformers'))}, {options.threads} threads. sgemm "
        f"{', '.join(f'{r / 1e9:.0f}' for r in rates)} GFLOP/s. {lm.name}, {len(heads)} heads, {options.prompts} prompts of ten "
        f"examples per round, {options.rounds} rounds with every {options.stride}th head of one forward per head. Milliseconds per "
        "prompt and head, median over rounds (least–most); ratios within a round.",
        "",
        "| | ms per prompt and head | repscope is faster by |",
        "|---|---|---|",
    ]
    for way, values in seconds.items():
        ratio = [a / b for a, b in zip(values, seconds["repscope"])]
        faster = "" if way == "repscope" else f"{_range(ratio)} ×"
        lines.append(f"| {way} | {_range([1e3 * v for v in values])} | {faster} |")
    lines += [
        "",
        f"Largest difference of an effect {worst:.1e}; the largest effect is {largest:.1e}. Floor (FLOPs of what repscope computes "
        f"at the sgemm rate of the round): {100 * statistics.median(floors):.0f} % of the time that it takes.",
    ]
    return "\n".join(lines)


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}–{max(values):.3g})"


if __name__ == "__main__":
    main()
