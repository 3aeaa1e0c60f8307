"""repscope's edits and patching beside what a user would write by hand, on the same work in one run.

1. Generation: eight prompts of unequal lengths, 32 new tokens, greedy, float32. Plain `generate` of transformers, the same with a
   bare hook that adds a vector, and `lm.generate` without and with an edit. The texts of the two hooked rows must be the same.
2. Patching: all 30 blocks × all positions of one 20-token prompt whose second token differs. One forward of the whole model a cell,
   with a bare hook, against `activation_patching`. The largest difference of a cell is in the table.
3. Approximations on the same grid: attribution patching and integrated gradients, with their correlation to the exact effects.
4. A call: a 24-layer toy of width 64, one 4-token prompt, one thread; a bare hook that ends the pass against `lm.capture`.

Rounds rotate; the tables give the median and the range, ratios are paired within a round.

    python benchmarks/edits.py --write       # about ten minutes on two idle cores
"""

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable

import machine
import numpy as np
import torch
import transformers
from torch import Tensor

import repscope as rs
from repscope.steer.patching.methods import activation_patching, attribution_patching, logit_difference

PROMPTS = (
    "The capital of France is",
    "My favourite food is",
    "In the morning she walked to the old harbour and saw",
    "Water boils when",
    "A good reason to learn the piano is that",
    "Yesterday",
    "The three largest cities of Japan are",
    "If it rains tomorrow we will stay at home and",
)
CLEAN = "In France the people of the capital city like to say that their town is called by the name of"
NEW_TOKENS, BLOCK, SCALE = 32, 10, 6.0
Job = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="generation,patching,calls", help="parts, comma-separated")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(2)
    lm = rs.load()
    shapes = machine.linear_shapes(lm.module.layers[0])
    rates = [machine.sgemm_rate(shapes)]
    parts = [generation(lm, options.rounds), patching(lm, options.rounds, rates), calls(lm.tokenizer, 6 * options.rounds)]
    rates.append(machine.sgemm_rate(shapes))
    head = (
        f"## Edits and patching\n\n`python benchmarks/edits.py --write`, {datetime.date.today()}, {options.rounds} rounds. "
        f"{machine.describe()}. {machine.versions(('torch', 'transformers', 'repscope'))}. Model {lm.name}, float32, two threads; "
        f"sgemm at its shapes {min(rates) / 1e9:.0f}–{max(rates) / 1e9:.0f} GFLOP/s in this run."
    )
    text = "\n\n".join([head, *parts])
    print(text)
    if options.write:
        machine.write_section("edits", text)


def generation(lm: rs.LanguageModel, rounds: int) -> str:
    direction = torch.nn.functional.normalize(torch.randn(lm.anatomy.width, generator=torch.Generator().manual_seed(0)), dim=0)
    vector = SCALE * direction
    tokenizer = lm.tokenizer
    tokenizer.padding_side = "left"
    batch = tokenizer(list(PROMPTS), return_tensors="pt", padding=True)

    def plain() -> list[str]:
        with torch.no_grad():
            out = lm.model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
        return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)

    def hooked() -> list[str]:
        handle = lm.module.layers[BLOCK].register_forward_hook(
            lambda m, a, o: o + vector if isinstance(o, Tensor) else (o[0] + vector, *o[1:])
        )
        try:
            return plain()
        finally:
            handle.remove()

    def ours() -> list[str]:
        return [c.text for c in lm.generate(PROMPTS, NEW_TOKENS)]

    def edited() -> list[str]:
        with lm.edit(rs.Edit.add(f"resid_post.{BLOCK}", vector)):
            return [c.text for c in lm.generate(PROMPTS, NEW_TOKENS)]

    jobs = {
        "transformers `generate`": plain,
        "the same with a bare hook": hooked,
        "`lm.generate`": ours,
        "`lm.generate` in `lm.edit`": edited,
    }
    texts, seconds = raced(jobs, rounds)
    same = texts["the same with a bare hook"] == texts["`lm.generate` in `lm.edit`"]
    moved = sum(a != b for a, b in zip(texts["`lm.generate`"], texts["`lm.generate` in `lm.edit`"]))
    base = seconds["transformers `generate`"]
    lines = [
        f"### Generation\n\n{len(PROMPTS)} prompts, {NEW_TOKENS} new tokens each, greedy; the edit adds a vector of length "
        f"{SCALE:g} at resid_post.{BLOCK}, all tokens, and changes {moved} of the {len(PROMPTS)} texts. Its check that it changes "
        f"a logit is in its time. Edited and hooked texts are {'the same' if same else 'NOT the same'}.\n",
        "| method | s, median (range) | speed of plain generate, median (range) |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {spread(t, '.2f')} | {spread([b / s for b, s in zip(base, t)], '.2f')}× |" for name, t in seconds.items()
    ]
    return "\n".join(lines)


def patching(lm: rs.LanguageModel, rounds: int, rates: list[float]) -> str:
    clean, corrupt = CLEAN, CLEAN.replace("France", "Italy")
    ids = [torch.tensor([lm.tokenizer(text)["input_ids"]]) for text in (clean, corrupt)]
    length = ids[0].shape[1]
    metric = logit_difference(lm, " Paris", " Rome")
    first = int((ids[0] != ids[1])[0].nonzero()[0])
    layers = lm.module.layers

    def as_output(o: object, new: Tensor) -> object:
        return new if isinstance(o, Tensor) else (new, *o[1:])

    def naive() -> np.ndarray:
        kept: dict[int, Tensor] = {}
        handles = [
            layer.register_forward_hook(lambda m, a, o, i=i: kept.update({i: o if isinstance(o, Tensor) else o[0]}))
            for i, layer in enumerate(layers)
        ]
        with torch.no_grad():
            lm.model(input_ids=ids[0])
            for handle in handles:
                handle.remove()
            base = float(metric(lm.model(input_ids=ids[1]).logits[:, -1], 0)[0])
            grid = np.zeros((len(layers), length))
            for i, layer in enumerate(layers):
                for t in range(length):

                    def put(m: object, a: object, o: object, i: int = i, t: int = t) -> object:
                        new = (o if isinstance(o, Tensor) else o[0]).clone()
                        new[:, t] = kept[i][:, t]
                        return as_output(o, new)

                    handle = layer.register_forward_hook(put)
                    grid[i, t] = float(metric(lm.model(input_ids=ids[1]).logits[:, -1], 0)[0]) - base
                    handle.remove()
        return grid

    jobs: dict[str, Job] = {
        "one forward a cell, bare hook": naive,
        "`activation_patching`": lambda: activation_patching(lm, [clean], [corrupt], metric, control=False).effect[0],
        "`activation_patching` with its control": lambda: activation_patching(lm, [clean], [corrupt], metric).effect[0],
        "`attribution_patching`": lambda: attribution_patching(lm, [clean], [corrupt], metric).effect[0],
        "`attribution_patching(steps=8)`": lambda: attribution_patching(lm, [clean], [corrupt], metric, steps=8).effect[0],
    }
    found, seconds = raced(jobs, max(2, rounds // 2))
    exact = found["one forward a cell, bare hook"]
    base = seconds["one forward a cell, bare hook"]
    block = sum(2 * i * o for i, o in machine.linear_shapes(layers[0]))
    blocks = len(layers)
    needed = sum(block * (length - t) * (blocks - 1 - i) for i in range(blocks) for t in range(first, length))
    lines = [
        f"### Patching {blocks} blocks × {length} positions\n\nThe prompts differ from position {first} on; a cell before it "
        f"has no effect, by causality, and is not run. Floor of the exact grid, the blocks above and the positions after each cell "
        f"at the best sgemm rate: {needed / max(rates):.2f} s.\n",
        "| method | s, median (range) | faster by, median (range) | largest difference to the exact effect | correlation with it |",
        "|---|---|---|---|---|",
    ]
    for name, t in seconds.items():
        faster = spread([b / s for b, s in zip(base, t)], ".1f")
        off = np.abs(found[name] - exact).max()
        r = np.corrcoef(found[name].ravel(), exact.ravel())[0, 1]
        lines.append(f"| {name} | {spread(t, '.2f')} | {faster}× | {off:.1e} | {r:.4f} |")
    lines.append(f"\nThe largest exact effect is {np.abs(exact).max():.2f} logits.")
    return "\n".join(lines)


def calls(tokenizer: object, rounds: int) -> str:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=24, num_attention_heads=4, vocab_size=1000
    )
    model = transformers.LlamaForCausalLM(config).eval()
    lm = rs.LanguageModel(model, tokenizer)

    class Stop(Exception):
        pass

    def bare() -> None:
        def read(m: object, a: object, o: object) -> None:
            held.append((o if isinstance(o, Tensor) else o[0])[0, -1])
            raise Stop

        held: list[Tensor] = []
        handle = model.model.layers[BLOCK].register_forward_hook(read)
        try:
            with torch.no_grad():
                model.model(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=False)
        except Stop:
            pass
        finally:
            handle.remove()

    jobs: dict[str, Job] = {"bare hook": bare, "`lm.capture`": lambda: lm.capture([[5, 6, 7, 8]], f"resid_post.{BLOCK}")}
    _, seconds = raced(jobs, rounds, repeats=20, clock=time.process_time)
    torch.set_num_threads(2)
    base = seconds["bare hook"]
    lines = [
        "### A call\n\n24 layers of width 64, 4 tokens, ended after block 10, one thread.\n",
        "| method | CPU ms, median (range) | of a bare hook, median (range) |",
        "|---|---|---|",
    ]
    for name, t in seconds.items():
        lines.append(f"| {name} | {spread([1e3 * s for s in t], '.2f')} | {spread([s / b for b, s in zip(base, t)], '.2f')}× |")
    return "\n".join(lines)


def raced(
    jobs: dict[str, Job], rounds: int, repeats: int = 1, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[str, object], dict[str, list[float]]]:
    """What each job gave and its seconds, round by round, in an order that rotates; once before to warm up."""
    gave: dict[str, object] = {name: job() for name, job in jobs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds):
        names = list(jobs)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = clock()
            for _ in range(repeats):
                jobs[name]()
            seconds[name].append((clock() - started) / repeats)
        print(f"  round {turn + 1}/{rounds}: { {n: round(t[-1], 4) for n, t in seconds.items()} }", file=sys.stderr, flush=True)
    return gave, seconds


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


if __name__ == "__main__":
    main()
