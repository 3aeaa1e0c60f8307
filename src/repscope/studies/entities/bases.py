"""The step on bases: neurons compared with random rotations of them and with latents; plain features of the text by block."""

from typing import Any

import numpy as np
import torch

from repscope import stats
from repscope.conditions import LATENTS, ROTATED, over
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.prompts import Prompt
from repscope.models.sites import Site
from repscope.read import name_assembly
from repscope.read.probe_sweep import Panel
from repscope.read.probes import ProbeTask, majority, probe
from repscope.results import ESTIMATE, Result, Row
from repscope.studies.entities.task import EntityTask
from repscope.studies.entities.vectors import target_block, where_of
from repscope.studies.run.study import Context

_KS = (1, 4, 16)  #: features that a sparse probe reads


def bases(subject: EntityTask, context: Context) -> Result:
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
    where = where_of(subject, task, site=site, layer=Site.parse(site).layer)
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
