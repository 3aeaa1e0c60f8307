"""Which family of networks is most similar to a recording? Families are networks grouped by an ingredient, such as their loss.

A result about families should hold for other networks of these families (seeds) and for other conditions (stimuli), so both are
random units. For a contrast Σ_f c_f m_f of family means, with k_f networks and V the variance over conditions (`network_scores`):

    networks     B_f = c_f² s_f² / k_f, s_f² the variance over networks of their scores
    conditions   C = V(Σ_f c_f m_f)
    both         I_f = c_f² / (k_f (k_f - 1)) Σ_i V(score of network i - m_f)
    variance     Σ B_f + C - Σ I_f, at least the larger of Σ B_f and C

Scores of one network on one condition vary for both reasons; B_f and C each count this part, so I_f is subtracted once. Intervals
are Student's with the degrees of freedom of Welch & Satterthwaite. Subjects are those of the recording.

A family *wins* if the interval of its similarity is above 0 and so is that of its difference to each other family. On a recording
that has nothing to do with the networks none should.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from repscope.align.network_scores import NetworkScores
from repscope.errors import UserError, unknown
from repscope.stats.bootstrap import Estimate, student


@dataclass(frozen=True, eq=False)
class FamilyComparison:
    """Families of networks compared with one recording.

    similarity: mean of each family's networks, with its interval. scores: of the networks. labels: family of each network. fixed:
    labels that are no families.
    """

    similarity: Mapping[str, Estimate]
    scores: NetworkScores
    labels: tuple[str, ...]
    fixed: tuple[str, ...] = ()

    def difference(self, first: str, second: str) -> Estimate:
        """Similarity of one family minus another's.

        Raises
        ------
        UserError
            For a family that is not there.
        """
        for name in (first, second):
            if name not in self.similarity:
                raise unknown("family", name, self.similarity)
        return _contrast(self.scores, self.labels, {first: 1.0, second: -1.0})

    @property
    def winner(self) -> str | None:
        """The family that is more similar than every other one, by intervals; None if no family is."""
        families = [name for name in self.similarity if name not in self.fixed]
        best = max(families, key=lambda name: self.similarity[name].value)
        others = [self.difference(best, name) for name in families if name != best]
        return best if self.similarity[best].lo > 0 and all(other.lo > 0 for other in others) else None


def compare_families(scores: NetworkScores, labels: Sequence[str], fixed: Sequence[str] = ()) -> FamilyComparison:
    """Compare families of networks.

    Parameters
    ----------
    scores
        Of all networks on one recording (`rsa_scores`, `encoding_scores`).
    labels
        The family of each network.
    fixed
        Labels that are no population of networks, such as pixels: one of each, without a variance over networks. They cannot win.

    Raises
    ------
    UserError
        For another number of labels than networks, one family, or a family of one network.
    """
    if len(labels) != len(scores.value):
        raise UserError(f"There are {len(labels)} labels for {len(scores.value)} networks; give one family per network.")
    families = list(dict.fromkeys(labels))
    if len(families) < 2:
        raise UserError("All networks are of one family; a comparison needs two families or more.")
    for name in families:
        if list(labels).count(name) < 2 and name not in fixed:
            raise UserError(f"Family {name!r} has one network; give two or more (other seeds), as networks are a random unit.")
    return FamilyComparison(
        {name: _contrast(scores, labels, {name: 1.0}) for name in families}, scores, tuple(labels), tuple(fixed)
    )


def _contrast(scores: NetworkScores, labels: Sequence[str], signs: Mapping[str, float]) -> Estimate:
    contrast = np.zeros(len(labels))
    parts: list[tuple[float, float]] = []  # variance and its degrees of freedom
    interaction, smallest = 0.0, len(labels)
    for name, sign in signs.items():
        member = np.array([label == name for label in labels])
        k = int(member.sum())
        contrast += sign * member / k
        if k == 1:  # one that is fixed: it varies over conditions alone
            continue
        parts.append((float(scores.value[member].var(ddof=1)) / k, k - 1))
        mean = member / k
        each = [scores.variance(np.eye(len(labels))[i] - mean) for i in np.flatnonzero(member)]
        interaction += sum(each) / (k * (k - 1))
        smallest = min(smallest, k)
    networks, conditions = sum(v for v, _ in parts), scores.variance(contrast)
    parts.append((conditions, scores.conditions - 2))
    total = networks + conditions
    variance = max(total - interaction, networks, conditions)
    degrees = total**2 / sum(v**2 / d for v, d in parts) if total > 0 else 1.0
    value = float(scores.value @ contrast)
    if len(parts) == 1:  # of baselines alone
        return student(value, variance, unit="condition", n=scores.conditions, degrees=degrees)
    return student(value, variance, unit="network and condition", n=smallest, degrees=degrees)
