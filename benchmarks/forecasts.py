"""Forecast and time taken of every step of finished runs, and the factors for `src/repscope/studies/run/forecast.toml`.

    python benchmarks/forecasts.py RUNS

RUNS is a folder of runs that were computed whole, on a quiet machine. Prints per study the forecast of now, the seconds taken and
their ratio, then the factors. Steps that differ in a number or a name only share a factor.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from repscope.studies.run.forecast import factor


def main(folder: Path) -> None:
    """Print forecasts and factors."""
    for path in sorted(folder.glob("*/run.json")):
        facts = json.loads(path.read_text())
        took = facts.get("took", {})
        if not took:
            continue
        study = facts["study"]
        forecast, seconds = (sum(t[key] for t in took.values()) for key in ("forecast_seconds", "seconds"))
        print(
            f"{study}: forecast {forecast:.0f} s, taken {seconds:.0f} s (ratio {seconds / forecast:.2f}), whole "
            f"{facts['seconds']} s"
        )
        groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for step, t in took.items():
            raw = max(t["forecast_seconds"] - 0.05, 1e-3) / factor(study, step)
            groups[_pattern(study, step)].append((raw, t["seconds"]))
        print(f"[{study}]")
        for pattern, pairs in sorted(groups.items(), key=lambda g: -len(g[0])):
            raw, taken = (sum(column) for column in zip(*pairs))
            print(f'"{pattern}" = {taken / raw:.2f}  # {taken:.1f} s')


def _pattern(study: str, step: str) -> str:
    """Names of sets and relations, and numbers, become `*`."""
    words = step.split(" ")
    if study in ("entities", "relations"):
        last = " ".join(words[1:]) if len(words) > 1 else ""
        return re.sub(r"\d+", "*", f"* {last}" if last else step if step == "summary" else "*")
    return re.sub(r"\d+", "*", step)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
