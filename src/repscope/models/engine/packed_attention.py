"""Attention for packed prompts: one row without padding that contains many prompts or a prefix tree.

In a block only attention mixes tokens, so only attention must separate the prompts. While a pack runs, a `TorchFunctionMode`
replaces `scaled_dot_product_attention`:

1. Every segment attends to itself. Segments of similar length are padded for this product only.
2. The tokens below a shared segment are adjacent (depth-first order), so they attend to it in one additional product.
3. Softmaxes over disjoint sets of keys are merged: outputs are weighted by exp(lse), with lse the log-sum-exp of the scores
   (Rabe & Staats 2021, arXiv 2112.05682; for trees of prompts, Juravsky et al. 2024, arXiv 2402.05099).
4. A small subtree whose tree says so (`Tree.family`) attends to itself in one product with a mask: each token sees its ancestors.
5. Where what stands above is short (a first token, the words that many sentences begin with), step 2 costs more than it saves: its
   keys and values are repeated as further keys of each product of step 1.
6. Keys and values of a segment that later packs continue are cached until the last of them has run.

The caller provides position ids. Correctness is verified on each network (`packed_pass`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from repscope.models.engine.planner import batches
from repscope.models.engine.prefix_tree import Pack, Tree

_PRODUCT_COSTS = 32  #: cost of an additional attention product, in padded tokens
_MASKED = 128  #: tokens of a family up to which a product that computes masked scores too costs little
_REPEATS = 2  #: repeated keys per token of a pack, up to which they cost less than products of their own


@dataclass(frozen=True)
class _Own:
    """Segments, or families of segments, of similar length that attend to themselves, as rows of one product.

    cells: (row × column), token of each cell, arbitrary for padding. places: (token), cell of each token. tokens: (token), their
    indices. rows, columns: the shape. key: (row, column), mask of cells with a token. sees: (row, query, key), which keys each
    token attends to; None if every row is one segment with nothing above. above: (row × key), the cells of the keys on the axis
    [kept segments, pack] where segments above are repeated; None if the keys are those of `cells`.
    """

    cells: Int[Tensor, "place"]
    places: Int[Tensor, "token"]
    tokens: Int[Tensor, "token"]
    rows: int
    columns: int
    key: Bool[Tensor, "row column"]
    sees: Bool[Tensor, "row column key"] | None = None
    above: Int[Tensor, "place"] | None = None


@dataclass(frozen=True)
class _Shared:
    """A segment and the tokens below it: keys at `start:stop` of this pack or cached under `segment`; queries `first:last`."""

    segment: int
    kept: bool
    start: int
    stop: int
    first: int
    last: int


@dataclass(eq=False)
class PackedAttention(TorchFunctionMode):
    """Attention of packs; a context manager around the network's forward passes.

    tree: the segments. causal: whether later tokens do not affect earlier ones. calls: attention products replaced so far in the
    pass, 0 for a network that uses other attention functions.
    """

    tree: Tree
    causal: bool
    device: torch.device
    calls: int = 0
    base: dict[int, int] = field(default_factory=dict)
    _size: int = 0
    _own: list[_Own] = field(default_factory=list)
    _shared: list[_Shared] = field(default_factory=list)
    _keep: list[int] = field(default_factory=list)
    _kept: Sequence[int] = ()
    _shelf: dict[int, dict[int, tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def begin(self, pack: Pack, keep: Sequence[int]) -> None:
        """Lay out the next pack; keys and values of the segments in `keep` stay cached after it."""
        tree, inside = self.tree, range(pack.first, pack.last)
        sizes = (tree.stop - tree.start)[pack.first : pack.last]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        self.calls, self._size = 0, int(starts[-1])
        self.base = {s: int(starts[s - pack.first]) for s in inside}
        self._keep = list(keep)
        families = tree.families(pack) if self.causal else [(s, s + 1) for s in inside]
        first, last = (np.array(ends) - pack.first for ends in zip(*families))
        together = starts[last] - starts[first]
        above = self._above(pack, families, starts)
        repeats = sum(len(keys) for keys in above) <= _REPEATS * self._size and int(together.max()) <= _MASKED
        self._own = [
            _own(
                group,
                starts[first],
                together,
                self.device,
                [_sees(tree, *families[i]) for i in group],
                [above[i] for i in group] if repeats else [],
                sum(int(tree.stop[s] - tree.start[s]) for s in pack.kept),
            )
            for group in batches(together, 1 << 40, _PRODUCT_COSTS)
        ]
        self._kept = pack.kept if repeats else ()
        self._shared = []
        alone = [a for a, b in families if b == a + 1]
        for s in () if repeats else (*pack.kept, *alone):
            below = max(s + 1, pack.first), min(int(tree.end[s]), pack.last)
            if below[0] < below[1]:
                begin, stop = (int(starts[b - pack.first]) for b in below)
                at = self.base.get(s, 0)
                self._shared.append(_Shared(s, s in pack.kept, at, at + int(tree.stop[s] - tree.start[s]), begin, stop))
        for shelf in self._shelf.values():
            for s in set(shelf) - set(pack.kept):
                del shelf[s]

    def _above(
        self, pack: Pack, families: Sequence[tuple[int, int]], starts: Int[np.ndarray, "segment_plus_1"]
    ) -> list[Int[np.ndarray, "key"]]:
        """The tokens above each family, on the axis [kept segments, pack]."""
        tree, place, end = self.tree, dict[int, int](), 0
        for s in pack.kept:
            place[s] = end
            end += int(tree.stop[s] - tree.start[s])
        place |= {s: end + at for s, at in self.base.items()}
        found, known = [], dict[int, np.ndarray]()
        for family, _ in families:
            parent = int(tree.parent[family]) if self.causal else -1
            if parent not in known:
                chain = [*tree.chain(parent), parent] if parent >= 0 else []
                parts = [np.arange(place[s], place[s] + int(tree.stop[s] - tree.start[s])) for s in chain]
                known[parent] = np.concatenate([np.empty(0, dtype=np.int64), *parts])
            found.append(known[parent])
        return found

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if len(query) != 1 or query.shape[2] != self._size or key.shape[2] != self._size:
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (token, head, feature)
        mixed = q.new_empty(*q.shape[:2], v.shape[-1])
        weight = q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32)) if self._shared else None
        shelf = self._shelf.setdefault(self.calls, {})
        all_k, all_v = (torch.cat([*(shelf[s][i] for s in self._kept), x]) if self._kept else x for i, x in enumerate((k, v)))
        for own in self._own:
            self._to_itself(own, q, all_k, all_v, k, v, scale, mixed, weight)
        for shared in self._shared:
            assert weight is not None
            k_there, v_there = shelf[shared.segment] if shared.kept else (x[shared.start : shared.stop] for x in (k, v))
            at = slice(shared.first, shared.last)
            more, lse = _attended(q[at][None], k_there[None], v_there[None], scale, causal=False)
            both = torch.logaddexp(weight[at], lse[0])
            mixed[at] *= (weight[at] - both).exp()[..., None].to(mixed.dtype)
            mixed[at] += more[0] * (lse[0] - both).exp()[..., None].to(mixed.dtype)
            weight[at] = both
        for s in self._keep:
            if s in self.base:
                at = slice(self.base[s], self.base[s] + int(self.tree.stop[s] - self.tree.start[s]))
                shelf[s] = (k[at].clone(), v[at].clone())
        self.calls += 1
        return mixed.transpose(0, 1)[None]

    def _to_itself(
        self,
        own: _Own,
        q: Tensor,
        all_k: Tensor,
        all_v: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float | None,
        mixed: Tensor,
        weight: Tensor | None,
    ) -> None:
        keys, held = (own.cells, (k, v)) if own.above is None else (own.above, (all_k, all_v))
        own_q = q.index_select(0, own.cells).view(own.rows, own.columns, *q.shape[1:])
        own_k, own_v = (x.index_select(0, keys).view(own.rows, -1, *x.shape[1:]) for x in held)
        if weight is not None:
            out, lse = _attended(own_q, own_k, own_v, scale, causal=own.sees is None, sees=own.sees)
            weight[own.tokens] = lse.flatten(0, 1).index_select(0, own.places)
        else:
            mask = own.sees[:, None] if own.sees is not None else None if self.causal else own.key[:, None, None]
            out = functional.scaled_dot_product_attention(
                own_q.transpose(1, 2),
                own_k.transpose(1, 2),
                own_v.transpose(1, 2),
                attn_mask=mask,
                is_causal=self.causal and own.sees is None,
                scale=scale,
                enable_gqa=k.shape[1] != q.shape[1],
            ).transpose(1, 2)
        mixed[own.tokens] = out.flatten(0, 1).index_select(0, own.places)


def _sees(tree: Tree, first: int, last: int) -> Bool[np.ndarray, "query key"] | None:
    """Which tokens of a family each token attends to: its ancestors, and those before it in its segment; None for one segment."""
    if last == first + 1:
        return None
    above = np.eye(last - first, dtype=bool)
    for s in range(first + 1, last):  # parents come before their children
        if tree.parent[s] >= first:
            above[s - first] |= above[tree.parent[s] - first]
    segment = np.repeat(np.arange(last - first), (tree.stop - tree.start)[first:last])
    return np.asarray(np.tril(above[segment][:, segment]))


def _own(
    group: Int[np.ndarray, "row"],
    starts: Int[np.ndarray, "n"],
    sizes: Int[np.ndarray, "n"],
    device: torch.device,
    sees: Sequence[Bool[np.ndarray, "query key"] | None],
    above: Sequence[Int[np.ndarray, "key"]],
    kept: int,
) -> _Own:
    """The product of some families. sees: see `_sees`. above: cells of the keys above each, if they are repeated; kept: tokens of
    kept segments, which come first on their axis.
    """
    columns = int(sizes[group].max())
    column = np.arange(columns)
    key = column < sizes[group][:, None]
    cells = np.where(key, starts[group][:, None] + column, starts[group][:, None])
    places = np.flatnonzero(key)
    place, at, token, held = (torch.from_numpy(x).to(device) for x in (cells.ravel(), places, cells.ravel()[places], key))
    most = max((len(keys) for keys in above), default=0)
    if not most and all(one is None for one in sees):
        return _Own(place, at, token, len(group), columns, held)
    # keys: those above, padded to the most, then the family's own; what is padding sees its own first token at least
    mask = np.tile(np.tril(np.ones((columns, columns), dtype=bool)), (len(group), 1, 1))
    for row, one in zip(mask, sees):
        if one is not None:
            row[: len(one), : len(one)] = one
    keys_above: Tensor | None = None
    if most:
        before = np.zeros((len(group), columns, most), dtype=bool)
        at_keys = np.concatenate([np.zeros((len(group), most), dtype=np.int64), kept + cells], axis=1)
        for row, some in enumerate(above):
            before[row, :, : len(some)] = True
            at_keys[row, : len(some)] = some
        mask = np.concatenate([before, mask], axis=2)
        keys_above = torch.from_numpy(at_keys.ravel()).to(device)
    return _Own(place, at, token, len(group), columns, held, torch.from_numpy(mask).to(device), keys_above)


def _attended(
    q: Float[Tensor, "row query head d_head"],
    k: Float[Tensor, "row key kv_head d_head"],
    v: Float[Tensor, "row key kv_head d_value"],
    scale: float | None,
    *,
    causal: bool,
    sees: Bool[Tensor, "row query key"] | None = None,
) -> tuple[Float[Tensor, "row query head d_value"], Float[Tensor, "row query head"]]:
    """Attention, and the log of each softmax's denominator in float32 or wider. sees: replaces the causal mask."""
    row, query, heads, _ = q.shape
    grouped = k.shape[2]
    if q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64) and q.shape[-1] == v.shape[-1]:
        # The kernel below `scaled_dot_product_attention`, which alone also gives the denominators.
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask = None
        if sees is not None:
            mask = torch.zeros(row, 1, *sees.shape[1:], dtype=q.dtype).masked_fill_(~sees[:, None], -torch.inf)
        elif not causal:  # heads that share keys are further queries
            q = q.reshape(row, grouped, heads // grouped * query, -1)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)
        out, lse = out.reshape(row, heads, query, -1), lse.reshape(row, heads, query)
        return out.transpose(1, 2), lse.transpose(1, 2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    q = torch.unflatten(q, 1, (grouped, -1)).flatten(2, 3)  # (row, kv_head, group × query, d_head)
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32))
    scores = scores * (scale if scale is not None else q.shape[-1] ** -0.5)
    if sees is not None:
        scores = scores.masked_fill(~sees.repeat(1, heads // grouped, 1)[:, None], -torch.inf)
    elif causal:
        allowed = torch.ones(query, query, dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~allowed.repeat(heads // grouped, 1), -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True)
    out = (scores - lse).exp().to(v.dtype) @ v
    return out.reshape(row, heads, query, -1).transpose(1, 2), lse.reshape(row, heads, query).transpose(1, 2)
