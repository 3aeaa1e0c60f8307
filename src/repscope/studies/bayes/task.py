"""What the steps of `bayes` share: the worlds, the networks and their answers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from repscope.errors import UserError
from repscope.models.loading.stacked_weights import State
from repscope.studies.bayes import names
from repscope.studies.bayes.options import BayesOptions
from repscope.trace.bayes import RegressionOptions
from repscope.trace.bayes.prompted import mixture_of
from repscope.worlds.ginc import PUBLISHED, GincPrompts, GincSizes, GincWorld, prompts, scan
from repscope.worlds.small_lm import Training, recurrent, transformer

Logits = Callable[..., torch.Tensor]
HELD_OUT = 48  #: documents on which the distance per token is measured
_ROWS = 1 << 14  #: tokens of a network at a time


@dataclass(frozen=True)
class Kind:
    """One training.

    name: of its step. world: delimiter. concepts: those it sees, all if none. recurrent: an LSTM instead.
    """

    name: str
    world: str = names.UNIFORM
    concepts: tuple[int, ...] | None = None
    recurrent: bool = False


TRANSFORMER = Kind(names.NETWORKS)
RECURRENT = Kind("LSTM", recurrent=True)
CONTRAST = Kind("published delimiter", names.PUBLISHED)
SINGLE = Kind("one concept", concepts=(0,))
KINDS = {kind.name: kind for kind in (TRANSFORMER, RECURRENT, CONTRAST, SINGLE)}


@dataclass(frozen=True)
class BayesTask:
    """The options of a run and what its steps make of them."""

    options: BayesOptions

    @property
    def symbols(self) -> int:
        """Symbols of the documents."""
        return self.options.symbols

    @cached_property
    def sizes(self) -> GincSizes:
        """Sizes of the worlds."""
        o = self.options
        return GincSizes(o.concepts, o.concepts, o.values, o.slots, o.symbols)

    @cached_property
    def scanned(self) -> tuple[GincWorld, pd.DataFrame]:
        """The world with a uniform delimiter that the margin rule chooses, and what was looked at."""
        first = 1 + 1000 * self.options.seed
        return scan(self.sizes, range(first, first + self.options.worlds), length=min(self.options.lengths))

    @property
    def regression(self) -> RegressionOptions:
        """Sizes of the step on linear regression."""
        o = self.options
        if o.tiny:
            return RegressionOptions.tiny(o.seed)
        return RegressionOptions.short(o.seed) if o.short else RegressionOptions(seed=o.seed)

    def world(self, delimiter: str) -> GincWorld:
        """The chosen world, or the same draw with the published delimiter."""
        chosen = self.scanned[0]
        if delimiter == names.UNIFORM:
            return chosen
        return GincWorld.drawn(replace(self.sizes, delimiter=PUBLISHED), chosen.seed)

    def examples(self, length: int) -> int:
        """Most examples that fit into a document's length, the query not counted."""
        most = self.options.length // (length + 1) - 1
        if most < 1:
            raise UserError(f"--lengths {length} leaves no room for an example in {self.options.length} symbols; raise --length.")
        return most

    def prompts(self, delimiter: str, length: int, part: str, concepts: tuple[int, ...] | None = None) -> GincPrompts:
        """Prompts with the most examples that fit."""
        rng = np.random.default_rng([self.options.seed, length, *part.encode()])
        return prompts(self.world(delimiter), self.options.prompts, self.examples(length), length, rng, concepts)

    def shape(self, kind: Kind) -> transformer.Shape | recurrent.Shape:
        """Sizes of the networks of a training."""
        o = self.options
        if kind.recurrent:
            return recurrent.Shape("lstm", self.symbols, 3 * o.width // 2)
        return transformer.Shape(self.symbols, o.length, o.width)

    def initial(self, kind: Kind) -> State:
        """Weights before training."""
        seeds = [1009 * self.options.seed + i for i in range(self.options.networks)]
        shape = self.shape(kind)
        return recurrent.initial(shape, seeds) if isinstance(shape, recurrent.Shape) else transformer.initial(shape, seeds)

    def logits(self, kind: Kind) -> Logits:
        """(state, tokens) → logits."""
        shape = self.shape(kind)
        if isinstance(shape, recurrent.Shape):
            return partial(recurrent.logits, shape)
        return partial(transformer.logits, shape)

    @property
    def schedule(self) -> Training:
        """Of every training."""
        updates = self.options.steps
        return Training(updates, self.options.rate, warm_up=min(100, max(1, updates // 10)))

    def documents(self, kind: Kind, step: int) -> torch.Tensor:
        """Documents of a step, others for each network."""
        o = self.options
        rng = np.random.default_rng([o.seed, step, *kind.name.encode()])
        tokens, _ = self.world(kind.world).documents(o.networks * o.batch, o.length, rng, kind.concepts)
        return torch.from_numpy(tokens.reshape(o.networks, o.batch, o.length))

    def held_out(self, kind: Kind) -> tuple[Int[np.ndarray, "document token"], Float[np.ndarray, "document place symbol"]]:
        """Documents that no training saw, and what the exact predictor says after each symbol but the last."""
        world = self.world(kind.world)
        seen = kind.concepts or world.seen
        tokens, _ = world.documents(HELD_OUT, self.options.length, np.random.default_rng([self.options.seed, 77]), seen)
        return tokens, mixture_of(world, 1e-9, seen).forecast(tokens, range(self.options.length - 1)).next

    @torch.no_grad()
    def answers(
        self, kind: Kind, state: State, tokens: Int[np.ndarray, "text token"], places: Int[np.ndarray, "place"]
    ) -> Float[np.ndarray, "network text place symbol"]:
        """What networks predict after the symbols at these places."""
        logits, found = self.logits(kind), []
        ids = torch.from_numpy(tokens)
        step = max(1, _ROWS // tokens.shape[1])
        for start in range(0, len(ids), step):
            part = ids[start : start + step].expand(self.options.networks, -1, -1)
            found.append(logits(state, part)[:, :, torch.from_numpy(places)].double().softmax(-1).numpy())
        return np.concatenate(found, axis=1)
