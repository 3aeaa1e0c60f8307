"""How often cross-decoding between self and other finds a shared code that was planted, and one that was not.

    python benchmarks/self_other.py [--draws 40] [--wiring-draws 200] [--write]

Pairs of recurrent networks of `worlds.watching_agents`, 60 units and 200 trials each: a shared population, separate populations, or
a stimulus that predicts outcomes. And how often wiring predicts shared coding, planted in the synapses or not.
"""

import argparse
import datetime
import os
import time

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import machine

from repscope.bench.sharing import FOUND, KINDS, of_kind, wiring_of_sharing
from repscope.stats import wilson

PAGE = machine.RESULTS.with_name("RESULTS-self-other.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--wiring-draws", type=int, default=200)
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    args = parser.parse_args()
    started = time.process_time()
    rows = ["| networks | trials | found in | Wilson's interval |", "|---|---|---|---|"]
    found = [row for kind in KINDS for row in of_kind(kind, args.draws) if row.metric == FOUND]
    for row in (*found, *wiring_of_sharing(args.wiring_draws)):
        hits = round(row.value * row.n)
        lo, hi = wilson(hits, row.n)
        what = row.item if row.split else f"{row.item}: {row.metric}"
        rows.append(f"| {what} | {row.split or '–'} | {hits} of {row.n} | {100 * lo:.0f}–{100 * hi:.0f} % |")
    head = f"{datetime.date.today()}, {machine.versions(['numpy', 'scipy'])}. 100 permutations, "
    text = "\n".join([f"{head}{time.process_time() - started:.0f} CPU seconds.", "", *rows])
    print(text)
    if args.write:
        if not PAGE.exists():
            PAGE.write_text("# Self and other\n\n`benchmarks/self_other.py`\n")
        machine.write_section("Sharing", text, PAGE)


if __name__ == "__main__":
    main()
