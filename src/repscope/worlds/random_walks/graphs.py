"""Knowledge graphs whose relations compose, and documents that are random walks over them (Wang et al. 2024, arXiv 2402.03268).

1. Entities lie on a ring. A relation leads from an entity to two tails, drawn from the three entities around a fixed shift: so
   paths over other relations say, with noise, where an edge leads, and no edge follows from another one exactly.
2. For a share of the pairs (entity, relation) both edges are left out. No walk contains them.
3. A walk starts anywhere, and at each entity draws a relation (of those with edges there), then a tail. Its tokens are
   e0 r1 e1 r2 e2 …; a document is walks of a number of steps, one after the other, cut to a length.
Tokens: entities are 0 … entities − 1, relations follow.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from repscope.errors import UserError


@dataclass(frozen=True)
class WalkGraphs:
    """Graphs, one per seed.

    entities: on the ring. shifts: one per relation. held_out: share of pairs (entity, relation) without edges.

    Raises a `UserError` for fewer than eight entities, two relations or a share that leaves no pair or no edge.
    """

    seeds: tuple[int, ...]
    entities: int = 40
    shifts: tuple[int, ...] = (1, 2, 3, 5, -1, -4)
    held_out: float = 0.15

    def __post_init__(self) -> None:
        """Refuse graphs without paths."""
        if self.entities < 8 or len(self.shifts) < 2 or not self.seeds:
            raise UserError("A graph of walks needs eight entities, two relations and a seed.")
        if not 0 < round(self.held_out * self.entities * len(self.shifts)) <= self.entities * len(self.shifts) // 2:
            raise UserError(f"A share of {self.held_out:g} left-out edges leaves none of a kind; take 0.05 to 0.3.")

    @property
    def relations(self) -> int:
        """Number of relations."""
        return len(self.shifts)

    @property
    def vocabulary(self) -> int:
        """Entities and relations."""
        return self.entities + self.relations

    @cached_property
    def tails(self) -> Int[Tensor, "graph entity relation 2"]:
        """Both tails of every pair, those that are left out among them."""
        found = []
        for seed in self.seeds:
            rng = np.random.default_rng([seed, 10])
            around = rng.permuted(np.tile([-1, 0, 1], (self.entities, self.relations, 1)), axis=-1)[..., :2]
            there = np.arange(self.entities)[:, None] + np.array(self.shifts)
            found.append((there[..., None] + around) % self.entities)
        return torch.from_numpy(np.stack(found))

    @cached_property
    def kept(self) -> Bool[Tensor, "graph entity relation"]:
        """Pairs whose edges are walked. Every entity keeps at least one."""
        found = []
        for seed in self.seeds:
            order = np.random.default_rng([seed, 11]).permutation(self.entities * self.relations)
            left = np.zeros(len(order), dtype=bool)
            for pair in order:
                own = left.reshape(self.entities, -1)[pair // self.relations]
                if left.sum() < round(self.held_out * len(order)) and own.sum() < self.relations - 1:
                    left[pair] = True
            found.append(~left.reshape(self.entities, -1))
        return torch.from_numpy(np.stack(found))

    @cached_property
    def steps(self) -> Float[np.ndarray, "graph relation entity entity"]:
        """Probability of each tail, by relation and entity; zero for pairs without edges."""
        full = torch.nn.functional.one_hot(self.tails, self.entities).double().mean(3)
        return np.asarray((full * self.kept[..., None]).permute(0, 2, 1, 3))

    def shuffled(self, seed: int = 0) -> Float[np.ndarray, "graph relation entity entity"]:
        """The same steps, the entities that edges start from permuted within each relation."""
        rng = np.random.default_rng([seed, 12])
        return np.stack([np.stack([one[rng.permutation(self.entities)] for one in graph]) for graph in self.steps])

    def left_out(self, graph: int) -> Int[np.ndarray, "pair 2"]:
        """Entity and relation of the pairs without edges, in random order."""
        pairs = np.argwhere(~self.kept[graph].numpy())
        return np.random.default_rng([self.seeds[graph], 13]).permutation(pairs)

    def documents(self, number: int, length: int, hops: int, generator: torch.Generator) -> Int[Tensor, "graph document token"]:
        """Walks of `hops` steps, one after the other."""
        graphs = torch.arange(len(self.seeds))[:, None]
        found: list[Tensor] = []
        at = torch.zeros(len(self.seeds), number, dtype=torch.long)
        relation = at
        for place in range(length):
            inside = place % (2 * hops + 1)
            if inside == 0:
                at = torch.randint(self.entities, at.shape, generator=generator)
            elif inside % 2:
                odds = torch.rand(*at.shape, self.relations, generator=generator)
                relation = (odds * self.kept[graphs, at]).argmax(-1)
            else:
                at = self.tails[graphs, at, relation, torch.randint(2, at.shape, generator=generator)]
            found.append(relation + self.entities if inside % 2 else at)
        return torch.stack(found, -1)
