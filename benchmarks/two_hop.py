"""Training all networks of the two-hop world at once against one after the other: updates per second of each, same losses.

Three sides, in one process on one thread, interleaved and repeated, timed by the processor's clock:

1. `transformers`: a loop with Hugging Face's GPT2LMHeadModel, torch's AdamW and torch's clipping, one network at a time, on rows:
   the facts [h r1] and the queries [h r1 r2] of a batch in one padded forward pass.
2. `one`: our own loop with a single network, on the tree of prefixes.
3. `stacked`: our loop with all networks (every phi and seed), on the tree of prefixes.

    python benchmarks/two_hop.py --write
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from repscope.worlds.small_lm import Training, huggingface, train_by, transformer
from repscope.worlds.small_lm.transformer import Shape
from repscope.worlds.two_hop import Batch, FactWorlds, loss

SIZES = ((24, 19, 48, 64), (24, 19, 48, 16), (30, 20, 64, 96))  #: entities, relations, width, facts per update
HOPS = 4


def row_loss(model, worlds: FactWorlds, batch: Batch) -> torch.Tensor:
    """The loss of one network on whole rows."""
    entities = worlds.entities
    head, first, second = batch.head[0], batch.first[0] + entities, batch.second[0] + entities
    facts, hops = second.shape
    queries = torch.stack([head[:, None].expand_as(second), first[:, None].expand_as(second), second], -1).view(-1, 3)
    alone = torch.stack([head, first, torch.zeros_like(head)], -1)  # the third token is never read
    logits = model(torch.cat([alone, queries]), use_cache=False).logits
    nats = cross_entropy(logits[:facts, 1], batch.bridge[0])
    more = cross_entropy(logits[facts:, 2], batch.answer[0].flatten(), reduction="none").view(facts, hops)
    phi = batch.phi[0]
    return (nats + phi * (more * batch.weight[0]).sum()) / (1 + phi)


def by_transformers(shape: Shape, worlds: FactWorlds, network: int, batches: list[Batch], schedule: Training) -> np.ndarray:
    """Losses of one network, trained as users of transformers do."""
    model = huggingface(shape, initial(shape, worlds), network).train()
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) == kind] for kind in (True, False))
    groups = [{"params": matrices, "weight_decay": schedule.decay}, {"params": vectors, "weight_decay": 0.0}]
    adam, losses = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.95), fused=True), []
    for step in range(schedule.steps):
        for group in adam.param_groups:
            group["lr"] = schedule.rate_at(step)
        found = row_loss(model, worlds, batches[step].of(network))
        adam.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        adam.step()
        losses.append(found.item())
    return np.array(losses)


def initial(shape: Shape, worlds: FactWorlds):
    return transformer.initial(shape, [seed for _, seed in worlds.networks])


def seconds(work) -> tuple[float, object]:
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def measured(entities: int, relations: int, width: int, facts: int, steps: int, repeats: int, alone: int) -> dict[str, object]:
    """Updates of all networks per second of each side, and the largest difference of losses."""
    worlds = FactWorlds((0, 1, 2), (2, 4, 8, 14), entities, relations)
    shape, schedule = Shape(worlds.vocabulary, 3, width, 3, 4), Training(steps, 1e-3, warm_up=2, final=1.0, decay=0.1)
    batches = [worlds.batch(facts, HOPS, torch.Generator().manual_seed(s)) for s in range(steps)]
    start, networks = initial(shape, worlds), len(worlds.networks)

    def one(i: int) -> np.ndarray:
        state = {k: v[i : i + 1] for k, v in start.items()}
        return train_by(lambda w, s: loss(shape, entities, w, batches[s].of(i)), state, schedule).losses[:, 0]

    sides = {
        "transformers": lambda: [by_transformers(shape, worlds, i, batches, schedule) for i in range(alone)],
        "one": lambda: [one(i) for i in range(alone)],
        "stacked": lambda: train_by(lambda w, s: loss(shape, entities, w, batches[s]), start, schedule).losses,
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    apart = 0.0
    for repeat in range(repeats + 1):
        losses = {}
        for name, work in sides.items():
            spent, losses[name] = seconds(work)
            if repeat:  # the first is a warm-up
                rates[name].append(steps * (alone / networks if name != "stacked" else 1) / spent)
        for i in range(alone):
            for name in ("transformers", "one"):
                apart = max(apart, float(np.abs(losses[name][i] - losses["stacked"][:, i]).max()))
    ratios = {name: np.array(rates["stacked"]) / np.array(rates[name]) for name in sides}
    return {
        "facts": worlds.facts,
        "width": width,
        "rows": facts,
        **{name: float(np.median(r)) for name, r in rates.items()},
        **{f"over {name}": (float(np.median(r)), float(r.min()), float(r.max())) for name, r in ratios.items()},
        "losses differ by": apart,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", type=int, default=3, help="networks timed one after the other; others take as long each")
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of the sizes")
    parser.add_argument("--write", action="store_true", help="write RESULTS-two-hop.md beside this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "Twelve networks (four values of phi, three seeds) of three blocks and four heads; four queries per fact. One thread, "
        "processor time; medians of updates of all twelve per second, ratios with their range over repeats.",
        "",
        "| facts of a graph | width | facts per update | transformers | own loop, one network | stacked | stacked ÷ transformers | "
        "stacked ÷ one | losses differ by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for size in SIZES[: options.sizes]:
        m = measured(*size, options.steps, options.repeats, options.alone)
        rates = " | ".join(f"{m[name]:.2f}" for name in ("transformers", "one", "stacked"))
        ratios = " | ".join("{:.2f} ({:.2f}–{:.2f})".format(*m[f"over {name}"]) for name in ("transformers", "one"))
        lines.append(f"| {m['facts']} | {m['width']} | {m['rows']} | {rates} | {ratios} | {m['losses differ by']:.0e} |")
        print(lines[-1], flush=True)
        assert m["losses differ by"] < 1e-4
    if options.write:
        text = "# Stacked training of two-hop worlds\n\n" + "\n".join(lines) + "\n"
        (Path(__file__).parent / "RESULTS-two-hop.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
