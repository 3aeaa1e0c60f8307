"""Prefix trees of prompts, split into packs so that shared prefixes run once and padding is avoided.

1. Sorted distinct prompts form a prefix tree. Tokens shared by u prompts are a separate segment if that saves more tokens,
   length × (u - 1), than an additional attention call costs; else each prompt has its own copy.
2. Segments are in depth-first order, longest prompts first. A pack is a sequence of segments with about the budget's number of
   tokens: one row of the network.
3. With depth-first order a pack depends on one chain of earlier segments only, from the root to the parent of its first segment.
4. With `family`, subtrees of at most so many tokens attend in one masked product (`packed_attention`), where an additional segment
   costs nothing: there every shared token is shared. For pairs of sentences that differ in one word, and the like.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int

_SEGMENT_SAVES = 32  #: tokens that a shared segment must save to justify an attention call in every block


@dataclass(frozen=True)
class Tree:
    """Segments of prompts in depth-first order.

    prompt: (segment), a prompt that contains it. start, stop: (segment), its positions there. parent: (segment), its predecessor,
    -1 at a root. end: (segment), the first segment after its subtree. leaf: (prompt), last segment of each prompt. family: most
    tokens of a subtree that attends in one product, 0 for none.
    """

    prompt: Int[np.ndarray, "segment"]
    start: Int[np.ndarray, "segment"]
    stop: Int[np.ndarray, "segment"]
    parent: Int[np.ndarray, "segment"]
    end: Int[np.ndarray, "segment"]
    leaf: Int[np.ndarray, "prompt"]
    family: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens in all segments."""
        return int((self.stop - self.start).sum())

    def families(self, pack: "Pack") -> list[tuple[int, int]]:
        """The segments of a pack in groups (first, one after the last): whole small subtrees, and single segments."""
        held = np.concatenate([[0], np.cumsum(self.stop - self.start)])
        found, segment = list[tuple[int, int]](), pack.first
        while segment < pack.last:
            end = int(self.end[segment])
            if end > pack.last or held[end] - held[segment] > self.family:
                end = segment + 1
            found.append((segment, end))
            segment = end
        return found

    def chain(self, segment: int) -> list[int]:
        """The segments from the root to this one, excluded."""
        up: list[int] = []
        while (segment := int(self.parent[segment])) >= 0:
            up.append(segment)
        return up[::-1]

    def holder(self, prompts: Int[np.ndarray, "row"], positions: Int[np.ndarray, "row"]) -> Int[np.ndarray, "row"]:
        """The segment that contains each prompt's position."""
        held: np.ndarray = self.leaf[prompts]  # a copy
        while (above := self.start[held] > positions).any():
            held[above] = self.parent[held[above]]
        return held


@dataclass(frozen=True)
class Pack:
    """Segments `first:last` of a tree that run as one row; kept: the chain of earlier segments that they continue."""

    first: int
    last: int
    kept: tuple[int, ...]


def tree(ids: Sequence[Int[np.ndarray, "token"]], *, share: bool, family: int = 0) -> Tree:
    """The tree of distinct prompts; without `share`, every prompt is one segment."""
    lengths = np.array([len(row) for row in ids])
    if not share or len(ids) == 1:
        order = np.argsort(-lengths, kind="stable")
        leaf = np.empty(len(ids), dtype=np.int64)
        leaf[order] = np.arange(len(ids))
        return Tree(order, np.zeros_like(lengths), lengths[order], np.full(len(ids), -1), np.arange(len(ids)) + 1, leaf)
    # Any byte order that makes common prefixes adjacent is sufficient.
    order = np.array(sorted(range(len(ids)), key=lambda i: ids[i].astype(">u4").tobytes()))
    common = np.array([common_prefix(ids[a], ids[b]) for a, b in pairwise(order)], dtype=np.int64)
    rows = array("q")  # prompt, start, stop, parent of each segment: plain numbers, as there may be as many as prompts
    leaf = np.empty(len(ids), dtype=np.int64)
    todo = [iter([(0, len(ids), 0, -1)])]  # prompts order[a:b], how much of them is done, the segment that holds it
    while todo:
        if (child := next(todo[-1], None)) is None:
            todo.pop()
            continue
        a, b, done, parent = child
        if b - a == 1:
            i = int(order[a])
            if lengths[i] > done:
                rows.extend((i, done, int(lengths[i]), parent))
                parent = len(rows) // 4 - 1
            leaf[i] = parent
            continue
        shared = int(common[a : b - 1].min())
        small = shared > done and shared - done + int((lengths[order[a:b]] - shared).sum()) <= family
        if small or (shared - done) * (b - a - 1) >= _SEGMENT_SAVES:
            rows.extend((int(order[a]), done, shared, parent))
            done, parent = shared, len(rows) // 4 - 1
        cuts = np.flatnonzero(common[a : b - 1] == shared) + a + 1
        todo.append(_children(np.concatenate([[a], cuts, [b]]), lengths[order[a:b]], done, parent))
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return Tree(table[:, 0], table[:, 1], table[:, 2], table[:, 3], _ends(table[:, 3]), leaf, family)


def _children(
    edges: Int[np.ndarray, "child_plus_1"], lengths: Int[np.ndarray, "row"], done: int, parent: int
) -> Iterator[tuple[int, int, int, int]]:
    """Iterate over the groups of prompts between edges, the group with the longest prompt first."""
    longest = np.maximum.reduceat(lengths, edges[:-1] - edges[0])
    return ((int(edges[i]), int(edges[i + 1]), done, parent) for i in np.argsort(-longest, kind="stable"))


def packs(held: Tree, budget: int) -> list[Pack]:
    """Split a tree into packs of similar size, within the budget unless a single segment exceeds it.

    As few as the budget allows, and as equal as that number allows: a small rest costs a whole pass.
    """
    sizes = held.stop - held.start
    full = _cuts(sizes, budget, 1)
    equal = _cuts(sizes, budget, len(full))
    cuts = equal if len(equal) <= len(full) else full
    return [Pack(a, b, tuple(held.chain(a))) for a, b in zip(cuts, [*cuts[1:], len(sizes)])]


def _cuts(sizes: Int[np.ndarray, "segment"], budget: int, count: int) -> list[int]:
    """First segments of packs that end as near as possible to equal shares of all tokens, within the budget."""
    share = sizes.sum() / count
    cuts, filled, before = [0], 0, 0
    for segment, size in enumerate(sizes):
        if filled and (filled + size > budget or before + size / 2 > share * len(cuts)):
            cuts.append(segment)
            filled = 0
        filled += int(size)
        before += int(size)
    return cuts


def common_prefix(a: Int[np.ndarray, "token"], b: Int[np.ndarray, "token"]) -> int:
    """Number of leading tokens that two prompts share."""
    size = min(len(a), len(b))
    same: Bool[np.ndarray, token] = a[:size] == b[:size]
    return size if same.all() else int(np.argmin(same))


def _ends(parent: Int[np.ndarray, "segment"]) -> Int[np.ndarray, "segment"]:
    """The first segment after each one's subtree: one past its last descendant."""
    end = np.arange(len(parent)) + 1
    for segment in range(len(parent) - 1, -1, -1):
        above = parent[segment]
        if above >= 0:
            end[above] = max(end[above], end[segment])
    return end
