"""Graphs of facts and their two-hop compositions (Wang, Yue, Su & Sun 2024, "Grokked Transformers are Implicit Reasoners").

1. Every entity h has one tail t(h, r) per relation r, drawn uniformly: the atomic facts. A query (h, r1, r2) asks for t(b, r2),
   where the *bridge* b = t(h, r1).
2. A share of the facts is out of distribution: they are trained as facts, and no trained query contains them.
3. Queries of two in-distribution facts: some are held out, and phi times as many as there are facts are trained. Of the others, the
   kinds are by which of their facts is out of distribution: the first, the second, or both.
4. One world is one graph of one seed. Networks are (phi, seed) pairs: of one seed they share the graph and the held-out queries,
   and the trained queries of a smaller phi are among those of a larger one.

Tokens: entities are 0 … entities − 1, relations follow.
"""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from repscope.errors import UserError

TRAINED, HELD_OUT = "trained queries", "held-out queries"
FIRST_OOD, SECOND_OOD, OOD = "first fact OOD", "second fact OOD", "both facts OOD"
KINDS = (TRAINED, HELD_OUT, FIRST_OOD, SECOND_OOD, OOD)


@dataclass(frozen=True, eq=False)
class Queries:
    """Queries of every network, one row per network. head, first, second: entity and relations. bridge, answer: entities."""

    head: Int[Tensor, "network query"]
    first: Int[Tensor, "network query"]
    second: Int[Tensor, "network query"]
    bridge: Int[Tensor, "network query"]
    answer: Int[Tensor, "network query"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Facts and queries of every network. bridge: tail of each fact. weight: of each query; those of a network sum to one."""

    head: Int[Tensor, "network fact"]
    first: Int[Tensor, "network fact"]
    second: Int[Tensor, "network fact hop"]
    bridge: Int[Tensor, "network fact"]
    answer: Int[Tensor, "network fact hop"]
    weight: Float[Tensor, "network fact hop"]
    phi: Float[Tensor, "network"]

    def of(self, network: int) -> "Batch":
        """The part of one network, as a stack of one."""
        return Batch(**{f.name: getattr(self, f.name)[network : network + 1] for f in fields(self)})


@dataclass(frozen=True)
class FactWorlds:
    """Graphs, one per seed, and the networks that learn them, one per (phi, seed), phi by phi.

    seeds, ratios: seeds of graphs and values of phi. entities, relations: sizes. ood: share of facts out of distribution. held_out:
    queries per graph.

    Raises a `UserError` for sizes that leave no query of a kind, and for a phi that needs more queries than there are.
    """

    seeds: tuple[int, ...]
    ratios: tuple[float, ...] = (2, 4, 8, 14)
    entities: int = 30
    relations: int = 20
    ood: float = 0.1
    held_out: int = 300

    def __post_init__(self) -> None:
        """Refuse worlds without queries of every kind."""
        if min(self.entities, self.relations) < 2 or not self.seeds or not self.ratios or min(self.ratios) <= 0:
            raise UserError("A world of facts needs two entities, two relations, a seed and a phi above 0.")
        if not 0 < self.ood < 0.5:
            raise UserError(f"A share of {self.ood:g} facts out of distribution leaves no queries of a kind; take 0.05 to 0.3.")
        most = min(len(one) for one in self._pools[1]) / self.facts
        if max(self.ratios) > most:
            raise UserError(
                f"phi = {max(self.ratios):g} needs more queries than {self.entities} entities and {self.relations} relations have: "
                f"the most is {most:.1f}."
            )
        if min(len(one[kind]) for one in self._pools[2] for kind in one) < 2:
            raise UserError("There are fewer than two queries of two facts out of distribution; raise the share or the sizes.")

    @property
    def facts(self) -> int:
        """Atomic facts of a graph."""
        return self.entities * self.relations

    @property
    def vocabulary(self) -> int:
        """Entities and relations."""
        return self.entities + self.relations

    @property
    def networks(self) -> list[tuple[float, int]]:
        """phi and seed of each network, in the order of the stack."""
        return [(phi, seed) for phi in self.ratios for seed in self.seeds]

    @cached_property
    def tails(self) -> Int[Tensor, "network entity relation"]:
        """Tail of every fact, of the graph of each network."""
        each = torch.stack([torch.from_numpy(tails) for tails, _ in self._graphs])
        return each.repeat(len(self.ratios), 1, 1)

    @cached_property
    def outside(self) -> Bool[Tensor, "network entity relation"]:
        """Facts out of distribution."""
        each = torch.stack([torch.from_numpy(ood) for _, ood in self._graphs])
        return each.repeat(len(self.ratios), 1, 1)

    @cached_property
    def second_hops(self) -> tuple[Int[Tensor, "network fact relation"], Int[Tensor, "network fact"]]:
        """Second relations of the trained queries of every fact, the first ones of a row, and how many there are."""
        rows, counts = [], []
        for phi, place in [(phi, i) for phi in self.ratios for i in range(len(self.seeds))]:
            chosen = self._pools[1][place][: round(phi * self.facts)]
            trained = np.zeros((self.facts, self.relations), dtype=bool)
            trained[chosen[:, 0] * self.relations + chosen[:, 1], chosen[:, 2]] = True
            rows.append(np.argsort(~trained, axis=1, kind="stable"))
            counts.append(trained.sum(1))
        return torch.from_numpy(np.stack(rows)), torch.from_numpy(np.stack(counts))

    def queries(self, kind: str, most: int) -> Queries:
        """At most `most` queries of a kind, the same number for every network."""
        each: list[np.ndarray] = []
        for phi, place in [(phi, i) for phi in self.ratios for i in range(len(self.seeds))]:
            held, train, other = self._pools[0][place], self._pools[1][place], self._pools[2][place]
            pool = held if kind == HELD_OUT else train[: round(phi * self.facts)] if kind == TRAINED else other[kind]
            each.append(pool[:most])
        shortest = min(map(len, each))
        rows = torch.from_numpy(np.stack([one[:shortest] for one in each]))
        return self.asked(*rows.unbind(-1))

    def asked(self, head: Tensor, first: Tensor, second: Tensor) -> Queries:
        """These queries, with their bridges and answers."""
        at = torch.arange(len(self.tails))[:, None]
        bridge = self.tails[at, head, first]
        return Queries(head, first, second, bridge, self.tails[at, bridge, second])

    def batch(self, facts: int, hops: int, generator: torch.Generator) -> "Batch":
        """Random facts of every network, and for each some of the trained queries that begin with it.

        A fact that begins c trained queries stands for c of them: its queries weigh c.
        """
        lists, counts = self.second_hops
        chosen = torch.rand(counts.shape, generator=generator).argsort(1)[:, :facts]
        many = counts.gather(1, chosen)
        place = (torch.rand(*chosen.shape, hops, generator=generator) * many[..., None]).long().clamp_max(self.relations - 1)
        second = lists.gather(1, chosen[..., None].expand(*chosen.shape, self.relations)).gather(2, place)
        weight = many[..., None].expand_as(second).float()
        at = torch.arange(len(chosen))[:, None]
        head, first = chosen // self.relations, chosen % self.relations
        bridge = self.tails[at, head, first]
        answer = self.tails[at[..., None], bridge[..., None], second]
        phi = torch.tensor([ratio for ratio, _ in self.networks])
        return Batch(head, first, second, bridge, answer, weight / weight.sum((1, 2), keepdim=True).clamp_min(1), phi)

    @cached_property
    def _graphs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        found = []
        for seed in self.seeds:
            rng = np.random.default_rng([seed, 0])
            tails = rng.integers(0, self.entities, (self.entities, self.relations))
            outside = np.zeros(self.facts, dtype=bool)
            outside[rng.permutation(self.facts)[: round(self.ood * self.facts)]] = True
            found.append((tails, outside.reshape(tails.shape)))
        return found

    @cached_property
    def _pools(self) -> tuple[list[np.ndarray], list[np.ndarray], list[dict[str, np.ndarray]]]:
        """Per graph, in random order: held-out queries, queries to be trained, and the other kinds."""
        held, trained, others = [], [], []
        for seed, (tails, outside) in zip(self.seeds, self._graphs):
            grid = np.stack(
                np.meshgrid(*(np.arange(k) for k in (self.entities, self.relations, self.relations)), indexing="ij"), -1
            )
            every = np.random.default_rng([seed, 1]).permutation(grid.reshape(-1, 3))
            first = outside[every[:, 0], every[:, 1]]
            second = outside[tails[every[:, 0], every[:, 1]], every[:, 2]]
            inside = every[~first & ~second]
            held.append(inside[: self.held_out])
            trained.append(inside[self.held_out :])
            others.append({FIRST_OOD: every[first & ~second], SECOND_OOD: every[~first & second], OOD: every[first & second]})
        return held, trained, others
