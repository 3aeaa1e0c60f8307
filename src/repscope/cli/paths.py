"""Runs of one recipe: training them."""

import json as jsonlib
from pathlib import Path

from repscope.cli.shared import Json, Seed, app, print_table


@app.command
def train(
    *,
    out: Path,
    recipe: str = "planted",
    runs: int = 12,
    inits: int = 1,
    fork: int = 500,
    steps: int = 240,
    nudge: int = 120,
    rate: float = 4e-3,
    batch: int = 32,
    keep: int = 1,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train small transformers by one recipe, all of them at once, and write them as a set of checkpoints.

    The task is HANS in miniature: a rule and a heuristic that fit the same data. A killed training goes on when the same command is
    given again.

    Parameters
    ----------
    out
        Folder of the set: safetensors, and a table of what each was made from.
    recipe
        planted (two arms whose first steps told rule and heuristic apart, one way each) or plain (one arm, none of that).
    runs
        Runs of each arm, from each pretraining.
    inits
        Pretrained networks.
    fork
        Step of the pretraining at which fine-tuning begins.
    steps
        Steps of fine-tuning.
    nudge
        First of these, of the arm's own data.
    rate
        Largest rate of Adam.
    batch
        Texts of a step.
    keep
        Checkpoints of each run, evenly spaced, the last included.
    """
    from repscope.disk import need_folder
    from repscope.worlds.hans.groups import FineTuning
    from repscope.worlds.hans.recipes import Training, train
    from repscope.worlds.hans.training import Schedule

    need_folder(out)
    tuning = FineTuning(Schedule(steps, rate), nudge, batch)
    found = train(Training(recipe, runs, inits, fork, keep, seed, tuning=tuning), out)
    if json:
        print(jsonlib.dumps({"set": str(out), "runs": list(found.runs), "checkpoints": len(found)}))
        return
    counts = found.table.groupby(["init", "arm"], sort=False)["run"].nunique().reset_index()
    print_table([{str(k): v for k, v in row.items()} for row in counts.to_dict("records")], title="Runs")
    print(found)
    print(out)
