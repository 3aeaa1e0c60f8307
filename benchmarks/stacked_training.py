"""Training several small language models at once against one after the other: tokens per second of each, same losses.

Four sides, in one process on one thread, interleaved and repeated, timed by the processor's clock:

1. `transformers`: a loop with Hugging Face's GPT2LMHeadModel, torch's AdamW and torch's clipping, one network at a time.
2. `one`: our own loop with a single network.
3. `stacked`: our loop with all networks.
4. `products`: the matrix products of the stacked step alone, forward and backward: a floor that no implementation passes.

    python benchmarks/stacked_training.py --write
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from repscope.worlds.small_lm import Training, huggingface, train, transformer

LENGTH, VOCAB, WIDTH = 80, 30, 64
SIZES = ((16, 1), (8, 1), (16, 2), (8, 4), (3, 16))  #: networks, documents per step
SHAPE = transformer.Shape(VOCAB, LENGTH, WIDTH)


def documents(networks: int, batch: int, step: int) -> torch.Tensor:
    """Random steps along a circle of symbols."""
    g = torch.Generator().manual_seed(step)
    steps = torch.randint(0, 3, (networks, batch, LENGTH), generator=g)
    return (torch.randint(0, VOCAB, (networks, batch, 1), generator=g) + steps.cumsum(-1)) % VOCAB


def by_transformers(network: int, given: list[torch.Tensor], schedule: Training) -> np.ndarray:
    """Losses of one network, trained as users of transformers do."""
    model = huggingface(SHAPE, transformer.initial(SHAPE, [network]), 0).train()
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) == kind] for kind in (True, False))
    groups = [{"params": matrices, "weight_decay": schedule.decay}, {"params": vectors, "weight_decay": 0.0}]
    adam, losses = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.95), fused=True), []
    for step in range(schedule.steps):
        for group in adam.param_groups:
            group["lr"] = schedule.rate_at(step)
        tokens = given[step][network]
        loss = cross_entropy(model(tokens[:, :-1], use_cache=False).logits.reshape(-1, VOCAB), tokens[:, 1:].reshape(-1))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        adam.step()
        losses.append(loss.item())
    return np.array(losses)


def products(networks: int, batch: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Inputs of every product of a step's forward pass: left, right, gradient of the result."""
    n, rows, d, inner = networks, batch * (LENGTH - 1), WIDTH, WIDTH // SHAPE.heads
    maps = [(n, rows, d, 3 * d), (n, rows, d, d), (n, rows, d, 4 * d), (n, rows, 4 * d, d)]
    mixes = [(n * batch * SHAPE.heads, LENGTH - 1, inner, LENGTH - 1), (n * batch * SHAPE.heads, LENGTH - 1, LENGTH - 1, inner)]
    each = SHAPE.layers * (maps + mixes) + [(n, rows, d, VOCAB)]
    return [(torch.randn(a, m, k), torch.randn(a, k, o), torch.randn(a, m, o)) for a, m, k, o in each]


def seconds(work) -> tuple[float, object]:
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def measured(networks: int, batch: int, steps: int, repeats: int) -> dict[str, object]:
    """Tokens per second of each side, medians over repeats, and the largest difference of losses."""
    schedule, tokens = Training(steps, warm_up=2), networks * batch * (LENGTH - 1) * steps
    given, logits = [documents(networks, batch, s) for s in range(steps)], partial(transformer.logits, SHAPE)
    alone = max(1, networks // 4)  # networks timed one after the other; the rest would take as long each
    factors = products(networks, batch)

    def floor() -> None:
        for _ in range(steps):
            for a, b, g in factors:
                torch.bmm(a, b)
                torch.bmm(g, b.mT)
                torch.bmm(a.mT, g)

    def one(i: int) -> np.ndarray:
        return train(logits, transformer.initial(SHAPE, [i]), lambda s: given[s][i : i + 1], schedule).losses[:, 0]

    def stacked() -> np.ndarray:
        return train(logits, transformer.initial(SHAPE, list(range(networks))), lambda s: given[s], schedule).losses

    sides = {
        "transformers": lambda: [by_transformers(i, given, schedule) for i in range(alone)],
        "one": lambda: [one(i) for i in range(alone)],
        "stacked": stacked,
        "products": floor,
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    apart = 0.0
    for repeat in range(repeats + 1):
        losses = {}
        for name, work in sides.items():
            spent, losses[name] = seconds(work)
            if repeat:  # the first is a warm-up
                rates[name].append(tokens * (alone / networks if name in ("transformers", "one") else 1) / spent)
        for i in range(alone):
            for name in ("transformers", "one"):
                apart = max(apart, float(np.abs(losses[name][i] - losses["stacked"][:, i]).max()))
    ratios = {name: np.array(rates["stacked"]) / np.array(rates[name]) for name in sides}
    return {
        "networks": networks,
        "documents": batch,
        **{name: float(np.median(r)) for name, r in rates.items()},
        **{f"over {name}": (float(np.median(r)), float(r.min()), float(r.max())) for name, r in ratios.items()},
        "losses differ by": apart,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write RESULTS-stacked-training.md beside this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"2 layers, width {WIDTH}, 2 heads, {LENGTH} tokens, {VOCAB} symbols: {SHAPE.parameters:,} weights per network. "
        "One thread, processor time; medians of tokens per second, ratios with their range over repeats.",
        "",
        "| networks | documents per step | transformers | own loop, one network | stacked | products alone | "
        "stacked ÷ transformers | stacked ÷ one | stacked ÷ products | losses differ by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for networks, batch in SIZES:
        m = measured(networks, batch, max(3, options.steps // max(1, batch // 4)), options.repeats)
        rates = " | ".join(f"{m[name]:,.0f}" for name in ("transformers", "one", "stacked", "products"))
        ratios = " | ".join("{:.2f} ({:.2f}–{:.2f})".format(*m[f"over {name}"]) for name in ("transformers", "one", "products"))
        lines.append(f"| {networks} | {batch} | {rates} | {ratios} | {m['losses differ by']:.0e} |")
        print(lines[-1], flush=True)
        assert m["losses differ by"] < 1e-4
    if options.write:
        text = "# Stacked training\n\n" + "\n".join(lines) + "\n"
        (Path(__file__).parent / "RESULTS-stacked-training.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
