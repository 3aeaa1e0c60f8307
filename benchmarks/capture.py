"""repscope beside its peers on capture: the same model, prompts and machine, in one run.

1. Every method gets the same Hugging Face model (weights shared, modules its own, since TransformerLens changes those it
   gets) and the same token ids, cut from the documentation that ships with Python. No method sees text.
2. A job is prompts, blocks and tokens. After a warm-up, each round runs every method once, in an order that rotates. The
   table gives the median and the range over rounds, and ratios paired within a round.
3. Errors are relative L2 distances to Hugging Face run one prompt at a time, the largest over the rows compared.
4. Memory is the high-water mark of a fresh process that loads the model and does the job once.
5. The floor is the FLOPs of the blocks needed over the sgemm rate measured at the model's own shapes in the same run.

    .venv-bench/bin/python benchmarks/capture.py --write          # about 30 minutes on two idle cores
    .venv-bench/bin/python benchmarks/capture.py --quick          # a few prompts: does it run at all?

The environment is requirements-peers.txt. Where anything else runs on the machine, set OMP_WAIT_POLICY=passive: OpenMP
threads that spin while another process holds their core made the same pass up to eight times slower here.
"""
# ruff: noqa: D101, D102  (the table METHODS says what each class does)

import argparse
import copy
import datetime
import gc
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import machine
import numpy as np
import torch
import transformers
from torch import Tensor, nn

Ids = list[int]
Read = Callable[[int, Tensor], None]  #: (block, its output at the positions asked for: (row, d_model))

BATCH = 32
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight", "repscope", "numpy")


# --- The methods -----------------------------------------------------------------------------------------------------


class Peer:
    """A method that takes padded batches. It gives `run`; batching and collecting are the same for all peers."""

    by_length = False

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model

    def run(self, ids: Tensor, mask: Tensor, pick: tuple[Tensor, Tensor], blocks: Sequence[int], read: Read) -> None:
        """Run one batch (row, token), padded right; hand each block's output at `pick` (rows, positions) to `read`."""
        raise NotImplementedError

    def capture(self, prompts: Sequence[Ids], blocks: Sequence[int], tokens: str) -> Sequence[np.ndarray]:
        """For each block an array (row, d_model): one row a prompt (`last`) or a token (`all`), in the order given."""
        lengths = [len(p) for p in prompts] if tokens == "all" else [1] * len(prompts)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        out = torch.empty(len(blocks), int(starts[-1]), self.model.config.hidden_size)
        slot = {block: i for i, block in enumerate(blocks)}
        order = np.argsort([len(p) for p in prompts], kind="stable") if self.by_length else np.arange(len(prompts))
        for batch in np.array_split(order, range(BATCH, len(order), BATCH)):
            ids = nn.utils.rnn.pad_sequence([torch.tensor(prompts[i]) for i in batch], batch_first=True)
            size = torch.tensor([len(prompts[i]) for i in batch])
            mask = torch.arange(ids.shape[1]) < size[:, None]
            rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in batch])
            pick = mask.nonzero(as_tuple=True) if tokens == "all" else (torch.arange(len(batch)), size - 1)

            def read(block: int, held: Tensor, rows: Tensor = rows) -> None:
                out[slot[block]].index_copy_(0, rows, held)

            with torch.no_grad():
                self.run(ids, mask, pick, blocks, read)
        return list(out.numpy())

    def to_disk(self, prompts: Sequence[Ids], block: int, folder: Path) -> None:
        """The last token's vector of every prompt into a file, 1,024 prompts at a time."""
        rows = np.lib.format.open_memmap(folder / "rows.npy", "w+", np.float32, (len(prompts), self.model.config.hidden_size))
        for start in range(0, len(prompts), 1024):
            rows[start : start + 1024] = self.capture(prompts[start : start + 1024], [block], "last")[0]


class HuggingFacePadded(Peer):
    def run(self, ids: Tensor, mask: Tensor, pick: tuple[Tensor, Tensor], blocks: Sequence[int], read: Read) -> None:
        states = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        for block in blocks:
            read(block, states[block + 1][pick])


class Stop(Exception):
    """Ends a forward pass after the last block asked for."""


class HandSorted(Peer):
    by_length = True

    def run(self, ids: Tensor, mask: Tensor, pick: tuple[Tensor, Tensor], blocks: Sequence[int], read: Read) -> None:
        def hook_for(block: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                read(block, (output[0] if isinstance(output, tuple) else output)[pick])
                if block == max(blocks):
                    raise Stop

            return hook

        backbone = self.model.base_model
        handles = [backbone.layers[block].register_forward_hook(hook_for(block)) for block in blocks]
        try:
            backbone(**self.inputs(ids, mask), use_cache=False)
        except Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()

    def inputs(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        return {"input_ids": ids, "attention_mask": mask}


class HandPacked(HandSorted):
    """One row of real tokens, padded only inside attention, where right padding needs no mask but the causal one."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        transformers.AttentionInterface.register("packed", _packed_attention)
        transformers.AttentionMaskInterface.register("packed", lambda *args, **kwargs: None)
        model.set_attn_implementation("packed")

    def run(self, ids: Tensor, mask: Tensor, pick: tuple[Tensor, Tensor], blocks: Sequence[int], read: Read) -> None:
        ends = mask.sum(1).cumsum(0)
        flat = torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]])[pick[0]] + pick[1]
        super().run(ids, mask, (torch.zeros_like(flat), flat), blocks, read)

    def inputs(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        rows, positions = mask.nonzero(as_tuple=True)
        return {"input_ids": ids[mask][None], "position_ids": positions[None], "cells": (rows, positions)}


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    *,
    scaling: float,
    cells: tuple[Tensor, Tensor],
    **_: Any,
) -> tuple[Tensor, None]:
    rows, positions = cells

    def padded(x: Tensor) -> Tensor:
        out = x.new_zeros(int(rows[-1]) + 1, int(positions.max()) + 1, x.shape[1], x.shape[3])
        out[rows, positions] = x[0].transpose(0, 1)
        return out.transpose(1, 2)

    mixed = nn.functional.scaled_dot_product_attention(
        padded(query), padded(key), padded(value), is_causal=True, scale=scaling, enable_gqa=True
    )
    return mixed.transpose(1, 2)[rows, positions][None], None


class TransformerLens(Peer):
    def __init__(self, model: Any, tokenizer: Any) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        super().__init__(model, tokenizer)
        self.bridge = TransformerBridge.boot_transformers(
            model.name_or_path, hf_model=model, tokenizer=tokenizer, dtype=torch.float32
        )

    def run(self, ids: Tensor, mask: Tensor, pick: tuple[Tensor, Tensor], blocks: Sequence[int], read: Read) -> None:
        names = [f"blocks.{block}.hook_resid_post" for block in blocks]
        _, cache = self.bridge.run_with_cache(
            ids, attention_mask=mask.long(), names_filter=names, stop_at_layer=max(blocks) + 1, return_type=None
        )
        for block, name in zip(blocks, names, strict=True):
            read(block, cache[name][pick])


class NNsight(Peer):
    def __init__(self, model: Any, tokenizer: Any) -> None:
        from nnsight import TransformersModel

        super().__init__(model, tokenizer)
        self.traced = TransformersModel(model, tokenizer=tokenizer, task="text-generation")

    def run(self, ids: Tensor, mask: Tensor, pick: tuple[Tensor, Tensor], blocks: Sequence[int], read: Read) -> None:
        import nnsight

        layers = [self.traced.model.layers[block] for block in blocks]
        with self.traced.trace({"input_ids": ids, "attention_mask": mask.long()}) as tracer:
            kept = nnsight.save([])
            for layer in layers:
                kept.append(layer.output)
            tracer.stop()
        for block, held in zip(blocks, kept, strict=True):
            read(block, held[pick])


class Repscope:
    def __init__(self, model: Any, tokenizer: Any) -> None:
        import repscope as rs

        self.lm = rs.LanguageModel(model, tokenizer)

    def capture(self, prompts: Sequence[Ids], blocks: Sequence[int], tokens: str) -> Sequence[np.ndarray]:
        whole = len(blocks) == self.lm.blocks
        at = "resid_post" if whole else [f"resid_post.{block}" for block in blocks]
        held = self.lm.capture(prompts, at=at, tokens=tokens)
        return [held[site] for site in held.sites]

    def to_disk(self, prompts: Sequence[Ids], block: int, folder: Path) -> None:
        self.lm.capture(prompts, at=f"resid_post.{block}", tokens="last", out=folder / "rows")

    def foreseen(self, job: "Job") -> Any:
        """What `lm.plan` says of the job."""
        at = "resid_post" if len(job.blocks) == self.lm.blocks else [f"resid_post.{block}" for block in job.blocks]
        return self.lm.plan(job.prompts, at, job.tokens)


@dataclass(frozen=True)
class Method:
    """A row of the tables. name: for --only. title: on the page. make: from model and tokenizer. what: what it does."""

    name: str
    title: str
    make: Callable[[Any, Any], Any]
    what: str


METHODS = (
    Method(
        "huggingface",
        "Hugging Face padded",
        HuggingFacePadded,
        "`output_hidden_states=True` of `AutoModelForCausalLM`, 32 at a time as given, padded: the usual code",
    ),
    Method(
        "transformerlens",
        "TransformerLens, filter + stop",
        TransformerLens,
        "`run_with_cache(names_filter, stop_at_layer)` of a `TransformerBridge`, 32 at a time as given, padded",
    ),
    Method(
        "nnsight",
        "nnsight, save + stop",
        NNsight,
        "block outputs saved in a `trace` of a `TransformersModel`, `tracer.stop()`, 32 at a time as given, padded",
    ),
    Method(
        "sorted",
        "hand-written, length-sorted, truncated",
        HandSorted,
        "32 at a time sorted by length, padded with a mask, no head, hooks that write into the result and stop",
    ),
    Method(
        "packed",
        "hand-written, packed, truncated",
        HandPacked,
        "the same, but a batch is one row without padding, which is put in inside attention only",
    ),
    Method("repscope", "**repscope**", Repscope, "`lm.capture(prompts, at=…, tokens=…)`"),
)
BASE = "sorted"  #: what ratios are to


# --- The jobs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """Work that every method does. calls: how often a timing. compared: prompts that are checked against one-by-one."""

    name: str
    title: str
    prompts: list[Ids]
    blocks: tuple[int, ...]
    tokens: str
    once: int = 0  #: tokens left when every beginning that prompts share counts once: the floor's; 0 where they share none
    calls: int = 1
    threads: int = 2
    compared: tuple[int, ...] = ()
    toy: bool = False

    @property
    def size(self) -> int:
        return sum(map(len, self.prompts))


def cut(stream: Iterator[int], count: int, shortest: int, longest: int) -> list[Ids]:
    """Consecutive pieces of a stream of token ids, lengths uniform between two bounds, seed 0."""
    rng = random.Random(0)
    return [list(itertools.islice(stream, rng.randint(shortest, longest))) for _ in range(count)]


def documentation(tokenizer: Any) -> Ids:
    """The language reference that Python ships (`help("topics")`) as token ids, some 100,000 of them."""
    text = "\n\n".join(topics[name] for name in sorted(topics))[:400_000]
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def jobs(tokenizer: Any, quick: bool) -> tuple[Job, ...]:
    ids = documentation(tokenizer)
    prompts = cut(itertools.cycle(ids), 12 if quick else 256, 4, 64)
    prefix, queries = ids[-60:], cut(iter(ids), 8 if quick else 64, 5, 10)
    task, shots = ids[-240:-200], [ids[-200 + 40 * i : -140 + 40 * i] for i in range(4)]
    asked = cut(iter(ids), 8 if quick else 96, 5, 10)
    every = tuple(range(30))
    some = tuple(range(0, len(prompts), max(1, len(prompts) // 16)))
    return (
        Job("last", "Block 10, last token", prompts, (10,), "last", compared=tuple(range(len(prompts)))),
        Job(
            "all",
            "All 30 block outputs, all tokens",
            prompts[:4] if quick else prompts,
            every,
            "all",
            compared=(0, 1) if quick else some,
        ),
        Job(
            "prefix",
            "A 60-token prefix shared by all queries of 5–10 tokens, block 10, last token",
            [prefix + q for q in queries],
            (10,),
            "last",
            once=len(prefix) + sum(map(len, queries)),
            compared=tuple(range(len(queries))),
        ),
        Job(
            "tree",
            "Few-shot prompts: one instruction, 4 sets of examples, each with 24 queries; block 10, last token",
            [task + shots[i % 4] + q for i, q in enumerate(asked)],
            (10,),
            "last",
            once=len(task) + sum(map(len, shots)) + sum(map(len, asked)),
            compared=tuple(range(0, len(asked), 6)),
        ),
        Job(
            "call",
            "Fixed cost of a call: 24-layer toy Llama (d = 64), one 4-token prompt, block 10, one thread",
            [[5, 6, 7, 8]],
            (10,),
            "last",
            calls=3 if quick else 30,
            threads=1,
            compared=(0,),
            toy=True,
        ),
    )


# The memory of a capture to disk is about the number of prompts: they are short, and block 2 keeps the minutes down.
DISK_LENGTHS, DISK_BLOCK = (4, 16), 2


def toy(folder: Path) -> Any:
    """A random 24-layer Llama, saved and loaded so that it has a path as every model of a peer does."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=24, num_attention_heads=4, vocab_size=1000
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return load(str(folder))


def load(path: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def twin(model: Any) -> Any:
    """Modules of its own over the same weights."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


# --- Measuring -------------------------------------------------------------------------------------------------------


def alone(model: Any, prompts: Sequence[Ids], blocks: Sequence[int], tokens: str) -> list[np.ndarray]:
    """The reference: Hugging Face, one prompt a call, no padding, no stop; block outputs read by hooks."""
    rows: dict[int, list[Tensor]] = {block: [] for block in blocks}
    part = slice(None) if tokens == "all" else slice(-1, None)
    layers = model.base_model.layers
    handles = [layers[b].register_forward_hook(lambda m, a, out, b=b: rows[b].append(out[0, part])) for b in blocks]
    with torch.no_grad():
        for prompt in prompts:
            model(input_ids=torch.tensor([prompt]))
    for handle in handles:
        handle.remove()
    return [torch.cat(rows[block]).numpy() for block in blocks]


def error(job: Job, held: Sequence[np.ndarray], reference: list[np.ndarray]) -> float:
    """The largest relative distance over the rows of the prompts compared."""
    lengths = [len(p) if job.tokens == "all" else 1 for p in job.prompts]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in job.compared])
    return max(
        float((np.linalg.norm(a[rows] - b, axis=1) / np.linalg.norm(b, axis=1)).max()) for a, b in zip(held, reference, strict=True)
    )


def flops(job: Job, model: Any) -> float:
    """What the job needs: blocks 0 to the last one asked for, causal attention, what prompts share once."""
    config = model.config
    linear = sum(2 * i * o for i, o in machine.linear_shapes(model.base_model.layers[0]))
    per_pair = 4 * config.hidden_size  # scores and mixing, all heads
    positions = job.once or job.size
    seen = {tuple(p[: n + 1]) for p in job.prompts for n in range(len(p))} if job.once else ()
    attended = sum(map(len, seen)) if job.once else sum(len(p) * (len(p) + 1) / 2 for p in job.prompts)
    return (max(job.blocks) + 1) * (linear * positions + per_pair * attended)


@dataclass(frozen=True)
class Timing:
    """One method at one job, one entry a round: seconds a call, and the error of what it returned."""

    wall: list[float]
    cpu: list[float]
    error: list[float]


def measure(job: Job, methods: Sequence[Method], model: Any, tokenizer: Any, rounds: int) -> tuple[dict[str, Timing], list[float]]:
    """Timings of each method by name, and the sgemm rates measured before each round and at the end."""
    torch.set_num_threads(job.threads)
    shapes = machine.linear_shapes(model.base_model.layers[0])
    rates: list[float] = []
    engines = {m.name: m.make(twin(model), tokenizer) for m in methods}
    reference = alone(model, [job.prompts[i] for i in job.compared], job.blocks, job.tokens)
    timings = {name: Timing([], [], []) for name in engines}
    for engine in engines.values():
        engine.capture(job.prompts[:64], job.blocks, job.tokens)
    for turn in range(rounds):
        rates.append(machine.sgemm_rate(shapes))
        names = list(engines)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(job.calls):
                held = engines[name].capture(job.prompts, job.blocks, job.tokens)
            timings[name].wall.append((time.perf_counter() - wall) / job.calls)
            timings[name].cpu.append((time.process_time() - cpu) / job.calls)
            # hidden_states cannot give the last block's output: its last entry is after the final norm.
            compared = slice(-1) if name == "huggingface" and len(job.blocks) > 1 else slice(None)
            timings[name].error.append(error(job, held[compared], reference[compared]))
            del held
            seconds = timings[name].wall[-1]
            print(f"  {job.name} round {turn + 1}/{rounds}: {name} {seconds:.3g} s", file=sys.stderr, flush=True)
    return timings, [*rates, machine.sgemm_rate(shapes)]


def in_child(spec: str, path: str, quick: bool) -> dict[str, float]:
    """Peak memory in a fresh process: of a method at a job (`last:repscope`), or to disk (`disk-1000:repscope`)."""
    command = [sys.executable, __file__, "--child", spec, "--model", path, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"The memory run {spec} failed:\n{done.stderr[-2000:]}")
    print(f"  memory {spec}: {done.stdout.strip().splitlines()[-1]}", file=sys.stderr, flush=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def child(spec: str, path: str, quick: bool) -> None:
    task, name = spec.split(":")
    torch.set_num_threads(2)
    model, tokenizer = load(path), transformers.AutoTokenizer.from_pretrained(path)
    job = next((j for j in jobs(tokenizer, quick) if j.name == task), None)
    short = [] if job else cut(itertools.cycle(documentation(tokenizer)), int(task.removeprefix("disk-")), *DISK_LENGTHS)
    engine = next(m for m in METHODS if m.name == name).make(model, tokenizer)
    for weight in model.parameters():
        weight.sum()  # weights are mapped from their file: without this, more prompts touch more rows of the embedding
    gc.collect()
    before = machine.rss_mb()
    if job:
        held = engine.capture(job.prompts, job.blocks, job.tokens)
        assert held
    else:
        with tempfile.TemporaryDirectory() as folder:
            engine.to_disk(short, DISK_BLOCK, Path(folder))
    print(json.dumps({"before": round(before), "peak": round(machine.rss_mb("VmHWM"))}))


# --- The page --------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def table(job: Job, timings: dict[str, Timing], memory: dict[str, dict[str, float]], floor: float, base_name: str) -> str:
    """One job as Markdown. floor: seconds that its products take at the measured sgemm rate."""
    base = timings[base_name]
    named = next(m.title for m in METHODS if m.name == base_name)
    speed, cost = ("wall ms a call", "CPU ms a call") if job.toy else ("tokens/s", "wall s | CPU s")
    heads = [f"{speed}: median (range)", cost, f"× {named}", "max relative error"]
    heads += [] if job.toy else ["of the floor", "peak RSS MB (loaded)"]
    lines = [
        f"### {job.title}\n",
        f"{len(job.prompts):,} prompt{'s' * (len(job.prompts) > 1)}, {job.size:,} tokens.\n",
        f"| method | {' | '.join(heads)} |",
        f"|---|{'---|' * (4 if job.toy else 7)}",
    ]
    if not job.toy:
        lines.append(f"| floor: FLOPs over measured sgemm | {job.size / floor:,.0f} | {floor:.2f} | | | | 100 % | |")
    for method in METHODS:
        if (t := timings.get(method.name)) is None:
            continue
        wall, cpu = statistics.median(t.wall), statistics.median(t.cpu)
        ratio = spread([b / a for a, b in zip(t.wall, base.wall, strict=True)], ".2f")
        off = f"{max(t.error):.1e}"
        if job.toy:
            cells = [spread([1e3 * w for w in t.wall], ".1f"), f"{1e3 * cpu:.1f}", ratio, off]
        else:
            speeds = spread([job.size / w for w in t.wall], ",.0f")
            held = memory.get(method.name)
            peak = f"{held['peak']:,} ({held['before']:,})" if held else "–"
            cells = [speeds, f"{wall:.2f}", f"{cpu:.2f}", ratio, off, f"{100 * floor / wall:.0f} %", peak]
        lines.append(f"| {method.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def disk_table(methods: Sequence[Method], peaks: dict[tuple[str, int], dict[str, float]], counts: Sequence[int]) -> str:
    lines = [
        "### Peak memory of last-token capture to disk\n",
        f"Prompts of 4–16 tokens, block {DISK_BLOCK}; RSS high-water in MB (loaded), each in a process of its own.\n",
        f"| method | {' | '.join(f'{n:,} prompts' for n in counts)} | growth of the peak |",
        f"|---|{'---|' * (len(counts) + 1)}",
    ]
    for m in methods:
        held = [peaks[m.name, n] for n in counts]
        cells = [f"{h['peak']:,} ({h['before']:,})" for h in held] + [f"{held[-1]['peak'] - held[0]['peak']:+,}"]
        lines.append(f"| {m.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def header(path: str, rounds: int, rates: Sequence[float], methods: Sequence[Method]) -> str:
    notes = "\n".join(f"- {m.title}: {m.what}." for m in methods)
    return f"""## Capture{"" if len(methods) == len(METHODS) else ", some methods"}

`python {" ".join(sys.argv)}`, {datetime.date.today()}, {rounds} round{"s" * (rounds > 1)}.
{machine.describe()}.
{machine.versions(PACKAGES)}.
Model {Path(path).name}, float32. sgemm at its shapes, two threads: {min(rates) / 1e9:.0f}–{max(rates) / 1e9:.0f} GFLOP/s
during the run; floors take the best of their job.

{notes}

Tokens are real tokens; padding counts for nothing. The floor counts whole blocks, 0 to the last one asked for, and a
shared prefix once. CPU seconds include OpenMP threads that spin (OMP_WAIT_POLICY={os.environ.get("OMP_WAIT_POLICY")}).
Errors are to Hugging Face one prompt at a time: every row with one site, 16 prompts with all blocks, where `hidden_states`
is compared on 29 of 30: its last entry is after the final norm. Peak memory is of a fresh process, interpreter, libraries
and weights included; weights are mapped, so they count once a pass has touched them ("loaded" is before the job)."""


def default_model() -> str:
    import repscope as rs

    path = rs.load().source.path
    if path is None or not (Path(path) / "config.json").is_file():
        sys.exit("rs.load() gave no Hugging Face folder; pass one with --model PATH.")
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="methods, comma-separated: " + ", ".join(m.name for m in METHODS))
    parser.add_argument("--jobs", default="last,all,prefix,tree,call,disk", help="comma-separated; default: all of them")
    parser.add_argument("--model", help="folder of a Hugging Face model; default: the one that rs.load() gives")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md as well")
    parser.add_argument("--section", default="capture", help="which section of RESULTS.md; parts of a run have their own")
    parser.add_argument("--quick", action="store_true", help="a few prompts and one round: does it run?")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    path = asked.model or default_model()
    if asked.child:
        return child(asked.child, path, asked.quick)

    names = {n for n in asked.only.split(",") if n} or {m.name for m in METHODS}
    wanted = asked.jobs.split(",")
    if wrong := (names - {m.name for m in METHODS}) | (set(wanted) - {"last", "all", "prefix", "tree", "call", "disk"}):
        parser.error(f"there is no method or job {', '.join(sorted(wrong))}")
    methods = [m for m in METHODS if m.name in names]
    rounds = 1 if asked.quick else asked.rounds
    model, tokenizer = load(path), transformers.AutoTokenizer.from_pretrained(path)
    rates: list[float] = []
    sections: list[str] = []
    base = BASE if BASE in names else methods[0].name
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs(tokenizer, asked.quick):
            if job.name not in wanted:
                continue
            under = toy(Path(folder)) if job.toy else model
            timings, seen = measure(job, methods, under, tokenizer, rounds)
            rates += [] if job.toy else seen
            skip = job.toy or job.name == "tree" or (asked.quick and job.name != "last")
            memory = {} if skip else {m.name: in_child(f"{job.name}:{m.name}", path, asked.quick) for m in methods}
            said = ""
            if "repscope" in timings and not job.toy:
                foreseen = Repscope(twin(under), tokenizer).foreseen(job)
                took = statistics.median(timings["repscope"].wall)
                said = (
                    f"\n\n`lm.plan` foresaw {foreseen.tokens:,} tokens in {foreseen.plan.passes} passes and "
                    f"{foreseen.seconds:.1f} s; it took {took:.1f} s."
                )
            sections.append(table(job, timings, memory, flops(job, under) / max(seen), base) + said)
    if "disk" in wanted:
        counts = (20,) if asked.quick else (1_000, 10_000, 50_000)
        # Peers would take longer here than in all else together, and hold their results in memory in any case.
        kept = [m for m in methods if m.name == "repscope"]
        peaks = {(m.name, n): in_child(f"disk-{n}:{m.name}", path, asked.quick) for m in kept for n in counts}
        sections.append(disk_table(kept, peaks, counts))
    text = "\n\n".join([header(path, rounds, rates or [0.0], methods), *sections])
    print(text)
    if asked.write:
        machine.write_section(asked.section, text)


if __name__ == "__main__":
    main()
