"""A series of checkpoints, and one language model that is each of them in turn.

1. The last checkpoint of the first run makes the network; the weights of each checkpoint are copied into it, a tensor at a time,
   and each file is released at once. So one model is in memory, whatever the length of the series.
2. `measure` is the only call into the network. With `kept`, what it returns is written per checkpoint, and a killed run goes on
   after the last one. The caller names the folder by all that the numbers depend on.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from repscope.disk import whole_file
from repscope.errors import UserError
from repscope.models.checkpoints import CheckpointSet
from repscope.models.loading.checkpoint_files import Weights
from repscope.models.loading.sources import load
from repscope.progress import progress
from repscope.trace.streaming import slots_of

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

Measured = Mapping[str, np.ndarray]
Measure = Callable[["LanguageModel"], Measured]


def opened(given: str) -> CheckpointSet:
    """Checkpoints as named on the command line: a folder, or MODEL@step1000,step2000 for revisions of a hub id or of a folder.

    Raises
    ------
    UserError
        When there is nothing of that name, and as `CheckpointSet.open` and `CheckpointSet.of_revisions`.
    """
    home, at, names = given.rpartition("@")
    if at and not Path(given).expanduser().exists():
        return CheckpointSet.of_revisions(home, [name.strip() for name in names.split(",") if name.strip()])
    if not Path(given).expanduser().is_dir():
        raise UserError(f"There is no folder {given}; give a folder of checkpoints, or revisions as MODEL@step1000,step2000.")
    return CheckpointSet.open(given)


def series(checkpoints: CheckpointSet) -> tuple[tuple[str, ...], list[int], list[list[int]]]:
    """Names of runs, their common steps in order, and the row of each (run, step).

    Single checkpoints of different steps, as in a folder with one folder per step, are one run.

    Raises
    ------
    UserError
        For fewer than two steps, a step that occurs twice, or runs with different steps.
    """
    table = checkpoints.table.reset_index(drop=True)
    if (table.groupby("run").size() == 1).all() and table["step"].nunique() == len(table) > 1:
        table = table.assign(run="run")
    found: dict[str, dict[int, int]] = {}
    for i, (run, step) in enumerate(zip(table["run"], table["step"])):
        if int(step) in found.setdefault(str(run), {}):
            raise UserError(f"{run} has step {step} twice; name the steps in checkpoints.csv, or in the folders as step-100.")
        found[str(run)][int(step)] = i
    first = next(iter(found))
    for run, own in found.items():
        if odd := sorted(set(own) ^ set(found[first])):
            raise UserError(f"{run} and {first} have different steps, such as {odd[0]}; curves need every checkpoint of every run.")
    steps = sorted(found[first])
    if len(steps) < 2:
        raise UserError("There is one checkpoint per run; a curve needs at least two steps.")
    return tuple(found), steps, [[own[step] for step in steps] for own in found.values()]


@torch.no_grad()
def over_checkpoints(
    checkpoints: CheckpointSet, measure: Measure, *, kept: Path | None = None, device: str | None = None, dtype: str = "float32"
) -> list[list[Measured]]:
    """What `measure` finds at every checkpoint, by run and step.

    Parameters
    ----------
    checkpoints
        Of causal language models of transformers, with a tokenizer beside the last one.
    measure
        From the network, which is the checkpoint, to arrays by name.
    kept
        Folder of what was measured so far.
    device, dtype
        As for `rs.load`.

    Raises
    ------
    UserError
        As `series`; when a checkpoint is no causal language model of transformers, or its weights are not finite.
    """
    runs, steps, rows = series(checkpoints)
    paths = [Path(p) for p in checkpoints.table["path"]]
    home = paths[rows[0][-1]]
    lm: LanguageModel | None = None
    if not home.is_dir():
        raise UserError(f"{home} is a file; probes need folders of transformers, with a tokenizer in them.")
    found: list[list[Measured]] = [[{}] * len(steps) for _ in runs]
    with progress("checkpoints", len(runs) * len(steps)) as advance:
        for i, own in enumerate(rows):
            for j, row in enumerate(own):
                file = kept / f"checkpoint-{i:03d}-{j:04d}.npz" if kept is not None else None
                if file is not None and file.is_file():
                    found[i][j] = _read(file)
                else:
                    said = f"{runs[i]} at step {steps[j]}"
                    weights = Weights(paths[row], checkpoints.sizes)
                    if lm is None:
                        _check_finite(Weights(home, checkpoints.sizes), f"{runs[0]} at step {steps[-1]}")
                        lm = load(home, device=device, dtype=dtype)
                        if not lm.generates:
                            raise UserError(f"{home} is no causal language model, so it answers no prompt; give causal ones.")
                    _overwrite(lm.model, weights, said)
                    found[i][j] = measure(lm)
                    if file is not None:
                        _write(file, found[i][j])
                advance(1)
    return found


def _overwrite(module: nn.Module, weights: Weights, said: str) -> None:
    """Copy the weights of a checkpoint, a tensor at a time."""
    for name, place in slots_of(module, weights).items():
        value = weights[name]
        if not _finite(value):
            raise _diverged(said)
        place.copy_(value)
        del value
        weights.close()
    weights.close()


def _check_finite(weights: Weights, said: str) -> None:
    for name in weights:
        if not _finite(weights[name]):
            raise _diverged(said)
        weights.close()


def _finite(value: Tensor) -> bool:
    """Whether all numbers are finite, without a copy of the tensor (`isfinite` makes several)."""
    return not value.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(value))).all())


def _diverged(said: str) -> UserError:
    return UserError(f"{said} has weights that are not numbers; its training diverged, so leave it out.")


def _write(file: Path, arrays: Measured) -> None:
    with whole_file(file) as partial, partial.open("wb") as held:
        named: dict[str, Any] = {name.replace("/", "|"): value for name, value in arrays.items()}
        np.savez(held, **named)


def _read(file: Path) -> Measured:
    with np.load(file, allow_pickle=False) as held:
        return {name.replace("|", "/"): held[name] for name in held.files}
