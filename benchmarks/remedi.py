"""Training a REMEDI editor: blocks below the edit once and batched, beside loops that run the whole network, in one run.

The same facts (country-language and country-capital), batches, block, loss and optimiser. An update of a loop runs the sentence,
the unedited question and the edited question through the whole model, with all logits, as the authors' code does. An update of ours
runs the blocks above the edit, and the head where the loss reads it. Preparation is in our time. Losses and weights are compared.
Seconds are CPU time of one thread, which other work on the machine hardly changes.

    python benchmarks/remedi.py --write       # about a minute on an idle core; --single: also one fact at a time
"""

import argparse
import datetime
import statistics
import time
from collections.abc import Callable

import machine
import numpy as np
import torch
from torch import Tensor

import repscope as rs
from repscope.models.engine.hooks import unhooked
from repscope.models.prompts import Tokens, encode
from repscope.read.known_facts import encode_facts
from repscope.steer.remedi import EditFact, Weights, edit_facts, edit_losses, prepare
from repscope.steer.remedi.objective import head_of

LEARNING_RATE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--facts", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--block", type=int, default=8)
    parser.add_argument("--single", action="store_true", help="also the loop over single facts")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lm = rs.load()
    facts: list[EditFact] = []
    for name in ("country-language", "country-capital"):
        held = encode_facts(lm, rs.relation(name).sample(options.facts))
        facts += edit_facts(held, range(options.facts // 2), held.relation.objects)
    facts = facts[: options.facts]
    batches = [np.arange(i, min(i + options.batch, len(facts))) for i in range(0, len(facts), options.batch)]
    jobs: dict[str, Callable[[], tuple[Tensor, list[float]]]] = {
        "whole passes, one fact at a time": lambda: loop(lm, facts, batches, options, single=True),
        "whole passes, batched": lambda: loop(lm, facts, batches, options, single=False),
        "repscope: blocks above the edit": lambda: ours(lm, facts, batches, options),
    }
    if not options.single:
        del jobs["whole passes, one fact at a time"]
    ours(lm, facts, batches, argparse.Namespace(epochs=1, block=options.block))  # proofs of fast paths are not part of training
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    found: dict[str, tuple[Tensor, list[float]]] = {}
    order = list(jobs)
    for _ in range(options.rounds):
        for name in order:
            started = time.process_time()
            found[name] = jobs[name]()
            seconds[name].append(time.process_time() - started)
        order = order[1:] + order[:1]
    fast = seconds["repscope: blocks above the edit"]
    slow = found["whole passes, batched"]
    lines = ["| method | CPU s, median (range) | times that of ours | largest relative difference of losses | of weights |"]
    lines.append("|---|---|---|---|---|")
    for name, took in seconds.items():
        ratio = statistics.median(took) / statistics.median(fast)
        losses = max(abs(a - b) / abs(b) for a, b in zip(found[name][1], slow[1]))
        weights = float((found[name][0] - slow[0]).norm() / slow[0].norm())
        lines.append(
            f"| {name} | {statistics.median(took):.1f} ({min(took):.1f}–{max(took):.1f}) | {ratio:.1f}× | {losses:.0e} | "
            f"{weights:.0e} |"
        )
    text = (
        f"## Training a REMEDI editor\n\n`python benchmarks/remedi.py --write`, {datetime.date.today()}, {options.rounds} rounds. "
        f"{machine.describe()}. {machine.versions(('torch', 'transformers', 'repscope'))}. Model {lm.name}, float32, one thread. "
        f"{len(facts)} facts, {options.epochs} epochs, batches of {options.batch}, editor at block {options.block} of "
        f"{lm.blocks}.\n\n" + "\n".join(lines)
    )
    print(text)
    if options.write:
        machine.write_section("remedi", text)


def loop(
    lm: rs.LanguageModel, facts: list[EditFact], batches: list[np.ndarray], options: argparse.Namespace, *, single: bool
) -> tuple[Tensor, list[float]]:
    """The loss by whole passes with a hook; `single`: one fact at a time, gradients added up over the batch."""
    asked = encode(lm.tokenizer, [f.prompt for f in facts], Tokens("all", "subject"), causal=True)
    said = encode(lm.tokenizer, [f.context for f in facts], Tokens("all", "attribute"), causal=True)
    weight = torch.zeros(lm.anatomy.width, lm.anatomy.width, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=LEARNING_RATE)
    losses = []
    weights = Weights()
    block = lm.module.layers[options.block]

    def some(rows: np.ndarray) -> Tensor:
        with torch.no_grad():
            seen: list[Tensor] = []
            handle = block.register_forward_hook(lambda m, a, o: seen.append(o if isinstance(o, Tensor) else o[0]))
            lm.model(input_ids=_padded([said.ids[i] for i in rows]), use_cache=False)
            handle.remove()
            attributes = torch.stack([seen[0][r, said.start[i] : said.stop[i]].mean(0) for r, i in enumerate(rows)])
            ids = _padded([asked.ids[i] for i in rows])
            plain = lm.model(input_ids=ids, use_cache=False).logits
        d = attributes @ weight.T
        mask = torch.zeros(*ids.shape, 1)
        for r, i in enumerate(rows):
            mask[r, asked.start[i] : asked.stop[i]] = 1
        add = lambda m, a, o: o + mask * d[:, None] if isinstance(o, Tensor) else (o[0] + mask * d[:, None], *o[1:])  # noqa: E731
        handle = block.register_forward_hook(add)
        edited = lm.model(input_ids=ids, use_cache=False).logits
        handle.remove()
        total = torch.zeros(())
        for r, i in enumerate(rows):
            last = len(asked.ids[i]) - 1
            p, q = (x[r, asked.stop[i] - 1 : last].log_softmax(-1) for x in (plain, edited))
            answer = edited[r, last].log_softmax(-1)
            kl = (p.exp() * (p - q)).sum(-1).mean() if len(p) else torch.zeros(())
            old = answer[facts[i].original].clamp_max(-1e-7)
            unmediated = -torch.log(-torch.expm1(old))
            total = total - weights.mediated * answer[facts[i].target] + weights.unmediated * unmediated + weights.kl * kl
        return total

    with unhooked(lm.model, differentiable=True):
        for _ in range(options.epochs):
            for rows in batches:
                optimizer.zero_grad()
                sums = 0.0
                for part in [rows[i : i + 1] for i in range(len(rows))] if single else [rows]:
                    loss = some(part) / len(rows)
                    loss.backward()
                    sums += float(loss.detach())
                optimizer.step()
                losses.append(sums)
    return weight.detach().clone(), losses


def ours(
    lm: rs.LanguageModel, facts: list[EditFact], batches: list[np.ndarray], options: argparse.Namespace
) -> tuple[Tensor, list[float]]:
    prepared = prepare(lm, facts, f"resid_post.{options.block}")
    weight = torch.zeros(lm.anatomy.width, lm.anatomy.width, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=LEARNING_RATE)
    logits, losses = head_of(lm), []
    with unhooked(lm.model, differentiable=True):
        for _ in range(options.epochs):
            for rows in batches:
                optimizer.zero_grad()
                loss = edit_losses(prepared, rows, prepared.attributes[torch.from_numpy(rows)] @ weight.T, logits).total(Weights())
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
    return weight.detach().clone(), losses


def _padded(rows: list[np.ndarray]) -> Tensor:
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for r, row in enumerate(rows):
        ids[r, : len(row)] = torch.from_numpy(row)
    return ids


if __name__ == "__main__":
    main()
