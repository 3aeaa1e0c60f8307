"""Runs every benchmark that writes a table of RESULTS*.md, unattended, and says which ratios fell: `make bench`.

    python benchmarks/run_all.py [NAME …] [--fresh] [--list] [--no-make] [--blimp FOLDER] [--before CHECKOUT] [--parameters FILE]

1. Each script runs alone, in the environment that it needs (made by `make`, if it is not there), within its own time limit; its
   output goes to `.bench/NAME.log`. When the limit is over, the script and all that it started is ended.
2. A script that has ended well is recorded in `.bench/NAME.json` and not run again, so the same command goes on where it was
   stopped. `--fresh` forgets the records of the named scripts, or of all.
3. Each page is compared with the committed one (`git show HEAD:`): ratios that are worse by more than 15 % are listed.

Exit code 1 if a script failed or a ratio fell. Scripts that need data of the user's are left out without it. Tables that no script
writes: RESULTS-discovery.md, made from the pages of `repscope bench discovery`; families.py writes into docs/engine.md.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from ratios import Fall, falls

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STATE = ROOT / ".bench"
OURS = ".venv/bin/python"
BUILD_MINUTES = 30  #: for one environment


@dataclass(frozen=True)
class Script:
    """One benchmark. file: in this folder. minutes: its limit. page: where its table is. python: which runs it. needs: targets of
    `make`. arguments: what it is given; `{name}` stands for a file of the user's, without which it is left out.
    """

    file: str
    minutes: float
    page: str = "RESULTS.md"
    python: str = OURS
    needs: tuple[str, ...] = (".venv/.dev",)
    arguments: tuple[str, ...] = ("--write",)


PEERS = {"python": ".venv-bench/bin/python", "needs": (".venv-bench/.done",)}
FEATURES, BRAIN, BAYES = "RESULTS-features.md", "RESULTS-brain.md", "RESULTS-bayes.md"
#: The order is that of the run. Limits are several times what two idle cores take.
SCRIPTS: dict[str, Script] = {
    "capture": Script("capture.py", 150, **PEERS),
    "packing": Script(
        "capture.py",
        60,
        **PEERS,
        arguments=("--only", "packed,repscope", "--jobs", "last,all,prefix,tree,disk", "--section", "packing", "--write"),
    ),
    "profile-pass": Script("profile_pass.py", 20),
    "generation": Script("generation.py", 30, arguments=("--threads", "1", "--rounds", "3", "--write")),
    "edits": Script("edits.py", 60, **PEERS),
    "jacobian": Script("jacobian.py", 90),
    "jacobian-floor": Script("jacobian.py", 45, arguments=("--only", "floor", "--rounds", "5", "--write")),
    "relations": Script("relations.py", 120, needs=(".venv/.dev", ".venv-relations/.done")),
    "low-rank": Script("low_rank.py", 60),
    "discover-lm": Script("discover_lm.py", 300),
    "discovery": Script("discovery.py", 60, needs=(".venv/.dev", ".peers-melbo/.done")),
    "weight-matching": Script("weight_matching.py", 60),
    "paths": Script("paths.py", 45, needs=(".venv/.dev", ".peers-nngeom/.done")),
    "studies": Script("studies.py", 90, arguments=("--write", "--before", "{before}")),
    "load": Script("load.py", 30, arguments=("--write", "--before", "{before}")),
    "function-vector-accuracy": Script("function_vector_accuracy.py", 60),
    "function-vectors": Script("function_vectors.py", 90),
    "compare-weights": Script("compare_weights.py", 15),
    "cka": Script("cka.py", 60, python=".peers-cka/bin/python", needs=(".peers-cka/.done",)),
    "minimal-pairs": Script(
        "minimal_pairs.py",
        60,
        needs=(".venv/.dev", ".peers-minimal-pairs/.done"),
        arguments=("{blimp}", "--peers", ".peers-minimal-pairs", "--rounds", "2", "--write"),
    ),
    "writing-through": Script("writing_through.py", 30),
    "store": Script("store.py", 60, FEATURES),
    "sae-training": Script("sae_training.py", 60, FEATURES, needs=(".venv/.dev", ".venv-sae/.done")),
    "bayes": Script("bayes.py", 45, BAYES),
    "ginc": Script("ginc_published.py", 45, BAYES),
    "ginc-published": Script(
        "ginc_published.py", 45, BAYES, arguments=("--parameters", "{parameters}", "--prompts", "500", "--write")
    ),
    "brain-calibration": Script("brain_calibration.py", 120, BRAIN),
    "encoding": Script("encoding.py", 30, BRAIN),
    "rsa": Script("rsa.py", 60, BRAIN, python=".peers-rsa/bin/python", needs=(".peers-rsa/.done",)),
    "qap": Script("qap.py", 60, "RESULTS-structure-function.md"),
    "worm": Script("worm.py", 30, "RESULTS-structure-function.md", needs=(".venv/.worm",)),
    "finetune-methods": Script(
        "finetune_methods.py", 120, "RESULTS-finetune-methods.md", arguments=("--folder", ".bench/finetune", "--write")
    ),
    "stacked-training": Script("stacked_training.py", 30, "RESULTS-stacked-training.md"),
    "two-hop": Script("two_hop.py", 45, "RESULTS-two-hop.md"),
    "image-directions": Script("image_directions.py", 30, "RESULTS-image-directions.md"),
    "image-judge": Script("image_judge.py", 45, "RESULTS-image-judge.md"),
    "remedi": Script("remedi.py", 30),
    "common-input": Script("common_input.py", 45, "RESULTS-structure-function.md"),
    "self-other": Script("self_other.py", 60, "RESULTS-self-other.md"),
    "series-memory": Script("series_memory.py", 60, "RESULTS-series-memory.md"),
    "effective-compute": Script("effective_compute.py", 120, "RESULTS-effective-compute.md"),
    "learning-coefficient": Script(
        "learning_coefficient.py",
        60,
        "RESULTS-learning-coefficient.md",
        python=".peers-llc/bin/python",
        needs=(".peers-llc/.done",),
    ),
    "checking": Script("checking.py", 30, "RESULTS-checking.md", arguments=("--short", "--write")),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a script. said: done, earlier, left out, failed or over its limit, with the reason. seconds: of this run."""

    said: str
    seconds: float = 0.0

    @property
    def bad(self) -> bool:
        """Whether it ran and did not end well."""
        return self.said.startswith(("failed", "over"))


class Bench:
    """Runs scripts one after the other and keeps the records of those that have ended well.

    scripts: by name. given: files of the user's. folder: of the scripts. root: where they run. state: of records and logs.
    """

    def __init__(
        self,
        scripts: Mapping[str, Script],
        given: Mapping[str, Path | None],
        *,
        folder: Path = HERE,
        root: Path = ROOT,
        state: Path = STATE,
    ) -> None:
        self.scripts, self.given, self.folder, self.root, self.state = scripts, given, folder, root, state

    def run(self, name: str) -> Outcome:
        """Run one script, unless it has ended well before."""
        script, record = self.scripts[name], self._record(name)
        if self.ended_well(name):
            return Outcome("earlier")
        missing = [k for k, path in self.given.items() if path is None and any(f"{{{k}}}" in a for a in script.arguments)]
        if missing:
            return Outcome(f"left out: needs --{missing[0]}")
        self.state.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with (self.state / f"{name}.log").open("w") as log:
            if script.needs and self._call(["make", *script.needs], log, BUILD_MINUTES):
                return Outcome("failed: its environment could not be made", time.monotonic() - started)
            python = sys.executable if script.python == OURS else str(self.root / script.python)
            arguments = [a.format(**{k: v for k, v in self.given.items() if v}) for a in script.arguments]
            code = self._call([python, str(self.folder / script.file), *arguments], log, script.minutes)
        seconds = time.monotonic() - started
        if code is None:
            return Outcome(f"over its limit of {script.minutes:g} minutes", seconds)
        if code:
            return Outcome(f"failed: exit code {code}", seconds)
        partial = record.with_suffix(".part")
        partial.write_text(json.dumps({"seconds": round(seconds, 1), "arguments": arguments}))
        partial.replace(record)
        return Outcome("done", seconds)

    def forget(self, names: Iterable[str]) -> None:
        """Forget that scripts have ended well."""
        for name in names:
            self._record(name).unlink(missing_ok=True)

    def ended_well(self, name: str) -> bool:
        """Whether a script has ended well before."""
        return self._record(name).exists()

    def _record(self, name: str) -> Path:
        return self.state / f"{name}.json"

    def _call(self, words: list[str], log: IO[str], minutes: float) -> int | None:
        """The exit code; None if the limit was over, and then the command and what it started have ended."""
        log.write(f"$ {' '.join(words)}\n")
        log.flush()
        try:
            child = subprocess.Popen(words, cwd=self.root, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        except OSError as error:
            log.write(f"{error}\n")
            return 127
        try:
            return child.wait(minutes * 60)
        except BaseException as error:  # also when this process is interrupted or ended: a benchmark must not go on alone
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return None
            raise


def committed(page: str, root: Path = ROOT) -> str | None:
    """The committed version of a page of this folder; None where there is none."""
    found = subprocess.run(["git", "show", f"HEAD:benchmarks/{page}"], cwd=root, capture_output=True, text=True)
    return found.stdout if found.returncode == 0 else None


def fallen(pages: Iterable[str]) -> list[tuple[str, Fall]]:
    """Ratios of pages that are worse than in the committed version."""
    found = []
    for page in sorted(set(pages)):
        before, now = committed(page), HERE / page
        if before is not None and now.exists():
            found += [(page, fall) for fall in falls(before, now.read_text())]
    return found


def main() -> int:
    """Read the command line."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of scripts; all if none is named")
    parser.add_argument("--fresh", action="store_true", help="run again what has ended well before")
    parser.add_argument("--list", action="store_true", help="names, limits and what has ended well; runs nothing")
    parser.add_argument("--no-make", action="store_true", help="make no environment: they are there")
    parser.add_argument("--blimp", type=Path, help="folder of BLiMP's data, for minimal-pairs")
    parser.add_argument("--before", type=Path, help="checkout of an earlier version, for load")
    parser.add_argument("--parameters", type=Path, help="arrays of the published GINC world, for ginc-published")
    given = parser.parse_args()
    names = given.names or list(SCRIPTS)
    if unknown := [name for name in names if name not in SCRIPTS]:
        parser.error(f"There is no benchmark {unknown[0]!r}; there are {', '.join(SCRIPTS)}.")
    files = {k: path and path.resolve() for k in ("blimp", "before", "parameters") for path in [getattr(given, k)]}
    scripts = {name: replace(script, needs=()) for name, script in SCRIPTS.items()} if given.no_make else SCRIPTS
    bench = Bench(scripts, files)
    if given.list:
        for name in names:
            said = "done" if bench.ended_well(name) else "to run"
            print(f"{name:26}{SCRIPTS[name].minutes:5g} min  {SCRIPTS[name].page:32}{said}")
        return 0
    if given.fresh:
        bench.forget(names)
    outcomes = {}
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        outcomes[name] = bench.run(name)
        print(f"{name:26}{outcomes[name].seconds:8.0f} s  {outcomes[name].said}", flush=True)
    worse = fallen(SCRIPTS[name].page for name in names)
    for page, fall in worse:
        print(f"fell: {page}: {fall}")
    print(f"{sum(o.said in ('done', 'earlier') for o in outcomes.values())} of {len(names)} done; {len(worse)} ratios fell.")
    return int(bool(worse) or any(o.bad for o in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
