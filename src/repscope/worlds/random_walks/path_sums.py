"""Sums over the paths of a graph as predictions of edges that were left out, and what needs no path.

A path is a sequence of relations. From an entity e, walking its relations leads to e' with the probability P_path(e' | e),
conditional on not ending at an entity where the next edge is missing. For a relation r the prediction is sum over paths of
w_r(path) P_path(e' | e), normalised, without the path that is r itself, which has no edge there. Three weightings:

1. *Unweighted*: every path counts by the probability that a random walk takes it; r does not matter.
2. *Precision*: the mean probability, over entities with an r edge, that the path ends at one of its tails (as confidences of
   rules).
3. *Fitted*: the mixture that makes the seen edges of r most likely, by expectation maximisation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

UNWEIGHTED, PRECISION, FITTED = "unweighted", "precision", "fitted"
WEIGHTINGS = (UNWEIGHTED, PRECISION, FITTED)
_UPDATES = 200  #: of expectation maximisation
_NEIGHBOURS = 3

K = TypeVar("K")
Steps = Float[np.ndarray, "relation entity entity"]
Pairs = Int[np.ndarray, "pair 2"]


@dataclass(frozen=True, eq=False)
class PathSums:
    """Paths of at most `longest` relations over one graph. steps: probability of each tail by relation and entity."""

    steps: Steps
    longest: int

    @cached_property
    def paths(self) -> list[tuple[int, ...]]:
        """All sequences of relations, short ones first."""
        return [p for length in range(1, self.longest + 1) for p in product(range(len(self.steps)), repeat=length)]

    @cached_property
    def walked(self) -> Float[np.ndarray, "path entity entity"]:
        """Where each path leads, with the probability of every end; rows of less than 1 where edges are missing."""
        found: dict[tuple[int, ...], np.ndarray] = {}
        for path in self.paths:
            found[path] = self.steps[path[0]] if len(path) == 1 else found[path[:-1]] @ self.steps[path[-1]]
        return np.stack(list(found.values()))

    @cached_property
    def ends(self) -> Float[np.ndarray, "path entity entity"]:
        """The same, conditional on reaching an end; zero where none is reached."""
        mass = self.walked.sum(-1, keepdims=True)
        return np.where(mass > 0, self.walked / np.where(mass > 0, mass, 1), 0.0)

    def weights(self, relation: int, weighting: str) -> Float[np.ndarray, "path"]:
        """Weight of each path for a relation."""
        other = np.array([path != (relation,) for path in self.paths])
        if weighting == UNWEIGHTED:
            return np.asarray(other * np.array([len(self.steps) ** -float(len(path)) for path in self.paths]))
        seen = self.steps[relation].sum(-1) > 0
        tails = self.steps[relation][seen]  # (entity, tail)
        if weighting == PRECISION:
            reached = self.walked[:, seen].sum(-1) > 0
            hits = (self.ends[:, seen] * (tails > 0)).sum(-1)
            return np.asarray(other * hits.sum(1) / np.maximum(reached.sum(1), 1))
        rows, columns = np.nonzero(tails)  # of the seen edges
        odds, count = self.ends[:, seen][other][:, rows, columns], tails[rows, columns]
        w = np.full(len(odds), 1 / len(odds))
        for _ in range(_UPDATES):  # each seen edge is divided among the paths that lead to it
            joint = w[:, None] * odds
            share = joint / np.maximum(joint.sum(0), 1e-12)
            w = share @ count
            w /= max(w.sum(), 1e-12)
        found = np.zeros(len(self.paths))
        found[other] = w
        return found

    def predicted(self, pairs: Pairs, weighting: str) -> Float[np.ndarray, "pair entity"]:
        """Distribution over tails of pairs of entity and relation; uniform where no path leads anywhere."""
        by_relation = {r: self.weights(r, weighting) for r in sorted(set(pairs[:, 1].tolist()))}
        source = self.walked if weighting == UNWEIGHTED else self.ends
        return _normalised(np.stack([by_relation[r] @ source[:, e] for e, r in pairs.tolist()]))


def unigram(steps: Steps, pairs: Pairs) -> Float[np.ndarray, "pair entity"]:
    """How often each entity is the tail of the relation, wherever it starts."""
    return _normalised(steps[pairs[:, 1]].sum(1))


def nearest_neighbours(steps: Steps, pairs: Pairs) -> Float[np.ndarray, "pair entity"]:
    """Mean tails of the relation at the entities whose edges are most like those of the entity, by cosine over all relations."""
    profiles = steps.transpose(1, 0, 2).reshape(steps.shape[1], -1)
    norms = np.linalg.norm(profiles, axis=1)
    likeness = profiles @ profiles.T / np.maximum(norms[:, None] * norms, 1e-12)
    np.fill_diagonal(likeness, -1)
    found = []
    for e, r in pairs.tolist():
        known = np.flatnonzero(steps[r].sum(-1) > 0)
        near = known[np.argsort(-likeness[e, known], kind="stable")[:_NEIGHBOURS]]
        found.append(steps[r, near].mean(0))
    return _normalised(np.stack(found))


def divergence(
    predicted: Mapping[K, Float[np.ndarray, "pair entity"]], answers: Float[np.ndarray, "pair entity"]
) -> dict[K, Float[np.ndarray, "pair"]]:
    """KL(prediction ‖ answer) of every pair, in nats. Answers are above zero everywhere; predictions need not be."""
    logs = np.log(np.maximum(answers, 1e-300))
    return {name: (p * (np.log(np.where(p > 0, p, 1)) - logs)).sum(-1) for name, p in predicted.items()}


def _normalised(x: Float[np.ndarray, "pair entity"]) -> Float[np.ndarray, "pair entity"]:
    mass = x.sum(-1, keepdims=True)
    return np.where(mass > 0, x / np.where(mass > 0, mass, 1), 1 / x.shape[-1])
