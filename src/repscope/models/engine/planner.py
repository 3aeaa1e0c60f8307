"""Planning of forward passes over token ids: duplicates, packing, shared prefixes and batches.

1. Identical prompts run once.
2. If the network supports it, prompts are packed without padding, and shared prefixes run once (`prefix_tree`).
3. Else prompts are padded. The longest common prefix runs once (causal networks only) if it saves more than a cache costs. The rest
   is sorted by length and split into batches under a token budget. The splits minimise padded tokens plus a fixed cost per batch
   exactly, by dynamic programming over the L distinct lengths, in O(L²) independent of the number of prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Int

from repscope.models.engine.prefix_tree import Pack, Tree, packs, tree
from repscope.models.prompts import Ragged

_PREFIX_SAVES = 64  #: tokens that a shared prefix must save to be worth a cache
_BATCH_COSTS = 48  #: cost of an additional batch in padded tokens (dispatch; small products run slower)
_PACKING_SAVES = 0.02  #: share of the cost of padded batches that packing must save
_PROOF = 2.5  #: and this multiple of the longest prompt, the cost of verifying it; counted even if already verified


@dataclass(frozen=True)
class Plan:
    """Planned forward passes.

    ids: the distinct prompts. inverse: (prompt), index of each prompt's distinct prompt. prefix: number of leading tokens that run
    once for all. batches: for each batch the indices of its distinct prompts, shortest first. tree, packs: replace prefix and
    batches if prompts are packed. why: why they are not packed.
    """

    ids: Ragged
    inverse: Int[np.ndarray, "prompt"]
    prefix: int
    batches: Sequence[Int[np.ndarray, "row"]]
    tree: Tree | None = None
    packs: Sequence[Pack] = ()
    why: str = ""

    @cached_property
    def tokens(self) -> int:
        """Token positions computed, including padding."""
        if self.tree is not None:
            return self.tree.tokens
        padded = sum(len(b) * int(self.ids.lengths[b[-1]] - self.prefix) for b in self.batches)
        return self.prefix + padded

    @property
    def largest(self) -> int:
        """Token positions of the largest pass."""
        if self.tree is not None:
            sizes = self.tree.stop - self.tree.start
            return max(int(sizes[pack.first : pack.last].sum()) for pack in self.packs)
        return max(len(b) * int(self.ids.lengths[b[-1]] - self.prefix) for b in self.batches)

    @property
    def passes(self) -> int:
        """Number of forward passes."""
        return len(self.packs) or len(self.batches) + bool(self.prefix)


def plan(
    ids: Ragged,
    budget: int,
    *,
    share: bool,
    pack: str = "",
    refuses: Callable[[], str] = str,
    most: int | None = None,
    limit: int | None = None,
    merge: bool = True,
    family: int = 0,
) -> Plan:
    """Plan a pass over prompts, none of them empty.

    budget: tokens per batch including padding; a longer prompt is its own batch. share: whether common prefixes can run once
    (causal networks). pack: why prompts must not be packed, empty if they may. refuses: called if packing would save time; why the
    network does not support it, empty if it does. most: maximum tokens of a pack, by default the budget. limit: maximum tokens of a
    shared prefix. merge: whether identical prompts run once, and packs share beginnings. family: see `prefix_tree`.
    """
    distinct, inverse = _merged(ids) if merge else (ids, np.arange(len(ids)))
    prefix = _common_prefix(distinct) if share and len(distinct) > 1 else 0
    prefix = prefix if limit is None else min(prefix, limit)
    if prefix * (len(distinct) - 1) < _PREFIX_SAVES:
        prefix = 0
    padded = Plan(distinct, inverse, prefix, batches(distinct.lengths - prefix, budget))
    if pack or len(distinct) == 1:
        return replace(padded, why=pack or "there is one prompt")
    one_a_row = packed(distinct, budget if most is None else min(budget, most), share=share and merge, family=family)
    costs = [one.tokens + _BATCH_COSTS * one.passes for one in (one_a_row, padded)]
    if costs[1] - costs[0] < max(_PACKING_SAVES * costs[1], _PROOF * int(ids.lengths.max())):
        return replace(padded, why="it would save next to nothing")
    if why := refuses():
        return replace(padded, why=why)
    return replace(one_a_row, inverse=inverse)


def packed(ids: Ragged, budget: int, *, share: bool, family: int = 0) -> Plan:
    """Pack distinct prompts up to a number of tokens per pack, regardless of savings."""
    held = tree(ids, share=share, family=family)
    return Plan(ids, np.arange(len(ids)), 0, (), held, packs(held, budget))


def _merged(ids: Ragged) -> tuple[Ragged, Int[np.ndarray, "prompt"]]:
    """The distinct prompts in order of first occurrence, and the index of each prompt among them."""
    seen: dict[bytes, int] = {}
    inverse = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in ids], dtype=np.int64)
    if len(seen) == len(ids):
        return ids, inverse
    return ids.take(np.unique(inverse, return_index=True)[1]), inverse


def _common_prefix(ids: Ragged) -> int:
    """Longest common prefix that leaves at least one further token in every prompt."""
    shared = int(ids.lengths.min()) - 1
    first = ids[0]
    for row in ids:
        differing = np.flatnonzero(row[:shared] != first[:shared])
        if differing.size:
            shared = int(differing[0])
        if not shared:
            return 0
    return shared


def batches(lengths: Int[np.ndarray, "row"], budget: int, cost_of_one: int = _BATCH_COSTS) -> list[Int[np.ndarray, "row"]]:
    """Rows grouped by length, each batch sorted, with minimal padding plus a fixed cost per batch."""
    if len(lengths) == 1:
        return [np.zeros(1, dtype=np.int64)]
    order = np.argsort(lengths, kind="stable")
    distinct, counts = np.unique(lengths, return_counts=True)
    ends = np.cumsum(counts)
    cost = np.full(len(distinct) + 1, np.inf)
    cost[0] = 0.0
    cut = np.zeros(len(distinct) + 1, dtype=np.int64)
    for j, longest in enumerate(distinct, start=1):
        # Group the lengths i..j-1: all padded to the longest of them, split evenly where they exceed the budget.
        members = ends[j - 1] - np.concatenate([[0], ends[: j - 1]])
        needed = np.ceil(members / max(1, budget // longest))
        total = cost[:j] + members * longest + needed * cost_of_one
        cut[j] = int(np.argmin(total))
        cost[j] = total[cut[j]]
    made: list[Int[np.ndarray, row]] = []
    j = len(distinct)
    while j > 0:
        i = int(cut[j])
        group = order[(ends[i - 1] if i else 0) : ends[j - 1]]
        pieces = -(-len(group) // max(1, int(budget // distinct[j - 1])))
        made.extend(reversed(np.array_split(group, pieces)))
        j = i
    return made[::-1]
