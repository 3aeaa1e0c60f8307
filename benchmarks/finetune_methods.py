"""What SFT, DPO and GRPO change in SmolLM2-135M-Instruct with LoRA of rank 8: series of checkpoints, each compared with the base.

1. `trace.finetune` makes one series per method on the built-in task, all with the same reward; sft with two seeds, whose difference
   is the floor. A finished series in the folder is used as it is, an unfinished one is continued.
2. The last checkpoint of each is compared with the base: weights (norm, effective rank, unchanged entries), representations (the
   lowest CKA over blocks), next tokens on greedy answers (KL, unshifted tokens). Rewards are those of the series, on 64 held-out
   prompts.

The methods are stopped after a few steps, not at equal reward: the table says what each has reached. One seed per method; intervals
are over prompts.

    python benchmarks/finetune_methods.py --folder FOLDER --write           # about 6 minutes of one core per series
    python benchmarks/finetune_methods.py --folder FOLDER --only grpo       # one series
"""

import argparse
import datetime
from pathlib import Path
from typing import Any

import machine
import pandas as pd

from repscope.models.checkpoints import TABLE, CheckpointSet
from repscope.report.text import format_estimate
from repscope.results import select
from repscope.studies.compare.options import CompareOptions
from repscope.studies.compare.task import compare_task
from repscope.studies.run.options import DEFAULT_MODEL
from repscope.trace.drift.networks import networks, tuned_network
from repscope.trace.drift.next_tokens import next_tokens
from repscope.trace.drift.pair import Pair
from repscope.trace.drift.representations import representations
from repscope.trace.drift.seed_floor import SHARED, seed_floor
from repscope.trace.drift.weights import NORM, RANK, UNCHANGED16, UNCHANGED32, weight_drift
from repscope.trace.finetuning import FineTuning, finetune

RATE = 5e-4
SERIES = {
    "sft": FineTuning(method="sft", rate=RATE, steps=12, keep=1),
    "sft, another seed": FineTuning(method="sft", rate=RATE, steps=12, keep=1, seed=1),
    "dpo": FineTuning(method="dpo", rate=RATE, steps=8, keep=1, samples=2),
    "grpo": FineTuning(method="grpo", rate=RATE, steps=6, keep=1, batch=16),
}
PROMPTS, NEW_TOKENS = 32, 16


def made(name: str, folder: Path) -> CheckpointSet:
    """The series of that name, computed where it is not there."""
    options, home = SERIES[name], folder / name.replace(", ", "-").replace(" ", "-")
    if (home / TABLE).is_file() and options.steps in set(CheckpointSet.open(home).table["step"]):
        return CheckpointSet.open(home)
    return finetune(DEFAULT_MODEL, options, home)


def row(name: str, series: CheckpointSet, floor: CheckpointSet | None) -> dict[str, Any]:
    """One row of the table."""
    last = _last(name, series)
    base = series.table[series.table["step"] == 0].iloc[0]
    pair = Pair.open(base["path"], last["path"])
    weights = weight_drift(pair).table
    other = None if floor is None else Pair.open(base["path"], _last("sft, another seed", floor)["path"])
    lms = networks(pair)
    third = None if other is None else tuned_network(other, lms[0])
    asked = CompareOptions(checkpoints=(str(base["path"]), str(last["path"])), prompts=PROMPTS)
    prompts = compare_task(asked).prompts  # those of `repscope compare`
    places = representations(*lms, prompts, other=third).table
    tokens = next_tokens(*lms, prompts, new_tokens=NEW_TOKENS, other=third).table
    cka = select(places, metric="CKA", condition="estimate")
    lowest = cka.loc[cka["value"].idxmin()].to_dict()
    found = {
        "method": name,
        "steps": int(last["step"]),
        "reward": format_estimate({"value": last["reward"], "lo": last["reward_lo"], "hi": last["reward_hi"]}),
        "KL per answer": format_estimate({"value": last["kl"], "lo": last["kl_lo"], "hi": last["kl_hi"]}),
    }
    whole = {m: select(weights, metric=m, condition="estimate", item="all weights")["value"].iloc[0] for m in (NORM, RANK)}
    unchanged = {m: select(weights, metric=m, condition="estimate", item="all weights") for m in (UNCHANGED32, UNCHANGED16)}
    found |= {"relative norm": f"{whole[NORM]:.2g}", "effective rank": f"{whole[RANK]:.1f}"}
    found |= {m: f"{rows['value'].iloc[0]:.3f}" for m, rows in unchanged.items()}
    found["lowest CKA"] = f"{format_estimate(lowest)} ({lowest['site']})"
    for metric in ("KL", "unshifted"):
        found[f"{metric}, next tokens"] = format_estimate(
            select(tokens, metric=metric, condition="estimate", item="").iloc[0].to_dict()
        )
    if other is not None:
        shared = select(seed_floor(pair, other).table, metric=SHARED, item="all weights")["value"].iloc[0]
        at = select(places, metric="CKA", condition="another seed", site=lowest["site"]).iloc[0].to_dict()
        between = select(tokens, metric="KL", condition="another seed", item="").iloc[0].to_dict()
        print(f"{name}, two seeds: cosine of the changes {shared:.3f}, CKA {format_estimate(at)}, KL {format_estimate(between)}")
        found["between two seeds"] = f"cosine {shared:.3f}, CKA {format_estimate(at)}, KL {format_estimate(between)}"
    return found


def _last(name: str, series: CheckpointSet) -> pd.Series:
    return series.table[series.table["step"] == SERIES[name].steps].iloc[0]


def main() -> None:
    """Make the series, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", choices=list(SERIES), help="make one series, without the table")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    if given.only:
        print(made(given.only, given.folder).table.to_string())
        return
    series = {name: made(name, given.folder) for name in SERIES}
    base = series["sft"].table.iloc[0]
    rows = [row(name, found, series["sft, another seed"] if name == "sft" else None) for name, found in series.items()]
    columns = list(dict.fromkeys(column for one in rows for column in one))
    lines = [columns, ["---"] * len(columns), *([str(one.get(column, "–")) for column in columns] for one in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    start = format_estimate({"value": base["reward"], "lo": base["reward_lo"], "hi": base["reward_hi"]})
    text = (
        f"# Methods of fine-tuning on SmolLM2\n\n{datetime.date.today()}, {machine.describe()}. LoRA of rank 8 on all linear "
        f"layers, rate {RATE:g}; reward of the base {start}. Methods are stopped after a few steps, not at equal reward. Intervals "
        f"are over prompts; one seed.\n\n{table}\n"
    )
    print(text)
    if given.write:
        (Path(__file__).parent / "RESULTS-finetune-methods.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
