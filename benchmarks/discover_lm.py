"""Instead of, or beside, the L2 distance of MELBO: would a contrastive loss find other directions? Measured on SmolLM2.

Each method finds 12 directions at the output of block 7 on 4 prompts in 40 steps (DCT: 40 iterations, Jacobian: 16), at one
calibrated scale, five seeds each; effects are read at block 22, mean of the last 6 tokens, and judged on 6 other prompts. The
numbers are those of `repscope.discovery.comparison.METRICS`, intervals over seeds; differences are paired by seed (the same start).

Every cell is kept beside the script's output folder as it is done, so that a stopped run goes on.

A second table has fewer rows and vectors a part as long, at which text survives what is found.

    python benchmarks/discover_lm.py --write                                   # about 105 minutes of one idle core
    python benchmarks/discover_lm.py --shorter 0.35 --seeds 0 1 2 --write      # about 40
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import machine
import numpy as np
import torch

import repscope as rs
from repscope import stats
from repscope.discovery import Fluency, LanguageSubject, calibrate
from repscope.discovery import metrics as judged
from repscope.discovery.comparison import DISCOVERY_METHODS, DISCOVERY_METRICS, TestBed
from repscope.discovery.comparison import RANDOM_METHOD as RANDOM

SEEN = [
    "What should I do this weekend?",
    "Tell me something about the sea.",
    "How do I bake bread?",
    "Who was the first person on the moon?",
]
HELD = [
    "What is a good present for a friend?",
    "Tell me a story about a dog.",
    "Why is the sky blue?",
    "Give me advice on sleeping well.",
    "How do computers work?",
    "Describe a walk in the forest.",
]
ROWS = (
    RANDOM,
    "L2",
    "log L2",
    "L2 + contrastive",
    "contrastive, skip removed",
    "L2 + soft-orthogonal",
    "contrastive",
    "DCT",
    "Jacobian",
)
SHORTER_ROWS = (RANDOM, "L2", "log L2", "L2 + contrastive", "L2 + soft-orthogonal", "contrastive, skip removed")
SHOWN = (
    "size",
    "size per spread",
    "overlap",
    "effective rank",
    "clusters",
    "consistency",
    "consistency of others",
    "kl",
    "damage",
    "repeats",
    "stability",
    "cost",
    "seconds",
)
PAIRS = (
    ("L2", RANDOM),
    ("contrastive, skip removed", RANDOM),
    ("contrastive, skip removed", "L2"),
    ("contrastive", "L2"),
    ("log L2", "L2"),
    ("L2 + contrastive", "L2"),
    ("L2 + contrastive", "log L2"),
    ("L2 + soft-orthogonal", "L2"),
    ("L2 + soft-orthogonal", "log L2"),
    ("L2 + contrastive", "L2 + soft-orthogonal"),
    ("DCT", "L2 + contrastive"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--cells-only", action="store_true", help="no table: for several processes that share the seeds")
    parser.add_argument("--vectors", type=int, default=12)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shorter", type=float, metavar="FACTOR", help="the calibrated scale times this, and fewer rows")
    parser.add_argument("--rows", nargs="*", help="only these")
    parser.add_argument("--cells", type=Path, default=Path("runs/discover-lm"), help="where finished cells are kept")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.cells.mkdir(parents=True, exist_ok=True)
    lm = rs.load()
    seen, held = ([lm.chat(text, system="") for text in texts] for texts in (SEEN, HELD))
    subject = LanguageSubject(lm, "resid_post.7", "resid_post.22", target_tokens="last 6")
    kept = options.cells / "scale.json"
    if not kept.is_file():
        fluency = Fluency(lm, subject.source, seen)
        found = calibrate(subject, subject.context(seen), fluency=fluency)
        kept.write_text(json.dumps({"scale": found.scale, "relative": found.relative, "why": found.why, "damage": found.damage}))
    scale = json.loads(kept.read_text())
    short = options.shorter or 1.0
    if short != 1.0:
        scale |= {"scale": short * scale["scale"], "relative": short * scale["relative"]}
    rows = options.rows or (SHORTER_ROWS if options.shorter else ROWS)
    ground: TestBed | None = None  # made when a cell is missing
    cells: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    for seed in options.seeds:
        for name in rows:
            of = f"{name.replace(' ', '-')}-{seed}-{options.vectors}-{options.steps}"
            path = options.cells / f"{of}{f'-x{short:g}' if short != 1.0 else ''}.json"
            if not path.is_file():
                ground = ground or TestBed(subject, seen, held, scale["scale"], new_tokens=16)
                found = ground.found(DISCOVERY_METHODS[name], options.vectors, options.steps, seed)
                numbers, arrays = ground.judged(found)
                np.savez(path.with_suffix(".npz"), **arrays)
                path.write_text(json.dumps(numbers | {"seconds": found.seconds}))
                print(f"seed {seed}, {name}: {found.seconds:.0f} s", file=sys.stderr, flush=True)
            cells[name].append(json.loads(path.read_text()))
            vectors[name].append(np.load(path.with_suffix(".npz"))["vectors"])
    if options.cells_only:
        return
    for name, each in cells.items():
        for i, numbers in enumerate(each):  # against every other seed of the same method
            others = [v for j, v in enumerate(vectors[name]) if j != i]
            numbers["stability"] = float(np.mean([judged.stability(vectors[name][i], v) for v in others])) if others else np.nan
    text = report(lm, scale, cells, options)
    print(text)
    if options.write:
        machine.write_section(f"discover on a language model{', shorter' if options.shorter else ''}", text)


def report(lm: rs.LanguageModel, scale: dict, cells: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> str:
    bound = (
        f"{options.shorter:g} of the calibrated one, whose bound was {scale['why']}"
        if options.shorter
        else f"{scale['why']}; KL of the Jacobian's leading directions {scale['damage']:.2f} nats"
    )
    head = (
        f"## Discover on a language model{', shorter vectors' if options.shorter else ''}\n\n"
        f"`python {' '.join(sys.argv)}`, {datetime.date.today()}. {machine.describe()}. "
        f"{machine.versions(('torch', 'transformers', 'repscope'))}. Model {lm.name}, resid_post.7 → "
        "resid_post.22 (mean of the last 6 "
        f"tokens), {options.vectors} directions, {options.steps} steps, {len(SEEN)} prompts to discover on, "
        f"{len(HELD)} to judge on, "
        f"seeds {' '.join(map(str, options.seeds))}. Scale {scale['scale']:.3g}, {scale['relative']:.3g} of the "
        f"median length at the source ({bound}). Mean and 95 % bootstrap interval over seeds."
    )
    rows = [[name, *(_cell([c[metric] for c in each if metric in c]) for metric in SHOWN)] for name, each in cells.items()]
    table = _table(["", *SHOWN], rows)
    paired = []
    for a, b in [pair for pair in PAIRS if set(pair) <= set(cells)]:
        metrics = ("size", "overlap", "effective rank", "clusters", "consistency", "kl", "damage")
        paired.append([f"{a} less {b}", *(_cell([x[m] - y[m] for x, y in zip(cells[a], cells[b])], "+") for m in metrics)])
    gains = _table(["paired by seed", "size", "overlap", "effective rank", "clusters", "consistency", "kl", "damage"], paired)
    told = "\n".join(f"- {name}: {DISCOVERY_METRICS[name]}" for name in SHOWN if name in DISCOVERY_METRICS)
    return "\n\n".join([head, table, gains, told])


def _cell(values: list[float], sign: str = "") -> str:
    if not values or not np.isfinite(values).all():
        return "–"
    e = stats.mean(values, unit="seed")
    digits = 0 if abs(e.value) >= 100 else 1 if abs(e.value) >= 10 else 2
    return f"{e.value:{sign}.{digits}f} [{e.lo:{sign}.{digits}f}, {e.hi:{sign}.{digits}f}]"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *("| " + " | ".join(r) + " |" for r in rows)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
