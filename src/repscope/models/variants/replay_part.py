"""Effects of added vectors at one group of prompts, by replays of blocks or by whole passes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.engine.positions import as_float
from repscope.models.engine.token_network import TokenNetwork
from repscope.models.linear.linearization import Explicit, Linearized
from repscope.models.prompts import Encoded
from repscope.models.sites import Site
from repscope.models.variants.replay_group import Group, Kept, LastBlock, last_block, replayed, whole_passes

PULL_TOKENS = 768  #: row-tokens of one backward pass with many cotangents
STOPS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError)  #: of a network that cannot be replayed


def unedited(net: TokenNetwork) -> None:
    """See that no edit is installed, which a replay would not see as a pass does.

    Raises a `UserError` when one is.
    """
    if net.installed:
        raise UserError(
            f"{net.installed[0].edit} is installed, and effects are of the network as it is: leave the `edit` context first."
        )


@dataclass(frozen=True, eq=False)
class _Reading:
    """Where a replay is read: a site, and places among row × token; last: the block before it for these places alone."""

    site: Site
    places: Int[Tensor, "place"]
    last: LastBlock | None = None

    @classmethod
    def of(cls, net: TokenNetwork, group: Group, source: Site, site: Site, places: Int[np.ndarray, "place"]) -> "_Reading":
        last = last_block(net, group, places, source, site)
        places = places if last is None else np.searchsorted(np.unique(places), places)
        return cls(site, torch.from_numpy(places).to(net.device), last)


class ReplayPart:
    """What runs for the prompts of one group, differentiable in vectors.

    sites: source, target, end. whole: whether by whole passes. holds: whether the graph at zero stays in memory.
    """

    def __init__(
        self,
        net: TokenNetwork,
        sites: tuple[Site, Site, Site],
        encoded: Encoded,
        kept: Sequence[Kept],
        pooled: bool,
        group: Group,
        whole: bool = False,
    ) -> None:
        self.net, self.group, self.pooled, self.whole, self.holds = net, group, pooled, whole, False
        self.source, target, end = sites
        self.kept = [kept[i] for i in group.prompts]
        self.spans = [slice(int(encoded.start[i]), int(encoded.stop[i])) for i in group.prompts]
        self.counts = [at.stop - at.start for at in self.spans]
        places = np.concatenate([cells[at] for cells, at in zip(group.cells, self.spans)])
        last = np.array([cells[-1] for cells in group.cells])
        self.target = _Reading.of(net, group, self.source, target, places)
        self.passing = _Reading(target, torch.from_numpy(places).to(net.device))  #: the target where the replay goes on
        self.end = _Reading.of(net, group, self.source, end, last if target != end else np.concatenate([places, last]))
        self.base = self._mean(torch.cat([as_float(k.target[at]) for k, at in zip(self.kept, self.spans)]))
        self.base_end = torch.stack([as_float(k.end) for k in self.kept])
        self._slope: Linearized | None = None
        self._refused = False

    def effect(self, vectors: Float[Tensor, "vector d_model"]) -> Float[Tensor, "vector row feature"]:
        """Effects at the target."""
        unedited(self.net)
        if self.whole:
            (hidden,) = whole_passes(self.net, self.source, [self.target.site], self.kept, vectors)
            return self._mean(_at(self.target, hidden, len(vectors))) - self.base
        return self._mean(self._reached(self._added(vectors), self.source, self.target, len(vectors))) - self.base

    def onward(
        self, vectors: Float[Tensor, "vector d_model"], cache: Any = None
    ) -> tuple[Float[Tensor, "vector row feature"], Float[Tensor, "vector prompt d_model"]]:
        """Effects at the target, and at the end on each prompt's last token; cache: what receives keys and values of the blocks."""
        unedited(self.net)
        count, to, end = len(vectors), self.passing, self.end
        if self.whole:
            hidden, beyond = whole_passes(self.net, self.source, [to.site, end.site], self.kept, vectors)
            here, last = _at(to, hidden, count), _at(end, beyond, count)
        elif to.site == end.site:  # one pass is read at the places of both
            last = self._reached(self._added(vectors), self.source, end, count, cache)
            here = last[:, : -len(self.kept)]
        else:
            hidden = replayed(self.net, self.group, self._blocks(self.source, to.site), self._added(vectors), cache)
            here, last = _at(to, hidden, count), self._reached(hidden, to.site, end, count, cache)
        return self._mean(here) - self.base, last[:, -len(self.kept) :] - self.base_end

    def pull(self, cotangent: Float[Tensor, "vector row feature"]) -> Float[Tensor, "vector d_model"] | None:
        """The gradients at zero of <cotangent, effect>, from one forward pass; None if that pass differs from the network's."""
        unedited(self.net)
        made = self._slope
        if made is None and not self._refused:
            made = self._linearized()
            self._refused = made is None
            self._slope = made if self.holds else None
        return None if made is None else made.vjp(cotangent.flatten(1), [0])[0][:, 0]

    def differs(self, drawn: Float[Tensor, "vector d_model"], added: bool) -> str:
        """How replays differ from what the network gives for zeros and, if `added`, from whole passes with vectors added over the
        shortest prompt; empty if they agree.
        """
        exact = self.group.state.dtype  # how near passes are to each other

        def agree(a: Tensor, b: Tensor) -> bool:
            return self.net.agree(a.to(exact), b.to(exact))

        with torch.no_grad():
            nothing = torch.zeros_like(drawn[:1])
            here, last = self.onward(nothing)
            effect = self.effect(nothing)
            plain = torch.cat([self.base, self.base_end, self.base])
            if not agree(torch.cat([here[0], last[0], effect[0]]) + plain, plain):
                return "called alone with the prompts' own states do not give what the network gives"
            if not added:
                return ""
            short = min(range(len(self.kept)), key=lambda i: len(self.kept[i].state))
            (whole,) = whole_passes(self.net, self.source, [self.target.site], [self.kept[short]], drawn)
            theirs = as_float(whole[:, self.spans[short]])
            rows = [1 if self.pooled else count for count in self.counts]
            ours = torch.split(self.effect(drawn) + self.base, rows, 1)[short]
            if agree(ours, theirs.mean(1, keepdim=True) if self.pooled else theirs):
                return ""
            return "called alone with vectors added do not give what whole passes give"

    def _linearized(self) -> Linearized | None:
        """The replay of a zero vector with its graph."""
        leaf = torch.zeros_like(self.group.state[0, :1], requires_grad=True)
        try:
            with torch.enable_grad(), Explicit():
                there = self._mean(self._reached(self._added(leaf), self.source, self.target, 1)).flatten(1)
        except STOPS:
            return None
        exact = self.group.state.dtype
        if not self.net.agree(there[0].detach().to(exact), self.base.flatten().to(exact)):
            return None
        return Linearized([leaf], [leaf.detach()], there, (PULL_TOKENS // self.group.tokens,) * 2)

    def _blocks(self, after: Site, to: Site) -> slice:
        """Among the recorded blocks, those after one site up to another."""
        first = self.source.layer or 0
        return slice((after.layer or 0) - first, (to.layer or 0) - first)

    def _added(self, vectors: Tensor) -> Float[Tensor, "row token d_model"]:
        return (self.group.state + vectors.to(self.group.state)[:, None, None]).flatten(0, 1)

    def _reached(
        self, hidden: Tensor, after: Site, to: _Reading, vectors: int, cache: Any = None
    ) -> Float[Tensor, "vector place d_model"]:
        """Hidden states after a site, run on to another, where they are read."""
        blocks = self._blocks(after, to.site)
        if to.last is None:
            return _at(to, replayed(self.net, self.group, blocks, hidden, cache), vectors)
        hidden = replayed(self.net, self.group, slice(blocks.start, blocks.stop - 1), hidden, cache)
        return _at(to, to.last.run(self.net, hidden, cache), vectors)

    def _mean(self, rows: Float[Tensor, "*vector position feature"]) -> Float[Tensor, "*vector row feature"]:
        """The mean over each prompt's positions, or all of them."""
        return torch.stack([part.mean(-2) for part in torch.split(rows, self.counts, -2)], -2) if self.pooled else rows


def _at(to: _Reading, hidden: Tensor, vectors: int) -> Float[Tensor, "vector place d_model"]:
    """Hidden states at the places that are read, in float32 or wider."""
    return as_float(_flat(hidden, vectors).index_select(1, to.places))


def _flat(hidden: Tensor, vectors: int) -> Float[Tensor, "vector place d_model"]:
    return torch.unflatten(hidden, 0, (vectors, -1)).flatten(1, 2)
