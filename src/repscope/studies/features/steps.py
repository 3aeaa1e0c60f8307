"""Which sparse features make up a layer, and a name?

1. Harvest: activations of a site over a corpus, of the network and of the same network with random weights (every tenth document is
   held out).
2. Train one autoencoder per number of active latents, one from a second seed, one on the random weights; or open a published one.
3. Quality, on held-out texts: variance explained, and the loss when the reconstruction replaces the site, beside as many principal
   components and a dictionary of random unit vectors of equal size.
4. Cards of features, and of those of the random weights.
5. Names: k-sparse probes on latents at the last token of a name, beside dense probes, a random dictionary, neurons and the random
   weights.
6. The second seed: are its features the same?
"""

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from repscope import stats
from repscope.conditions import ESTIMATE, over
from repscope.errors import UserError
from repscope.models.prompts import Ragged
from repscope.progress import progress
from repscope.read import sae
from repscope.read.sae import SparseAutoencoder
from repscope.read.sae.baselines import baseline
from repscope.read.sae.matching import matched_features
from repscope.read.sae.quality import Errors, HeldOut, Losses, principal_components
from repscope.results import Result, Row, at
from repscope.store import harvest
from repscope.studies.features import names
from repscope.studies.features.cards import cards
from repscope.studies.features.entities import entity_set_of, probes
from repscope.studies.features.options import FeaturesOptions
from repscope.studies.features.task import SECOND_SEED, FeaturesTask, Training, folder_of, store_folder
from repscope.studies.features.training import recipe, train_one
from repscope.studies.run.study import Context, Cost, Setup, Step

_SAMPLED = 20_000  #: stored rows from which principal components and the random dictionary's scale come
_BINS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def steps(setup: Setup[FeaturesOptions]) -> list[Step]:
    """Harvest, one step per autoencoder, quality, cards, one step per set of entities, and the second seed."""
    task = FeaturesTask(setup)
    _ = task.site, task.corpus  # what is wrong with them is said before anything runs
    if task.published is not None and task.published.d_in != task.width:
        raise UserError(
            f"{task.options.sae} reads {task.published.d_in} features, and {task.site} has {task.width}; give one of this site."
        )
    sets = [entity_set_of(task, name) for name in dict.fromkeys(task.options.entities)]
    probing = ("folds", "entities", "name", "attribute", "cards", "evaluated")
    forms = ("k", *probing)
    others = (*forms, "expansion", "epochs", "architecture")
    made = [Step("harvest", partial(_harvest, task), partial(_harvest_cost, task), ignores=others)]
    for one in task.trainings:
        _ = recipe(task, one, task.options.tokens)
        compute, cost = partial(_train, task, one), partial(_train_cost, task)
        made.append(Step(one.step, compute, cost, f"k {one.k}", needs=("harvest",), ignores=forms))
    trained = tuple(one.step for one in task.trainings)
    ready = ("harvest", *trained)
    made.append(Step("quality", partial(_quality, task), partial(_quality_cost, task), needs=ready))
    made.append(Step("cards", partial(cards, task), partial(_cards_cost, task), needs=ready))
    for items in sets:
        made.append(Step(items.name, partial(probes, task, items), partial(_probe_cost, task, len(items)), needs=ready))
    if task.trainings:
        made.append(Step("second seed", partial(_second_seed, task), lambda: Cost(fit_flops=1e10), needs=ready))
    return made


def _blocks_flops(task: FeaturesTask, whole: bool = False) -> float:
    """Operations per token up to the site, or of the whole network."""
    plan = task.lm.plan(Ragged.of([np.zeros(64)]), task.lm.last if whole else task.site)
    return float(plan.flops) / 64


def _harvest_cost(task: FeaturesTask) -> Cost:
    o = task.options
    networks = 1 if task.published is not None else 2
    flops = networks * o.tokens * _blocks_flops(task)
    return Cost(networks * o.tokens, flops, 0.0, networks * 4.0 * o.tokens * task.width, task.lm.blocks // 3)


def _train_cost(task: FeaturesTask) -> Cost:
    o = task.options
    latents = o.expansion * task.width
    return Cost(fit_flops=2.0 * o.tokens * o.epochs * task.width * latents * 1.6, disk_bytes=8.0 * task.width * latents)


def _quality_cost(task: FeaturesTask) -> Cost:
    o = task.options
    tokens = o.evaluated * o.context * (2 + 3 * len(task.names))
    return Cost(tokens, tokens * _blocks_flops(task, whole=True), 0.0, 0.0, task.lm.blocks)


def _cards_cost(task: FeaturesTask) -> Cost:
    o = task.options
    tokens = 2 * o.cards * 5 * o.context
    return Cost(tokens, tokens * _blocks_flops(task), 2.0 * 2 * o.tokens * task.width * o.expansion * task.width)


def _probe_cost(task: FeaturesTask, n: int) -> Cost:
    o = task.options
    return Cost(n * 8, n * 8 * _blocks_flops(task) * 3, 4.0 * o.folds * n * o.expansion * task.width * 40)


def _harvest(task: FeaturesTask, context: Context) -> Result:
    """The stored activations, and how many rows, texts and documents they have."""
    o = task.options
    corpus = task.documents(False)
    rows = []
    for twin in (False, True) if task.published is None else (False,):
        store = harvest(
            task.network(twin), corpus, task.site, store_folder(context, twin), length=o.context, rows=o.tokens, skip=1, seed=o.seed
        )
        condition = names.WEIGHTS if twin else ESTIMATE
        rows.append(Row(metric="stored rows", value=len(store), condition=condition, seed=o.seed, **at(task.site)))
    versions = ", ".join(f"{name} {version}" for name, version in task.corpus.sources.items())
    described = f"{task.corpus.name}, {len(task.corpus):,} documents" + (f" ({versions})" if versions else "")
    side = {"corpus": pd.DataFrame({"corpus": [described], "fingerprint": [task.corpus.fingerprint]})}
    return Result.of(rows, side=side, notes=task.corpus.notes)


def _train(task: FeaturesTask, one: Training, context: Context) -> Result:
    """One autoencoder, as an artifact; the log of its training as a side table."""
    found = train_one(task, one, context)
    shutil.rmtree(folder_of(context, one.name), ignore_errors=True)  # of a run that was killed after it was written
    sae.save(found.autoencoder, folder_of(context, one.name))
    last = found.log[-1]
    condition = names.WEIGHTS if one.twin else ESTIMATE
    where: dict[str, Any] = {"item": one.name, "condition": condition, "seed": one.seed, **at(task.site)}
    rows = [Row(metric="training explained variance", definition="of the last batch", value=last["variance_explained"], **where)]
    return Result.of(rows, side={"log": pd.DataFrame([dict(r) for r in found.log])})


def _sample(task: FeaturesTask, context: Context, twin: bool = False) -> tuple[Float[Tensor, "row d"], Float[Tensor, "d"]]:
    """Some stored rows, and the mean of all."""
    store = task.store(context, twin)
    batch = next(iter(store.batches(rows=min(_SAMPLED, len(store)), seed=task.options.seed)))
    return next(iter(batch.rows.values())).float().flatten(1), store.mean(str(task.site)).float().flatten()


def _quality(task: FeaturesTask, context: Context) -> Result:
    """Every autoencoder and its controls on held-out texts."""
    o, rows = task.options, list[Row]()
    sample, mean = _sample(task, context)
    held = HeldOut(task.lm, task.site, list(task.evaluated.ragged), mean)
    head = _has_head(task)
    density, described = [], []
    with progress("quality", 2 + 3 * len(task.names)) as advance:
        own, floor = (held.losses(), held.losses(held.constant)) if head else (None, None)
        cost = None if own is None or floor is None else stats.ratio(floor.nats - own.nats, own.tokens, unit="text")
        advance(2)
        for name in task.names:
            one = task.opened(name, context)
            inner = torch.from_numpy(held.inner)
            active = one.encode(held.rows[inner])
            k = max(1, round(float(active.l0.float().mean())))
            matched = baseline("random", sample, one.d_sae, k, seed=o.seed)
            each: dict[str, Callable[[Tensor], Tensor]] = {
                ESTIMATE: one.reconstruct,
                names.COMPONENTS: principal_components(sample, mean, min(k, one.d_in)),
                names.DICTIONARY: matched.reconstruct,
            }
            errors, losses = {}, {}
            for condition, reconstruct in each.items():
                errors[condition] = held.errors(reconstruct)
                if own is not None:
                    losses[condition] = held.losses(reconstruct)
                advance(1)
            rows += _error_rows(task, name, errors)
            if own is not None and floor is not None and cost is not None:
                rows += _loss_rows(task, name, own, floor, losses, costly=bool(cost.lo > 0))
            rows += _activity_rows(task, name, one, held, float(k))
            share = np.bincount(active.indices.numpy(), minlength=one.d_sae) / len(inner)
            density.append({"autoencoder": name} | dict(zip(_BIN_NAMES, _histogram(share))))
            described.append({"autoencoder": name, "what": repr(one)})
        if task.trainings:
            rows += _twin_rows(task, context)
    notes = () if head else ("The network has no head, so its loss was not measured.",)
    if cost is not None and not cost.lo > 0:
        notes = (f"CE recovered is undefined: with {task.site} replaced by its mean the loss does not rise beyond chance.",)
    return Result.of(rows, side={"density": pd.DataFrame(density), "autoencoders": pd.DataFrame(described)}, notes=notes)


def _has_head(task: FeaturesTask) -> bool:
    try:
        task.lm.head()
    except UserError:
        return False
    return True


_BIN_NAMES = ("never", "< 1e-5", "1e-5 – 1e-4", "1e-4 – 0.001", "0.001 – 0.01", "0.01 – 0.1", "> 0.1")


def _histogram(share: Float[np.ndarray, "latent"]) -> list[float]:
    """Shares of latents by density."""
    counts = np.histogram(share[share > 0], [*_BINS[:-1], 1.0 + 1e-9])[0]
    return [float((share == 0).mean()), *(float(c) / len(share) for c in counts)]


def _error_rows(task: FeaturesTask, name: str, errors: dict[str, Errors]) -> list[Row]:
    where: dict[str, Any] = {"item": name, "split": "held-out texts", "seed": task.options.seed, **at(task.site)}
    rows = []
    for condition, e in errors.items():
        estimate = stats.ratio(e.spread - e.squared, e.spread, unit="text")
        rows.append(Row.of(estimate, metric=names.EXPLAINED, condition=condition, **where))
    return rows


def _loss_rows(task: FeaturesTask, name: str, own: Losses, floor: Losses, losses: dict[str, Losses], *, costly: bool) -> list[Row]:
    """KL of each reconstruction; if the mean costs anything, CE recovered, and its paired differences."""
    where: dict[str, Any] = {"item": name, "split": "held-out texts", "seed": task.options.seed, **at(task.site)}
    rows, bottom = [], floor.nats - own.nats
    for condition, loss in losses.items():
        rows.append(Row.of(stats.ratio(loss.kl, loss.tokens, unit="text"), metric=names.KL, condition=condition, **where))
        if costly:
            share = stats.ratio(floor.nats - loss.nats, bottom, unit="text")
            rows.append(Row.of(share, metric=names.RECOVERED, condition=condition, **where))
    if not costly:  # a share of nothing
        return rows
    gains = where | {"item": names.RECOVERED, "split": name}
    for condition in (names.COMPONENTS, names.DICTIONARY):
        top = np.stack([floor.nats - losses[c].nats for c in (ESTIMATE, condition)], axis=1)
        two = np.stack([bottom, bottom], axis=1)
        found = stats.functions_of_ratios(top, two, {"gain": lambda r: r[:, 0] - r[:, 1]}, unit="text")["gain"]
        rows.append(Row.of(found, metric="gain", definition=names.RECOVERED, condition=over(condition), **gains))
    return rows


def _activity_rows(task: FeaturesTask, name: str, one: SparseAutoencoder, held: HeldOut, k: float) -> list[Row]:
    where: dict[str, Any] = {"item": name, "split": "held-out texts", "seed": task.options.seed, **at(task.site)}
    latents = one.encode(held.rows)
    active = held.per_text(latents.l0.double().numpy())
    tokens = np.diff(held.offsets) - 1
    seen = np.zeros(one.d_sae, dtype=bool)
    kept = np.isin(latents.row_of.numpy(), held.inner)
    seen[latents.indices.numpy()[kept]] = True
    rows = [
        Row.of(stats.ratio(active, tokens, unit="text"), metric=names.L0, **where),
        Row.of(stats.proportion((~seen).astype(float), unit="latent"), metric=names.DEAD, **where),
    ]
    return rows + [
        Row(metric=names.L0, definition="set to that of the autoencoder", value=k, condition=c, **where)
        for c in (names.COMPONENTS, names.DICTIONARY)
    ]


def _twin_rows(task: FeaturesTask, context: Context) -> list[Row]:
    """Variance explained by the autoencoder of the random weights, on their own activations."""
    one = task.opened(names.WEIGHTS, context)
    _, mean = _sample(task, context, twin=True)
    held = HeldOut(task.twin, task.site, list(task.evaluated.ragged), mean)
    where: dict[str, Any] = {"item": task.main, "split": "held-out texts", "seed": task.options.seed, **at(task.site)}
    e = held.errors(one.reconstruct)
    active = stats.ratio(held.per_text(one.encode(held.rows).l0.double().numpy()), e.tokens, unit="text")
    return [
        Row.of(stats.ratio(e.spread - e.squared, e.spread, unit="text"), metric=names.EXPLAINED, condition=names.WEIGHTS, **where),
        Row.of(active, metric=names.L0, condition=names.WEIGHTS, **where),
    ]


def _second_seed(task: FeaturesTask, context: Context) -> Result:
    """How many features of the main autoencoder the second seed has, beside a permuted and a random dictionary."""
    one, other = (task.opened(name, context) for name in (task.main, SECOND_SEED))
    sample, _ = _sample(task, context)
    alive = np.zeros(one.d_sae, dtype=bool)
    alive[one.encode(sample).indices.numpy()] = True
    found = matched_features(one.W_dec, other.W_dec, seed=task.options.seed)
    drawn = baseline("random", sample[:1000], one.d_sae, 1, seed=task.options.seed + 1)
    chance = matched_features(one.W_dec, drawn.W_dec, seed=task.options.seed).cosine
    where: dict[str, Any] = {"item": task.main, "seed": task.options.seed, **at(task.site)}
    rows = []
    pairs = ((ESTIMATE, found.cosine, ""), (names.PERMUTED, found.null, ""), (names.DICTIONARY, chance, ""))
    for condition, cosines, definition in pairs:
        estimate = stats.mean(cosines[alive], unit="feature")
        rows.append(Row.of(estimate, metric=names.MATCHED, definition=definition, condition=condition, **where))
        again = stats.proportion((cosines[alive] > names.AGAIN).astype(float), unit="feature")
        rows.append(Row.of(again, metric=names.FOUND, definition=f"cosine above {names.AGAIN}", condition=condition, **where))
    return Result.of(rows, arrays={"partner": found.partner, "cosine": found.cosine})
