"""Are the tables of two checkouts equal? Runs every study of each, then compares all rows.

    python benchmarks/same_tables.py run CHECKOUT OUT [--short]
    python benchmarks/same_tables.py compare OUT_BEFORE OUT_NOW

`run` executes the studies in their tiny form (with `--short`, in their short form) with one thread, and keeps the runs in OUT.
`compare` joins the tables of both on the columns that identify a number (the wording of definitions aside, rows of one key in their
order), after the renaming that `RENAMED` states, and reports rows that only one of them has and values that differ. It exits with 1
if there are any.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

STUDIES = ("entities", "relations", "discover", "paths", "contrast")
KEYS = ["study", "step", "metric", "site", "layer", "token", "item", "condition", "split", "unit", "n", "seed"]
VALUES = ["value", "lo", "hi", "level"]

#: Column → before → now. Patterns are regular expressions over the whole text.
RENAMED: dict[str, dict[str, str]] = {
    "condition": {
        r"(over )?(random|random directions?( of equal (norm|length))?|random step, as long)": r"\1random direction",
        r"over the best of (\d+) random directions": r"over best of \1 random directions",
        r"(over )?bag of tokens": r"\1bag of token embeddings",
        r"(over )?mean mass": r"\1class means",
        r"(over )?inverse of each, then mean": r"\1mean of the inverses",
        r"(over )?subjects' own vectors": r"\1mean vector of other subjects",
        "shuffled arms": "shuffled groups",
        "matched on ID loss, groups shuffled": "matched on ID loss, shuffled groups",
        "no nudge": "no early bias",
        "no nudge, groups shuffled": "no early bias, shuffled groups",
        "inits of their own(, weights matched)?": r"independent pretrainings\1",
        "edited against not": "edited compared with unedited",
        "the sum without the MLP": "sum without the MLP",
    },
    "item": {
        "bag": "lexical overlap",
        r"bag-(\d+) – bag-(\d+)": r"lexical-overlap-\1 – lexical-overlap-\2",
        r"(.* – )?bag-(\d+)": r"\1lexical-overlap-\2",
    },
    "metric": {r"rise of (.*)": r"loss increase of \1"},
    "definition": {
        "the map's likeliest token is the model's own": "the map's most likely token is that of the model",
        r"the map's likeliest (token begins the object of this relation)": r"the map's most likely \1",
        r"length of a vector; (.*)": r"norm of a vector; \1",
        "over the median length of a source state": "relative to the median norm of source states",
        "adjusted Rand index with the arms": "adjusted Rand index with the groups",
        "mean across arms / within": "mean across groups / within",
        r"most open: plain (runs' share of the rule) nearest one half": r"most open: the unbiased \1 is nearest one half",
    },
    "study": {"bench": "bench-discovery"},
    "step": {r"planted-mlp|planted-transformer|lm": "bench"},
}


def repscope(checkout: Path, *words: str) -> None:
    """One command of that checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "repscope", *words], env=environment, check=True)


def run(checkout: Path, out: Path, short: bool) -> None:
    """All studies of a checkout; connect, verify and bench too where the runs are tiny."""
    for study in STUDIES:
        repscope(checkout, "study", study, "--short" if short else "--tiny", "--out", str(out))
    if short:
        return
    runs = out / "trained"
    repscope(checkout, "train", "--out", str(runs), "--runs", "2", "--fork", "60", "--steps", "130", "--seed", "3")
    repscope(checkout, "connect", str(runs), "--out", str(out), "--points", "4")
    repscope(checkout, "bench", "discovery", "--tiny", "--out", str(out))


def tables(out: Path) -> pd.DataFrame:
    """All rows of all runs but those of wall time."""
    parts = [pd.read_parquet(p) for p in sorted(out.glob("*/results/*.parquet")) if p.stem != "verify"]
    whole = pd.concat(parts, ignore_index=True)
    return whole[(whole["metric"] != "seconds") & (whole["definition"] != "seconds")]  # wall time differs between any two runs


def renamed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the words of now."""
    for column, pairs in RENAMED.items():
        table[column] = table[column].replace({f"^(?:{old})$": new for old, new in pairs.items()}, regex=True)
    return table


def compare(before: Path, now: Path, relative: float = 1e-9, absolute: float = 1e-12) -> int:
    """Print what differs by more than these; the number of differing rows."""
    a, b = (t.assign(layer=t["layer"].astype("Float64").fillna(-99)) for t in (renamed(tables(before)), tables(now)))
    for table in (a, b):
        table["copy"] = table.groupby(KEYS, dropna=False).cumcount()
    joined = a.merge(b, on=[*KEYS, "copy"], how="outer", suffixes=("_before", "_now"), indicator=True)
    alone = joined[joined["_merge"] != "both"]
    both = joined[joined["_merge"] == "both"]
    equal = np.ones(len(both), dtype=bool)
    for name in VALUES:
        equal &= np.isclose(
            both[f"{name}_before"].astype(float), both[f"{name}_now"].astype(float), rtol=relative, atol=absolute, equal_nan=True
        )
    print(
        f"{len(a)} rows before, {len(b)} now; {int(equal.sum())} equal, {int((~equal).sum())} differ, {len(alone)} on one side only"
    )
    for row in both[~equal].head(20).to_dict("records"):
        print("differs:", {k: row[k] for k in KEYS[:8]}, row["value_before"], row["value_now"])
    for row in alone.head(20).to_dict("records"):
        print(row["_merge"], {k: row[k] for k in KEYS})
    return int((~equal).sum()) + len(alone)


def main() -> None:
    """Read the command line."""
    asked = argparse.ArgumentParser()
    asked.add_argument("what", choices=["run", "compare"])
    asked.add_argument("first", type=Path)
    asked.add_argument("second", type=Path)
    asked.add_argument("--short", action="store_true")
    given = asked.parse_args()
    if given.what == "run":
        run(given.first.resolve(), given.second, given.short)
    else:
        sys.exit(min(1, compare(given.first, given.second)))


if __name__ == "__main__":
    main()
