"""Maps of low rank (`rs.read.lre(…, rank="auto")`) compared with whole ones: products, memory, faithfulness, edits.

    python benchmarks/low_rank.py [--relations country-capital country-language] [--items 110] [--edits 20] [--write]

1. SmolLM2-135M, one split of each relation: the maps of all layers to the last block and to the block of the concepts, whole and of
   low rank. Layer and β of each are chosen on one half of the known facts; faithfulness and edits are those of the other half,
   paired by subject, with the difference's 95 % interval over them. CPU seconds on one thread.
2. A Llama of random weights with d = 2,048 and two blocks: products, numbers held, the error that the certificate estimates, and
   the true one from 64 further random rows. A random network's spectrum is flat, so its error is large: what a certificate is for.
"""

import argparse
import datetime
import sys
import time

import machine
import numpy as np
import torch

import repscope as rs
from repscope import stats
from repscope.models.language import LanguageModel
from repscope.read.known_facts import select_known
from repscope.read.linear_relations import lre
from repscope.studies.relations.split import Split, edits, faithfulness
from repscope.studies.relations.steps import _edit_sites
from repscope.worlds.tiny import byte_tokenizer, untrained_llama

RANKS, WIDE = (4, 8, 16, 32, 64), 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--relations", nargs="+", default=["country-capital", "country-language"])
    parser.add_argument("--items", type=int, default=110)
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lm = rs.load()
    lines = [row for name in given.relations for row in compared(lm, name, given.items, given.edits)]
    text = "\n".join(
        [
            f"## Maps of low rank\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}. {machine.describe()}. "
            f"{machine.versions(('torch', 'transformers', 'repscope'))}. SmolLM2-135M-Instruct, d = {lm.anatomy.width}, "
            "one thread.\n",
            "| relation | maps | products | CPU s | numbers per W, of d² | estimated error | faithfulness | edits |",
            "|---|---|---|---|---|---|---|---|",
            *lines,
            "",
            *wide(),
        ]
    )
    print(text)
    if given.write:
        machine.write_section("low rank", text)


def compared(lm, name: str, items: int, most: int) -> list[str]:
    """Rows of one relation: whole maps, maps of low rank, and the difference paired by subject."""
    found = select_known(lm, rs.relation(name).sample(items, 0), trials=1)
    spelt, order = found.facts, np.random.default_rng([0, 0]).permutation(found.rows).tolist()
    here = f"resid_post.{max(1, round(0.9 * lm.blocks) - 1)}"
    rows, hits = [], {}
    for label, rank in (("whole", None), ("low rank", "auto")):
        split = Split(lm, spelt, order, 5, here, 0)
        started = time.process_time()
        made = [lre(lm, spelt, examples=split.examples, target=t, rank=rank) for t in (None, here)]
        seconds = time.process_time() - started
        vars(split).update(fits=made[0], early=made[1])
        faithful = faithfulness(split, lambda part: None)["estimate|chosen"].astype(float)
        edited = edits(split, _edit_sites(lm.blocks, here), RANKS, most, lambda s: None, lambda part: None)[0]["estimate|chosen"]
        hits[label] = faithful, edited
        told = made[0].certificate
        share = 1.0 if told is None else told.rank * (1 + 1 / len(made[0])) / lm.anatomy.width
        products = lm.anatomy.width if told is None else told.products
        cells = [f"{products}", f"{seconds:.1f}", f"{share:.2f}", str(told.error) if told else ""]
        measured = [stats.proportion(v[~np.isnan(v)], unit="subject") for v in hits[label]]
        rows.append(f"| {name} | {label} | {' | '.join(cells)} | {' | '.join(f'{e} (n = {e.n})' for e in measured)} |")
        print(rows[-1], file=sys.stderr, flush=True)
    apart = [b - a for a, b in zip(hits["whole"], hits["low rank"])]
    gains = [str(stats.mean(d[~np.isnan(d)], unit="subject")) for d in apart]
    return [*rows, f"| {name} | difference | | | | | {' | '.join(gains)} |"]


def wide() -> list[str]:
    """The random network of d = 2,048."""
    sizes = {"hidden_size": WIDE, "intermediate_size": 512, "num_hidden_layers": 2, "num_key_value_heads": 4, "vocab_size": 259}
    lm = LanguageModel(untrained_llama(0, **sizes), byte_tokenizer(), "wide")
    prompts = ["of a", "to b"]
    mean = lm.jacobian(prompts, ["embed", "resid_post.0"], "resid_post.1", source_tokens=3).mean()
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
