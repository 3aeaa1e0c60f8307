"""Runs of one recipe: training them."""

import json as jsonlib
from pathlib import Path

from repscope.cli.shared import Json, Seed, app, print_table, say


@app.command
def train(
    *,
    out: Path,
    recipe: str = "early-bias",
    runs: int = 12,
    inits: int = 1,
    fork: int = 500,
    steps: int = 240,
    early_bias: int = 120,
    rate: float = 4e-3,
    batch: int = 32,
    keep: int = 1,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train many small transformers with one recipe and save them as a checkpoint set.

    The task is HANS in miniature: a rule and a heuristic fit the same data. The same command resumes an interrupted training.

    Parameters
    ----------
    out
        Output folder: safetensors and a table with the seeds and settings of each run.
    recipe
        early-bias (two groups of runs whose first steps teach the rule or lexical overlap) or unbiased (one group).
    runs
        Runs per group and pretraining.
    inits
        Number of pretrained networks.
    fork
        Step of the pretraining at which fine-tuning begins.
    steps
        Number of fine-tuning steps.
    early_bias
        Number of initial fine-tuning steps that use group-specific data.
    rate
        Peak learning rate of Adam.
    batch
        Batch size.
    keep
        Checkpoints per run, evenly spaced, including the last.
    """
    from repscope.disk import need_folder
    from repscope.worlds.hans.fine_tuning import FineTuning
    from repscope.worlds.hans.recipes import Training, train
    from repscope.worlds.hans.training import Schedule

    need_folder(out)
    tuning = FineTuning(Schedule(steps, rate), early_bias, batch)
    found = train(Training(recipe, runs, inits, fork, keep, seed, tuning=tuning), out)
    if json:
        print(jsonlib.dumps({"set": str(out), "runs": list(found.runs), "checkpoints": len(found)}))
        return
    counts = found.table.groupby(["init", "group"], sort=False)["run"].nunique().reset_index()
    print_table([{str(k): v for k, v in row.items()} for row in counts.to_dict("records")], title="Runs")
    say(found)
    say(out)
