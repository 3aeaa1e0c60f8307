"""RDMs, their bootstrap and their memory, beside rsatoolbox, on the same arrays, in one thread.

    .peers-rsa/bin/python benchmarks/rsa.py --write     # environment: requirements-rsa.txt

1. Correlation RDM of 1,000 conditions × 2,000 channels. Floor: the one product X Xᵀ.
2. Crossnobis of 4 runs of these (precision: the identity). Floor: 5 products.
3. Bootstrap over 1,000 conditions of the cosine of 3 models with 5 subjects, per draw. Floor: 15 products for numerators and 8 for
   norms of (draw, condition) with (condition, condition). rsatoolbox draws, subsets and compares; it computes a noise ceiling per
   draw, which is not timed here: the time is that of `subsample_pattern` and `compare` alone.
4. The same for the whitened cosine, where rsatoolbox is asked for 92 conditions: with 100 and more it raises an exception.

Jobs take turns in every round; ratios are of CPU seconds within a round. Values must agree to 1e-9. Memory: the peak of a fresh
process per job, over that of a process that makes the arrays alone.
"""

import argparse
import datetime
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import machine
import numpy as np

CONDITIONS, CHANNELS, RUNS, MODELS, SUBJECTS = 1000, 2000, 4, 3, 5
DRAWS, THEIR_DRAWS = 200, 3


def responses() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(RUNS, CONDITIONS, CHANNELS))


def rdms(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.random((MODELS, n * (n - 1) // 2)), rng.random((SUBJECTS, n * (n - 1) // 2))


def weights(n: int, draws: int) -> np.ndarray:
    return np.random.default_rng(2).multinomial(n, np.full(n, 1 / n), size=draws)


def ours(job: str) -> np.ndarray:
    from repscope.align.dissimilarities import crossvalidated_rdm, rdm
    from repscope.align.rsa_bootstrap import similarities_of_draws

    if job == "correlation":
        return rdm(X[0], "correlation")
    if job == "crossnobis":
        return crossvalidated_rdm(X)
    measure, n = ("cosine", CONDITIONS) if job == "bootstrap" else ("whitened cosine", 92)
    return similarities_of_draws(*RDMS[n], measure, weights(n, DRAWS))


def theirs(job: str) -> np.ndarray:
    import rsatoolbox

    if job == "correlation":
        return rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(X[0]), "correlation").dissimilarities[0]
    if job == "crossnobis":
        names = {"condition": np.tile(np.arange(CONDITIONS), RUNS), "run": np.repeat(np.arange(RUNS), CONDITIONS)}
        data = rsatoolbox.data.Dataset(X.reshape(-1, CHANNELS), obs_descriptors=names)
        return rsatoolbox.rdm.calc_rdm(data, "crossnobis", descriptor="condition", cv_descriptor="run").dissimilarities[0]
    method, n = ("cosine", CONDITIONS) if job == "bootstrap" else ("cosine_cov", 92)
    held = [rsatoolbox.rdm.RDMs(v, pattern_descriptors={"index": np.arange(n)}) for v in RDMS[n]]
    found = []
    for counts in weights(n, DRAWS)[:THEIR_DRAWS]:
        drawn = [side.subsample_pattern("index", np.repeat(np.arange(n), counts)) for side in held]
        found.append(rsatoolbox.rdm.compare(*drawn, method))
    return np.stack(found)


def floor(job: str) -> object:
    if job == "correlation":
        return X[0] @ X[0].T
    if job == "crossnobis":
        return [run @ run.T for run in (*X, X[0])]
    n = CONDITIONS if job == "bootstrap" else 92
    a, w = np.ones((n, n)), weights(n, DRAWS).astype(float)
    return [w @ a for _ in range(MODELS * SUBJECTS + MODELS + SUBJECTS)]


def per(job: str, who: Callable[[str], object]) -> int:
    """Draws that one call makes."""
    return 1 if "bootstrap" not in job else THEIR_DRAWS if who is theirs else DRAWS


def memory(job: str, who: str) -> float:
    """Peak MB of a process of its own over one that makes the arrays and imports the library."""
    peaks = []
    for does in ("", f"rsa.{who}({job!r})"):
        code = f"import rsa, machine; rsa.prepare(); rsa.imports({who!r}); {does}\nprint(machine.rss_mb('VmHWM'))"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=machine.RESULTS.parent)
        peaks.append(float(run.stdout))
    return peaks[1] - peaks[0]


def imports(who: str) -> None:
    if who == "theirs":
        import rsatoolbox  # noqa: F401
    else:
        import repscope.align.rsa_bootstrap  # noqa: F401


def prepare() -> None:
    global X, RDMS
    X, RDMS = responses(), {n: rdms(n) for n in (CONDITIONS, 92)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS-brain.md")
    args = parser.parse_args()
    prepare()
    names = {
        "correlation": "correlation RDM, 1,000 × 2,000",
        "crossnobis": "crossnobis, 4 runs",
        "bootstrap": "bootstrap of cosine, 1,000 conditions, per draw",
        "whitened bootstrap": "bootstrap of whitened cosine, 92 conditions, per draw",
    }
    head = "| job | repscope, ms | rsatoolbox ÷ repscope | floor ÷ repscope | difference | memory, MB: repscope, rsatoolbox |"
    table = [head, "|---|---|---|---|---|---|"]
    for job, name in names.items():
        seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "floor": []}
        for _ in range(args.rounds):
            values = {}
            for key, who in (("ours", ours), ("theirs", theirs), ("floor", floor)):
                started = time.process_time()
                values[key] = who(job)
                seconds[key].append((time.process_time() - started) / per(job, who))
        mine = np.asarray(values["ours"])
        off = float(np.nanmax(np.abs(mine[: len(values["theirs"])] - values["theirs"])))
        assert off < 1e-9, (job, off)
        ratio, share = ([t / o for t, o in zip(seconds[k], seconds["ours"])] for k in ("theirs", "floor"))
        held = ", ".join(f"{memory(job, who):,.0f}" for who in ("ours", "theirs"))
        table.append(
            f"| {name} | {1e3 * statistics.median(seconds['ours']):,.2f} "
            f"| {statistics.median(ratio):,.1f} × ({min(ratio):,.1f}–{max(ratio):,.1f}) "
            f"| {statistics.median(share):.2f} ({min(share):.2f}–{max(share):.2f}) | {off:.0e} | {held} |"
        )
        print(table[-1], file=sys.stderr, flush=True)
    text = "\n".join(
        [
            f"{datetime.date.today()}, {machine.describe()}. {machine.versions(['rsatoolbox', 'numpy', 'scipy'])}. One thread, "
            f"{args.rounds} rounds, CPU seconds.",
            "",
            *table,
        ]
    )
    print(text)
    if args.write:
        machine.write_section("RDMs and their bootstrap", text, machine.RESULTS.with_name("RESULTS-brain.md"))


if __name__ == "__main__":
    main()
