"""Cards of features: where they are active, what they write, how much of them the current token explains."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from repscope import stats
from repscope.conditions import ESTIMATE
from repscope.data.contrasts.lookup import contrast
from repscope.directions import DirectionSet
from repscope.errors import UserError
from repscope.progress import progress
from repscope.read.sae import SparseAutoencoder
from repscope.read.sae.feature_statistics import FeatureStatistics, feature_statistics
from repscope.read.sae.meaning import logit_effects, nearest_directions
from repscope.read.sae.sparse_probes import cross_fitted_share
from repscope.results import Result, Row, at, records
from repscope.steer.from_texts import fit
from repscope.store import cut
from repscope.studies.features import names
from repscope.studies.features.task import FeaturesTask
from repscope.studies.run.study import Context

_PASSAGES = 4  #: documents on a card
_AROUND = 16  #: tokens shown on each side
_BATCH = 2048
_COUNTED = 65_536  #: stored rows on which features are counted
_SHARED = 20_000  #: stored rows on which token shares are measured
_MEASURED = 400  #: latents whose token share is measured
_LEAST_ACTIVE = 20  #: rows on which a latent is active that has a card
_LABELLED = ("sentiment", "formality", "language", "honesty")


def cards(task: FeaturesTask, context: Context) -> Result:
    """Cards of random living features of the main autoencoder, and of that of the random weights."""
    o, rows = task.options, list[Row]()
    made, passages = list[dict[str, Any]](), list[dict[str, Any]]()
    networks = [(ESTIMATE, task.main, False)] + ([(names.WEIGHTS, names.WEIGHTS, True)] if task.trainings else [])
    with progress("cards", len(networks)) as advance:
        for condition, name, twin in networks:
            one, store = task.opened(name, context), task.store(context, twin)
            found = feature_statistics(
                one, store.batches(rows=_BATCH, seed=o.seed, labels=True), top=_PASSAGES, distinct_documents=True
            )
            living = np.flatnonzero(found.density * found.rows >= _LEAST_ACTIVE)
            drawn = np.sort(np.random.default_rng(o.seed).permutation(living)[: o.cards])
            described = _described(task, one, drawn, twin)
            made += [
                {"condition": condition, "feature": int(i), "density": float(found.density[i]), **described[int(i)]} for i in drawn
            ]
            passages += _passages(task, condition, one, found, drawn)
            share = _token_shares(task, one, store, living)
            if len(share):
                where: dict[str, Any] = {"item": task.main, "condition": condition, "seed": o.seed, **at(task.site)}
                definition = "of stored rows; means of one half of the documents predict the other"
                rows.append(Row.of(stats.mean(share, unit="feature"), metric=names.TOKEN_SHARE, definition=definition, **where))
            advance(1)
    columns = ["condition", "feature", "density", "promoted", "suppressed", "nearest", "cosine"]
    shown = ["condition", "feature", "passage", "token", "shade"]
    side = {"cards": pd.DataFrame(made, columns=columns), "passages": pd.DataFrame(passages, columns=shown)}
    return Result.of(rows, side=side)


def _described(
    task: FeaturesTask, one: SparseAutoencoder, drawn: Int[np.ndarray, "drawn"], twin: bool
) -> dict[int, dict[str, Any]]:
    """What features write, and the labelled direction nearest to each."""
    blank = {"promoted": "", "suppressed": "", "nearest": "", "cosine": float("nan")}
    described: dict[int, dict[str, Any]] = {int(i): dict(blank) for i in drawn}
    latents = [int(i) for i in drawn]
    if not latents:
        return described
    try:
        effects = logit_effects(one, task.network(twin), latents, top=4)
    except UserError:  # not a site of the residual stream, or no head: no direct path to the logits
        effects = None
    if effects is not None:
        for row in records(effects.sort_values("rank")):
            described[int(row["latent"])][str(row["sign"])] += f"{', ' if row['rank'] else ''}{row['token']!r}"
    if not twin and task.site.kind.startswith("resid"):
        labelled = _labelled(task)
        for row in records(nearest_directions(one, labelled, latents)):
            described[int(row["latent"])] |= {"nearest": str(row["direction"]), "cosine": float(row["cosine"])}
    return described


def _labelled(task: FeaturesTask) -> DirectionSet:
    """Differences of means of built-in contrasts at the site."""
    few = 4 if task.options.tiny else 16
    found = []
    for name in _LABELLED:
        made = fit(task.lm, contrast(name).sample(few), at=str(task.site), methods=["difference of means"]).directions[0]
        found.append(replace(made, name=name))
    return DirectionSet(found, task.lm.fingerprint, "built-in contrasts")


def _passages(
    task: FeaturesTask, condition: str, one: SparseAutoencoder, found: FeatureStatistics, drawn: Int[np.ndarray, "drawn"]
) -> list[dict[str, Any]]:
    """Tokens around each feature's largest activations, with their own activations as shades."""
    lm, corpus = task.network(condition == names.WEIGHTS), task.documents(False)
    wanted = [(int(i), n) for i in drawn for n in range(_PASSAGES) if found.top[i, n] > 0]
    places, pieces = [], []
    for i, number in wanted:
        document, position = (int(found.labels[key][i, number]) for key in ("document", "position"))
        parts = cut(lm, [corpus[document]], task.options.context)
        piece = int(np.searchsorted(parts.start, position, side="right")) - 1
        pieces.append(np.asarray(parts.ragged[piece]))
        places.append(position - int(parts.start[piece]) + parts.lead)
    if not pieces:
        return []
    held = lm.capture(pieces, task.site, "all")
    x, rows = held[task.site], []
    for (i, number), centre, ids, start in zip(wanted, places, pieces, held.offsets):
        here = torch.from_numpy(np.array(x[start : start + len(ids)], np.float32)).flatten(1)
        values = one.activations(here, [i])[:, 0].detach().numpy()
        for place in range(max(0, centre - _AROUND), min(len(ids), centre + _AROUND + 1)):
            token = lm.tokenizer.decode([int(ids[place])]).replace("\n", " ")
            shade = float(np.clip(values[place] / max(float(found.top[i, 0]), 1e-12), 0, 1)) if place else 0.0
            rows.append({"condition": condition, "feature": i, "passage": number, "token": token, "shade": shade})
    return rows


def _token_shares(
    task: FeaturesTask, one: SparseAutoencoder, store: Any, living: Int[np.ndarray, "living"]
) -> Float[np.ndarray, "feature"]:
    """Share of each living feature's variance that the current token explains."""
    chosen = np.sort(np.random.default_rng(task.options.seed + 1).permutation(living)[:_MEASURED])
    if not len(chosen):
        return np.zeros(0)
    values, tokens, half = [], [], []
    seen = 0
    for batch in store.batches(rows=_BATCH, seed=task.options.seed, labels=True):
        x = next(iter(batch.rows.values())).float().flatten(1)
        with torch.no_grad():
            values.append(one.activations(x, _as_list(chosen)).numpy())
        tokens.append(batch.labels.token.numpy())
        half.append(batch.labels.document.numpy() % 2)
        seen += len(x)
        if seen >= _SHARED:
            break
    share = cross_fitted_share(np.concatenate(values), np.concatenate(tokens), np.concatenate(half))
    kept: np.ndarray = share[np.isfinite(share)]
    return kept


def _as_list(chosen: Sequence[int] | Int[np.ndarray, "some"]) -> list[int]:
    return [int(i) for i in chosen]
