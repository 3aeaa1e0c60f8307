"""The capture planner: from token ids to the least work that answers. Takes token ids, never text and never a network.

1. Identical prompts run once.
2. The longest prefix that all prompts share runs once (causal networks only), where it saves more than a cache costs.
3. What is left is sorted by length and cut into batches under a token budget. The cuts minimise padded tokens plus a fixed
   cost per batch, exactly, by dynamic programming over the distinct lengths: O(L²) for L lengths, whatever the number of prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

_PREFIX_SAVES = 64  #: tokens that a shared prefix must save to be worth a cache
_BATCH_COSTS = (
    48  #: a further batch costs about as much as this many padded tokens (dispatch; small products run slower)
)


@dataclass(frozen=True)
class Plan:
    """What will run.

    ids: the distinct prompts. inverse: (prompt), which of them each prompt is. prefix: number of leading tokens that run
    once for all. batches: for each batch the indices of its distinct prompts, shortest first.
    """

    ids: Sequence[Int[np.ndarray, "token"]]
    inverse: Int[np.ndarray, "prompt"]
    prefix: int
    batches: Sequence[Int[np.ndarray, "row"]]

    @property
    def tokens(self) -> int:
        """Token positions that the network computes, padding included."""
        padded = sum(len(b) * (len(self.ids[b[-1]]) - self.prefix) for b in self.batches)
        return self.prefix + padded


def plan(
    ids: Sequence[Int[np.ndarray, "token"]],
    budget: int,
    *,
    share_prefix: bool,
    limit: int | None = None,
    merge: bool = True,
) -> Plan:
    """Plan a pass over prompts given as token ids.

    Parameters
    ----------
    ids
        One array of token ids a prompt, none empty.
    budget
        Padded tokens that a batch may hold; a single longer prompt is a batch by itself.
    share_prefix
        Whether the network is causal, so that a prefix can run once.
    limit
        Most tokens of a shared prefix, None for no such limit.
    merge
        Whether identical prompts are one.
    """
    seen: dict[bytes, int] = {}
    inverse = np.empty(len(ids), dtype=np.int64)
    distinct: list[Int[np.ndarray, token]] = []
    for i, row in enumerate(ids):
        key = row.tobytes() if merge else str(i).encode()
        if key not in seen:
            seen[key] = len(distinct)
            distinct.append(row)
        inverse[i] = seen[key]
    prefix = _common_prefix(distinct) if share_prefix and len(distinct) > 1 else 0
    prefix = prefix if limit is None else min(prefix, limit)
    if prefix * (len(distinct) - 1) < _PREFIX_SAVES:
        prefix = 0
    lengths = np.array([len(row) - prefix for row in distinct])
    return Plan(distinct, inverse, prefix, _batches(lengths, budget))


def _common_prefix(ids: Sequence[Int[np.ndarray, "token"]]) -> int:
    """Longest common prefix that leaves every prompt at least one token of its own."""
    shared = min(len(row) for row in ids) - 1
    first = ids[0]
    for row in ids[1:]:
        differing = np.flatnonzero(row[:shared] != first[:shared])
        if differing.size:
            shared = int(differing[0])
        if not shared:
            return 0
    return shared


def _batches(lengths: Int[np.ndarray, "prompt"], budget: int) -> list[Int[np.ndarray, "row"]]:
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
        total = cost[:j] + members * longest + needed * _BATCH_COSTS
        cut[j] = int(np.argmin(total))
        cost[j] = total[cut[j]]
    batches: list[Int[np.ndarray, row]] = []
    j = len(distinct)
    while j > 0:
        i = int(cut[j])
        group = order[(ends[i - 1] if i else 0) : ends[j - 1]]
        pieces = -(-len(group) // max(1, int(budget // distinct[j - 1])))
        batches.extend(reversed(np.array_split(group, pieces)))
        j = i
    return batches[::-1]
