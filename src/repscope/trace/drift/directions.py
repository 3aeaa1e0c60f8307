"""Do directions of the base network still read, point and act in the tuned one?

Labelled prompts are split into a training and a test half (stratified by label, from a seed). Per site:

1. *Read*: accuracy on the test half of a ridge probe (`read.probes`) fitted to the base network's training half: on the tuned
   network (the estimate), on the base network, and of a probe fitted again on the tuned network. Control: a probe of as many random
   directions as the task needs (classes - 1), fitted to the base. Given directions are read the same way: their coordinates, with
   scale and threshold from the base's training half.
2. *Point*: cosine between the difference of class means (class minus the others, mean over classes) of the base and of the tuned
   network, from different halves of all prompts. Floors: two halves of one network, which no direction can beat, and random
   directions. The rows' intervals are the central 95 % of `halvings` random halvings.
3. *Act* (`acts`): the effect of adding the same vector in both networks on choices between two continuations, in nats, beside
   random directions of equal norm. The effect ratio is the tuned network's effect over the base's, paired by choice.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from repscope import stats
from repscope.conditions import ESTIMATE, RANDOM
from repscope.data.contrasts import Choice
from repscope.directions import Direction
from repscope.directions.random import random_units
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.prompts import PromptLike
from repscope.models.sites import Site, Tokens
from repscope.read.probes import ProbeTask, probe_directions
from repscope.results import Result, Row
from repscope.results import at as at_site
from repscope.steer.effects import log_odds
from repscope.trace.drift.prompted import listed, same_ids, shared_sites

BASE, REFIT, HALVES = "base network", "refit on the tuned network", "two halves"
#: metric → its definition
DEFINITIONS = {
    "accuracy": "share of test prompts whose class a ridge probe of the base network reads",
    "direction cosine": "cosine of differences of class means from different halves of the prompts",
    "effect": "change of log p(yes) - log p(no), nats",
    "effect ratio": "effect in the tuned network over effect in the base network",
}
LEAST = 4  #: prompts of each class: two in each half
_DRAWS = 16  #: random directions


def directions(
    base: LanguageModel,
    tuned: LanguageModel,
    prompts: Iterable[PromptLike],
    labels: Sequence[Hashable],
    *,
    at: str | Site | Sequence[str | Site] = "resid_post",
    tokens: str | int | Tokens = "last",
    given: Iterable[Direction] = (),
    halvings: int = 20,
    seed: int = 0,
) -> Result:
    """Whether probes and directions of the base network still read and point in the tuned one.

    Parameters
    ----------
    base, tuned
        The networks before and after tuning.
    prompts, labels
        Prompts, and the class of each; at least 4 prompts per class.
    at, tokens
        Sites and one position of each prompt, or a mean.
    given
        Directions of the base network (of a `DirectionSet`, a contrast, a sparse autoencoder), read at their own sites.
    halvings
        Random halvings for the cosines.
    seed
        Of halves, random directions and intervals.

    Returns
    -------
    Result
        Rows with the item "probe" or a direction's name.

    Raises
    ------
    UserError
        For labels of fewer than two classes or of another number than prompts, several positions, other tokenizers or widths.
    """
    picked, held = Tokens.parse(tokens), listed(base, prompts, 2 * LEAST)
    if picked.ragged:
        raise UserError(f"A probe reads one vector of each prompt, and {picked} names several; use last, mean or an index.")
    task, more = labelled(labels, len(held)), list(given)
    same_ids((base, tuned), held)
    sites = shared_sites((base, tuned), [*base.resolve(at), *(d.site for d in more)])
    x, y = (lm.capture(held, sites, picked) for lm in (base, tuned))
    rng = np.random.default_rng(seed)
    train, test = halved(task.values, rng)
    found: list[Row] = []
    where = {"model": tuned.fingerprint, "token": str(picked), "seed": seed}
    for site in sites:
        a, b = (acts[site].reshape(len(held), -1).astype(np.float64) for acts in (x, y))
        if a.shape != b.shape:
            raise UserError(f"{site} has {a.shape[1]} features in the base and {b.shape[1]} in the tuned network.")
        here: dict[str, Any] = {**where, **at_site(site)}
        if site in base.resolve(at):
            found += _read(a, b, task, train, test, "probe", None, here, rng)
            found += _point(a, b, task, halvings, here, rng)
        for d in more:
            if base.resolve(d.site) == [site]:
                if d.width != a.shape[1]:
                    raise UserError(f"The direction {d.name!r} has {d.width} features, and {site} has {a.shape[1]}.")
                found += _read(a, b, task, train, test, d.name, d.vector[:, None], here, rng)
    return Result.of(found)


def acts(
    base: LanguageModel,
    tuned: LanguageModel,
    given: Iterable[Direction],
    choices: Sequence[Choice],
    *,
    chat: bool = False,
    random: int = _DRAWS,
    seed: int = 0,
) -> Result:
    """Whether directions act in the tuned network as in the base: each is added at its own scale, site and tokens.

    Parameters
    ----------
    base, tuned
        The networks before and after tuning.
    given
        Directions of the base network.
    choices
        At least two; the unit of the intervals.
    chat
        Whether prompts are user turns.
    random
        Number of random directions of equal norm, at least 2.
    seed
        Of the random directions and the intervals.

    Returns
    -------
    Result
        Effects in both networks with random controls (item: the direction's name; in the tuned network and, as "base network", in
        the base), and the effect ratio.

    Raises
    ------
    UserError
        For fewer than two choices or random directions, and as `steer.effects.log_odds`.
    """
    if len(choices) < 2 or random < 2:
        raise UserError(f"There are {len(choices)} choices and {random} random directions; give at least 2 of each.")
    found: list[Row] = []
    for number, d in enumerate(given):
        others = random_units(d.width, random, seed + number)
        edits = [Edit.add(d.site, d), *(Edit.add(d.site, d.scale * u, tokens=d.tokens) for u in others)]
        changes = []
        for lm in (base, tuned):
            odds = log_odds(lm, choices, edits, chat=chat)
            changes.append(odds[1:] - odds[0])
        here: dict[str, Any] = {
            **at_site(tuned.resolve(d.site)[0]),
            "item": d.name,
            "token": d.tokens,
            "model": tuned.fingerprint,
            "seed": seed,
        }
        effect = here | {"metric": "effect", "definition": DEFINITIONS["effect"]}
        found.append(Row.over(changes[1][0], "choice", **effect))
        found.append(Row.over(changes[0][0], "choice", condition=BASE, **effect))
        found.append(Row.of(stats.null(changes[1][1:].mean(1), unit="direction"), condition=RANDOM, **effect))
        ratio = here | {"metric": "effect ratio", "definition": DEFINITIONS["effect ratio"]}
        found.append(Row.of(stats.ratio(changes[1][0], changes[0][0], unit="choice", seed=seed), **ratio))
        over = changes[1][1:].mean(1) / changes[0][0].mean() if changes[0][0].mean() else np.full(random, np.nan)
        found.append(Row.of(stats.null(over, unit="direction"), condition=RANDOM, **ratio))
    return Result.of(found)


def labelled(labels: Sequence[Hashable], prompts: int) -> ProbeTask:
    """The labels as a task of classes.

    Raises
    ------
    UserError
        For another number than prompts, one class, or a class of fewer than 4 prompts.
    """
    if len(labels) != prompts:
        raise UserError(f"There are {prompts} prompts and {len(labels)} labels; give one for each.")
    classes = list(dict.fromkeys(labels))
    counts = {c: sum(label == c for label in labels) for c in classes}
    if len(classes) < 2 or min(counts.values()) < LEAST:
        raise UserError(f"The labels are {counts}; at least two classes of {LEAST} prompts each are needed.")
    return ProbeTask("label", "class", np.array([classes.index(label) for label in labels]), tuple(map(str, classes)))


def halved(values: Int[np.ndarray, "prompt"], rng: np.random.Generator) -> tuple[Int[np.ndarray, "a"], Int[np.ndarray, "b"]]:
    """Two random halves of the prompts, each class halved."""
    parts = [rng.permutation(np.flatnonzero(values == c)) for c in np.unique(values)]
    cuts = [len(p) // 2 + (i % 2 if len(p) % 2 else 0) for i, p in enumerate(parts)]
    return tuple(np.sort(np.concatenate(side)) for side in zip(*((p[:c], p[c:]) for p, c in zip(parts, cuts))))  # type: ignore[return-value]


def hits(
    fitted: Float[np.ndarray, "prompt feature"],
    read: Float[np.ndarray, "prompt feature"],
    task: ProbeTask,
    train: Int[np.ndarray, "train"],
    test: Int[np.ndarray, "test"],
) -> Float[np.ndarray, "test"]:
    """Correctness on the test prompts of one representation, of a ridge probe fitted to the training prompts of another."""
    if not np.ptp(fitted[train], axis=0).any():  # nothing varies, so that the most common class is all that can be said
        common: np.ndarray = task.values[test] == np.bincount(task.values[train]).argmax()
        return common.astype(np.float64)
    probes = probe_directions(fitted[train], ProbeTask(task.name, "class", task.values[train], task.classes), "resid_post.0")
    scores = np.stack([p.score(read[test]) for p in probes], axis=1)
    return np.asarray((scores.argmax(1) == task.values[test]).astype(np.float64))


def _read(
    a: Float[np.ndarray, "prompt feature"],
    b: Float[np.ndarray, "prompt feature"],
    task: ProbeTask,
    train: Int[np.ndarray, "train"],
    test: Int[np.ndarray, "test"],
    item: str,
    basis: Float[np.ndarray, "feature direction"] | None,
    where: dict[str, Any],
    rng: np.random.Generator,
) -> Iterator[Row]:
    """Accuracies of a probe on all features, or on the coordinates along given directions."""
    where = {"metric": "accuracy", "definition": DEFINITIONS["accuracy"], "item": item, "split": "halves", **where}
    first, second = (v if basis is None else v @ basis for v in (a, b))
    for condition, fitted, read in ((ESTIMATE, first, second), (BASE, first, first), (REFIT, second, second)):
        estimate = stats.proportion(hits(fitted, read, task, train, test), unit="prompt", seed=where["seed"])
        yield Row.of(estimate, condition=condition, **where)
    width = len(task.classes) - 1 if basis is None else basis.shape[1]
    drawn = rng.standard_normal((_DRAWS, a.shape[1], width))
    null = [hits(a @ one, b @ one, task, train, test).mean() for one in drawn]
    yield Row.of(stats.null(null, unit="direction"), condition=RANDOM, **where)


def _point(
    a: Float[np.ndarray, "prompt feature"],
    b: Float[np.ndarray, "prompt feature"],
    task: ProbeTask,
    halvings: int,
    where: dict[str, Any],
    rng: np.random.Generator,
) -> Iterator[Row]:
    where = {"metric": "direction cosine", "definition": DEFINITIONS["direction cosine"], "split": "halves", **where}
    found: dict[tuple[str, str], list[float]] = {
        (ESTIMATE, "probe"): [],
        (HALVES, "probe, base"): [],
        (HALVES, "probe, tuned"): [],
        (RANDOM, "probe"): [],
    }
    for _ in range(halvings):
        one, two = halved(task.values, rng)
        of_base, of_tuned = ([_differences(v[half], task, half) for half in (one, two)] for v in (a, b))
        found[ESTIMATE, "probe"].append((_cosine(of_base[0], of_tuned[1]) + _cosine(of_base[1], of_tuned[0])) / 2)
        found[HALVES, "probe, base"].append(_cosine(*of_base))
        found[HALVES, "probe, tuned"].append(_cosine(*of_tuned))
        found[RANDOM, "probe"].append(_cosine(rng.standard_normal(of_base[0].shape), of_tuned[1]))
    for (condition, item), values in found.items():
        yield Row.of(stats.null(values, unit="halving"), condition=condition, item=item, **where)


def _differences(
    rows: Float[np.ndarray, "prompt feature"], task: ProbeTask, half: Int[np.ndarray, "prompt"]
) -> Float[np.ndarray, "class feature"]:
    """Mean of each class minus that of the other prompts."""
    values = task.values[half]
    return np.stack([rows[values == c].mean(0) - rows[values != c].mean(0) for c in range(len(task.classes))])


def _cosine(u: Float[np.ndarray, "class feature"], v: Float[np.ndarray, "class feature"]) -> float:
    """Mean over classes; 0 where a difference is zero."""
    norms = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    return float(np.divide((u * v).sum(1), norms, out=np.zeros(len(u)), where=norms > 0).mean())
