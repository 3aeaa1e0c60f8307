"""The chaos harness: kills, damage, hostile files and bad places, each outcome counted. Silent and raw must be 0.

python -m chaos [--short] [--only PART …] [--seed N] [--write]      (make chaos; minutes to an hour)

Processes are forks of a server that has imported everything, so that hundreds of cases take minutes. `--write` puts the tables into
RESULTS.md in this folder, where those of other parts stay.
"""

import argparse
import datetime
import os
import sys
import tempfile
import time
from pathlib import Path

from chaos import damage, kills, places, reading
from chaos.commands import COMMANDS, QUICK, prepare
from chaos.outcomes import Tally
from processes import Processes

PARTS = ("reading", "damage", "kills", "places")
_RESULTS = Path(__file__).with_name("RESULTS.md")
_HEAD = "# Chaos\n\nWritten by `make chaos`. Each row counts the outcomes of hostile cases; silent and raw must be 0."


def tallies(
    processes: Processes, parts: list[str], short: bool, home: Path, seed: int, chosen: list[str] | None
) -> dict[str, Tally]:
    """The tally of each part."""
    prepare(home / "inputs")
    found: dict[str, Tally] = {}
    commands = [c for c in (QUICK if short else COMMANDS) if chosen is None or c.name in chosen]
    if "reading" in parts:
        found["Mutated inputs"] = reading.run(processes, 12 if short else 300)
    if "damage" in parts:
        names = ["run of lens", "set of train"] if short else list(damage.PLACES)
        found["Damaged results"] = damage.run(processes, names, 10 if short else 110, home / "damage", seed)
    if "kills" in parts:
        found["Killed commands"] = kills.run(processes, commands, 5 if short else 25, home / "inputs", home / "kills", seed)
    if "places" in parts:
        found["Bad places"] = places.run(processes, commands[:5], 4 if short else 12, home / "inputs", home / "places", seed)
        found["Impossible folders"] = places.folders(processes, home / "inputs", home / "folders", commands[:5])
        found["Terminals"] = places.terminals(home, home / "runs")
    return found


def main() -> int:
    """Run the parts; 1 if anything was silent or raw."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--short", action="store_true")
    asked.add_argument("--write", action="store_true")
    asked.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--commands", nargs="+", help="kill these alone")
    given = asked.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as home:
        os.environ["REPSCOPE_CACHE"] = str(Path(home) / "cache")
        found = tallies(Processes(), given.only, given.short, Path(home), given.seed, given.commands)
    bad = [line for tally in found.values() for line in tally.bad]
    tables = {title: f"{tally.table(title)}\n\n{_summary(tally)}" for title, tally in found.items()}
    minutes = (time.monotonic() - began) / 60
    print("\n\n".join(tables.values()) + f"\n\n{minutes:.0f} minutes.\n" + "\n".join(bad))
    if given.write:
        kept = _RESULTS.read_text().split("\n## ")[1:] if _RESULTS.exists() else []
        tables = {part.partition("\n")[0]: f"## {part.strip()}" for part in kept} | tables
        _RESULTS.write_text("\n\n".join([_HEAD, *tables.values()]) + "\n")
    return 1 if bad else 0


def _summary(tally: Tally) -> str:
    return f"{tally.cases:,} cases on {datetime.date.today()}; {len(tally.bad)} silent or raw."


if __name__ == "__main__":
    sys.exit(main())
