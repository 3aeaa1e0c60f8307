"""Minimal pairs on one model: repscope beside lm-eval's loop, minicons and a floor, in one run.

    python benchmarks/minimal_pairs.py FOLDER_OF_BLIMP [--peers FOLDER] [--pairs 10] [--phenomena 20] [--write]

`--peers`: where `pip install --no-deps --target FOLDER -r benchmarks/requirements-minimal-pairs.txt` put lm-eval and minicons.
1. The same pairs for all: the first `--pairs` of each phenomenon. One thread, the same model object.
2. lm-eval: `HFLM.loglikelihood` on the requests of its BLiMP task; minicons: `sequence_score` over batches of both sentences.
   Each with the best of several batch sizes, which are timed first on a part.
3. The floor: the time of a plain forward pass, without a head, over as many tokens as the plan has, in batches without padding.
4. Rounds in turn, in processor time on one thread; the median, and the range. Scores are compared pair by pair.
"""

import argparse
import datetime
import statistics
import sys
import time
from pathlib import Path

import machine
import numpy as np
import torch

import repscope as rs
from repscope.data.minimal_pairs import read_pairs
from repscope.models.prompts import Ragged
from repscope.read.pair_scores import _rows, score_pairs

BATCHES = (8, 32, 128)
CALLS = {"lm-eval": "HFLM.loglikelihood", "minicons": "sequence_score"}
FLOOR = "floor: plain passes over as many tokens as the plan has, no head"


def lm_eval_loop(lm, batch_size):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    made = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size, backend="causal")

    def run(sentences):
        requests = [Instance("loglikelihood", {}, ("", f" {text}"), i) for i, text in enumerate(sentences)]
        return np.array([score for score, _ in made.loglikelihood(requests, disable_tqdm=True)])

    return run


def minicons_loop(lm, batch_size):
    from minicons.scorer import IncrementalLMScorer

    made = IncrementalLMScorer(lm.model, "cpu", tokenizer=lm.tokenizer)

    def run(sentences):
        found = []
        for i in range(0, len(sentences), batch_size):
            found += made.sequence_score(sentences[i : i + batch_size], reduction=lambda x: x.sum(0).item())
        return np.array(found)

    return run


def timed(run, *given):
    started = time.process_time()  # of the processor: the machine may be shared, and everything runs on one thread
    out = run(*given)
    return time.process_time() - started, out


def floor(lm, ids):
    """A forward pass over as many tokens as the plan has, 512 at a time, without a head."""
    tokens = lm.planned(Ragged.of(row[:-1] for row in ids), None, [lm.last], family=96).tokens
    rows = torch.randint(0, lm.vocabulary, (max(1, tokens // 16), 16))

    def run():
        with torch.inference_mode():
            for i in range(0, len(rows), 32):
                lm.module(input_ids=rows[i : i + 32], use_cache=False)

    return run, tokens


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("folder", type=Path)
    asked.add_argument("--model", default="smollm2-135m-instruct-q4")
    asked.add_argument("--peers", type=Path)
    asked.add_argument("--pairs", type=int, default=10)
    asked.add_argument("--phenomena", type=int, default=20)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    o = asked.parse_args()
    if o.peers:
        sys.path.append(str(o.peers))
    torch.set_num_threads(1)
    held = read_pairs(o.folder)
    names = held.phenomena[:: max(1, len(held.phenomena) // o.phenomena)][: o.phenomena]
    held = held.chosen(names, o.pairs)
    n, sentences = len(held.good), [*held.good, *held.bad]
    lm = rs.load(o.model)
    score_pairs(lm, held.chosen(names[:1]), "lm-eval")  # proofs of the fast path, once per model
    small = [*held.good[: n // 4], *held.bad[: n // 4]]
    peers = {}
    for name, made in (("lm-eval", lm_eval_loop), ("minicons", minicons_loop)):
        if o.peers:
            took = {b: timed(made(lm, b), small)[0] for b in BATCHES}
            best = min(took, key=took.get)
            print(f"{name}: seconds of a quarter by batch size { ({b: round(t, 2) for b, t in took.items()}) }; taken: {best}")
            peers[f"{name}, `{CALLS[name]}`, batches of {best}"] = made(lm, best)
    base, tokens = floor(lm, _rows(lm, held, "lm-eval")[0])
    took, scores = {}, {}
    for _ in range(o.rounds):
        for convention in ("lm-eval", "minicons"):
            seconds, found = timed(score_pairs, lm, held, convention)
            took.setdefault(f"repscope, {convention}", []).append(seconds)
            scores[convention] = np.concatenate([found.good, found.bad])
        for name, run in peers.items():
            seconds, found = timed(run, sentences)
            took.setdefault(name, []).append(seconds)
            scores[name] = found
        took.setdefault(FLOOR, []).append(timed(base)[0])
    whole = _rows(lm, held, "lm-eval")[0].lengths - 1
    lines = [
        f"## Minimal pairs\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}: {n} pairs of {len(names)} phenomena of "
        f"BLiMP; {whole.sum():,} tokens in all sentences, {tokens:,} in repscope's plan. {machine.describe()}. "
        f"{machine.versions(('torch', 'repscope'))}. {o.model}, float32; processor time on one thread, {o.rounds} rounds. Peers "
        f"have the best of the batch sizes {', '.join(map(str, BATCHES))}, timed on a quarter of the pairs.\n",
        "| method | processor s (range) | pairs/s | repscope is faster by | largest difference of scores |\n|---|---|---|---|---|",
    ]
    for name, seconds in took.items():
        middle, own = statistics.median(seconds), "minicons" if name.startswith("minicons") else "lm-eval"
        ratios = [a / b for a, b in zip(seconds, took[f"repscope, {own}"])]
        by = f"{statistics.median(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f})" if not name.startswith("repscope") else ""
        worst = f"{np.abs(scores[name] - scores[own]).max():.1e} nats" if name in peers else ""
        lines.append(f"| {name} | {middle:.2f} ({min(seconds):.2f}–{max(seconds):.2f}) | {n / middle:.1f} | {by} | {worst} |")
    apart = scores["lm-eval"] - scores["minicons"]
    right = [scores[c][:n] > scores[c][n:] for c in ("lm-eval", "minicons")]
    lines.append(
        f"\nThe two conventions differ by up to {np.abs(apart).max():.1f} nats per sentence, and judge "
        f"{100 * (right[0] != right[1]).mean():.0f} % of these pairs differently (accuracy {right[0].mean():.3f} and "
        f"{right[1].mean():.3f})."
    )
    text = "\n".join(lines)
    print(text)
    if o.write:
        machine.write_section("minimal pairs", text)


if __name__ == "__main__":
    main()
