"""Names: what a few features at the last token of a name tell of its attributes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from repscope.conditions import ESTIMATE, SHUFFLED_LABELS, over
from repscope.data.entities import SETS, EntitySet, entity_set
from repscope.models.prompts import Prompt
from repscope.progress import progress
from repscope.read.probe_sweep import Panel, gain, panels
from repscope.read.probes import ProbeScores, ProbeTask, probe
from repscope.read.sae import SparseAutoencoder
from repscope.read.sae.baselines import baseline
from repscope.read.sae.sparse_probes import sparse_probe
from repscope.results import Result, Row, at
from repscope.studies.features import names
from repscope.studies.features.options import MOST_ATTRIBUTES
from repscope.studies.features.task import FeaturesTask
from repscope.studies.run.study import Context

_SHUFFLES = 3
_MOST = 400  #: names of a set; more are sampled
_LEAST = 6  #: members of a class
_DEFINITION = "ridge probe on features chosen by their training names, {k} folds over entities"


def entity_set_of(task: FeaturesTask, name: str) -> EntitySet:
    """The set that the options name, sampled to a size that probes of many features can pass.

    Raises
    ------
    UserError
        For a set, file, column or attribute that is not there.
    """
    o, lm = task.options, task.lm

    def token_count(text: str) -> int:
        return len(lm.tokenizer(text, add_special_tokens=False)["input_ids"])

    found = entity_set(
        name,
        name_column=None if name in SETS else o.name,
        attributes=o.attribute,
        templates=None,
        per_class=40,
        token_count=token_count,
        **o.how(),
    )
    return found.sample(_MOST, o.seed)


def probes(task: FeaturesTask, items: EntitySet, context: Context) -> Result:
    """Sparse and dense probes on latents, a random dictionary, neurons and the network with random weights."""
    o = task.options
    wanted = [a.name for a in items.attributes][: MOST_ATTRIBUTES if o.short and not o.attribute else None]
    held, notes = panels(items, wanted, k=o.folds, seed=o.seed, min_count=_LEAST)
    features, dense = _features(task, items, context)
    rows: list[Row] = []
    with progress(f"probes of {items.name}", len(held) * len(features)) as advance:
        for panel in held:
            whole = probe(dense[panel.rows], panel.tasks, panel.folds, shuffles=0, seed=o.seed)
            found = {}
            for condition, x in features.items():
                shuffles = _SHUFFLES if condition == ESTIMATE else 0
                found[condition] = sparse_probe(
                    x[panel.rows], panel.tasks, panel.folds, names.SPARSE, shuffles=shuffles, seed=o.seed
                )
                advance(1)
            for number, one in enumerate(panel.tasks):
                per_k = {c: {k: scores[number] for k, scores in f.items()} for c, f in found.items()}
                rows += _rows(task, items.name, panel, one, whole[number], per_k)
    return Result.of(rows, notes=(*items.notes, *notes))


def _features(
    task: FeaturesTask, items: EntitySet, context: Context
) -> tuple[dict[str, Float[np.ndarray, "entity feature"]], Float[np.ndarray, "entity d"]]:
    """What the probes read at the last token of each name, by condition; and the site itself."""
    prompts = [Prompt.fill(items.templates[0], name=name) for name in items.frame["name"]]
    one = task.opened(task.main, context)
    x = task.lm.capture(prompts, task.site, "name.last").numpy()
    flat = x.reshape(len(x), -1)
    found = {ESTIMATE: _dense(one, flat)}
    sample = _stored(task, context)
    k = max(1, round(float(one.encode(sample).l0.float().mean())))
    found[names.DICTIONARY] = _dense(baseline("random", sample, one.d_sae, k, seed=task.options.seed), flat)
    layer = task.site.layer
    if layer is not None and task.lm.anatomy is not None:
        neurons = task.lm.capture(prompts, f"mlp_act.{layer}", "name.last").numpy()
        found[names.NEURONS] = neurons.reshape(len(neurons), -1)
    if task.trainings:
        twin = task.twin.capture(prompts, task.site, "name.last").numpy()
        found[names.WEIGHTS] = _dense(task.opened(names.WEIGHTS, context), twin.reshape(len(twin), -1))
    return found, flat


def _stored(task: FeaturesTask, context: Context) -> torch.Tensor:
    store = task.store(context)
    batch = next(iter(store.batches(rows=min(20_000, len(store)), seed=task.options.seed)))
    return next(iter(batch.rows.values())).float().flatten(1)


def _dense(one: SparseAutoencoder, rows: Float[np.ndarray, "entity d"]) -> Float[np.ndarray, "entity latent"]:
    with torch.no_grad():
        latents: np.ndarray = one.encode(torch.from_numpy(np.ascontiguousarray(rows, np.float32))).dense().numpy()
    return latents


def _rows(
    task: FeaturesTask, name: str, panel: Panel, one: ProbeTask, dense: ProbeScores, per_k: Mapping[str, Mapping[int, ProbeScores]]
) -> list[Row]:
    """Scores by number of features and condition, and paired gains."""
    o = task.options
    item = f"{name}.{one.name}"
    where: dict[str, Any] = {"token": "last", "split": "entity", "seed": o.seed, **at(task.site)}
    how = _DEFINITION.format(k=len(panel.folds))
    rows = [Row.of(dense.estimate(seed=o.seed), metric=one.metric, item=item, condition=names.DENSE, **where)]
    for k in names.SPARSE:
        scored = {condition: scores[k] for condition, scores in per_k.items()}
        probed = where | {"item": names.probed(item, k)}
        for condition, scores in scored.items():
            rows.append(Row.of(scores.estimate(seed=o.seed), metric=one.metric, definition=how, condition=condition, **probed))
        rows.append(Row.of(scored[ESTIMATE].shuffled(), metric=one.metric, definition=how, condition=SHUFFLED_LABELS, **probed))
        ours = _tops(scored[ESTIMATE])
        others = {names.DENSE: dense} | {c: s for c, s in scored.items() if c != ESTIMATE}
        for condition, scores in others.items():
            estimate = gain(one, ours, _tops(scores), o.seed)
            rows.append(Row.of(estimate, metric="gain", definition=one.metric, condition=over(condition), **probed))
    return rows


def _tops(scores: ProbeScores) -> Float[np.ndarray, "top_bottom entity"]:
    tested = scores.tested
    return np.asarray(np.stack([scores.top[0, tested], scores.bottom[0, tested]]))
