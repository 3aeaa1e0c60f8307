"""Where the time of a capture of all blocks and tokens goes, beside the bare products of the same pass.

1. The job is that of `capture.py`: all block outputs at all tokens. torch's profiler gives the time of each operation of its own;
   ranges around norms, rotation, activation functions, attention and the writing of rows say what it belongs to.
2. The products are also run bare: the same matrices, in the same order, on as many rows as each pack has.
3. The floor is the FLOPs of the job over the best rate of products measured in the same run, as in `capture.py`.

    python benchmarks/profile_pass.py --write       # about two minutes on two idle cores
"""

import argparse
import datetime
import functools
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import capture
import machine
import torch
import transformers
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from repscope.models.engine.packed_attention import PackedAttention
from repscope.models.engine.row_writer import Rows

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::", "aten::mkldnn_linear")
ATTENTION = ("aten::_scaled_dot_product", "aten::scaled_dot_product")
BUSY = (
    "Other jobs had a part of the cores meanwhile, so the seconds, which are of the clock, are not comparable with each other; "
    "the shares within the profiled pass are."
)
LABELS = (
    "products of the weights",
    "attention: the products",
    "attention: rows put together and apart",
    "norms",
    "rotation",
    "activation functions",
    "rows of the result",
    "gate × up, residual sums, the rest",
    "Python, dispatch, the profiler",
)


def ranged(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with record_function(f"part: {label}"):
            return function(*args, **kwargs)

    return wrapper


@contextmanager
def labelled(model: Any) -> Iterator[None]:
    """Ranges around the parts of a pass, set on classes and functions: hooks on modules would change how prompts are laid out."""
    places: dict[tuple[Any, str], str] = {}
    for module in model.base_model.modules():
        kind, name = type(module), type(module).__name__
        if "Norm" in name:
            places[kind, "forward"] = "norms"
        elif "Rotary" in name:
            places[kind, "forward"] = "rotation"
        elif "act_fn" in dict(module.named_children()):
            places[type(module.act_fn), "forward"] = "activation functions"
    home = sys.modules[type(model).__module__]
    if hasattr(home, "apply_rotary_pos_emb"):
        places[home, "apply_rotary_pos_emb"] = "rotation"
    places[PackedAttention, "_attend"] = "attention: rows put together and apart"
    places[Rows, "write"] = "rows of the result"
    with ExitStack() as stack:
        for (owner, name), label in places.items():
            stack.enter_context(mock.patch.object(owner, name, ranged(label, getattr(owner, name))))
        yield


def parts(events: Any, wall: float) -> dict[str, float]:
    """Seconds of each part: of every operation its own time, by the nearest range around it."""
    seconds = dict.fromkeys(LABELS, 0.0)
    for event in events:
        name, own = event.name, event.self_cpu_time_total / 1e6
        if name.startswith("part: ") or not name.startswith(("aten::", "mkldnn::")):
            continue
        label = ""
        if name.startswith(PRODUCTS):
            label = LABELS[0]
        above = event
        while not label and above is not None:
            if above.name.startswith(ATTENTION):
                label = LABELS[1]
            elif above.name.startswith("part: "):
                label = above.name.removeprefix("part: ")
            above = above.cpu_parent
        seconds[label or LABELS[-2]] += own
    seconds[LABELS[-1]] = wall - sum(seconds.values())
    return seconds


def bare(lm: Any, sizes: list[int]) -> float:
    """Seconds of the same products, pack by pack and block by block, and of nothing else."""
    maps = [[m.weight for m in block.modules() if isinstance(m, nn.Linear)] for block in lm.block_list]
    started = time.perf_counter()
    with torch.no_grad():
        for size in sizes:
            xs = {n: torch.randn(size, n) for n in {w.shape[1] for w in maps[0]}}
            for block in maps:
                for w in block:
                    nn.functional.linear(xs[w.shape[1]], w)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=256, help="of the job's 256, the first so many")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    transformers.utils.logging.disable_progress_bar()
    path = capture.default_model()
    model, tokenizer = capture.load(path), transformers.AutoTokenizer.from_pretrained(path)
    job = next(j for j in capture.jobs(tokenizer, False) if j.name == "all")
    job = replace(job, prompts=job.prompts[: o.prompts])
    engine = capture.Repscope(model, tokenizer)
    plan = engine.lm.plan(job.prompts, "resid_post", "all").plan
    held = plan.tree.stop - plan.tree.start
    sizes = [int(held[p.first : p.last].sum()) for p in plan.packs]
    engine.capture(job.prompts[:64], job.blocks, job.tokens)
    shapes = machine.linear_shapes(model.base_model.layers[0])
    rates, plain, products, profiled, split = [], [], [], [], defaultdict(list)
    for _ in range(o.rounds):
        rates.append(machine.sgemm_rate(shapes))
        started = time.perf_counter()
        engine.capture(job.prompts, job.blocks, job.tokens)
        plain.append(time.perf_counter() - started)
        products.append(bare(engine.lm, sizes))
        with labelled(model), profile(activities=[ProfilerActivity.CPU]) as profiler:
            started = time.perf_counter()
            engine.capture(job.prompts, job.blocks, job.tokens)
            profiled.append(time.perf_counter() - started)
        for label, seconds in parts(profiler.events(), profiled[-1]).items():
            split[label].append(seconds)
        del profiler
    floor = capture.flops(job, model) / max(rates)
    form = capture.spread
    lines = [
        f"## A pass in parts\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}. {machine.describe()}.",
        f"{machine.versions(('torch', 'transformers', 'repscope'))}. Model {engine.lm.name}, float32, {o.threads} thread(s).\n",
        f"All {len(job.blocks)} block outputs of {len(job.prompts)} prompts, {job.size:,} tokens, in {len(sizes)} packs. Seconds, "
        f"median (range) of {o.rounds} rounds. `lm.capture` took {form(plain, '.2f')}, with the profiler {form(profiled, '.2f')}; "
        f"the bare products took {form(products, '.2f')}; the floor, at the best rate of {max(rates) / 1e9:.0f} GFLOP/s, is "
        f"{floor:.2f}.\n",
        "| part | s | share |\n|---|---|---|",
    ]
    lines += [
        f"| {label} | {form(split[label], '.2f')} | {form([100 * s / t for s, t in zip(split[label], profiled)], '.1f')} % |"
        for label in LABELS
    ]
    if os.getloadavg()[0] > (os.cpu_count() or 1):
        lines.append(f"\n{BUSY}")
    text = "\n".join(lines)
    print(text)
    if o.write:
        machine.write_section("a pass in parts", text)


if __name__ == "__main__":
    main()
