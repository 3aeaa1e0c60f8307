"""Probe sweeps: linear probes at many sites with their controls.

1. Attributes known for the same entities form a `Panel`: one set of folds, and one half for site selection.
2. `sweep_probes` probes a panel at each site for each prompt template and averages an entity's scores over templates: templates are
   repetitions of one entity, neither additional evidence nor ever on both sides of a fold.
3. `chosen` gives each entity's score at the site selected on the other half, which avoids the selection bias of the best of many
   sites. `gain` is the paired difference of two such scores, with its interval over entities.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from threadpoolctl import threadpool_limits

from repscope import stats
from repscope.data.entities import EntitySet, Target
from repscope.data.splits import folds as assign
from repscope.data.splits import halves
from repscope.errors import UserError
from repscope.models.engine.memory import memory_kept
from repscope.models.sites import Site
from repscope.read.probes import ProbeScores, ProbeTask, average, chosen_elsewhere, probe, score, within_halves
from repscope.read.ridge import Features, Fold
from repscope.results import ESTIMATE, Row

RIDGE = "ridge probe, penalty by leave-one-out inside the training fold, {k} folds over entities"
NOT_PROBED = "Not probed: "  #: prefix of notes on attributes without a probe
Tops = Float[np.ndarray, "top_bottom entity"]


@dataclass(frozen=True)
class Panel:
    """Attributes of the same entities.

    rows: indices of entities in the set. tasks: attributes. folds: over positions in `rows`. half: for site selection.
    """

    rows: Int[np.ndarray, "entity"]
    tasks: tuple[ProbeTask, ...]
    folds: tuple[Fold, ...]
    half: Bool[np.ndarray, "entity"]

    def keep(self, entities: Bool[np.ndarray, "entity"]) -> "Panel":
        """The panel with only some of its entities, in unchanged folds."""
        place = np.cumsum(entities) - 1
        folds = [(place[a[entities[a]]], place[b[entities[b]]]) for a, b in self.folds]
        tasks = tuple(ProbeTask(t.name, t.kind, t.values[entities], t.classes) for t in self.tasks)
        return Panel(self.rows[entities], tasks, tuple(f for f in folds if len(f[1])), self.half[entities])

    def with_folds(self, folds: Sequence[Fold]) -> "Panel":
        """The panel with other folds."""
        return Panel(self.rows, self.tasks, tuple(folds), self.half)


def panels(
    entities: EntitySet, attributes: Sequence[str], *, k: int, seed: int, min_count: int, group: str | None = None
) -> tuple[list[Panel], list[str]]:
    """The attributes of a set as panels, and notes on omitted ones.

    With `group`, entities with the same value of that attribute are on one side of every split.

    Raises
    ------
    UserError
        If no attribute can be probed; gives the reasons.
    """
    by_rows: dict[bytes, list[Target]] = {}
    notes: list[str] = []
    refused: list[str] = []
    for name in attributes:
        try:
            target = entities.target(name, min_count=min_count)
        except UserError as error:
            refused.append(str(error))
            continue
        notes.extend(target.notes)
        by_rows.setdefault(target.rows.tobytes(), []).append(target)
    if not by_rows:
        raise UserError(f"No attribute of {entities.name} can be probed: {' '.join(refused)}")
    made = []
    for targets in by_rows.values():
        classes = next((t.values for t in targets if t.classes), None)
        rows = targets[0].rows
        together: Any = len(rows) if group is None else _groups(entities, group)[rows]
        fold = assign(together, k, seed, classes)
        pairs = tuple((np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(k))
        tasks = tuple(ProbeTask(t.attribute.name, t.attribute.kind, t.values, t.classes) for t in targets)
        made.append(Panel(rows, tasks, pairs, halves(together, seed, classes)))
    return made, notes + [f"{NOT_PROBED}{text}" for text in refused]


def _groups(entities: EntitySet, group: str) -> Int[np.ndarray, "entity"]:
    """Group of each entity; one of unknown group is its own group."""
    column = entities.frame[entities.attribute(group).name]
    codes = pd.factorize(column)[0]
    return np.where(codes < 0, len(column) + np.arange(len(column)), codes)


@dataclass(frozen=True)
class ProbeSweep:
    """ProbeScores of a panel at several sites: `scores[site][task]`, and scores within halves for site selection."""

    panel: Panel
    scores: Mapping[str, Sequence[ProbeScores]]
    choosing: Mapping[str, Sequence[ProbeScores]]

    def chosen(self, task: int) -> tuple[Tops, tuple[str, str]]:
        """(2, entity): top and bottom of each entity at the site selected on the other half; and the two sites."""
        names = list(self.scores)
        top, bottom, picked = chosen_elsewhere(
            [self.scores[s][task] for s in names], [self.choosing[s][task] for s in names], self.panel.half
        )
        return np.stack([top, bottom]), (names[picked[0]], names[picked[1]])

    def shuffled(self, task: int) -> Tops:
        """As `chosen`, for label shuffles: each entity's mean over shuffles."""
        _, picked = self.chosen(task)
        tops = {s: self.scores[s][task].top[1:].mean(0) for s in picked}
        bottoms = {s: self.scores[s][task].bottom[1:].mean(0) for s in picked}
        half, tested = self.panel.half, self.scores[picked[0]][task].tested
        return np.stack([np.where(half, part[picked[1]], part[picked[0]])[tested] for part in (tops, bottoms)])


def sweep_probes(
    features: Mapping[str, Sequence[Features]],
    panel: Panel,
    *,
    shuffles: int = 0,
    choose: bool = False,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> ProbeSweep:
    """Probe a panel at each site.

    Parameters
    ----------
    features
        Site → one (entity, feature) array per prompt template, over all entities of the set.
    panel
        Attributes to probe.
    shuffles
        Number of label shuffles, the control.
    choose
        Whether to score within halves as well, for site selection.
    tick
        Called after each site.
    """
    inner = within_halves(panel.folds, panel.half)
    # Small decompositions in parallel on one core each are several times faster than one by one on all cores. Up to two cores,
    # tridiagonal matrices, which hold Python's lock, take less time one by one.
    threads = torch.get_num_threads()
    parallel = threads > 2

    def at_site(per_template: Sequence[Features]) -> tuple[list[ProbeScores], list[ProbeScores]]:
        held = [np.asarray(x[panel.rows]) for x in per_template]
        # embeddings of a name's tokens are the same after every template
        distinct = [x for i, x in enumerate(held) if not any(np.array_equal(x, before) for before in held[:i])]
        held = distinct if len(distinct) == 1 else held
        runs = [probe(x, panel.tasks, panel.folds, shuffles=shuffles, seed=seed, eigenvectors=parallel) for x in held]
        chose = [probe(x, panel.tasks, inner, shuffles=0, seed=seed, eigenvectors=parallel) for x in held] if choose else []
        return [average(s) for s in zip(*runs)], [average(s) for s in zip(*chose)]

    scores, choosing = {}, {}
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"), memory_kept(), ThreadPoolExecutor(threads if parallel else 1) as pool:
            for site, found in zip(features, pool.map(at_site, features.values())):
                scores[site], choosing[site] = found
                tick()
    finally:
        torch.set_num_threads(threads)
    return ProbeSweep(panel, scores, choosing)


def rows_of(swept: ProbeSweep, prefix: str, condition: str, *, shuffled: bool = False, **where: Any) -> list[Row]:
    """Rows of a sweep: one per site and attribute, and one for its label shuffles, if any."""
    rows = []
    k = len(swept.panel.folds)
    for name, per_task in swept.scores.items():
        site = {"site": name, "layer": Site.parse(name).layer if name else None}
        for scores in per_task:
            shared = {"metric": scores.task.metric, "item": f"{prefix}.{scores.task.name}", **site}
            shared |= {"definition": RIDGE.format(k=k), **where}
            rows.append(Row.of(scores.estimate(), condition=condition, **shared))
            if shuffled:
                rows.append(Row.of(scores.shuffled(), condition="shuffled labels", **shared))
    return rows


def gain(task: ProbeTask, ours: Tops, control: Tops, seed: int = 0) -> stats.Estimate:
    """Our score minus a control's, paired over entities."""
    return score(task, ours[0] - control[0], ours[1], seed)


def chosen_rows(task: ProbeTask, tops: Mapping[str, Tops], **where: Any) -> list[Row]:
    """Rows of the scores at the selected site, estimate and controls, and of the gain over each control."""
    rows = []
    base = {"site": "chosen on the other half", **where}
    for condition, held in tops.items():
        rows.append(Row.of(score(task, *held), metric=task.metric, condition=condition, **base))
        if condition != ESTIMATE:
            estimate = gain(task, tops[ESTIMATE], held)
            rows.append(Row.of(estimate, metric="gain", condition=f"over {condition}", **base))
    return rows
