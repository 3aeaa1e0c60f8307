"""The step on recombined tokens: how much of the vector is a sum over tokens, and what a sum holds of the attributes."""

import numpy as np
from jaxtyping import Float

from repscope import stats
from repscope.conditions import PAIRS, RANDOM_WEIGHTS, SINGLES, over
from repscope.models.language import LanguageModel
from repscope.models.prompts import Encoded
from repscope.read import name_assembly
from repscope.read.name_assembly import Grid
from repscope.read.probe_sweep import Panel
from repscope.read.probes import ProbeScores, probe
from repscope.results import ESTIMATE, Result, Row
from repscope.studies.entities.task import EntityTask
from repscope.studies.entities.vectors import encoded_names, paired_difference, target_block, where_of
from repscope.studies.run.study import Context

_MOST_GRIDS = 6  #: of one number of tokens, in the short form


def recombined_tokens(subject: EntityTask, context: Context) -> Result:
    """How much of the vector is a sum over tokens."""
    o, lm, panel = subject.options, subject.lm, subject.panels[0]
    target = target_block(subject, context)
    encoded = encoded_names(subject)
    small = o.short or o.tiny
    rows, notes = list[Row](), list[str]()
    twin = subject.twin()
    for count in (2, 3):
        size = {2: 6, 3: 4}[count] if small else None
        made = name_assembly.grids(subject.name_tokens, count, size=size, most=_MOST_GRIDS if small else None, seed=o.seed)
        if len(made) < 3:
            notes.append(f"{subject.items.name}: too few names of {count} tokens to recombine them ({len(made)} grids).")
            continue
        definition = f"{len(made)} grids of {len(made[0].entities)} names of {count} tokens; after block {target}"
        where = {"definition": definition, "site": f"resid_post.{target}", "layer": target, "token": "last", "seed": o.seed}
        found: dict[str, list[name_assembly.Recombined]] = {}
        for condition, network in ((ESTIMATE, lm), (RANDOM_WEIGHTS, twin)):
            vectors = [_grid_vectors(network, encoded, g, target, o.batch_tokens) for g in made]
            found[condition] = [name_assembly.recombined(v, len(g.entities), count) for v, g in zip(vectors, made)]
            total = [sum(r.variances.values()) for r in found[condition]]
            for order in range(1, count + 1):
                share = stats.ratio([r.variances[order] for r in found[condition]], total, unit="grid", seed=o.seed)
                label = f"share of {name_assembly.recombination.ORDERS[order]}"
                item = f"{subject.items.name}, {count} tokens"
                rows.append(Row.of(share, metric=label, condition=condition, item=item, **where))
            energy = stats.ratio([r.real for r in found[condition]], [r.others for r in found[condition]], unit="grid", seed=o.seed)
            rows.append(Row.of(energy, metric="interaction at real names", condition=condition, item=item, **where))
        rows += _from_parts(subject, panel, encoded, made, found[ESTIMATE], target, definition)
    return Result.of(rows, notes=tuple(notes))


def _grid_vectors(
    lm: LanguageModel, encoded: Encoded, grid: Grid, target: int, batch_tokens: int
) -> Float[np.ndarray, "combination d_model"]:
    """The vector at the last token of every combination, in the prompt of the grid's first name."""
    first = int(grid.entities[0])
    row, start, stop = encoded.ids[first], int(encoded.start[first]), int(encoded.stop[first])
    prompts = [np.concatenate([row[:start], name, row[stop:]]) for name in grid.names]
    site = f"resid_post.{target}"
    found: np.ndarray = lm.capture(prompts, site, str(stop - 1), batch_tokens=batch_tokens)[site]
    return found


def _from_parts(
    subject: EntityTask,
    panel: Panel,
    encoded: Encoded,
    made: list[Grid],
    found: list[name_assembly.Recombined],
    target: int,
    definition: str,
) -> list[Row]:
    """What probes of whole names read from the real names' vectors as sums over tokens, or over pairs."""
    o, lm = subject.options, subject.lm
    site = f"resid_post.{target}"
    whole = lm.capture(subject.prompts(subject.templates[0]), site, "name.last", batch_tokens=o.batch_tokens)[site]
    rows = []
    orders = {SINGLES: 1, PAIRS: 2}
    there = np.zeros(len(subject.items), dtype=bool)
    there[np.concatenate([g.entities for g in made])] = True
    folds = [(train, test[there[panel.rows][test]]) for train, test in panel.folds]
    folds = [fold for fold in folds if len(fold[1])]
    kept = probe(whole[panel.rows], panel.tasks, folds, shuffles=0)
    if len(kept[0].tested) < 2:
        return []
    parts: dict[str, list[ProbeScores]] = {}
    for condition, order in orders.items():
        if order not in found[0].parts:
            continue
        vectors = whole.copy()
        for grid, split in zip(made, found):
            vectors[grid.entities] = split.parts[order]
        parts[condition] = probe(whole[panel.rows], panel.tasks, folds, shuffles=0, tested=vectors[panel.rows])
    for t, task in enumerate(panel.tasks):
        if task.kind != "class":
            continue
        where = where_of(subject, task, definition=definition, site=site, layer=target)
        for condition, scores in {ESTIMATE: kept, **parts}.items():
            share = stats.proportion(scores[t].top[0, scores[t].tested], unit="entity", seed=o.seed)
            rows.append(Row.of(share, metric="accuracy from parts", condition=condition, **where))
        for condition, scores in parts.items():
            rows.append(
                Row.of(paired_difference(kept[t], scores[t], o.seed), metric="extra accuracy", condition=over(condition), **where)
            )
    return rows
