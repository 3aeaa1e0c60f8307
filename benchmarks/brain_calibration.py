"""Do intervals over networks and conditions cover the truth, and does the right family win? On recordings with a known truth.

    python benchmarks/brain_calibration.py --write

1. Coverage. Two families of random networks: units tanh(x · (W_f + 0.6 W)), W_f of the family, W of the network; a recording of
   four subjects who mix the units of one network of the first family, with noise. In every draw networks, conditions and noise are
   new, subjects are the same. Truth: the mean over as many other draws. Counted: how often a 95 % interval contains it, for the
   similarity of the first family and for the difference of both.
2. Winners. Networks of the `brain` study and its simulated recordings, in its default sizes, each with a network and stimuli of its
   own: how often does the generating family win, and how often any family on recordings of random signals?
"""

import argparse
import datetime
import os
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import machine
import numpy as np
import torch

from repscope.align import compare_families, crossvalidated_rdm, encode, encoding_scores, rdm, rsa_scores
from repscope.stats import wilson
from repscope.studies.brain import names
from repscope.studies.brain.options import BrainOptions
from repscope.studies.brain.task import TRUTHS, BrainTask, stacked
from repscope.worlds.brain import digits, loss_of
from repscope.worlds.small_lm import train_by

RESULTS = Path(__file__).with_name("RESULTS-brain.md")
INPUTS, UNITS, CONDITIONS = 6, 20, 60


def families(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(2, INPUTS, UNITS))


def network(own: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return own + 0.6 * rng.normal(size=own.shape)


def comparison(method: str, means: np.ndarray, generator: np.ndarray, mixing: np.ndarray, networks: int, seed: int):
    """One draw of networks, conditions and noise."""
    rng = np.random.default_rng([7, seed])
    x = rng.normal(size=(CONDITIONS, INPUTS))
    units = [np.tanh(x @ network(own, rng)) for own in means for _ in range(networks)]
    signal = np.tanh(x @ generator) @ mixing  # (subject, condition, channel)
    recorded = signal[:, None] + 1.5 * signal.std() * rng.normal(size=(len(mixing), 3, *signal.shape[1:]))
    labels = ["first"] * networks + ["second"] * networks
    if method == "RSA":
        subjects = np.stack([crossvalidated_rdm(one) for one in recorded])
        return compare_families(rsa_scores([rdm(u)[None] for u in units], subjects, seed=seed), labels)
    y = np.concatenate(list(recorded.mean(1)), 1)
    return compare_families(encoding_scores([[encode(u, y, seed=seed)] for u in units], seed=seed), labels)


def coverage(method: str, draws: int, networks: int, channels: int) -> list[str]:
    """Rows of the table: how often intervals contain the truth."""
    rng = np.random.default_rng(3)
    means = families(rng)
    generator, mixing = network(means[0], rng), rng.normal(size=(4, UNITS, channels))
    found = [comparison(method, means, generator, mixing, networks, seed) for seed in range(2 * draws)]
    rows = []
    for said, of in (
        ("similarity of a family", lambda c: c.similarity["first"]),
        ("difference of two families", lambda c: c.difference("first", "second")),
    ):
        truth = float(np.mean([of(c).value for c in found[draws:]]))
        hits = sum(e.lo <= truth <= e.hi for e in map(of, found[:draws]))
        lo, hi = wilson(hits, draws)
        share = f"{100 * hits / draws:.1f} % ({100 * lo:.1f}–{100 * hi:.1f})"
        rows.append(f"| {method}, {said}, {networks} networks | {truth:.3f} | {share} | {draws} |")
        print(rows[-1], flush=True)
    return rows


def winners(recordings: int) -> list[str]:
    """Rows of the table: how often a family wins, by what generated the recording."""
    options = BrainOptions(recordings=recordings).sized()
    task = BrainTask(options)
    states = {}
    for family in names.TRAINED:
        states[family] = train_by(
            loss_of(family, options.batch, options.seed), task.initial(family), task.schedule, title=family
        ).state
    states[names.CONTROL] = task.initial(names.CONTROL)
    candidates = task.candidates(states)
    won = {truth: [] for truth in TRUTHS}
    for recording in range(recordings):
        layers = stacked(candidates, digits().stimuli[task.stimuli(recording)])
        for truth in TRUTHS:
            recorded = task.recorded(truth, names.LATE, recording, states)
            won[truth].append(task.compared(names.RSA, layers, recorded, recording).winner)
    rows = []
    for truth, found in won.items():
        right, wrong = sum(w == truth for w in found), sum(w is not None and w != truth for w in found)
        lo, hi = wilson(right, recordings)
        other = wilson(wrong, recordings)
        rows.append(
            f"| {truth} | {100 * right / recordings:.1f} % ({100 * lo:.1f}–{100 * hi:.1f}) "
            f"| {100 * wrong / recordings:.1f} % ({100 * other[0]:.1f}–{100 * other[1]:.1f}) | {recordings} |"
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["RSA", "winners", "encoding"], default=["RSA", "winners", "encoding"])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--recordings", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="put each table into RESULTS-brain.md when it is made")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for part in args.parts:
        started = time.process_time()
        if part == "winners":
            o = BrainOptions()
            said = (
                f"Who wins, RSA, late region: {o.networks} networks per family, {o.conditions} stimuli, {o.subjects} subjects of "
                f"{o.channels} channels, {o.repeats} repeats, noise {o.noise:g}, individual differences {o.own:g}; in brackets "
                "Wilson's 95 % interval."
            )
            head = ["| recording generated by | generating family wins | another family wins | recordings |", "|---|---|---|---|"]
            rows = winners(args.recordings)
        else:
            said = f"Intervals at 95 %, {CONDITIONS} conditions, halves choose and report; in brackets Wilson's 95 % interval."
            head = ["| interval | truth | contains the truth | draws |", "|---|---|---|---|"]
            rows = coverage(part, args.draws, 3, 4) if part == "encoding" else []
            if part == "RSA":
                rows = [row for networks in (8, 3) for row in coverage(part, args.draws, networks, 20)]
        made = (
            f"{datetime.date.today()}, {machine.describe()}. {machine.versions(['numpy', 'torch', 'himalaya'])}. One thread, "
            f"{time.process_time() - started:.0f} CPU seconds."
        )
        text = "\n".join([made, "", said, "", *head, *rows])
        print(text, flush=True)
        if args.write:
            machine.write_section(f"Calibration of the comparison of families: {part}", text, RESULTS)


if __name__ == "__main__":
    main()
