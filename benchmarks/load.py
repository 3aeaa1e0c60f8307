"""What proofs cost: the default model loaded, loaded and proved, before and after, side by side in processes of their own.

    python benchmarks/load.py [--before FOLDER] [--times N] [--write]

`--before` is a checkout of another version; without it, this version alone is measured. Each process loads the model once and
prints the seconds of `rs.load()` and, where the version has it, those of all proofs for short prompts (`lm.fast_paths()`), which
otherwise are made when an operation first needs them.
"""

import argparse
import datetime
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import machine

HERE = Path(__file__).parents[1]
TIMED = """
import json, time
import repscope as rs, torch, transformers
from repscope.models import sources, language
began = time.perf_counter()
lm = rs.load()
loaded = time.perf_counter()
if hasattr(lm, "fast_paths"):
    lm.fast_paths(16)
print(json.dumps([loaded - began, time.perf_counter() - loaded]))
"""


def once(folder):
    cache = Path(tempfile.gettempdir()) / f"repscope-load-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    environment = os.environ | {"PYTHONPATH": str(folder / "src"), "HF_HUB_OFFLINE": "1", "REPSCOPE_CACHE": str(cache)}
    found = subprocess.run([sys.executable, "-c", TIMED], env=environment, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.strip().splitlines()[-1])


def main():
    asked = argparse.ArgumentParser()
    asked.add_argument("--before", type=Path)
    asked.add_argument("--times", type=int, default=5)
    asked.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    given = asked.parse_args()
    folders = {"now": HERE} | ({"before": given.before} if given.before else {})
    for folder in folders.values():
        once(folder)  # the first load of a version may convert the model
    times = {name: [] for name in folders}
    for _ in range(given.times):
        for name, folder in folders.items():
            times[name].append(once(folder))
    lines = [
        f"## Loading and proofs\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}. {machine.describe()}. "
        f"{machine.versions(('torch', 'transformers', 'repscope'))}. The default model in float32; each load in a process of its "
        f"own, versions in turn, {given.times} times, each version with a cache of its own. Load times include the import of the "
        "tokenizer and the model class, not of torch and transformers. Proofs are made when an operation first needs them.\n",
        "| version | load, s | all proofs for short prompts, s |\n|---|---|---|",
    ]
    lines += [f"| {name} | {median(r[0] for r in rows):.2f} | {median(r[1] for r in rows):.2f} |" for name, rows in times.items()]
    if "before" in times:
        ratios = [sum(a) / b[0] for a, b in zip(times["now"], times["before"])]
        bare = [a[0] / b[0] for a, b in zip(times["now"], times["before"])]
        lines += ["", "| | now over before, median of pairs |\n|---|---|"]
        lines += [f"| load | {median(bare):.2f} |", f"| load with all proofs | {median(ratios):.2f} |"]
    text = "\n".join(lines)
    print(text)
    if given.write:
        machine.write_section("loading", text)


if __name__ == "__main__":
    main()
