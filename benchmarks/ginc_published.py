"""Does the exact mixture predictor of a GINC world learn from examples? The published delimiter against the uniform one.

    python benchmarks/ginc_published.py [--worlds 5] [--prompts 150] [--parameters FILE.npz] [--write]

1. Worlds of 5 concepts, 10 values × 10 slots and 50 symbols, drawn by the published construction; each with both delimiters and the
   same examples' concepts, slots and values. Accuracy against the oracle's labels at L = 3 for k examples, by floor. Interval over
   worlds.
2. Evidence for the true concept against each other one, in nats per example, by symbol: the first one (the step out of the
   delimiter), those inside the example, and the delimiter itself (the step into it). Summed over a prompt of 16 examples. The
   control leaves out the steps out of and into delimiters.
3. `--parameters`: instead of draws, one world from the arrays start (concept, state), slot (concept, slot, slot), value (value,
   value) and table (value, slot). The paper's own are in pickles, which this project does not read. Interval over prompts.
"""

import argparse
import datetime
import os
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
from jaxtyping import Float
from machine import describe, versions, write_section

from repscope import stats
from repscope.trace import bayes
from repscope.trace.bayes.prompted import mixture_of
from repscope.worlds.ginc import PUBLISHED, UNIFORM, GincPrompts, GincSizes, GincWorld, prompts
from repscope.worlds.ginc.prompts import NEAR_TIE

RESULTS = Path(__file__).with_name("RESULTS-bayes.md")
LENGTH, SHOWN, FLOORS = 3, (0, 1, 4, 16, 64), (1e-6, 1e-4, 1e-2)
EVIDENCE = 16  #: examples of a prompt whose evidence is added up
SIZES = GincSizes(values=10, slots=10, symbols=50)


@dataclass(frozen=True)
class Sums:
    """Evidence for the true concept against each other one, in nats over the prompt: (prompt, other concept)."""

    out: Float[np.ndarray, "prompt other"]  #: at the first symbols of examples: the steps out of delimiters
    inside: Float[np.ndarray, "prompt other"]
    into: Float[np.ndarray, "prompt other"]  #: at delimiters: the steps into them


def evidence(world: GincWorld, held: GincPrompts, floor: float) -> Sums:
    """By differences of the log-likelihoods of growing prefixes; the first example has no delimiter before it and is left out."""
    mixture, tokens = mixture_of(world, floor), held.tokens
    logs = np.stack([mixture.log_likelihood(tokens[:, : t + 1]) for t in range(tokens.shape[1])], axis=-1)
    per_symbol = np.diff(logs, axis=-1, prepend=0.0)  # prompt, concept, token
    rows = np.arange(len(tokens))
    others = np.stack([np.delete(np.arange(world.sizes.concepts), c) for c in held.concept])
    difference = per_symbol[rows, held.concept][:, None] - per_symbol[rows[:, None], others]
    place = np.arange(tokens.shape[1]) % (held.length + 1)
    later = np.arange(tokens.shape[1]) > held.length
    parts = (place == 0, (place > 0) & (place < held.length), place == held.length)
    return Sums(*(difference[..., later & part].sum(-1) for part in parts))


def accuracies(world: GincWorld, count: int, seed: int) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Hits (prompt, shown k) and posterior mass on the true concept, by floor."""
    held = prompts(world, count, max(SHOWN), LENGTH, np.random.default_rng(seed))
    found = {}
    for floor in FLOORS:
        forecast = bayes.pretraining(world, held, floor)
        hits = (forecast.answers.argmax(-1) == held.labels).astype(float)
        found[floor] = (hits[:, SHOWN], forecast.truth[:, SHOWN])
    return found


def from_file(path: Path) -> GincWorld:
    with np.load(path, allow_pickle=False) as held:
        table, arrays = held["table"], {n: held[n] for n in ("value", "slot", "start")}
    sizes = replace(SIZES, values=table.shape[0], slots=table.shape[1], symbols=max(int(table.max()) + 1, SIZES.symbols))
    return GincWorld(sizes, table, arrays["value"], arrays["slot"], arrays["start"], 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worlds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=150)
    parser.add_argument("--parameters", type=Path)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    drawn = [from_file(given.parameters)] if given.parameters else [GincWorld.drawn(SIZES, s) for s in range(1, given.worlds + 1)]
    unit = "prompt" if given.parameters else "world"
    lines, parts = [], []
    for delimiter in (PUBLISHED, UNIFORM):
        worlds = [replace(w, sizes=replace(w.sizes, delimiter=delimiter)) for w in drawn]
        each = [accuracies(w, given.prompts, 100 + i) for i, w in enumerate(worlds)]
        for floor in FLOORS:
            hits, mass = (np.stack([e[floor][part] for e in each]) for part in (0, 1))
            rise = hits[..., -1] - hits[..., 0]
            interval = stats.mean(rise[0] if given.parameters else rise.mean(1), unit=unit)
            lines.append(
                {"delimiter": delimiter, "floor": f"{floor:g}"}
                | {f"k = {k}": f"{v:.2f}" for k, v in zip(SHOWN, hits.mean((0, 1)))}
                | {"rise [95 % CI]": f"{interval.value:.2f} [{interval.lo:.2f}, {interval.hi:.2f}]"}
                | {"mass on the true concept": f"{mass[..., 0].mean():.2f} → {mass[..., -1].mean():.2f}"}
            )
        sums = []
        for i, w in enumerate(worlds):
            held = prompts(w, given.prompts, EVIDENCE, LENGTH, np.random.default_rng(200 + i))
            sums.append(evidence(w, held, FLOORS[0]))
        out, inside, into = (np.concatenate([getattr(s, n) for s in sums]) for n in ("out", "inside", "into"))
        parts.append(
            {"delimiter": delimiter}
            | {
                f"{name} (SD over pairs)": f"{x.mean() / EVIDENCE:.2f} ({x.std() / EVIDENCE:.2f})"
                for name, x in (("out of delimiters", out), ("inside", inside), ("into delimiters", into))
            }
            | {
                f"wrong best concept: {name}": f"{(x.min(1) < 0).mean():.2f}"
                for name, x in (("all", out + inside + into), ("without steps out", inside + into), ("inside alone", inside))
            }
        )
    source = "The paper's parameters" if given.parameters else f"{len(drawn)} draws of the published construction"
    ties = np.mean([(prompts(w, 500, 0, LENGTH, np.random.default_rng(0)).margins < NEAR_TIE).mean() for w in drawn])
    blocks = [
        f"{source}, {given.prompts} prompts each, L = {LENGTH}; interval over {unit}s. Oracle's margin below {NEAR_TIE}: "
        f"{ties:.0%} of prompts. Exact pretraining mixture, accuracy against the oracle's labels:",
        table(lines),
        f"Evidence for the true concept against another one, nats per example, floor {FLOORS[0]:g}; share of prompts of "
        f"{EVIDENCE + 1} examples in which another concept is more likely (the first example left out):",
        table(parts),
    ]
    print("\n\n".join(blocks))
    if given.write:
        options = " --parameters FILE.npz" if given.parameters else f" --worlds {given.worlds}"
        command = f"`python benchmarks/ginc_published.py{options} --prompts {given.prompts}`"
        made = f"{command}, {datetime.date.today()}. {describe()}. {versions(['numpy'])}."
        head = f"## The delimiter of GINC: {source[0].lower() + source[1:]}"
        write_section("ginc-published" if given.parameters else "ginc-draws", "\n\n".join([head, made, *blocks]), RESULTS)


def table(rows: list[dict[str, str]]) -> str:
    """Rows as a Markdown table."""
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
