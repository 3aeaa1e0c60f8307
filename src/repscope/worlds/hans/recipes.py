"""Training recipes: runs with an early bias, unbiased, matched on ID loss, or from own pretraining.

`train` writes a recipe's runs as a `CheckpointSet`, and goes on where it was killed; `paths` (the study) compares them.
"""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from safetensors import SafetensorError

from repscope import __version__, manifest
from repscope.errors import UserError, unknown
from repscope.locks import only_process
from repscope.models.checkpoints import NETWORK, TABLE, CheckpointSet
from repscope.models.loading.checkpoint_files import Weights, save
from repscope.models.loading.stacked_weights import State, stack, unstack
from repscope.progress import progress
from repscope.untrusted import parse_json
from repscope.worlds.hans import fine_tuning
from repscope.worlds.hans.fine_tuning import FineTuning, World
from repscope.worlds.hans.training import TrainingRun

RECIPE, DESCENT = "recipe.json", "descent.safetensors"
#: recipe → conditions, each with the requested number of runs
RECIPES: dict[str, tuple[str, ...]] = {"early-bias": ("rule", "lexical overlap"), "unbiased": ("none",)}


@dataclass(frozen=True)
class Training:
    """What `train` makes.

    recipe: of `RECIPES`. runs: of each group. inits: pretrained networks, an equal number of runs from each. fork: step of the
    pretraining at which fine-tuning begins. keep: how many checkpoints of each run, evenly spaced, the last included.
    """

    recipe: str = "early-bias"
    runs: int = 12
    inits: int = 1
    fork: int = 500
    keep: int = 1
    seed: int = 0
    world: World = field(default_factory=World)
    tuning: FineTuning = field(default_factory=FineTuning)

    def __post_init__(self) -> None:
        """Raise a `UserError` for an unknown recipe, numbers below one, or a fork or early bias beyond its training."""
        if self.recipe not in RECIPES:
            raise unknown("recipe", self.recipe, RECIPES)
        if min(self.runs, self.inits, self.keep) < 1:
            raise UserError("Runs, inits and checkpoints to keep are at least 1 each.")
        if self.fork < 0 or self.fork > self.world.pretraining.steps:
            raise UserError(f"Pretraining has {self.world.pretraining.steps} steps; a fork at {self.fork} is not within it.")
        if self.recipe != "unbiased" and self.tuning.early_bias > self.tuning.schedule.steps:
            steps = self.tuning.schedule.steps
            raise UserError(f"An early bias of {self.tuning.early_bias} steps is longer than the {steps} steps of fine-tuning.")
        if self.keep > self.tuning.schedule.steps:
            raise UserError(f"{self.keep} checkpoints are more than the {self.tuning.schedule.steps} steps of fine-tuning.")

    @property
    def table(self) -> pd.DataFrame:
        """One row per run."""
        tables = [
            fine_tuning.run_plan([group for group in RECIPES[self.recipe] for _ in range(self.runs)], init, self.seed * 101 + init)
            for init in range(self.inits)
        ]
        for init, table in enumerate(tables):
            if self.inits > 1:
                table["run"] = [f"init{init}-{name}" for name in table["run"]]
        return pd.concat(tables, ignore_index=True).assign(recipe=self.recipe, fork=self.fork)


def train(asked: Training, folder: str | Path) -> CheckpointSet:
    """Train all runs of a recipe in one batch and write them as a set; a finished set is opened, a damaged one trained again.

    An interrupted training resumes from its last saved step, stored in `<folder>.training` until it is done.

    Raises
    ------
    UserError
        When another recipe's runs, or something else, is in the folder, or another process works on it.
    """
    folder = Path(folder).expanduser().absolute()
    digest = hashlib.sha256(json.dumps([asdict(asked), __version__], default=str, sort_keys=True).encode()).hexdigest()
    if _finished(folder, digest) and not folder.with_name(folder.name + ".training").exists():
        return CheckpointSet.open(folder)
    with only_process(folder):
        return _train(asked, folder, digest)


def _train(asked: Training, folder: Path, digest: str) -> CheckpointSet:
    partial = folder.with_name(folder.name + ".training") / digest[:12]
    if folder.exists():
        if _finished(folder, digest):
            _forget(partial)  # a process that was killed at the very end left it
            return CheckpointSet.open(folder)
        if _digest_of(folder / RECIPE) == digest:
            wrong = manifest.damage(folder)
            if others := _others(folder):
                raise UserError(f"{folder} is damaged ({wrong}) and holds {others[0]}, which is none of its files; move it away.")
            warnings.warn(f"{folder} is damaged ({wrong}); its runs are trained again.", stacklevel=3)
        elif any(folder.iterdir()):
            raise UserError(f"{folder} holds other runs or files; choose another --out, or delete it.")
    _tidy(folder, partial)
    steps, table = asked.tuning.schedule.steps, asked.table
    kept = sorted({round(steps * (i + 1) / asked.keep) for i in range(asked.keep)})
    pretraining = 1.5 * asked.fork * asked.inits
    with progress("Training", pretraining + steps * len(table)) as advance:
        base = _pretrained(asked, partial, lambda amount: advance(1.5 * amount * asked.inits))
        descent, states = _resumed(lambda: fine_tuning.training_run(asked.world, base, table, asked.tuning), partial, kept)
        advance(descent.step * len(table))
        rests = sorted({*kept, *range(0, steps, max(1, steps // 10))} - set(states))
        for step, state in descent.until(rests, lambda amount: advance(amount * len(table))):
            if step in kept:
                save(partial / f"step-{step}.safetensors", state)
                states[step] = state
            descent.save(partial / DESCENT)
    table = table.drop(columns="init").assign(init=[f"pretraining {i}" for i in table["init"]])
    recipe = json.dumps({"digest": digest, **asdict(asked)}, indent=2, default=str)
    found = CheckpointSet.written(folder, asked.world.shape(), table, states, {RECIPE: recipe})
    _forget(partial)
    return found


def _pretrained(asked: Training, partial: Path, tick: fine_tuning.Tick) -> State:
    path = partial / "pretrained.safetensors"
    with suppress(UserError):  # absent, or damaged: made again
        return dict(Weights(path))
    base = fine_tuning.pretrain(asked.world, [asked.seed * 1009 + i for i in range(asked.inits)], [asked.fork], tick)[asked.fork]
    save(path, base)
    return base


def _resumed(begin: Callable[[], TrainingRun], partial: Path, kept: Sequence[int]) -> tuple[TrainingRun, dict[int, State]]:
    """A training at its last saved step, with the checkpoints until there; at the start if nothing is saved, or it is damaged."""
    descent, states = begin(), {}
    if not (partial / DESCENT).is_file():
        return descent, {}
    try:
        descent.load(partial / DESCENT)
        for step in kept:
            if step <= descent.step:
                states[step] = dict(Weights(partial / f"step-{step}.safetensors"))
    except (UserError, SafetensorError, OSError, KeyError, ValueError):
        return begin(), {}
    return descent, states


def _finished(folder: Path, digest: str) -> bool:
    """Whether the folder holds all runs of that recipe, with the bytes that were written."""
    return folder.is_dir() and _digest_of(folder / RECIPE) == digest and manifest.damage(folder) is None


def _others(folder: Path) -> list[str]:
    """Files that are not of a set."""
    own = {RECIPE, TABLE, NETWORK, manifest.NAME}
    found = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file() and not p.match("*/step-*.safetensors")]
    return [str(name) for name in found if str(name) not in own]


def _digest_of(file: Path) -> str:
    """The digest in a recipe's file; empty if there is no such file.

    Raises
    ------
    UserError
        When it is damaged.
    """
    if not file.is_file():
        return ""
    try:
        held = parse_json(file.read_text(encoding="utf-8"))
        if isinstance(held["digest"], str):
            return str(held["digest"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError(f"{file} is damaged, so it is unknown which runs are there; choose another --out, or delete {file.parent}.")


def _tidy(folder: Path, partial: Path) -> None:
    """Remove what a killed process left half-written: beside the folder, and in that of the training."""
    own = re.compile(re.escape(f".{folder.name}.") + r"[a-z0-9_]{8}\.part")  # as `whole_folder` names them
    for left in [p for p in folder.parent.glob(".*.part") if own.fullmatch(p.name)]:
        shutil.rmtree(left, ignore_errors=True)
    for left in partial.glob(".*.part"):
        left.unlink(missing_ok=True)


def _forget(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    if partial.parent.is_dir() and not any(partial.parent.iterdir()):
        partial.parent.rmdir()


def matched(
    states: Sequence[State], losses: Float[np.ndarray, "checkpoint run"], groups: np.ndarray
) -> tuple[State, Float[np.ndarray, "run"]]:
    """One checkpoint per run, that with the loss nearest to one target, which matches the groups in loss.

    The target is the larger of the groups' median losses at the last checkpoint: what all can reach by stopping early.

    Parameters
    ----------
    states
        Checkpoints, each a stack of all runs.
    losses
        Of each run at each checkpoint, on texts that are not used afterwards.
    groups
        The group of each run.

    Returns
    -------
    stacked weights
        The checkpoints chosen.
    chosen
        Which checkpoint of each run, counted from 0.
    """
    target = max(float(np.median(losses[-1][groups == g])) for g in np.unique(groups))
    chosen = np.abs(losses - target).argmin(0)
    picked = [unstack(states[step], run) for run, step in enumerate(chosen)]
    return stack(picked), chosen
