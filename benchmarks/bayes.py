"""Likelihoods of GINC prompts under each concept: repscope and hmmlearn on the same prompts, in one run.

    python benchmarks/bayes.py [--rounds 3] [--write]

hmmlearn scores one text per call: an array (n, T) would count as one chain. Its best case stands beside it, all texts of a concept
in one call with their lengths, which gives their sum alone. Floor: the products with the transition matrices that a dense forward
pass needs, at the rate of one matrix product of that size measured here. One thread.

Memory: the kernel's record of the highest resident memory (VmHWM) is reset before each number of prompts, when these are there
and one small pass has been made; the table has the highest value during the pass minus resident memory before it.
"""

import argparse
import datetime
import gc
import os
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
from hmmlearn.hmm import CategoricalHMM
from machine import describe, reset_peak, rss_mb, versions, write_section

from repscope.trace.bayes import Mixture
from repscope.trace.bayes.prompted import mixture_of
from repscope.worlds.ginc import GincSizes, GincWorld, prompts

RESULTS = Path(__file__).with_name("RESULTS-bayes.md")
FLOOR, CONCEPTS, PROMPTS, EXAMPLES, LENGTH = 1e-4, 10, 1000, 16, 3
COUNTS = (1_000, 3_000, 10_000, 30_000)  #: of prompts, for memory


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    sizes = GincSizes(concepts=CONCEPTS, values=10, slots=10, symbols=50)
    world = GincWorld.drawn(sizes, 1)
    tokens = prompts(world, PROMPTS, EXAMPLES, LENGTH, np.random.default_rng(0)).tokens
    mixture = mixture_of(world, FLOOR)
    peers = []
    for c in range(CONCEPTS):
        peer = CategoricalHMM(n_components=sizes.states, n_features=sizes.symbols)
        peer.startprob_, peer.transmat_, peer.emissionprob_ = mixture.starts[c], mixture.transitions[c], mixture.emission
        peers.append(peer)
    column, lengths = tokens.reshape(-1, 1), [tokens.shape[1]] * PROMPTS

    def ours() -> np.ndarray:
        return mixture.log_likelihood(tokens)

    def everything() -> None:
        mixture.forecast(tokens)

    def one_by_one() -> np.ndarray:
        return np.array([[peer.score(text[:, None]) for peer in peers] for text in tokens])

    def sums() -> np.ndarray:
        return np.array([peer.score(column, lengths) for peer in peers])

    a, b = (np.random.default_rng(0).random(s) for s in ((PROMPTS, sizes.states), (sizes.states, sizes.states)))

    def products() -> None:
        for _ in range(CONCEPTS * (tokens.shape[1] - 1)):
            a @ b

    jobs = {
        "repscope": ours,
        "repscope, with every next-symbol distribution": everything,
        "hmmlearn, text by text": one_by_one,
        "hmmlearn, sums over texts": sums,
        "dense products alone": products,
    }
    took: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(given.rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            found = job()
            took[name].append(time.perf_counter() - start)
            if name == "hmmlearn, text by text":
                error = float(np.abs(found - ours()).max())
    base = np.array(took["repscope"])
    rows = [
        {
            "job": name,
            "seconds": f"{np.median(t):.3f}",
            "÷ repscope": f"{np.median(np.array(t) / base):.2f} ({min(t / base):.2f}–{max(t / base):.2f})",
        }
        for name, t in ((n, np.array(t)) for n, t in took.items())
    ]
    memory = [peak(mixture, tokens, count) for count in COUNTS]
    text = (
        f"{PROMPTS:,} prompts of {tokens.shape[1]} symbols × {CONCEPTS} concepts of {sizes.states} states, one thread. "
        f"Largest difference from hmmlearn: {error:.1e} nats."
    )
    lines = ["| | seconds | ÷ repscope |", "|---|---|---|", *(f"| {' | '.join(row.values())} |" for row in rows)]
    lines += ["", "| prompts | MB beyond those before the pass | MB of the answer |", "|---|---|---|", *memory]
    print(text, *lines, sep="\n")
    if given.write:
        head = (
            f"## Likelihoods under hidden Markov models\n\n`python benchmarks/bayes.py --rounds {given.rounds}`, "
            f"{datetime.date.today()}. "
            f"{describe()}. {versions(['numpy', 'hmmlearn'])}. Median over rounds (least–most).\n\n{text}"
        )
        write_section("bayes", "\n\n".join([head, "\n".join(lines)]), RESULTS)


def peak(mixture: Mixture, tokens: np.ndarray, count: int) -> str:
    """A line of the table of memory: what a pass over so many prompts needs at its peak, beyond prompts and model."""
    texts = np.tile(tokens, (-(-count // len(tokens)), 1))[:count]
    mixture.log_likelihood(texts[:10])
    gc.collect()
    before = rss_mb()
    reset_peak()
    answer = mixture.log_likelihood(texts)
    return f"| {count:,} | {rss_mb('VmHWM') - before:.1f} | {answer.nbytes / 1e6:.2f} |"


if __name__ == "__main__":
    main()
