"""Trees of prompts: what several prompts share runs once, and ragged prompts stand side by side without padding.

Takes token ids, never text and never a network.

1. Distinct prompts, sorted, become a prefix tree. A stretch of tokens that u prompts share is a segment of its own where that
   saves more tokens, length × (u - 1), than a further call of attention costs; else each prompt has its own copy of it.
2. The segments stand in depth-first order, the longest prompts first. A pack is a run of them with about the budget's number of
   tokens, all of them real: one row of the network.
3. Depth first means: what a pack needs of earlier packs is one chain of segments, from the root to the parent of its first one.
   Nobody has to keep more than that.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int

_SEGMENT_SAVES = 32  #: tokens that a shared segment must save to be worth a call of attention in every block


@dataclass(frozen=True)
class Tree:
    """Segments of prompts in depth-first order.

    prompt: (segment), a prompt that holds it. start, stop: (segment), its positions there. parent: (segment), the one before it,
    -1 at a root. end: (segment), the first segment after its subtree. leaf: (prompt), the segment in which each prompt ends.
    """

    prompt: Int[np.ndarray, "segment"]
    start: Int[np.ndarray, "segment"]
    stop: Int[np.ndarray, "segment"]
    parent: Int[np.ndarray, "segment"]
    end: Int[np.ndarray, "segment"]
    leaf: Int[np.ndarray, "prompt"]

    @property
    def tokens(self) -> int:
        """Tokens of all segments, each once."""
        return int((self.stop - self.start).sum())

    def chain(self, segment: int) -> list[int]:
        """The segments from the root down to this one, without it."""
        up: list[int] = []
        while (segment := int(self.parent[segment])) >= 0:
            up.append(segment)
        return up[::-1]

    def holder(self, prompts: Int[np.ndarray, "row"], positions: Int[np.ndarray, "row"]) -> Int[np.ndarray, "row"]:
        """The segment that holds each prompt's position."""
        held: np.ndarray = self.leaf[prompts]  # a copy
        while (above := self.start[held] > positions).any():
            held[above] = self.parent[held[above]]
        return held


@dataclass(frozen=True)
class Pack:
    """Segments `first:last` of a tree that run as one row; kept: the chain of earlier segments that they go on from."""

    first: int
    last: int
    kept: tuple[int, ...]


def tree(ids: Sequence[Int[np.ndarray, "token"]], *, share: bool) -> Tree:
    """The tree of distinct prompts; without `share`, every prompt is one segment."""
    lengths = np.array([len(row) for row in ids])
    if not share or len(ids) == 1:
        order = np.argsort(-lengths, kind="stable")
        leaf = np.empty(len(ids), dtype=np.int64)
        leaf[order] = np.arange(len(ids))
        return Tree(order, np.zeros_like(lengths), lengths[order], np.full(len(ids), -1), np.arange(len(ids)) + 1, leaf)
    # Any order of bytes that puts common beginnings side by side will do.
    order = np.array(sorted(range(len(ids)), key=lambda i: ids[i].astype(">u4").tobytes()))
    common = np.array([_common(ids[a], ids[b]) for a, b in pairwise(order)], dtype=np.int64)
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
        if (shared - done) * (b - a - 1) >= _SEGMENT_SAVES:
            rows.extend((int(order[a]), done, shared, parent))
            done, parent = shared, len(rows) // 4 - 1
        cuts = np.flatnonzero(common[a : b - 1] == shared) + a + 1
        todo.append(_children(np.concatenate([[a], cuts, [b]]), lengths[order[a:b]], done, parent))
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return Tree(table[:, 0], table[:, 1], table[:, 2], table[:, 3], _ends(table[:, 3]), leaf)


def _children(
    edges: Int[np.ndarray, "child_plus_1"], lengths: Int[np.ndarray, "row"], done: int, parent: int
) -> Iterator[tuple[int, int, int, int]]:
    """The groups of prompts between edges, that with the longest prompt first; made one at a time."""
    longest = np.maximum.reduceat(lengths, edges[:-1] - edges[0])
    return ((int(edges[i]), int(edges[i + 1]), done, parent) for i in np.argsort(-longest, kind="stable"))


def packs(held: Tree, budget: int) -> list[Pack]:
    """Cut a tree into packs of about equal size, none above the budget but where one segment is."""
    sizes = held.stop - held.start
    target = sizes.sum() / -(-sizes.sum() // budget)
    cuts, filled = [0], 0
    for segment, size in enumerate(sizes):
        if filled and (filled + size > budget or filled + size / 2 > target):
            cuts.append(segment)
            filled = 0
        filled += int(size)
    return [Pack(a, b, tuple(held.chain(a))) for a, b in zip(cuts, [*cuts[1:], len(sizes)])]


def _common(a: Int[np.ndarray, "token"], b: Int[np.ndarray, "token"]) -> int:
    """How many leading tokens two prompts share."""
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
