"""Step of `emergence` on random walks: is what a network predicts of unseen edges a weighted sum over paths?

1. Networks trained on walks of several numbers of steps over graphs with left-out edges (`worlds.random_walks`), at once.
2. Each is asked for the tail of a left-out edge, and compared by KL(prediction ‖ network) with path sums of every weighting and
   largest path length. The best of them is chosen on half of the left-out edges, and reported on the other half.
3. Controls: the relation's tails anywhere (unigram), tails of the nearest neighbours, and the best path sum compared with the
   untrained network. Path sums over a shuffled graph have the same weightings, counted and fitted on the shuffled edges, and the
   same choice on one half of the left-out edges.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from repscope import stats
from repscope.conditions import ESTIMATE
from repscope.models.loading.stacked_weights import State
from repscope.results import CHOSEN, Result, Row
from repscope.studies.emergence import names
from repscope.studies.emergence.options import EmergenceOptions
from repscope.studies.run.study import Context, Cost
from repscope.worlds.random_walks import PathSums, WalkGraphs, nearest_neighbours, unigram
from repscope.worlds.random_walks.path_sums import WEIGHTINGS, divergence
from repscope.worlds.small_lm import Training, train, transformer
from repscope.worlds.small_lm.transformer import Shape

LONGEST = 3  #: relations of a path
BATCH, LENGTH = 32, 17
_RATE = 3e-3
Answers = Float[np.ndarray, "pair entity"]


@dataclass(frozen=True)
class Walks:
    """Graphs, networks and references of a run."""

    options: EmergenceOptions

    @cached_property
    def graphs(self) -> WalkGraphs:
        """One per seed."""
        seeds = tuple(1009 * self.options.seed + i for i in range(self.options.seeds))
        return WalkGraphs(seeds, 12 if self.options.tiny else 40)

    @property
    def shape(self) -> Shape:
        """Two blocks of the GPT-2 layout."""
        return Shape(self.graphs.vocabulary, LENGTH, 16 if self.options.tiny else 48, 2, 4)

    def documents(self, step: int) -> Int[Tensor, "network document token"]:
        """Documents of an update: of every number of steps, of every graph."""
        generator = torch.Generator().manual_seed(1_000_003 * self.options.seed + step)
        return torch.cat([self.graphs.documents(BATCH, LENGTH, hops, generator) for hops in self.options.walk_lengths])

    def initial(self) -> State:
        """Weights before training; those of a seed are the same for all walks."""
        return transformer.initial(self.shape, list(self.graphs.seeds) * len(self.options.walk_lengths))

    @torch.no_grad()
    def answers(self, state: State, pairs: Int[np.ndarray, "pair 2"]) -> Float[np.ndarray, "network pair entity"]:
        """What networks expect after an entity and a relation, over entities."""
        tokens = torch.from_numpy(pairs) + torch.tensor([0, self.graphs.entities])
        found = transformer.logits(self.shape, state, tokens.expand(len(self.initial()["transformer.wte.weight"]), -1, -1))
        return np.asarray(found[:, :, 1, : self.graphs.entities].double().softmax(-1))

    @cached_property
    def references(self) -> list[dict[tuple[str, str], Answers]]:
        """Predictions of the left-out edges of each graph, by condition and item."""
        return [self._references(graph, self.graphs.left_out(graph)) for graph in range(self.options.seeds)]

    def _references(self, graph: int, pairs: Int[np.ndarray, "pair 2"]) -> dict[tuple[str, str], Answers]:
        steps, found = self.graphs.steps[graph], dict[tuple[str, str], Answers]()
        for longest in range(1, LONGEST + 1):
            sums, item = PathSums(steps, longest), paths_item(longest)
            found |= {(names.WEIGHTED[w], item): sums.predicted(pairs, w) for w in WEIGHTINGS}
            shuffled = PathSums(self.graphs.shuffled(self.options.seed)[graph], longest)
            found |= {(_shuffled(w), item): shuffled.predicted(pairs, w) for w in WEIGHTINGS}
        found[names.UNIGRAM, ""] = unigram(steps, pairs)
        found[names.NEIGHBOURS, ""] = nearest_neighbours(steps, pairs)
        return found


def _shuffled(weighting: str) -> str:
    """A weighting over the shuffled graph, before one is chosen."""
    return f"{names.SHUFFLED_GRAPH}, {names.WEIGHTED[weighting]}"


def _chosen_control(
    joined: dict[tuple[str, str], Float[np.ndarray, "pair"]], half: Bool[np.ndarray, "pair"]
) -> dict[tuple[str, str], str]:
    """Of the shuffled graph keep, for each length of paths, the weighting that is nearest on the choosing half; its name by key."""
    said = {}
    for item in (paths_item(longest) for longest in range(1, LONGEST + 1)):
        found = {names.WEIGHTED[w]: joined.pop((_shuffled(w), item)) for w in WEIGHTINGS}
        best = min(found, key=lambda w: float(found[w][half].mean()))
        joined[names.SHUFFLED_GRAPH, item], said[names.SHUFFLED_GRAPH, item] = found[best], best
    return said


def paths_item(longest: int) -> str:
    """Paths of at most so many relations."""
    return f"paths of at most {longest}"


def walked(task: Walks, context: Context) -> Result:
    """Train, and compare answers on left-out edges with every prediction."""
    o, start = task.options, task.initial()
    schedule = Training(o.walk_steps, _RATE, warm_up=min(100, max(1, o.walk_steps // 10)))
    saved = context.partial / "training.safetensors"
    state = train(partial(transformer.logits, task.shape), start, task.documents, schedule, saved=saved, title="random walks").state
    rows: list[Row] = []
    for i, hops in enumerate(o.walk_lengths):
        rows += _rows(task, i, names.walks(hops), state, start)
    return Result.of(rows)


def cost(task: Walks) -> Cost:
    """Forecast."""
    o = task.options
    tokens = o.walk_steps * BATCH * LENGTH * o.seeds * len(o.walk_lengths)
    return Cost(tokens, 6.0 * tokens * task.shape.parameters, fit_flops=5e9 * o.seeds, memory_bytes=3e8)


def _rows(task: Walks, place: int, split: str, state: State, start: State) -> Iterator[Row]:
    """Of the networks of one number of steps: divergence from every prediction, and the mass on true tails."""
    seeds, seed = task.options.seeds, task.options.seed
    every: dict[tuple[str, str], list[np.ndarray]] = {}
    untrained: dict[tuple[str, str], list[np.ndarray]] = {}
    mass: dict[str, list[np.ndarray]] = {}
    choosing: list[np.ndarray] = []
    for graph in range(seeds):
        pairs = task.graphs.left_out(graph)
        network = place * seeds + graph
        references = task.references[graph]
        own, before = task.answers(state, pairs)[network], task.answers(start, pairs)[network]
        tails = task.graphs.tails[graph].numpy()[pairs[:, 0], pairs[:, 1]]
        for key, values in divergence(references, own).items():
            every.setdefault(key, []).append(values)
        for key, values in divergence(references, before).items():
            untrained.setdefault(key, []).append(values)
        for name, answers in ((ESTIMATE, own), (names.UNTRAINED, before), (names.UNIGRAM, references[names.UNIGRAM, ""])):
            mass.setdefault(name, []).append(np.take_along_axis(answers, tails, 1).sum(1))
        choosing.append(np.arange(len(pairs)) % 2 == 0)
    half = np.concatenate(choosing)
    joined = {key: np.concatenate(values) for key, values in every.items()}
    sums = [key for key in joined if key[0] in names.WEIGHTED.values()]
    best = min(sums, key=lambda key: float(joined[key][half].mean()))
    where: dict[str, Any] = {"metric": names.KL, "split": split, "seed": seed}
    said = _chosen_control(joined, half)
    for (condition, item), values in joined.items():
        more = {"definition": said.get((condition, item), "")}
        yield Row.of(stats.mean(values[~half], unit="edge", seed=seed), condition=condition, item=item, **more, **where)
    chosen = {"definition": f"{best[0]}, {best[1]}", "site": CHOSEN}
    yield Row.of(stats.mean(joined[best][~half], unit="edge", seed=seed), item=names.BEST, **chosen, **where)
    values = np.concatenate(untrained[best])[~half]
    yield Row.of(stats.mean(values, unit="edge", seed=seed), item=names.BEST, condition=names.UNTRAINED, **chosen, **where)
    for condition in (names.UNIGRAM, names.NEIGHBOURS, names.SHUFFLED_GRAPH):
        others = [key for key in joined if key[0] == condition]
        rival = min(others, key=lambda key: float(joined[key][half].mean()))
        gap = stats.mean((joined[rival] - joined[best])[~half], unit="edge", seed=seed)
        yield Row.of(gap, **(where | chosen | {"metric": names.NEARER, "item": names.BEST, "condition": condition}))
    for condition, parts in mass.items():
        estimate = stats.mean(np.concatenate(parts)[~half], unit="edge", seed=seed)
        yield Row.of(estimate, **(where | {"metric": names.MASS, "item": "left-out edges", "condition": condition}))
