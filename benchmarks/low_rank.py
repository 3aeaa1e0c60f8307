"""Maps of low rank (`rs.read.lre(…, rank="auto")`) compared with whole ones: products, memory, faithfulness, edits.

    python benchmarks/low_rank.py [--relations country-capital …] [--items 110] [--edits 20] [--write]

1. SmolLM2-135M, one split of each relation: the maps of all layers to the last block and to the block of the concepts, whole and of
   low rank. Layer and β of each are chosen on one half of the known facts; faithfulness and edits are those of the other half,
   paired by subject, with the difference's 95 % interval over them. CPU seconds on one thread.
2. A Llama of random weights with d = 2,048 and two blocks: products, numbers held, the error that the certificate estimates, and
   the true one from 64 further random rows. A random network's spectrum is flat, so its error is large: what a certificate is for.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import numpy as np
import torch

import repscope as rs
from repscope import stats
from repscope.models.language import LanguageModel
from repscope.read.known_facts import select_known
from repscope.read.linear_relations import lre
from repscope.studies.relations.edited_facts import edits
from repscope.studies.relations.split import Split, faithfulness
from repscope.studies.relations.steps import _edit_sites
from repscope.worlds.tiny import byte_tokenizer, untrained_llama

RANKS, WIDE, LABELS = (16, 32, 64), 2048, ("whole", "low rank")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--relations", nargs="+", default=["country-capital"])
    parser.add_argument("--items", type=int, default=110)
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--parts", nargs="+", choices=["smollm", "wide"], default=["smollm", "wide"])
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.child:
        return child(*given.child, given.items, given.edits)
    lines = [
        f"## Maps of low rank\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}. {machine.describe()}. "
        f"{machine.versions(('torch', 'transformers', 'repscope'))}. One thread; each kind of maps in a process of its own.\n"
    ]
    if "smollm" in given.parts:
        head = ("relation", "maps", "products", "CPU s", "numbers per W, of d²", "estimated error", "faithfulness", "edits")
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        gains: list[list[np.ndarray]] = []
        for name in given.relations:
            rows, apart = compared(name, given.items, given.edits)
            lines += rows
            gains.append(apart)
        if len(gains) > 1:
            lines.append(differences("all of them", [np.concatenate(each) for each in zip(*gains)]))
    text = "\n".join([*lines, "", *(wide() if "wide" in given.parts else [])])
    print(text)
    if given.write:
        machine.write_section("low rank", text)


def differences(name: str, apart: list[np.ndarray]) -> str:
    """The row of differences paired by subject."""
    told = (stats.mean(d[~np.isnan(d)], unit="subject") for d in apart)
    return f"| {name} | difference | | | | | {' | '.join(f'{e} (n = {e.n})' for e in told)} |"


def compared(name: str, items: int, most: int) -> tuple[list[str], list[np.ndarray]]:
    """Rows of one relation: whole maps, maps of low rank, and the difference paired by subject; and these differences."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--items", str(items), "--edits", str(most), "--child", name]
        for label in LABELS:
            subprocess.run([*words, label, folder], check=True)
        found = [json.loads((Path(folder) / f"{label}.json").read_text()) for label in LABELS]
    rows, hits = [], []
    for label, one in zip(LABELS, found):
        values = [np.array(one[k], dtype=float) for k in ("faithfulness", "edits")]
        hits.append(values)
        told = [stats.proportion(v[~np.isnan(v)], unit="subject") for v in values]
        cells = [str(one["products"]), f"{one['seconds']:.1f}", f"{one['share']:.2f}", one["error"]]
        rows.append(f"| {name} | {label} | {' | '.join(cells)} | {' | '.join(f'{e} (n = {e.n})' for e in told)} |")
    apart = [b - a for a, b in zip(*hits)]
    return [*rows, differences(name, apart)], apart


def child(name: str, label: str, folder: str, items: int, most: int) -> None:
    """One kind of maps: what it takes, and the hits of each reported subject."""
    lm = rs.load()
    found = select_known(lm, rs.relation(name).sample(items, 0), trials=1)
    order = np.random.default_rng([0, 0]).permutation(found.rows).tolist()
    here = f"resid_post.{max(1, round(0.9 * lm.blocks) - 1)}"
    split = Split(lm, found.facts, order, 5, here, 0)
    started = time.process_time()
    if label == "low rank":
        maps = [lre(lm, found.facts, examples=split.examples, target=target, rank="auto") for target in (None, here)]
        vars(split).update(fits=maps[0], early=maps[1])
    made = split.fits, split.early
    seconds = time.process_time() - started
    faithful = faithfulness(split, lambda part: None)["estimate|chosen"].astype(float)
    edited, _ = edits(split, _edit_sites(lm.blocks, here), RANKS, most, lambda subject: None, lambda part: None)
    told, width = made[0].certificate, lm.anatomy.width
    record = {
        "products": width if told is None else told.products,
        "seconds": seconds,
        "share": 1.0 if told is None else told.rank * (1 + 1 / len(made[0])) / width,
        "error": "" if told is None else str(told.error),
        "faithfulness": faithful.tolist(),
        "edits": edited["estimate|chosen"].tolist(),
    }
    (Path(folder) / f"{label}.json").write_text(json.dumps(record))


def wide() -> list[str]:
    """The random network of d = 2,048."""
    sizes = {"hidden_size": WIDE, "intermediate_size": 512, "num_hidden_layers": 2, "num_key_value_heads": 4, "vocab_size": 259}
    lm = LanguageModel(untrained_llama(0, **sizes), byte_tokenizer(), "wide")
    prompts = ["of a", "to b"]
    mean = lm.jacobian(prompts, ["embed", "resid_post.0"], "resid_post.1", source_tokens=3, at_once=1).mean()
    started = time.process_time()
    maps, told = mean.low_rank()
    seconds = time.process_time() - started
    u = np.random.default_rng(1).standard_normal((64, WIDE))
    started = time.process_time()
    true = mean.vjp(u)
    each = (time.process_time() - started) / len(u)
    lines = [
        f"Llama of random weights, d = {WIDE:,}, two blocks: {told.products} products in place of {WIDE:,}, {seconds:.1f} CPU s "
        f"where all would take {each * WIDE:.1f} (from 64 of them).\n",
        "| source | numbers per W, of d² | estimated error | true error |",
        "|---|---|---|---|",
    ]
    for (site, (w, _)), e in zip(maps.items(), told.errors):
        missing = true[site] - (u @ w.left) @ w.right
        error = np.linalg.norm(missing) / np.linalg.norm(true[site])
        held = (w.right.size + w.left.size / len(maps)) / WIDE**2
        lines.append(f"| {site} | {held:.3f} | {e} | {error:.3f} |")
    return lines


if __name__ == "__main__":
    main()
