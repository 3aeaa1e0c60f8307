"""Do early blocks turn the tokens of a name into one vector from which its attributes read out linearly?

For each set of entities (or labelled texts):
1. Put each name into prompts, and capture every block at the tokens of the name (`embed`, `resid_post`).
2. Probe each attribute at each block, at the last token of the name, on entities held out of training.
3. Test other explanations of the score: shuffled labels; a bag of the name's token embeddings (is it more than a sum of its
   tokens?); the first token alone; the name's letters; the most common class; the same network with random weights.
4. Test again with no token shared between a tested name and any name trained on (San Francisco, San Diego).
5. Cut the context to the last 1, 2, 3 … tokens, keeping the prompt's first token, where attention rests when it needs nothing
   (without it the cut would also move the sink).
6. Report the block chosen on one half of the entities from the other half, and its paired gain over each control.
7. How the vector is built (`mechanism`): ablations, recombined tokens, neurons, for names.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from repscope import stats
from repscope.data.splits import purged_folds
from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError
from repscope.models.prompts import encode
from repscope.models.sites import Site, Tokens
from repscope.progress import progress
from repscope.read.probe_sweep import Panel, chosen_rows, rows_of, sweep_probes
from repscope.read.probes import ProbeScores, ProbeTask, logistic, majority, probe_directions
from repscope.results import ESTIMATE, Result, Row
from repscope.studies.entities.mechanism import mechanism_steps
from repscope.studies.entities.options import EntitiesOptions
from repscope.studies.entities.task import SITES, Captured, EntityTask, entity_tasks, ngrams
from repscope.studies.run.study import Context, Cost, Setup, Step


def steps(setup: Setup[EntitiesOptions]) -> list[Step]:
    """Four to eight steps per set: what reads out, its summary, and how names are built."""
    made = []
    subjects = entity_tasks(setup)
    for number, subject in enumerate(subjects):
        name = subject.items.name
        _probed(subject)  # what cannot be probed is refused now, before anything runs
        parts = [(f"{name}", _trained, 3.0), (f"{name} random weights", _twin, 1.5)]
        if not subject.is_text:
            parts.append((f"{name} shared tokens", _shared, 1.0))
            if setup.options.context and subject.causal:
                parts.append((f"{name} context", _context, 0.7 * setup.options.context))
        for step, compute, weight in parts:
            made.append(Step(step, partial(compute, subject), _cost(subject, weight), version=1))
        needs = (parts[0][0], parts[1][0])
        made.append(Step(f"{name} summary", partial(_summary, subject), lambda: Cost(fit_flops=1e8), needs=needs))
        small = setup.options.short or setup.options.tiny
        if setup.options.ranges and not subject.is_text and (number == 0 or not small):
            made += mechanism_steps(subject, _cost)
    return made


def _probed(subject: EntityTask) -> None:
    """Refuse a set in which nothing can be probed; names that exceed the network's context are reported first."""
    try:
        _ = subject.panels
    except UserError as error:
        if dropped := [note for note in subject.items.notes if "and their prompts have more" in note]:
            raise UserError(f"{dropped[0].rstrip('.')}; of the others: {error}") from error
        raise


def _cost(subject: EntityTask, weight: float) -> Callable[[], Cost]:
    def cost() -> Cost:
        lm, o = subject.lm, subject.options
        runs = subject.forecasts
        n, sites = len(subject.items), lm.blocks + 1
        d = lm.anatomy.width if lm.anatomy else 1
        columns = sum(max(1, len(t.classes)) for p in subject.panels for t in p.tasks) * (1 + o.shuffles)
        a_fold = min(n, d) ** 3 * 10 + 2.0 * n * d * min(n, d) + 12 * 2.0 * n * min(n, d) * columns
        fits = a_fold * o.folds * sites * len(subject.panels) * len(subject.templates) * weight / 3
        return Cost(
            sum(r.tokens for r in runs),
            sum(r.flops for r in runs),
            fits,
            16.0 * n * sites,
            max(r.blocks for r in runs),
            max(r.working for r in runs),
        )

    return cost


def _trained(subject: EntityTask, context: Context) -> Result:
    """The trained network: estimate, shuffled labels, other tokens, and the controls that need no network."""
    o, name, rows = subject.options, subject.items.name, list[Row]()
    arrays: dict[str, np.ndarray] = {}
    side: dict[str, pd.DataFrame] = {}
    directions: list[Direction] = []
    where: dict[str, Any] = {"split": subject.split, "seed": o.seed}
    letters = {"": [ngrams(list(subject.items.frame["name"]))]}
    with TemporaryDirectory(dir=context.scratch) as folder, ExitStack() as bars:
        held = subject.captured(subject.lm, Path(folder))
        if not subject.is_text:
            subject.keep_last(held)
        sweeps = len(subject.panels) if subject.is_text else 2 * len(subject.panels) + 2
        one = bars.enter_context(_probing(name, sweeps * len(held.rows)))
        for panel in subject.panels:
            last = sweep_probes(held.at(-1), panel, shuffles=o.shuffles, choose=True, seed=o.seed, tick=one)
            rows += rows_of(last, name, ESTIMATE, shuffled=True, token=o.tokens if subject.is_text else "last", **where)
            layered = {ESTIMATE: last}
            if not subject.is_text and subject.causal:
                layered["first token alone"] = sweep_probes(held.at(0), panel, choose=True, seed=o.seed, tick=one)
                rows += rows_of(layered["first token alone"], name, "first token alone", token="first", **where)
                if panel is subject.panels[0]:
                    rows += _earlier_tokens(subject, held, panel, one, where)
            flat = {
                "bag of token embeddings": sweep_probes(held.bag(), panel, seed=o.seed),
                "character n-grams": sweep_probes(letters, panel, seed=o.seed),
            }
            for condition, swept in flat.items():
                rows += rows_of(swept, name, condition, **where)
            for t, task in enumerate(panel.tasks):
                tops = {condition: swept.chosen(t)[0] for condition, swept in layered.items()}
                tops |= {condition: _tops(swept.scores[""][t]) for condition, swept in flat.items()}
                tops["shuffled labels"] = last.shuffled(t)
                if task.kind == "class":
                    right = majority(task, panel.folds)
                    tops["majority class"] = np.stack([right, np.ones(len(right))])
                    score = stats.proportion(right, unit="entity")
                    rows.append(Row.of(score, metric=task.metric, item=f"{name}.{task.name}", condition="majority class", **where))
                rows += _at_chosen(subject, panel, task, last.chosen(t)[1], held)
                arrays |= {f"{task.name}|{condition}": top for condition, top in tops.items()}
                site = last.chosen(t)[1][0]
                directions += probe_directions(held.at(-1)[site][0][panel.rows], task, site)
                if task.kind == "number":
                    side[f"predicted-{task.name}"] = _predicted(subject, panel, last.scores[site][t])
    note = f"ridge probes of {name}"
    DirectionSet(directions, subject.lm.fingerprint, note).save(context.artifacts / f"{name.replace(' ', '-')}-probes.safetensors")
    return Result.of(rows, arrays=arrays, side=side, notes=subject.notes)


def _earlier_tokens(
    subject: EntityTask, held: Captured, panel: Panel, one: Callable[[], None], where: Mapping[str, Any]
) -> list[Row]:
    """The second and third token from the end, for names that have as many."""
    rows = list[Row]()
    counts = np.diff(held.offsets[0])[panel.rows]
    for back in (2, 3):
        if (counts >= back).sum() >= 40 and not subject.options.tiny:
            other = sweep_probes(held.at(-back), panel.keep(counts >= back), seed=subject.options.seed, tick=one)
            rows += rows_of(other, subject.items.name, ESTIMATE, token=f"-{back}", **where)
    return rows


def _at_chosen(subject: EntityTask, panel: Panel, task: ProbeTask, picked: tuple[str, str], held: Captured) -> list[Row]:
    """The blocks chosen on each half, and a logistic probe there."""
    shared: dict[str, Any] = {
        "item": f"{subject.items.name}.{task.name}",
        "site": "chosen on the other half",
        "seed": subject.options.seed,
    }
    rows = list[Row]()
    for half, site in zip(("first half", "second half"), picked):
        layer = Site.parse(site).layer
        block = -1 if layer is None else layer
        rows.append(Row(metric="block", definition="-1 is the embedding", split=half, value=block, n=len(panel.rows), **shared))
    if task.kind != "class" or subject.options.tiny:
        return rows
    hits = np.full(len(panel.rows), np.nan)
    for side, site in zip((True, False), picked):
        train, test = np.flatnonzero(panel.half == side), np.flatnonzero(panel.half != side)
        hits[test] = logistic(held.at(-1)[site][0][panel.rows], task, train, test)
    definition = "logistic probe, first prompt, trained on the half of the entities that chose the block, tested on the other"
    rows.append(Row.of(stats.proportion(hits, unit="entity"), metric=task.metric, definition=definition, split="half", **shared))
    return rows


@contextmanager
def _probing(name: str, sites: int) -> Iterator[Callable[[], None]]:
    """A progress bar over the sites; yields a function that advances it by one."""
    with progress(f"probes of {name}", sites) as advance:
        yield lambda: advance(1)


def _twin(subject: EntityTask, context: Context) -> Result:
    """The same sweep over the same architecture with random weights."""
    o = subject.options
    twin = subject.twin()
    rows, arrays = list[Row](), dict[str, np.ndarray]()
    with TemporaryDirectory(dir=context.scratch) as folder, ExitStack() as bars:
        held = subject.captured(twin, Path(folder))
        for panel in subject.panels:
            one = bars.enter_context(_probing(subject.items.name, len(held.rows)))
            found = sweep_probes(held.at(-1), panel, choose=True, seed=o.seed, tick=one)
            rows += rows_of(found, subject.items.name, "random weights", token="last", split=subject.split, seed=o.seed)
            for t, task in enumerate(panel.tasks):
                arrays[f"{task.name}|random weights"] = found.chosen(t)[0]
    return Result.of(rows, arrays=arrays)


def _shared(subject: EntityTask, context: Context) -> Result:
    """The same probes, where no training name shares a token with a test name."""
    o, rows, notes = subject.options, list[Row](), list[str]()
    decoded = {t: subject.lm.tokenizer.decode([t]).strip().casefold() for t in {t for ts in subject.name_tokens for t in ts}}
    with TemporaryDirectory(dir=context.scratch) as folder, ExitStack() as bars:
        last, bags = subject.taken_last(Path(folder))
        for panel in subject.panels:
            classes = next((t.values for t in panel.tasks if t.kind == "class"), None)
            names = [[decoded[t] for t in subject.name_tokens[i]] for i in panel.rows]
            try:
                pairs = purged_folds(names, k=2 * o.folds, seed=o.seed, stratify=classes)
            except UserError as error:
                listed = ", ".join(t.name for t in panel.tasks)
                notes.append(f"{subject.items.name} ({listed}) was not tested without shared tokens: {error}")
                continue
            one = bars.enter_context(_probing(subject.items.name, len(last)))
            purged = panel.with_folds(pairs)
            found = sweep_probes(last, purged, seed=o.seed, tick=one)
            rows += rows_of(found, subject.items.name, ESTIMATE, token="last", split="shared token", seed=o.seed)
            bag = sweep_probes(bags, purged, seed=o.seed)
            rows += rows_of(bag, subject.items.name, "bag of token embeddings", split="shared token", seed=o.seed)
    return Result.of(rows, notes=tuple(notes))


def _context(subject: EntityTask, context: Context) -> Result:
    """The same probes with the context limited to the first token and the last k tokens."""
    o, rows = subject.options, list[Row]()
    template = subject.templates[0]
    ids = list(encode(subject.lm.tokenizer, subject.prompts(template), Tokens("all"), causal=subject.lm.causal).ids)
    for k in range(1, o.context + 1):
        cut = [row if len(row) <= k + 1 else np.concatenate([row[:1], row[-k:]]) for row in ids]
        acts = subject.lm.capture(cut, SITES, "last", batch_tokens=o.batch_tokens)
        held = {str(s): [acts[s]] for s in acts.sites}
        for panel in subject.panels[:1]:  # the attributes known of the most entities; the others would tell the same
            found = sweep_probes(held, panel, seed=o.seed)
            condition = f"context: last {k} tokens"
            rows += rows_of(found, subject.items.name, condition, token="last", split=subject.split, seed=o.seed)
    return Result.of(rows)


def _summary(subject: EntityTask, context: Context) -> Result:
    """At the block chosen on the other half: the estimate, each control, and the paired gain over it."""
    name = subject.items.name
    results = context.inputs
    arrays = dict(results[name].arrays) | dict(results[f"{name} random weights"].arrays)
    rows = []
    for panel in subject.panels:
        for task in panel.tasks:
            tops = {key.partition("|")[2]: a for key, a in arrays.items() if key.partition("|")[0] == task.name}
            definition = "ridge probe at the block chosen on the other half of the entities"
            rows += chosen_rows(
                task,
                {ESTIMATE: tops.pop(ESTIMATE)} | dict(sorted(tops.items())),
                item=f"{name}.{task.name}",
                split=subject.split,
                token="last",
                definition=definition,
                seed=subject.options.seed,
            )
    return Result.of(rows)


def _tops(scores: ProbeScores) -> Float[np.ndarray, "top_bottom entity"]:
    return np.stack([scores.top[0], scores.bottom[0]])[:, scores.tested]


def _predicted(subject: EntityTask, panel: Panel, scores: ProbeScores) -> pd.DataFrame:
    """True and predicted values of held-out entities, for the map and the scatter plot."""
    frame = subject.items.frame.iloc[panel.rows]
    group = next((a.name for a in subject.items.attributes if a.name == "continent"), None)
    return pd.DataFrame(
        {
            "name": frame["name"].to_numpy(),
            "true": scores.task.values,
            "predicted": scores.predicted,
            "group": frame[group].fillna("").to_numpy() if group else "",
        }
    )
