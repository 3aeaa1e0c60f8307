"""Likelihoods of GINC prompts under each concept: repscope beside hmmlearn, on the same prompts, in one run.

    python benchmarks/bayes.py [--rounds 3] [--write]

hmmlearn scores one text per call: an array (n, T) would count as one chain. Its best case stands beside it, all texts of a concept
in one call with their lengths, which gives their sum alone. Floor: the products with the transition matrices that a dense forward
pass needs, at the rate of one matrix product of that size measured here. One thread.
"""

import argparse
import datetime
import os
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
from hmmlearn.hmm import CategoricalHMM
from machine import describe, rss_mb, versions, write_section

from repscope.trace.bayes.prompted import mixture_of
from repscope.worlds.ginc import GincSizes, GincWorld, prompts

RESULTS = Path(__file__).with_name("RESULTS-bayes.md")
FLOOR, CONCEPTS, PROMPTS, EXAMPLES, LENGTH = 1e-4, 10, 1000, 16, 3


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
    before = rss_mb("VmHWM")
    mixture.log_likelihood(np.tile(tokens, (10, 1)))
    text = (
        f"{PROMPTS:,} prompts of {tokens.shape[1]} symbols × {CONCEPTS} concepts of {sizes.states} states, one thread. "
        f"Largest difference from hmmlearn: {error:.1e} nats. Ten times the prompts: {before:,.0f} → {rss_mb('VmHWM'):,.0f} "
        f"MB at the peak."
    )
    lines = ["| | seconds | ÷ repscope |", "|---|---|---|", *(f"| {' | '.join(row.values())} |" for row in rows)]
    print(text, *lines, sep="\n")
    if given.write:
        head = (
            f"## Likelihoods under hidden Markov models\n\n`python benchmarks/bayes.py --rounds {given.rounds}`, "
            f"{datetime.date.today()}. "
            f"{describe()}. {versions(['numpy', 'hmmlearn'])}. Median over rounds (least–most).\n\n{text}"
        )
        write_section("bayes", "\n\n".join([head, "\n".join(lines)]), RESULTS)


if __name__ == "__main__":
    main()
