"""The user's checkpoints in place of networks trained here: accuracy and log-probability of every probe, and its transition."""

from pathlib import Path
from typing import Any

import numpy as np

from repscope.models.checkpoints import CheckpointSet
from repscope.results import Result, Row
from repscope.stats import mean, proportion
from repscope.studies.emergence import names
from repscope.studies.emergence.options import EmergenceOptions
from repscope.studies.run.study import Context
from repscope.trace.emergence.curves import Probes, probe_curves
from repscope.trace.emergence.transitions import transition


def opened(options: EmergenceOptions) -> tuple[CheckpointSet, Probes]:
    """Checkpoints and probes."""
    return CheckpointSet.open(str(options.checkpoints)), Probes.read(Path(str(options.probes)).expanduser())


def probed(options: EmergenceOptions, checkpoints: CheckpointSet, probes: Probes, context: Context) -> Result:
    """Curves and transitions; intervals of a step are over probes, as runs are few."""
    found = probe_curves(checkpoints, probes)
    rows: list[Row] = []
    for name in probes.names:
        own = np.array([n == name for n in probes.name])
        for j, step in enumerate(found.steps.tolist()):
            where: dict[str, Any] = {"item": name, "split": names.at(step), "seed": options.seed}
            hits, scores = found.hits[:, j, own].mean(0), found.scores[:, j, own].mean(0)
            rows.append(Row.of(proportion(hits, unit="probe", seed=options.seed), metric=names.ACCURACY, **where))
            rows.append(Row.of(mean(scores, unit="probe", seed=options.seed), metric=names.LOG_PROBABILITY, **where))
        one = transition(found.curve(name), draws=options.draws, seed=options.seed)
        at: dict[str, Any] = {"item": name, "seed": options.seed}
        for metric, estimate in ((names.STEP, one.step), (names.STEEPEST, one.steepest), (names.SHARPNESS, one.sharpness)):
            rows.append(Row.of(estimate, metric=metric, **at))
        rows.append(Row.of(one.sharpness_null, metric=names.SHARPNESS, condition=names.EVEN, **at))
    return Result.of(rows)
