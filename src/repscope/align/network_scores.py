"""How similar is each network to a recording, at the layer that other conditions choose?

1. Conditions are cut into two halves. On each half every network's best layer is chosen; on the other half it is scored. The
   score is the mean over both halves: no layer is chosen on the conditions that it is reported on.
2. Scores: similarity of RDMs, mean over subjects (`rdm_comparison`), or the correlation of an encoding model, mean over channels.
3. Variance over conditions, of any contrast of networks (they share draws, so differences are paired): a similarity of RDMs is a
   sum over *pairs* of conditions, of which the noise of single pairs is a part D. Its bootstrap variance B over conditions has 3 D,
   its jackknife variance J 2 D, and both have the rest once (Efron & Stein 1981). So it is 2 J - B, at least J / 2, at most J.
   For a score that is no sum over pairs B and J are equal. Draws and jackknife are made within halves.

Arrays in, `NetworkScores` out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from repscope.align.dissimilarities import conditions_of, square
from repscope.align.encoding import Encoding
from repscope.align.rdm_comparison import Measure, RDMs, check_measure, noise_ceiling, similarities
from repscope.align.rsa_bootstrap import similarities_of_draws
from repscope.errors import UserError
from repscope.stats.bootstrap import Estimate, draw_weights, student

LEAST = 10  #: conditions, so that a half has five
DRAWS = 500


@dataclass(frozen=True, eq=False)
class NetworkScores:
    """Scores of networks on one recording.

    value: per network. draws: the same per draw of conditions. left_out: by how much each condition's absence changes the score,
    minus the mean of its half. layers: chosen on each half, and reported on the other. lower, upper: noise ceiling, NaN where there
    is none. conditions: their number. what: is scored.
    """

    value: Float[np.ndarray, "network"]
    draws: Float[np.ndarray, "draw network"]
    left_out: Float[np.ndarray, "condition network"]
    layers: Int[np.ndarray, "half network"]
    lower: float
    upper: float
    conditions: int
    what: str

    def estimate(self, network: int) -> Estimate:
        """One network's score with its interval over conditions."""
        return self._student({network: 1.0})

    def difference(self, first: int, second: int) -> Estimate:
        """Score of one network minus another's."""
        return self._student({first: 1.0, second: -1.0})

    def variance(self, contrast: Float[np.ndarray, "network"]) -> float:
        """Variance over conditions of a weighted sum of the networks' scores."""
        half = self.conditions // 2
        bootstrap = half / (half - 1) * float(np.nanvar(self.draws @ contrast, ddof=1))
        jackknife = (half - 1) / half * float(((self.left_out @ contrast) ** 2).sum())
        return min(max(2 * jackknife - bootstrap, jackknife / 2), jackknife)

    def _student(self, signs: Mapping[int, float]) -> Estimate:
        contrast = np.zeros(len(self.value))
        for network, sign in signs.items():
            contrast[network] = sign
        degrees = self.conditions - 2  # two halves
        value, variance = float(self.value @ contrast), self.variance(contrast)
        return student(value, variance, unit="condition", n=self.conditions, degrees=degrees)


def halves(conditions: int, seed: int) -> tuple[Int[np.ndarray, "condition"], Int[np.ndarray, "condition"]]:
    """Two random halves of the conditions.

    Raises
    ------
    UserError
        For fewer than 10 conditions.
    """
    if conditions < LEAST:
        raise UserError(
            f"{conditions} conditions are too few to choose a layer on one half and report it on the other; give {LEAST}."
        )
    order = np.random.default_rng([seed, conditions]).permutation(conditions)
    return np.sort(order[: conditions // 2]), np.sort(order[conditions // 2 :])


def rsa_scores(
    networks: Sequence[RDMs], subjects: RDMs, measure: Measure = "pearson", *, draws: int = DRAWS, seed: int = 0
) -> NetworkScores:
    """Similarity of RDMs at the layer chosen on the other half of the conditions.

    Parameters
    ----------
    networks : Sequence[Float[np.ndarray, "layer pair"]]
        Per network the RDM of each layer.
    subjects : Float[np.ndarray, "subject pair"]
        RDMs of the recording.

    Raises
    ------
    UserError
        For an unknown measure, fewer than 10 conditions, or a network whose representation is the same for all conditions.
    """
    check_measure(measure)
    n = conditions_of(subjects.shape[1])
    rng = np.random.default_rng([seed, 1])
    values, drawn, left_out, layers, ceilings = [], [], [], [], []
    both = halves(n, seed)
    for report, choose in (both, both[::-1]):
        theirs = _part(subjects, choose)
        best = [
            int(np.nanargmax(_known(similarities(_part(rdms, choose), theirs, measure).mean(1), i)))
            for i, rdms in enumerate(networks)
        ]
        chosen = np.stack([_part(rdms[layer][None], report)[0] for rdms, layer in zip(networks, best)])
        held = _part(subjects, report)
        found = similarities(chosen, held, measure).mean(1)
        for i, value in enumerate(found):
            _known(np.array([value]), i)
        weights = draw_weights(len(report), draws, rng)
        values.append(found)
        drawn.append(similarities_of_draws(chosen, held, measure, weights).mean(2))
        absent = similarities_of_draws(chosen, held, measure, 1 - np.eye(len(report), dtype=int)).mean(2)
        left_out.append((absent - absent.mean(0)) / 2)
        layers.append(best)
        ceilings.append(noise_ceiling(held, measure) if len(held) > 1 else (np.nan, np.nan))
    lower, upper = np.mean(ceilings, axis=0).tolist()
    changes = np.concatenate(left_out)
    return NetworkScores(np.mean(values, 0), np.mean(drawn, 0), changes, np.array(layers), lower, upper, n, measure)


def encoding_scores(networks: Sequence[Sequence[Encoding]], *, draws: int = DRAWS, seed: int = 0) -> NetworkScores:
    """Correlation of encoding models, mean over channels, at the layer chosen on the other half of the left-out conditions.

    Parameters
    ----------
    networks
        Per network the encoding model of each layer, all of the same recording and folds.

    Raises
    ------
    UserError
        For fewer than 10 conditions.
    """
    n = len(networks[0][0].observed)
    rng = np.random.default_rng([seed, 1])
    values, drawn, left_out, layers = [], [], [], []
    both = halves(n, seed)
    parts = [[layer.columns("r") for layer in network] for network in networks]
    for report, choose in (both, both[::-1]):
        weights = draw_weights(len(report), draws, rng).astype(np.float64)
        best, found, per_draw, absent = [], [], [], []
        for network in parts:
            layer = int(np.argmax([float(of(_flat(m[choose]).sum(0)[None])[0]) for m, of in network]))
            moments, of = network[layer]
            flat = _flat(moments[report])
            best.append(layer)
            found.append(float(of(flat.sum(0)[None])[0]))
            per_draw.append(of(weights @ flat))
            absent.append(of(flat.sum(0) - flat))
        values.append(found)
        drawn.append(np.stack(per_draw, 1))
        each = np.stack(absent, 1)
        left_out.append((each - each.mean(0)) / 2)
        layers.append(best)
    changes, none = np.concatenate(left_out), float("nan")
    return NetworkScores(np.mean(values, 0), np.mean(drawn, 0), changes, np.array(layers), none, none, n, "r")


def _part(rdms: RDMs, conditions: Int[np.ndarray, "condition"]) -> RDMs:
    """RDMs of some of the conditions."""
    whole = square(rdms)[:, conditions[:, None], conditions]
    i, j = np.triu_indices(len(conditions), 1)
    found: np.ndarray = whole[:, i, j]
    return found


def _known(found: Float[np.ndarray, "layer"], network: int) -> Float[np.ndarray, "layer"]:
    if np.isnan(found).all():
        raise UserError(f"Network {network} represents all conditions in the same way, so it has no similarity; leave it out.")
    return found


def _flat(moments: Float[np.ndarray, "condition moment channel"]) -> Float[np.ndarray, "condition column"]:
    return moments.reshape(len(moments), -1)
