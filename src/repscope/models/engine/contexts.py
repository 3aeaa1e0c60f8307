"""Contexts of scored tokens: the distinct beginnings of rows after which a token is predicted.

1. In sorted order, a row's contexts are those of the row before it as far as both agree, and its own from there on.
2. Every distinct context that is asked for is read in one row: the first that has it.
3. Each scored token knows its context, which several tokens may follow (the two sentences of a minimal pair).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from repscope.models.engine.positions import row_offsets
from repscope.models.engine.prefix_tree import common_prefix
from repscope.models.prompts import Encoded, Ragged
from repscope.models.sites import Tokens


@dataclass(frozen=True)
class DistinctContexts:
    """Which positions are read, and what each scored token reads.

    encoded: rows and the positions read of each, possibly none. count: positions read in all. context: (target), the index among
    them of what each target reads; targets are those of all rows, one row after the other.
    """

    encoded: Encoded
    count: int
    context: Int[np.ndarray, "target"]


def distinct_contexts(
    rows: Ragged, start: Int[np.ndarray, "row"], stop: Int[np.ndarray, "row"], *, share: bool
) -> DistinctContexts:
    """The contexts that end at the positions `start` to `stop` - 1 of each row; without `share`, each row has its own."""
    lengths = rows.lengths
    order = sorted(range(len(rows)), key=lambda i: rows[i].astype(">u4").tobytes()) if share else list(range(len(rows)))
    nodes: list[Int[np.ndarray, token]] = [np.empty(0, dtype=np.int64)] * len(rows)
    shared, made = np.zeros(len(rows), dtype=np.int64), 0
    for before, i in zip([order[0], *order], order):
        shared[i] = common_prefix(rows[before], rows[i]) if share and before != i else 0
        own = int(lengths[i] - shared[i])
        nodes[i] = np.concatenate([nodes[before][: shared[i]], np.arange(made, made + own)])
        made += own
    read = np.concatenate([node[a:b] for node, a, b in zip(nodes, start, stop)])
    asked = np.zeros(made, dtype=bool)
    asked[read] = True
    first, last = lengths.copy(), lengths.copy()
    for i, node in enumerate(nodes):
        wanted = np.flatnonzero(asked[node[shared[i] :]])
        if len(wanted):
            first[i], last[i] = shared[i] + wanted[0], shared[i] + wanted[-1] + 1
    encoded = Encoded(rows, first, last)
    offsets, index = row_offsets(encoded, Tokens("all")), np.empty(made, dtype=np.int64)
    for i, node in enumerate(nodes):
        index[node[first[i] : last[i]]] = np.arange(offsets[i], offsets[i + 1])
    return DistinctContexts(encoded, int(offsets[-1]), index[read])
