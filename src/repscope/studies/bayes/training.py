"""Steps of `bayes` that train networks: weights, losses, and the distance to the exact predictor on held-out documents."""

from functools import partial

import numpy as np
import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.models.loading.stacked_weights import arrays_of
from repscope.results import Result
from repscope.studies.bayes import measures, names
from repscope.studies.bayes.task import BayesTask, Kind
from repscope.studies.run.study import Context, Cost
from repscope.worlds.small_lm import train

_LOGGED = 100  #: losses per network that are kept


def trained(task: BayesTask, kind: Kind, context: Context) -> Result:
    """Train, and measure the distance to the exact predictor on held-out documents, after each symbol but the last."""
    o, start = task.options, task.initial(kind)
    saved, title = context.partial / "training.safetensors", f"train {kind.name}"
    found = train(task.logits(kind), start, partial(task.documents, kind), task.schedule, saved=saved, title=title)
    tokens, expected = task.held_out(kind)
    places = np.arange(expected.shape[1])
    answers = {c: task.answers(kind, w, tokens, places) for c, w in ((ESTIMATE, found.state), (names.UNTRAINED, start))}
    rows = measures.per_token(expected, answers, kind.name, o.seed)
    log = pd.DataFrame(
        [
            {"step": i, "network": j, "loss": v}
            for i in range(0, len(found.losses), max(1, len(found.losses) // _LOGGED))
            for j, v in enumerate(found.losses[i])
        ]
    )
    return Result.of(rows, arrays=arrays_of(found.state), side={"losses": log})


def training_cost(task: BayesTask, kind: Kind) -> Cost:
    """Forecast of a training."""
    o = task.options
    weights = 24 * o.width**2 + task.symbols * o.width if not kind.recurrent else 32 * o.width**2
    tokens = o.steps * o.batch * o.length * o.networks
    return Cost(tokens, 6.0 * tokens * (weights + 2 * o.length * o.width), memory_bytes=4e8)
