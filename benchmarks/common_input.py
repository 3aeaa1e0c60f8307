"""Cells that get common input look connected: what tests of wiring and function say about it, in simulation.

    python benchmarks/common_input.py [--draws 200] [--write]

Networks of `worlds.wired_cells.common_input`: 60 cells on a ring, a quarter of them drivers. Activity is carried by all synapses,
or by those of drivers alone; then a synapse between two other cells carries nothing. Links are measured by correlation of activity,
or by stimulation. Share of networks in which a synapse seems to link two cells that are no drivers.
"""

import argparse
import datetime
import os
import time

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import machine

from repscope.bench.wiring import common_input_bench
from repscope.report.text import format_estimate
from repscope.results import table_of

PAGE = machine.RESULTS.with_name("RESULTS-structure-function.md")
TESTS = {
    "estimate": "cells permuted, p ≤ .05",
    "matched pairs": "matched on contact",
    "matched on common input": "matched on common input",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    args = parser.parse_args()
    started = time.process_time()
    table = table_of(common_input_bench(args.draws, permutations=199))
    rows = [f"| what carries activity, measure | {' | '.join(TESTS.values())} |", "|---|---|---|---|"]
    for item in dict.fromkeys(table["item"]):
        at = {r["condition"]: format_estimate(r) for r in table[table["item"] == item].to_dict("records")}
        rows.append(f"| {item} | {' | '.join(at[c] for c in TESTS)} |")
    head = (
        f"{datetime.date.today()}, {machine.versions(['numpy', 'scipy'])}. {args.draws} networks of each kind, 199 permutations, "
    )
    text = "\n".join([f"{head}{time.process_time() - started:.0f} CPU seconds.", "", *rows])
    print(text)
    if args.write:
        machine.write_section("Common input", text, PAGE)


if __name__ == "__main__":
    main()
