"""Permuting cells 5,000 times on 300 × 300 pairs: one fit for all permutations beside a fit for each; and null simulations.

    python benchmarks/qap.py [--permutations 5000] [--simulations 400] [--write]

1. Speed. 300 cells, similarity of latent features, synapses with degrees that vary. Four ways in one process, CPU seconds on one
   thread:
   - one fit: `permute_nodes`;
   - refitting: the same statistic, the cells' effects fitted again for each permutation (`refit=True`), the same permutations;
   - refitting the slope by maximum likelihood for each, on the first 100 permutations;
   - dummies: iteratively reweighted least squares with one dummy variable per cell, as users of regression packages do, once.
   p-values of the first two must be the same number.
2. Null simulations. Synapses depend on latent features of the cells, similarity on other features; they are independent. How often
   does each test reject at 5 %? The naive Wald test; permuting cells; the jackknife over cells (0 outside of its interval).
   And with a planted slope: how often does each interval hold it?
"""

import argparse
import datetime
import time

import machine
import numpy as np
from scipy.sparse import csr_matrix, hstack
from scipy.sparse.linalg import spsolve

from repscope.align.structure_function import Dyads, dyads, like_to_like, permute_nodes
from repscope.align.structure_function.conditional_poisson import fit
from repscope.stats.permutation import orders
from repscope.worlds.wired_cells import wired_cells

PAGE = machine.RESULTS.with_name("RESULTS-structure-function.md")
CELLS = 40  #: of null simulations
JACKKNIVES = 60  #: simulations with a jackknife
SLOW = 100  #: permutations by maximum likelihood


def simulated(
    n: int, slope: float, seed: int, *, rate: float, own: float = 0.0, exposure: bool = True, missing: float = 0.0
) -> Dyads:
    """Cells of `worlds.wired_cells`. own: how much synapses follow features that similarity does not know."""
    world = wired_cells(n, slope=slope, hidden=own, rate=rate, contact=exposure, missing=missing, seed=seed)
    return dyads(world.synapses, world.similarity, world.contact)


def dummies(d: Dyads, sweeps: int = 8) -> float:
    """The slope from sparse weighted least squares with one dummy per cell, as a regression package computes it."""
    i, j = np.nonzero(d.exposure > 0)
    n = len(d.names)
    rows = np.arange(len(i))
    x = hstack(
        [csr_matrix((np.ones(len(i)), (rows, i)), (len(i), n)), csr_matrix((np.ones(len(i)), (rows, j)), (len(i), n))[:, 1:]]
    )
    x = hstack([csr_matrix(d.function[i, j][:, None]), x]).tocsr()
    y, offset = d.synapses[i, j], np.log(d.exposure[i, j])
    mu = y + 0.1
    for _ in range(sweeps):
        target = np.log(mu) + (y - mu) / mu - offset
        beta = spsolve((x.T.multiply(mu) @ x).tocsc(), x.T @ (mu * target))
        mu = np.exp(x @ beta + offset)
    return float(beta[0])


def timed(what):
    started = time.process_time()
    found = what()
    return found, time.process_time() - started


def speed(permutations: int) -> list[str]:
    cells = ("pairs", "one fit, s", "refitting, s", "ratio", "p, p by refitting", "largest difference of z")
    cells += ("by maximum likelihood ÷ one fit", "rank correlation of its slopes", "dummies, once, s")
    head = f"| {' | '.join(cells)} |"
    rows = [head, "|---|---|---|---|---|---|---|---|---|"]
    for name, exposure in (("no exposure", False), ("with exposure", True)):
        d = simulated(300, 0.05, 1, rate=0.08, exposure=exposure)
        fast, quick = timed(lambda d=d: permute_nodes(d, permutations=permutations))
        slow, long = timed(lambda d=d: permute_nodes(d, permutations=permutations, refit=True))
        assert fast.p == slow.p, (fast.p, slow.p)
        off = float(np.abs(fast.null - slow.null).max())
        order = orders(300, permutations, np.random.default_rng(0))[:SLOW]
        off_diagonal = ~np.eye(300, dtype=bool)

        def likelihood(d=d, order=order, off_diagonal=off_diagonal):
            moved = [np.where(off_diagonal, d.given[1][np.ix_(one, one)], 0.0) for one in order]
            return [fit(d.synapses, s, d.exposure).slope for s in moved]

        slopes, most = timed(likelihood)
        ranks = [np.argsort(np.argsort(x)) for x in (slopes, fast.slopes[:SLOW])]
        _, once = timed(lambda d=d: dummies(d))
        assert abs(dummies(d) - fit(d.synapses, d.function, d.exposure).slope) < 1e-5
        rows.append(
            f"| {name} | {quick:.2f} | {long:.1f} | {long / quick:.0f} × | {fast.p:.4f}, {slow.p:.4f} | {off:.0e} "
            f"| {most / SLOW * permutations / quick:.0f} × | {np.corrcoef(*ranks)[0, 1]:.4f} | {once:.2f} |"
        )
        print(rows[-1], flush=True)
    return rows


def calibration(simulations: int) -> list[str]:
    columns = ("simulation", "Wald rejects", "permuting cells rejects", "simulations", "jackknife rejects")
    columns += ("naive interval holds the slope", "jackknife interval holds it", "simulations")
    rows = [f"| {' | '.join(columns)} |", "|---|---|---|---|---|---|---|---|"]
    cases = (
        ("null, wiring follows other features", simulations, {"slope": 0.0, "own": 1.0}),
        ("null, wiring follows no features", simulations, {"slope": 0.0}),
        ("null, one in five pairs not measured", simulations // 4, {"slope": 0.0, "own": 1.0, "missing": 0.2}),
        ("planted slope 1", simulations // 4, {"slope": 1.0, "own": 1.0}),
    )
    for name, number, how in cases:
        slow = min(number, JACKKNIVES)
        wald = cells = nodes = narrow = wide = 0
        for seed in range(number):
            d = simulated(CELLS, seed=seed, rate=0.5, **how)
            found = fit(d.synapses, d.function, d.exposure)
            error = found.information**-0.5
            wald += abs(found.slope) > 1.96 * error
            cells += permute_nodes(d, permutations=99, seed=seed).p <= 0.05
            if seed < slow:
                whole = like_to_like(d, permutations=20).slope
                nodes += not whole.lo <= 0 <= whole.hi
                narrow += abs(found.slope - how["slope"]) <= 1.96 * error
                wide += whole.lo <= how["slope"] <= whole.hi
        first, second = (
            [f"{100 * x / n:.1f} %" for x in part] for part, n in (((wald, cells), number), ((nodes, narrow, wide), slow))
        )
        rows.append("| " + " | ".join([name, *first, f"{number:,}", *second, f"{slow:,}"]) + " |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--permutations", type=int, default=5000)
    parser.add_argument("--simulations", type=int, default=600)
    parser.add_argument("--only", choices=["speed", "calibration"])
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    args = parser.parse_args()
    head = f"{datetime.date.today()}, {machine.describe()}. {machine.versions(['numpy', 'scipy'])}. One thread, CPU seconds."
    parts = {
        "speed": lambda: [f"{head} {args.permutations:,} permutations of 300 cells.", "", *speed(args.permutations)],
        "calibration": lambda: [f"{head} {CELLS} cells, 99 permutations.", "", *calibration(args.simulations)],
    }
    for name, make in parts.items():
        if args.only in (None, name):
            text = "\n".join(make())
            print(text)
            if args.write:
                machine.write_section(f"Permuting cells: {name}", text, PAGE)


if __name__ == "__main__":
    main()
