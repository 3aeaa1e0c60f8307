"""Discovery: vector-steps a second beside batched-melbo and a plain loop, share of the arithmetic floor, memory over directions.

SmolLM2, source block 7, target block 22, all tokens, MELBO's objective (p = q = 2). A vector-step is one vector through all eight
prompts, forward and backward.

1. *equal*: eight prompts of 32 tokens. *ragged*: of 10 to 60. For each, repscope with L2 (one forward, one backward), with L2 and
   contrastive (two forwards, one backward); batched-melbo 0.1.1 as it comes; the published order of work, one vector and one prompt
   at a time, through the whole model.
2. The floor: 2 × tokens × blocks between × 2 × parameters of a block's linear maps (backward to activations costs a forward), at
   the sgemm rate of the same round.
3. Peak memory of one coupled step with 8 and with 256 directions, two prompts of 8 tokens.

batched-melbo runs from a folder, which `pip install --no-deps --target .peers-melbo batched-melbo==0.1.1` makes.

    python benchmarks/discovery.py --write      # some minutes on two idle cores; --quick: fewer vectors, one round
"""

import argparse
import copy
import datetime
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import machine
import torch

import repscope as rs
from repscope.discovery import LanguageSubject, Objective, contrastive, l2, magnitude
from repscope.models.engine.memory import memory_kept

SOURCE, TARGET = 7, 22
LENGTHS = {"equal": [32] * 8, "ragged": [10, 14, 18, 22, 28, 36, 46, 60]}
WORDS = [
    "the",
    "house",
    "and",
    "river",
    "stand",
    "near",
    "old",
    "trees",
    "while",
    "people",
    "walk",
    "home",
    "after",
    "work",
    "in",
    "rain",
    "with",
    "their",
    "small",
    "dogs",
]
PEER = Path(__file__).resolve().parent.parent / ".peers-melbo"
OURS = "**repscope**, L2"
BOTH = "**repscope**, L2 + contrastive"
PEERS = "batched-melbo 0.1.1"
LOOP = "one vector, one prompt at a time"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vectors", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", type=Path, default=PEER, help="folder that holds batched_melbo")
    parser.add_argument("--quick", action="store_true", help="eight vectors, one round")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    options = parser.parse_args()
    if options.write and options.quick:
        parser.error("--write takes a real run: without --quick")
    torch.set_num_threads(options.threads)
    rounds, vectors = (1, 8) if options.quick else (options.rounds, options.vectors)
    lm = rs.load()
    tables = [speed(lm, name, lengths, vectors, rounds, options.peer) for name, lengths in LENGTHS.items()]
    head = (
        f"## Discovery\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}, {rounds} rounds, {vectors} vectors of repscope, "
        f"4 of the others. {machine.describe()}. {machine.versions(('torch', 'transformers', 'repscope'))}. Model {lm.name}, "
        f"float32, {options.threads} threads. resid_post.{SOURCE} → resid_post.{TARGET}."
    )
    text = "\n\n".join([head, *tables, memory(lm)])
    print(text)
    if options.write:
        machine.write_section("discovery", text)


def speed(lm: rs.LanguageModel, name: str, lengths: list[int], vectors: int, rounds: int, peer: Path) -> str:
    prompts = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(n)) for i, n in enumerate(lengths)]
    tokens = [len(lm.tokenizer(p)["input_ids"]) for p in prompts]
    assert tokens == lengths, tokens
    subject = LanguageSubject(lm, f"resid_post.{SOURCE}", f"resid_post.{TARGET}")
    context = subject.context(prompts)
    drawn = torch.nn.functional.normalize(torch.randn(vectors, context.width), dim=1) * 0.1 * context.norm

    def mine(goal: Objective, memory: float) -> float:
        started = time.perf_counter()
        with memory_kept():
            subject.loss_and_grad(context, drawn, goal, memory)
        return (time.perf_counter() - started) / vectors

    jobs: dict[str, Callable[[], float]] = {
        OURS: lambda: mine(l2(), 0.0),
        BOTH: lambda: mine(magnitude() + contrastive(), 0.0),
        LOOP: lambda: loop(lm, prompts, 1),
    }
    if peer.exists():
        jobs[PEERS] = lambda: batched(lm, prompts, peer, 4)
    shapes = machine.linear_shapes(lm.module.layers[0])
    work = 2 * sum(tokens) * (TARGET - SOURCE) * sum(2 * i * o for i, o in shapes)
    seconds: dict[str, list[float]] = {job: [] for job in jobs}
    shares, rates = [], []
    subject.loss_and_grad(context, drawn[:1], l2())
    for turn in range(rounds):
        names = list(jobs)
        for job in names[turn % len(names) :] + names[: turn % len(names)]:
            before = machine.sgemm_rate(shapes, repeats=8)
            seconds[job].append(jobs[job]())
            if job == OURS:
                rates.append(max(before, machine.sgemm_rate(shapes, repeats=8)))
                shares.append(work / rates[-1] / seconds[job][-1])
            print(f"  {name} {turn + 1}/{rounds}: {job} {seconds[job][-1]:.2f} s", file=sys.stderr, flush=True)
    lines = [
        f"### {name.capitalize()} lengths\n\n{len(tokens)} prompts of {min(tokens)}–{max(tokens)} tokens, {sum(tokens)} together. "
        f"Floor {work / 1e9:.0f} GFLOP a vector-step, at {min(rates) / 1e9:.0f}–{max(rates) / 1e9:.0f} GFLOP/s; L2 reaches "
        f"{spread([100 * s for s in shares], '.0f')} % of it.\n",
        "| | vector-steps/s, median (range) | times slower than the first, median (range) |",
        "|---|---|---|",
    ]
    for job, t in seconds.items():
        ratio = spread([a / b for a, b in zip(t, seconds[OURS])], ".2f")
        lines.append(f"| {job} | {spread([1 / s for s in t], '.2f')} | {ratio} |")
    return "\n".join(lines)


def batched(lm: rs.LanguageModel, prompts: list[str], peer: Path, vectors: int) -> float:
    """Seconds of a vector-step of batched-melbo: those of two steps less those of one. Its flags on weights are undone."""
    if str(peer) not in sys.path:
        sys.path.insert(0, str(peer))
    from batched_melbo.batched_melbo import BatchedMELBO

    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    needed = [p for p in lm.model.parameters() if p.requires_grad]
    took = []
    try:
        for steps in (1, 2):
            search = BatchedMELBO(
                lm.model, tokenizer, SOURCE, TARGET, layers_name="model.layers", normalization=5.0, num_steps=steps
            )
            started = time.perf_counter()
            search.train(prompts, vectors)
            took.append(time.perf_counter() - started)
    finally:
        for p in needed:
            p.requires_grad_(True)
    return (took[1] - took[0]) / vectors


def loop(lm: rs.LanguageModel, prompts: list[str], vectors: int) -> float:
    """Seconds of a vector-step in the order of the published code: each vector, each prompt, whole passes that keep all states."""
    rows = [torch.tensor([lm.tokenizer(p)["input_ids"]]) for p in prompts]
    needed = [p for p in lm.model.parameters() if p.requires_grad]
    for p in needed:
        p.requires_grad_(False)
    try:
        with torch.no_grad():
            plain = [lm.model(ids, output_hidden_states=True).hidden_states[TARGET + 1] for ids in rows]
        started = time.perf_counter()
        for _ in range(vectors):
            v = torch.randn(plain[0].shape[-1], requires_grad=True)
            hook = lm.module.layers[SOURCE].register_forward_hook(lambda m, a, o, v=v: o + v)
            for ids, base in zip(rows, plain):
                moved = lm.model(ids, output_hidden_states=True).hidden_states[TARGET + 1] - base
                (-moved.norm(dim=-1).pow(2).sum().sqrt()).backward()
            hook.remove()
        return (time.perf_counter() - started) / vectors
    finally:
        for p in needed:
            p.requires_grad_(True)


def memory(lm: rs.LanguageModel) -> str:
    prompts = [" ".join(WORDS[:8]), " ".join(WORDS[3:11])]
    subject = LanguageSubject(lm, f"resid_post.{SOURCE}", f"resid_post.{TARGET}", target_tokens="last")
    grown = {}
    for count in (8, 256):
        context = subject.context(prompts)
        context.pass_tokens = 8 * 8 * len(prompts)  # eight directions fill a pass, as longer prompts make them
        drawn = torch.randn(count, context.width)
        with memory_kept():
            pass  # gives back what earlier work left
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident size counts from now on
        before = machine.rss_mb()
        subject.loss_and_grad(context, drawn, magnitude() + contrastive(), 0.0)
        grown[count] = machine.rss_mb("VmHWM") - before
    deltas = 2 * 256 * len(prompts) * drawn.shape[1] * 4 / 1e6
    return (
        f"### Memory\n\nOne step of L2 + contrastive, above what was resident before: {grown[8]:.0f} MB with 8 directions, "
        f"{grown[256]:.0f} MB with 256, of which effects and their cotangents are {deltas:.0f}."
    )


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


if __name__ == "__main__":
    main()
