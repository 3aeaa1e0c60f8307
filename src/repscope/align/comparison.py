"""Networks compared with a recording: layer by region, with ceilings, intervals and matched controls, as one result.

1. A network is a mapping from layers to arrays (input, feature), or anything with `capture`, such as what `repscope.load` opens or
   `Network` makes of a vision model: it reads the recording's texts or images itself.
2. Inputs are matched with conditions by name. What has no counterpart is counted and reported.
3. RSA: RDMs of layers are squared distances; of subjects crossnobis over repeats, correlation distances without repeats, or the
   published RDMs. Encoding: ridge regression (or PLS) from a layer to the channels of all subjects, means over repeats; besides r
   also r²/ceiling where there are repeats.
4. Per layer and region the score on all conditions; per network and region the score at the layer that the other half of the
   conditions chooses. Controls are scored in the same way: networks with random weights where a network can make them (`twin`),
   pixels of the images, counts of words of the texts, and what is given as `controls`.

Intervals are over conditions; those of layers by RSA over subjects and conditions where there are several subjects. `families`
groups the networks, with networks and conditions as random units.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from repscope.align.ceilings import split_half
from repscope.align.dissimilarities import as_pairs, crossvalidated_rdm, rdm
from repscope.align.encoding import Encoding, Score, encode
from repscope.align.families import FamilyComparison, compare_families
from repscope.align.network_scores import LEAST, NetworkScores, encoding_scores, rsa_scores
from repscope.align.rdm_comparison import Measure, RDMs
from repscope.align.ridge import RidgeSettings
from repscope.align.rows import as_rows
from repscope.align.rsa_bootstrap import evaluate_rdms
from repscope.conditions import ESTIMATE, LOWER_CEILING, PIXELS, UPPER_CEILING, WORDS, over
from repscope.data.recordings import Recording
from repscope.errors import UserError, unknown
from repscope.results import CHOSEN, Result, Row

Method = Literal["RSA", "encoding", "PLS"]
RANDOM_WEIGHTS = "random weights"
Layers = Mapping[str, Float[np.ndarray, "condition feature"]]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Networks compared with a recording.

    result: rows of the one schema: metric "similarity" per network or control (item: NETWORK, REGION), site: the layer, or "chosen
    on the other half"; gains over controls; noise ceilings. scores: per region, of all networks at their chosen layers. networks:
    their names. conditions: of each, the estimate or a control.
    """

    result: Result
    scores: Mapping[str, NetworkScores]
    networks: tuple[str, ...]
    conditions: tuple[str, ...]

    def families(self, groups: Mapping[str, Sequence[str]], region: str) -> FamilyComparison:
        """Networks grouped by an ingredient, compared at a region.

        Parameters
        ----------
        groups
            Family → names of its networks, two or more; or of one baseline, pixels or word counts.

        Raises
        ------
        UserError
            For an unknown region or network, one family, or a family of one network.
        """
        if region not in self.scores:
            raise unknown("region with chosen layers", region, self.scores)
        fixed = [f for f, members in groups.items() if len(members) == 1 and members[0] in (PIXELS, WORDS)]
        named = [(name, family) for family, members in groups.items() for name in members]
        for name, _ in named:
            if name not in self.networks:
                raise unknown("network", name, self.networks)
        at = [self.networks.index(name) for name, _ in named]
        held = self.scores[region]
        part = replace(
            held, value=held.value[at], draws=held.draws[:, at], left_out=held.left_out[:, at], layers=held.layers[:, at]
        )
        return compare_families(part, [family for _, family in named], fixed)

    def _repr_html_(self) -> str:
        return self.result._repr_html_()


def compare(
    networks: Mapping[str, Any],
    recording: Recording,
    method: Method = "RSA",
    *,
    at: Any = "resid_post",
    prepare: Callable[[Float[np.ndarray, "condition row column colour"]], Any] | None = None,
    names: Sequence[str] | None = None,
    controls: Mapping[str, Any] | None = None,
    regions: Sequence[str] | None = None,
    measure: Measure = "pearson",
    groups: Sequence[Any] | None = None,
    settings: RidgeSettings | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare networks with a recording.

    Parameters
    ----------
    networks
        Name → layers as arrays (input, feature), or a network with `capture`.
    method
        "RSA", "encoding" (ridge regression) or "PLS" (25 components, as in Brain-Score).
    at
        Sites of networks with `capture`; the last token of texts.
    prepare
        What a vision model reads, (condition, …), from the recording's images: its own resizing and normalisation. By default they
        are given as they are, (condition, colour, row, column).
    names
        The condition of each row of the arrays; those of the recording in its order if not given.
    controls
        Networks with random weights, as `networks`. Pixels, words and twins with random weights are added where they can be made.
    regions
        Those to compare; all if not given.
    groups
        For encoding models: labels of conditions that stay on one side of a fold.

    Raises
    ------
    UserError
        For no network, rows that match no condition, networks that cannot read the stimuli, and as the methods do.
    """
    if method not in get_args(Method):
        raise unknown("method", method, get_args(Method))
    if not networks:
        raise UserError("No network was given; give a mapping from names to layers or networks.")
    chosen = [recording.region(r) for r in (regions or recording.regions)]
    held, places, notes = recording, list(range(len(recording.conditions))), recording.notes
    if names is not None:
        held, places, told = recording.matched(names)
        notes = (*notes, *told)
    given = {name: _layers(name, network, held, places, names, at, prepare) for name, network in networks.items()}
    twins: dict[str, str] = {}
    compared: dict[str, tuple[Layers, str]] = {name: (layers, ESTIMATE) for name, layers in given.items()}
    for name, network in networks.items():
        if hasattr(network, "twin"):
            twin = f"{name}, {RANDOM_WEIGHTS}"
            compared[twin] = _layers(twin, network.twin(seed), held, places, names, at, prepare), RANDOM_WEIGHTS
            twins[twin] = name
    compared |= {name: (layers, name) for name, layers in _of_stimuli(held).items()}
    for name, network in (controls or {}).items():
        compared[name] = _layers(name, network, held, places, names, at, prepare), RANDOM_WEIGHTS
    rows, scores, told_all = list[Row](), dict[str, NetworkScores](), list(notes)
    for region in chosen:
        if method == "RSA":
            found, score, more = _rsa(compared, held, region, measure, seed)
        else:
            found, score, more = _encoding(compared, held, region, method, groups, settings, seed)
        rows += found
        told_all += more
        if score is not None:
            scores[region] = score
            rows += _chosen(compared, twins, score, region, method, seed)
        else:
            told_all.append(f"{len(held.conditions)} conditions are too few to choose layers on one half and report on the other.")
    result = Result.of(rows, notes=tuple(dict.fromkeys(told_all)))
    return Comparison(result, scores, tuple(compared), tuple(condition for _, condition in compared.values()))


def region_rdms(recording: Recording, region: str) -> tuple[RDMs, str]:
    """RDMs of a region (subject, pair), and how they were made.

    Raises
    ------
    UserError
        For a region that is not there, and as the dissimilarities do.
    """
    if recording.region(region) in recording.responses:
        subjects = recording.responses[region].values()
        if min(len(x) for x in subjects) > 1:
            return np.stack([crossvalidated_rdm(x) for x in subjects]), "crossnobis"
        return np.stack([rdm(x.mean(0), "correlation") for x in subjects]), "correlation distance"
    return np.stack([as_pairs(matrix) for matrix in recording.rdms[region]]), "published RDMs"


def _layers(name: str, network: Any, recording: Recording, places: Sequence[int], names: Any, at: Any, prepare: Any) -> Layers:
    """Layers of a network for the recording's conditions."""
    if hasattr(network, "capture"):
        return _captured(name, network, recording, at, prepare)
    if not isinstance(network, Mapping):
        network = {"features": network}
    found = {}
    expected = len(recording.conditions) if names is None else len(names)
    for layer, x in network.items():
        rows = as_rows(x, f"Layer {layer} of {name}", 1)
        if len(rows) != expected:
            raise UserError(f"Layer {layer} of {name} has {len(rows)} rows for {expected} conditions; give names= of its rows.")
        if not np.isfinite(rows).all():
            raise UserError(f"Layer {layer} of {name} has values that are not finite; leave those inputs out.")
        if not np.ptp(rows, axis=0).any():
            raise UserError(f"Layer {layer} of {name} represents all conditions in the same way; leave it out.")
        found[str(layer)] = rows[list(places)]
    if not found:
        raise UserError(f"Network {name} has no layer; give one array (input, feature) per layer.")
    return found


def _captured(name: str, network: Any, recording: Recording, at: Any, prepare: Any) -> Layers:
    """Activations for the recording's stimuli: the last token of texts, or images as (condition, colour, row, column)."""
    if hasattr(network, "tokenizer"):
        if recording.texts is None:
            raise UserError(f"{name} reads text, and the recording has none; add a column text to its conditions.")
        held = network.capture(list(recording.texts), at=at, tokens="last")
    else:
        if recording.images is None:
            raise UserError(f"{name} reads images, and the recording has none; give layers as arrays in place of the network.")
        weight = next(network.module.parameters())  # makes tensors of its own kind, on its own device
        read = prepare(recording.images) if prepare else np.moveaxis(recording.images, -1, 1)
        if len(read) != len(recording.conditions):
            raise UserError(f"prepare= gives {len(read)} inputs for {len(recording.conditions)} conditions; one each is needed.")
        held = network.capture(weight.detach().new_tensor(np.asarray(read)), at=at)
    return {str(site): np.asarray(held[site]).reshape(len(recording.conditions), -1) for site in held.sites}


def _of_stimuli(recording: Recording) -> dict[str, Layers]:
    """Baselines without a network: pixels of images, counts of words of texts."""
    found: dict[str, Layers] = {}
    if recording.images is not None:
        found[PIXELS] = {"pixels": recording.images.reshape(len(recording.images), -1)}
    if recording.texts is not None:
        words = [text.lower().split() for text in recording.texts]
        known = sorted({word for each in words for word in each})
        if len(known) > 1:
            counts = np.array([[each.count(word) for word in known] for each in words], dtype=np.float64)
            found[WORDS] = {"words": counts}
    return found


def _rsa(
    compared: Mapping[str, tuple[Layers, str]], recording: Recording, region: str, measure: Measure, seed: int
) -> tuple[list[Row], NetworkScores | None, list[str]]:
    subjects, how = region_rdms(recording, region)
    own = {name: np.stack([rdm(x) for x in layers.values()]) for name, (layers, _) in compared.items()}
    enough = len(recording.conditions) >= LEAST
    definition = f"RSA, {measure}, {how}"
    rows = []
    for name, (layers, condition) in compared.items():
        found = evaluate_rdms(own[name], subjects, measure, seed=seed)
        for i, (layer, estimate) in enumerate(zip(layers, found.similarity)):
            where = _where(name, region, condition, seed) | {"site": layer, "layer": i}
            rows.append(Row.of(estimate, metric="similarity", definition=definition, split="all conditions", **where))
    if len(subjects) > 1:
        for condition, value in ((LOWER_CEILING, found.lower), (UPPER_CEILING, found.upper)):
            at: dict[str, Any] = {"item": region, "condition": condition, "split": "all conditions", "seed": seed}
            rows.append(Row(value=value, metric="similarity", definition=definition, unit="subject", n=len(subjects), **at))
    notes = [] if len(subjects) > 1 else [f"{region} has one RDM, so there is no noise ceiling."]
    return rows, rsa_scores(list(own.values()), subjects, measure, seed=seed) if enough else None, notes


def _encoding(
    compared: Mapping[str, tuple[Layers, str]],
    recording: Recording,
    region: str,
    method: Method,
    groups: Sequence[Any] | None,
    settings: RidgeSettings | None,
    seed: int,
) -> tuple[list[Row], NetworkScores | None, list[str]]:
    if region not in recording.responses:
        raise UserError(f"{region} has RDMs and no responses, which encoding models need; give method='RSA'.")
    subjects = recording.responses[region]
    y = np.concatenate([x.mean(0) for x in subjects.values()], axis=1)
    kind: Any = "PLS" if method == "PLS" else "ridge"
    how: Any = {"groups": groups, "settings": settings, "seed": seed}
    models: dict[str, list[Encoding]] = {
        name: [encode(x, y, kind, **how) for x in layers.values()] for name, (layers, _) in compared.items()
    }
    repeated = min(len(x) for x in subjects.values()) > 1
    ceiling = np.concatenate([split_half(x, seed=seed) for x in subjects.values()]) if repeated else None
    scored: list[tuple[Score, Any]] = [("r", None), ("R²", None)]
    notes = []
    if ceiling is not None and (ceiling > 0).any():
        scored.append(("r²/ceiling", ceiling))
        if lost := int((ceiling <= 0).sum()):
            notes.append(f"{lost} of {len(ceiling)} channels of {region} have a ceiling of 0 or below; r²/ceiling leaves them out.")
    elif ceiling is not None:
        notes.append(f"No channel of {region} has a ceiling above 0, as repeats do not agree; there is no r²/ceiling.")
    rows = []
    for name, (layers, condition) in compared.items():
        for i, (layer, model) in enumerate(zip(layers, models[name])):
            for score, held in scored:
                where = _where(name, region, condition, seed) | {"site": layer, "layer": i, "split": "left-out conditions"}
                estimate = model.estimate(score, ceiling=held, seed=seed)
                metric = "similarity" if score == "r" else score
                rows.append(Row.of(estimate, metric=metric, definition=f"{method}, {score}, mean over channels", **where))
    return rows, encoding_scores(list(models.values()), seed=seed), notes


def _chosen(
    compared: Mapping[str, tuple[Layers, str]],
    twins: Mapping[str, str],
    scores: NetworkScores,
    region: str,
    method: Method,
    seed: int,
) -> list[Row]:
    """Scores at the chosen layers, and gains of the networks over each control, paired."""
    rows, definition = [], f"{method}, {scores.what}"
    for i, (name, (_, condition)) in enumerate(compared.items()):
        where = _where(name, region, condition, seed) | {"site": CHOSEN, "split": "halves of the conditions"}
        rows.append(Row.of(scores.estimate(i), metric="similarity", definition=definition, **where))
        if condition != ESTIMATE:
            continue
        for j, (other, (_, control)) in enumerate(compared.items()):
            if control == ESTIMATE or twins.get(other, name) != name:
                continue
            where["condition"] = over(control)
            rows.append(Row.of(scores.difference(i, j), metric="gain", definition="similarity", **where))
    return rows


def _where(name: str, region: str, condition: str, seed: int) -> dict[str, Any]:
    return {"item": f"{name}, {region}", "condition": condition, "seed": seed}
