"""Minimal pairs on one model: repscope beside lm-eval's loop, minicons and a floor, in one run.

    python benchmarks/minimal_pairs.py FOLDER_OF_BLIMP [--peers FOLDER] [--jobs 20x5,2x250] [--write]

`--peers`: where `pip install --no-deps --target FOLDER -r benchmarks/requirements-minimal-pairs.txt` put lm-eval and minicons.
1. A job is so many phenomena and so many pairs of each, the same for all methods. One thread, the same model object.
2. lm-eval: `HFLM.loglikelihood` on the requests of its BLiMP task; minicons: `sequence_score` over batches of both sentences.
   Each with the best of several batch sizes, which are timed first on a part.
3. Floors: a plain forward pass, without a head, over as many tokens as the plan has, in batches without padding; and the FLOPs of
   the plan and of its heads over the sgemm rate measured at the model's own shapes in the same run.
4. Exact scores: some sentences in float64, one at a time by the plain model. Every method's largest difference from these is given;
   that of the peers' own loops with the model in float64 shows which part of their difference is rounding.
5. Rounds in turn, in processor time on one thread; the median, and the range. Scores are compared pair by pair.
"""

import argparse
import copy
import datetime
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import machine
import numpy as np
import torch

import repscope as rs
from repscope.data.minimal_pairs import MinimalPairs, read_pairs
from repscope.models.prompts import Ragged
from repscope.read.pair_scores import _rows, score_pairs

BATCHES = (8, 32, 128)
EXACT = 48  #: sentences scored in float64


def lm_eval_loop(model, tokenizer, batch_size):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    made = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal")

    def run(sentences):
        requests = [Instance("loglikelihood", {}, ("", f" {text}"), i) for i, text in enumerate(sentences)]
        return np.array([score for score, _ in made.loglikelihood(requests, disable_tqdm=True)])

    return run


def minicons_loop(model, tokenizer, batch_size):
    from minicons.scorer import IncrementalLMScorer

    made = IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)

    def run(sentences):
        found = []
        for i in range(0, len(sentences), batch_size):
            found += made.sequence_score(sentences[i : i + batch_size], reduction=lambda x: x.sum(0).item())
        return np.array(found)

    return run


PEERS = {"lm-eval": lm_eval_loop, "minicons": minicons_loop}


def timed(run, *given):
    started = time.process_time()  # of the processor: the machine may be shared, and everything runs on one thread
    out = run(*given)
    return time.process_time() - started, out


def exact_scores(model, rows):
    """Each row alone through the plain model in float64."""
    with torch.inference_mode():
        for row in rows:
            logits = model(torch.from_numpy(row)[None]).logits[0, :-1].log_softmax(-1)
            yield float(logits.gather(1, torch.from_numpy(row[1:])[:, None]).sum())


@dataclass
class Job:
    """Pairs with what all methods gave on them. took: method → seconds of each round. scores: method → (good…, bad…)."""

    name: str
    pairs: MinimalPairs
    took: dict = field(default_factory=dict)
    scores: dict = field(default_factory=dict)


def run_job(lm, job, peers, rounds):
    """Time all methods in turn, and a floor: a forward pass over as many tokens as the plan has, 512 at a time, without a head."""
    sentences = [*job.pairs.good, *job.pairs.bad]
    whole = _rows(lm, job.pairs, "lm-eval")[0]
    tokens = lm.planned(Ragged.of(row[:-1] for row in whole), None, [lm.last], family=96).tokens
    random = torch.randint(0, lm.vocabulary, (max(1, tokens // 16), 16))

    def floor():
        with torch.inference_mode():
            for i in range(0, len(random), 32):
                lm.module(input_ids=random[i : i + 32], use_cache=False)

    for _ in range(rounds):
        for convention in ("lm-eval", "minicons"):
            seconds, found = timed(score_pairs, lm, job.pairs, convention)
            job.took.setdefault(f"repscope, {convention}", []).append(seconds)
            job.scores[f"repscope, {convention}"] = np.concatenate([found.good, found.bad])
        for name, run in peers.items():
            seconds, job.scores[name] = timed(run, sentences)
            job.took.setdefault(name, []).append(seconds)
        job.took.setdefault("floor", []).append(timed(floor)[0])
    return tokens, int((whole.lengths - 1).sum())


def convention_of(method):
    return "minicons" if "minicons" in method else "lm-eval"


def table(lm, job, peers, rounds, rate, doubled):
    tokens, all_tokens = run_job(lm, job, peers, rounds)
    n = len(job.pairs.good)
    maps = machine.linear_shapes(lm.module.layers)
    head = lm.model.get_output_embeddings().weight
    flops = tokens * (sum(2 * i * o for i, o in maps) + 2 * head.numel())
    rng = np.random.default_rng(0)
    some = rng.permutation(2 * n)[:EXACT]
    sides = [(*job.pairs.good, *job.pairs.bad)[i] for i in some]
    ids = {c: _rows(lm, job.pairs, c)[0] for c in PEERS}
    exact = {c: np.array(list(exact_scores(doubled, [ids[c][i] for i in some]))) for c in PEERS}
    lines = [
        f"### {job.name}\n\n{n} pairs of {len(job.pairs.phenomena)} phenomena: {all_tokens:,} tokens in all sentences, of which "
        f"repscope's plan runs {tokens:,}.\n",
        "| method | processor s (range) | pairs/s | repscope is faster by | largest difference from repscope's scores | from exact "
        f"scores of {EXACT} sentences |",
        "|---|---|---|---|---|---|",
    ]
    for name, seconds in job.took.items():
        own = f"repscope, {convention_of(name)}"
        ratio = [a / b for a, b in zip(seconds, job.took[own])]
        cells = [name, f"{statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})"]
        cells += [f"{n / statistics.median(seconds):.1f}", f"{statistics.median(ratio):.2f}× ({min(ratio):.2f}–{max(ratio):.2f})"]
        if name in job.scores:
            cells += [f"{np.abs(job.scores[name] - job.scores[own]).max():.1e}"]
            cells += [f"{np.abs(job.scores[name][some] - exact[convention_of(name)]).max():.1e}"]
        lines.append("| " + " | ".join(cells + [""] * (6 - len(cells))) + " |")
    for name in (c for c in PEERS if any(c in peer for peer in peers)):
        again = PEERS[name](doubled, lm.tokenizer, 8)(sides)
        own = job.scores[f"repscope, {name}"][some]
        lines.append(
            f"\n{name}'s loop with the model in float64: largest difference from exact scores "
            f"{np.abs(again - exact[name]).max():.1e}, from repscope's {np.abs(again - own).max():.1e} nats."
        )
    apart = job.scores["repscope, lm-eval"] - job.scores["repscope, minicons"]
    right = [job.scores[f"repscope, {c}"][:n] > job.scores[f"repscope, {c}"][n:] for c in PEERS]
    lines.append(
        f"\nFLOPs of the plan with its heads over the sgemm rate of the run: {flops / rate:.2f} s. The conventions differ by up to "
        f"{np.abs(apart).max():.1f} nats per sentence; accuracy {right[0].mean():.3f} and {right[1].mean():.3f}, "
        f"{(right[0] != right[1]).mean():.0%} of pairs judged otherwise."
    )
    return "\n".join(lines)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--model", default="smollm2-135m-instruct-q4")
    asked.add_argument("--peers", type=Path)
    asked.add_argument("--jobs", default="20x5,2x250", help="PHENOMENAxPAIRS, comma-separated")
    asked.add_argument("--rounds", type=int, default=2)
    asked.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    o = asked.parse_args()
    if o.peers:
        sys.path.append(str(o.peers))
    torch.set_num_threads(1)
    held = read_pairs(o.folder)
    lm = rs.load(o.model)
    rates = [machine.sgemm_rate(machine.linear_shapes(lm.module.layers[0]), repeats=20)]
    first = held.chosen(held.phenomena[:1], 40)
    score_pairs(lm, first, "lm-eval")  # proofs of the fast path, once per model
    peers = {}
    for name, made in PEERS.items():
        if o.peers:
            took = {b: timed(made(lm.model, lm.tokenizer, b), [*first.good, *first.bad])[0] for b in BATCHES}
            best = min(took, key=took.get)
            peers[f"{name}, batches of {best}"] = made(lm.model, lm.tokenizer, best)
    doubled = copy.deepcopy(lm.model).double()
    tables = []
    for asked_job in o.jobs.split(","):
        count, pairs = map(int, asked_job.split("x"))
        names = held.phenomena[:: max(1, len(held.phenomena) // count)][:count]
        job = Job(f"{count} phenomena, {pairs} pairs of each", held.chosen(names, pairs))
        tables.append(table(lm, job, peers, o.rounds, rates[0], doubled))
    rates.append(machine.sgemm_rate(machine.linear_shapes(lm.module.layers[0]), repeats=20))
    head = (
        f"## Minimal pairs\n\n`python benchmarks/minimal_pairs.py BLIMP --peers FOLDER --jobs {o.jobs} --rounds {o.rounds} "
        f"--write`, {datetime.date.today()}. {machine.describe()}. {machine.versions(('torch', 'transformers'))}, lm-eval 0.4.13, "
        f"minicons 0.3.39. {lm.name}, float32, one thread; times are of the processor. sgemm at the model's shapes "
        f"{min(rates) / 1e9:.0f}–{max(rates) / 1e9:.0f} GFLOP/s. Peers have the best of the batch sizes 8, 32 and 128."
    )
    text = "\n\n".join([head, *tables])
    print(text)
    if o.write:
        machine.write_section("minimal pairs", text)


if __name__ == "__main__":
    main()
