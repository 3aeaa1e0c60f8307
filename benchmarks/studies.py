"""Whole studies, of this checkout and of an earlier one, in turn: seconds of the processor on one thread, and equal tables.

    python benchmarks/studies.py --before CHECKOUT [--only relations entities …] [--rounds 1] [--write]

Both run the same command with the same options, those steps left out that the earlier version has not; each version has a cache of
its own, with its checks of the model in it. What is timed is the whole process: imports, loading, proofs, the study, its page.
Tables are compared by `same_tables.py`, up to rounding in single precision. With `--out`, runs that are there are not run again.
"""

import argparse
import datetime
import io
import os
import resource
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import machine
from same_tables import compare

HERE = Path(__file__).resolve().parents[1]
PROMPTS = (
    "What should I do this weekend?",
    "How do I bake bread?",
    "Why is the sky blue?",
    "Tell me a story about a dog.",
    "What is a good present for a friend?",
    "How do computers work?",
)
VERSIONS = ("before", "now")
ROUNDING = 1e-5  #: values nearer than this, or than this part of them, are equal: activations are in single precision
WARM = "import repscope as rs; from repscope.studies.run.verification import cached_verification as see; see(rs.load())"


@dataclass(frozen=True)
class Job:
    """A study with its options. now: further options of this version, which leave out steps that the other has not. same: whether
    the tables should be equal.
    """

    study: str
    options: tuple[str, ...]
    now: tuple[str, ...] = ()
    same: bool = True


_SMALL = ("--methods", "random directions", "L2", "L2 + contrastive", "Jacobian", "--vectors", "4", "--steps", "8", "--seeds", "2")
JOBS = {
    "relations": Job("relations", ("--relations", "country-capital", "--splits", "1"), ("--editors", "0")),
    "relations, longer subjects": Job("relations", ("--relations", "city-country", "--splits", "1"), ("--editors", "0")),
    "entities": Job("entities", ("--entities", "countries"), ("--ranges", "0")),
    "discover --short": Job("discover", ("--short",), same=False),
    "discover, equal sizes": Job("discover", (*_SMALL, "--new-tokens", "8", "--scale", "0.15", "--prompts", "{prompts}")),
}


def main() -> None:
    """Read the command line."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--before", type=Path, required=True, help="a checkout of the earlier version")
    asked.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    asked.add_argument("--rounds", type=int, default=1)
    asked.add_argument("--out", type=Path, help="keep the runs here")
    asked.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    given = asked.parse_args()
    folders = {"before": given.before.resolve(), "now": HERE}
    commit = subprocess.run(["git", "-C", given.before, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    with tempfile.TemporaryDirectory() as kept:
        out = given.out or Path(kept)
        for folder in folders.values():
            python(folder, "-c", WARM)
        rows = [measured(name, JOBS[name], folders, out, given.rounds) for name in given.only]
    lines = [
        f"## Studies from start to end\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}. {machine.describe()}. "
        f"{machine.versions(('torch', 'transformers', 'repscope'))}. Before: commit {commit.stdout.strip()}. Seconds of the "
        "processor on one thread, of the whole command; versions in turn.\n",
        "| study | before, CPU s | now, CPU s | now is faster by | tables |",
        "|---|---|---|---|---|",
        *rows,
    ]
    text = "\n".join(lines)
    print(text)
    if given.write:
        machine.write_section("studies", text)


def measured(name: str, job: Job, folders: dict[str, Path], out: Path, rounds: int) -> str:
    """One row of the table."""
    prompts = out / "prompts.txt"
    out.mkdir(parents=True, exist_ok=True)
    prompts.write_text("\n".join(PROMPTS) + "\n")
    spent: dict[str, list[float]] = {version: [] for version in VERSIONS}
    for number in range(rounds):
        for version in VERSIONS if number % 2 == 0 else VERSIONS[::-1]:
            place = out / name.replace(" ", "-").replace(",", "") / f"{version}-{number}"
            options = [word.format(prompts=prompts) for word in (*job.options, *(job.now if version == "now" else ()))]
            record = place.with_name(f"{place.name}.seconds")
            if not record.is_file():
                took = python(folders[version], "-m", "repscope", "study", job.study, *options, "--out", str(place))
                record.write_text(f"{took:.2f}\n")
            spent[version].append(float(record.read_text()))
            print(f"{name}, {version}: {spent[version][-1]:.1f} s", file=sys.stderr, flush=True)
    told = "other sizes"
    if job.same:
        said = io.StringIO()
        with redirect_stdout(said):
            compare(place.parent / "before-0", place.parent / "now-0", ROUNDING, ROUNDING)
        told = said.getvalue().splitlines()[0]
        print(said.getvalue(), file=sys.stderr)
    ratios = [a / b for a, b in zip(spent["before"], spent["now"])]
    command = " ".join(["study", job.study, *job.options, *(f"({' '.join(job.now)})" for _ in job.now[:1])])
    cells = [f"{median(spent[v]):.1f}" for v in VERSIONS]
    return f"| `{command}` | {' | '.join(cells)} | {median(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f}) | {told} |"


def python(folder: Path, *words: str) -> float:
    """Run Python on a checkout with one thread; the processor's seconds."""
    cache = Path(tempfile.gettempdir()) / f"repscope-studies-{folder.name}"
    own = {"PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "REPSCOPE_CACHE": str(cache)}
    own |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(cache / "bytecode")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], env=os.environ | own, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
