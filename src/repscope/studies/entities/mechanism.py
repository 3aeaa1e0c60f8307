"""How a name becomes one vector: three steps per set of names, at the block by which its first attribute reads out.

1. mechanism: outputs of MLPs or attention replaced at the name's tokens by range of blocks, or attention between them cut; the
   vector is probed again, and the loss is compared with that of random changes of equal energy. Names that share a token with one
   of another class: looked up, or summed?
2. recombined: tokens of real names in new combinations; how much of the vector is a sum over tokens, and what a sum holds of the
   attributes. The same with random weights.
3. bases: neurons of the MLPs compared with random rotations of them (and with latents of a sparse autoencoder, if one is given);
   plain binary features of the text by block.
All at the last token of the name in the first prompt; folds are those of the probes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from repscope import stats
from repscope.conditions import (
    ABLATED_ATTENTION,
    ABLATED_MLPS,
    BAG,
    CUT,
    CUT_BEFORE,
    LATENTS,
    NOISE_ATTENTION,
    NOISE_MLPS,
    PAIRS,
    RANDOM_WEIGHTS,
    ROTATED,
    SINGLES,
    over,
)
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.prompts import Encoded, Prompt, encode
from repscope.models.sites import Site, Tokens
from repscope.progress import progress
from repscope.read import name_assembly
from repscope.read.name_assembly import Ablation, Grid
from repscope.read.probe_sweep import Panel
from repscope.read.probes import ProbeScores, ProbeTask, majority, probe
from repscope.results import ESTIMATE, Result, Row
from repscope.studies.entities.names import first_block
from repscope.studies.entities.task import EntityTask
from repscope.studies.run.study import Context, Cost, Step

COMPLETE = 0.9  #: share of the largest score over blocks from which on the vector counts as complete
_LEAST_DEPTH = 0.2  #: share of the blocks below which there is too little to ablate
_KS = (1, 4, 16)
_MOST_GRIDS = 6  #: of one number of tokens, in the short form
_LEAST_CONFLICTS = 10
_SHORT_NAMES = 120  #: names whose ablations are run in the short form
_WAYS = {
    ("mlp_out", "mean"): (ABLATED_MLPS, "mean over names"),
    ("mlp_out", "resample"): (ABLATED_MLPS, "those of another name"),
    ("mlp_out", "noise"): (NOISE_MLPS, "mean over names"),
    ("attn_out", "mean"): (ABLATED_ATTENTION, "mean over names"),
    ("attn_out", "resample"): (ABLATED_ATTENTION, "those of another name"),
    ("attn_out", "noise"): (NOISE_ATTENTION, "mean over names"),
    ("pattern", "cut"): (CUT, ""),
    ("pattern", "cut before"): (CUT_BEFORE, ""),
}


def mechanism_steps(subject: EntityTask, cost: Callable[[EntityTask, float], Callable[[], Cost]]) -> list[Step]:
    """The steps of one set of names."""
    name = subject.items.name
    parts = (("mechanism", _ablations, 1.5), ("recombined", _recombined, 1.0), ("bases", _bases, 0.7))
    return [
        Step(f"{name} {part}", partial(compute, subject), cost(subject, weight), needs=(name,)) for part, compute, weight in parts
    ]


def _encoded(subject: EntityTask) -> Encoded:
    lm = subject.lm
    return encode(lm.tokenizer, subject.prompts(subject.templates[0]), Tokens("all", "name"), lm.context, causal=lm.causal)


def target_block(subject: EntityTask, context: Context) -> int:
    """The block by which the first attribute reads out, and at least a fifth of the depth."""
    item = f"{subject.items.name}.{subject.panels[0].tasks[0].name}"
    table = context.inputs[subject.items.name].table
    found = first_block(table[table["item"] == item], COMPLETE)
    blocks = subject.lm.blocks
    return min(max(found[0] if found else 0, round(_LEAST_DEPTH * blocks), 1), blocks - 1)


def _where(subject: EntityTask, task: ProbeTask, **more: Any) -> dict[str, Any]:
    item = f"{subject.items.name}.{task.name}"
    return {"item": item, "token": "last", "split": subject.split, "seed": subject.options.seed} | more


# ---------------------------------------------------------------------------------------------- ablations


def _ablations(subject: EntityTask, context: Context) -> Result:
    """What the vector loses, by range of blocks; and names that share a token."""
    o, panel, encoded = subject.options, subject.panels[0], _encoded(subject)
    if o.short and len(panel.rows) > _SHORT_NAMES:
        kept = np.isin(np.arange(len(panel.rows)), np.random.default_rng(o.seed).permutation(len(panel.rows))[:_SHORT_NAMES])
        panel = panel.keep(kept)
    some = Encoded(encoded.ids.take(panel.rows), encoded.start[panel.rows], encoded.stop[panel.rows])
    runs = name_assembly.name_runs(subject.lm, some, target_block(subject, context), seed=o.seed)
    intact = probe(runs.intact, panel.tasks, panel.folds, shuffles=0)
    tried, notes = _tried(subject, runs)
    rows: list[Row] = []
    scores: dict[Ablation, list[ProbeScores]] = {}
    with progress(f"ablations of {subject.items.name}", len(tried)) as advance:
        for ablation in tried:
            scores[ablation] = probe(runs.ablated(ablation), panel.tasks, panel.folds, shuffles=0)
            rows += [_lost(subject, runs.target, ablation, ours, s) for ours, s in zip(intact, scores[ablation])]
            advance(1)
    for t, task in enumerate(panel.tasks):
        rows += _extra(subject, task, runs.target, {a: s[t] for a, s in scores.items()})
    rows += _conflicts(subject, panel, intact, runs.target)
    if runs.alone:
        notes.append(f"{runs.alone} names have no other of as many tokens, so their outputs stay when others are resampled.")
    return Result.of(rows, notes=tuple(notes))


def _tried(subject: EntityTask, runs: name_assembly.NameRuns) -> tuple[list[Ablation], list[str]]:
    """The ablations: by range and of all blocks; in the short form without resampling, attention's noise for all blocks only."""
    o, lm, tried, notes = subject.options, subject.lm, list[Ablation](), list[str]()
    spans = name_assembly.ranges(runs.target, o.ranges)
    whole = spans[-1]
    for span in spans:
        for part in ("mlp_out", "attn_out"):
            ways = ["mean", "noise"] if o.short and (part == "mlp_out" or span == whole) else ["mean"]
            ways = ["mean", "noise", "resample"] if not o.short else ways
            tried += [Ablation(part, way, *span) for way in ways]  # type: ignore[arg-type]
    try:
        lm.resolve("pattern")
        for span in spans:
            tried.append(Ablation("pattern", "cut", *span))
        if runs.has_before:
            tried.append(Ablation("pattern", "cut before", *whole))
    except UserError as error:
        notes.append(f"Attention between the tokens of names was not cut: {error}")
    return tried, notes


def _lost(subject: EntityTask, target: int, ablation: Ablation, intact: ProbeScores, after: ProbeScores) -> Row:
    condition, definition = _WAYS[ablation.part, ablation.way]
    metric = "accuracy lost" if intact.task.kind == "class" else "R² lost"
    return Row.of(
        _difference(intact, after, subject.options.seed),
        metric=metric,
        definition=" ".join(filter(None, [definition, f"read after block {target}"])),
        condition=condition,
        site=f"blocks {ablation.first}–{ablation.last}",
        layer=ablation.first,
        **_where(subject, intact.task),
    )


def _difference(a: ProbeScores, b: ProbeScores, seed: int) -> stats.Estimate:
    """Score of a minus that of b, paired over entities."""
    rows = a.tested
    top = a.top[0, rows] - b.top[0, rows]
    if a.task.kind == "class":
        return stats.change_of_proportion(b.top[0, rows], a.top[0, rows], unit="entity", seed=seed)
    return stats.ratio(top, a.bottom[0, rows], unit="entity", seed=seed)


def _extra(subject: EntityTask, task: ProbeTask, target: int, scores: dict[Ablation, ProbeScores]) -> list[Row]:
    """At all blocks: what replacing the MLPs' outputs costs more than a random change, and than replacing attention's."""
    whole = max(scores, key=lambda a: a.last - a.first)
    span = (whole.first, whole.last)
    compared = {
        (ABLATED_MLPS, NOISE_MLPS): (Ablation("mlp_out", "mean", *span), Ablation("mlp_out", "noise", *span)),
        (ABLATED_MLPS, ABLATED_ATTENTION): (Ablation("mlp_out", "mean", *span), Ablation("attn_out", "mean", *span)),
        (ABLATED_ATTENTION, NOISE_ATTENTION): (Ablation("attn_out", "mean", *span), Ablation("attn_out", "noise", *span)),
        (CUT, CUT_BEFORE): (Ablation("pattern", "cut", *span), Ablation("pattern", "cut before", *span)),
    }
    rows = []
    for (ours, control), (a, b) in compared.items():
        if a in scores and b in scores:
            estimate = _difference(scores[b], scores[a], subject.options.seed)
            rows.append(
                Row.of(
                    estimate,
                    metric="extra loss",
                    definition=f"{ours}; read after block {target}",
                    condition=over(control),
                    site=f"blocks {span[0]}–{span[1]}",
                    layer=span[0],
                    **_where(subject, task),
                )
            )
    return rows


def _conflicts(subject: EntityTask, panel: Panel, intact: list[ProbeScores], target: int) -> list[Row]:
    """Names that share a token with a name of another class: is each read right, or taken for the other?"""
    o, lm, rows = subject.options, subject.lm, list[Row]()
    text = [[lm.tokenizer.decode([t]) for t in subject.name_tokens[i]] for i in panel.rows]
    bags = lm.capture(subject.prompts(subject.templates[0]), "embed", "name.mean", batch_tokens=o.batch_tokens).numpy()
    bag = probe(bags[panel.rows], panel.tasks, panel.folds, shuffles=0)
    for t, task in enumerate(panel.tasks):
        if task.kind != "class":
            continue
        found = name_assembly.conflicts(text, task.values, len(task.classes))
        if found.names.sum() < _LEAST_CONFLICTS:
            continue
        said = {ESTIMATE: intact[t].predicted, BAG: bag[t].predicted}
        definition = f"{found.pairs} pairs of names; read after block {target}"
        where = _where(subject, task, definition=definition, site=f"resid_post.{target}", layer=target)
        right = {c: found.right(p, task.values) for c, p in said.items()}
        for condition, predicted in said.items():
            share = stats.proportion(right[condition], unit="entity", seed=o.seed)
            rows.append(Row.of(share, metric="conflict accuracy", condition=condition, **where))
            taken = stats.proportion(found.taken_for_other(predicted), unit="entity", seed=o.seed)
            rows.append(Row.of(taken, metric="taken for the other name", condition=condition, **where))
        gain = stats.change_of_proportion(right[BAG], right[ESTIMATE], unit="entity", seed=o.seed)
        rows.append(Row.of(gain, metric="conflict gain", condition=over(BAG), **where))
    return rows


# ---------------------------------------------------------------------------------------------- recombined tokens


def _recombined(subject: EntityTask, context: Context) -> Result:
    """How much of the vector is a sum over tokens."""
    o, lm, panel = subject.options, subject.lm, subject.panels[0]
    target = target_block(subject, context)
    encoded = _encoded(subject)
    small = o.short or o.tiny
    rows, notes = list[Row](), list[str]()
    twin = lm.twin(o.seed)
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
        where = _where(subject, task, definition=definition, site=site, layer=target)
        for condition, scores in {ESTIMATE: kept, **parts}.items():
            share = stats.proportion(scores[t].top[0, scores[t].tested], unit="entity", seed=o.seed)
            rows.append(Row.of(share, metric="accuracy from parts", condition=condition, **where))
        for condition, scores in parts.items():
            rows.append(
                Row.of(_difference(kept[t], scores[t], o.seed), metric="extra accuracy", condition=over(condition), **where)
            )
    return rows


# ---------------------------------------------------------------------------------------------- bases


def _bases(subject: EntityTask, context: Context) -> Result:
    """Neurons compared with rotations of them; plain features of the text."""
    o, lm, panel, notes = subject.options, subject.lm, subject.panels[0], list[str]()
    target = target_block(subject, context)
    prompts = subject.prompts(subject.templates[0])
    rows: list[Row] = []
    at = sorted({0, target // 2, target})[-1 if o.short or o.tiny else 0 :]
    task = next((t for t in panel.tasks if t.kind == "class"), panel.tasks[0])
    try:
        held = lm.capture(prompts, [f"mlp_act.{b}" for b in at], "name.last", batch_tokens=o.batch_tokens)
        for block in at:
            rows += _basis(subject, panel, task, held[f"mlp_act.{block}"], f"mlp_act.{block}", ESTIMATE)
    except UserError as error:
        notes.append(f"Neurons were not compared with rotations of them: {error}")
    if o.sae is not None:
        rows += _latents(subject, panel, task)
    sites = [str(s) for s in lm.resolve(["embed", *(f"resid_post.{b}" for b in range(target + 1))])]
    rows += _plain_features(subject, sites)
    return Result.of(rows, notes=tuple(notes))


def _basis(subject: EntityTask, panel: Panel, task: ProbeTask, features: np.ndarray, site: str, condition: str) -> list[Row]:
    o = subject.options
    ks = _KS[1:2] if o.tiny else _KS
    found = name_assembly.basis_scores(
        features[panel.rows], task, panel.folds, ks, rotations=1 if o.tiny else 2 if o.short else 3, seed=o.seed
    )
    where = _where(subject, task, site=site, layer=Site.parse(site).layer)
    rows = []
    for k in ks:
        definition = f"{k} of {features.shape[1]} features, chosen on the training names"
        rows.append(
            Row.of(
                found.scores[k].estimate(seed=o.seed), metric="sparse accuracy", condition=condition, definition=definition, **where
            )
        )
        turned = np.mean([s.top[0, s.tested] for s in found.rotated[k]], axis=0)
        bottom = found.scores[k].bottom[0, found.scores[k].tested]
        rotated = stats.ratio(turned, bottom, unit="entity", seed=o.seed)
        if condition == ESTIMATE:
            rows.append(Row.of(rotated, metric="sparse accuracy", condition=ROTATED, definition=definition, **where))
        rows.append(Row.of(found.gain(k, o.seed), metric="sparse gain", condition=over(ROTATED), definition=definition, **where))
    rows.append(Row.of(found.kurtosis, metric="kurtosis", condition=condition, definition="mean over features", **where))
    if condition == ESTIMATE:
        rows.append(Row.of(found.rotated_kurtosis, metric="kurtosis", condition=ROTATED, definition="mean over features", **where))
    return rows


def _latents(subject: EntityTask, panel: Panel, task: ProbeTask) -> list[Row]:
    """The latents of a sparse autoencoder at its own site, as a basis."""
    from repscope.read import sae

    lm = subject.lm
    assert subject.options.sae is not None
    one = sae.open(subject.options.sae)
    width = lm.anatomy.width if lm.anatomy else 0
    if one.site is None or one.d_in != width:
        raise UserError(f"{subject.options.sae} reads {one.d_in} features at {one.site}; give one of a site of {width} features.")
    site = str(lm.resolve(one.site)[0])
    held = lm.capture(subject.prompts(subject.templates[0]), site, "name.last", batch_tokens=subject.options.batch_tokens)[site]
    with torch.no_grad():
        latents = one.encode(torch.from_numpy(held)).dense().float().cpu().numpy()
    return _basis(subject, panel, task, latents, site, LATENTS)


def _plain_features(subject: EntityTask, sites: list[str]) -> list[Row]:
    """Binary features of the last token, and sentiment of single words, by block."""
    o, lm = subject.options, subject.lm
    last = [_piece(lm, tokens[-1]) for tokens in subject.name_tokens]
    held = lm.capture(subject.prompts(subject.templates[0]), sites, "name.last", batch_tokens=o.batch_tokens)
    rows = []
    for feature in name_assembly.text_features(last):
        rows += _feature_rows(subject, feature, {s: held[s] for s in sites}, subject.items.name)
    words, sentiment = name_assembly.word_features()
    asked = [Prompt.fill("The word {word}", word=word) for word in words]
    said = lm.capture(asked, sites, "word.last", batch_tokens=o.batch_tokens)
    return rows + _feature_rows(subject, sentiment, {s: said[s] for s in sites}, "words")


def _piece(lm: LanguageModel, token: int) -> str:
    """A token as text, with the space before it where the tokenizer has one."""
    piece = str(lm.tokenizer.convert_ids_to_tokens(int(token)))
    text: str = lm.tokenizer.decode([token])
    return f" {text.strip()}" if piece[:1] in "▁Ġ" else text


def _feature_rows(subject: EntityTask, feature: name_assembly.TextFeature, held: dict[str, np.ndarray], name: str) -> list[Row]:
    from repscope.data.splits import folds as assign

    o = subject.options
    fold = assign(len(feature.rows), o.folds, o.seed, feature.task.values)
    pairs = [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(o.folds)]
    rows = []
    where: dict[str, Any] = {"item": f"{name}: {feature.name}", "token": "last", "metric": "text feature accuracy", "seed": o.seed}
    for site, x in held.items():
        score = probe(x[feature.rows], [feature.task], pairs, shuffles=0)[0].estimate(seed=o.seed)
        rows.append(Row.of(score, condition=ESTIMATE, site=site, layer=Site.parse(site).layer, **where))
    common = stats.proportion(majority(feature.task, pairs), unit="entity", seed=o.seed)
    return [*rows, Row.of(common, condition="majority class", **where)]
