"""Blocks of a network recorded as the network called them, and called again with other hidden states.

1. A pass over one prompt, or over one row of prompts as branches (`branches`), records the arguments of each block's call (masks,
   rotations, positions) without the hidden states.
2. A group of prompts is laid out for one vector: prompts of one number of tokens as rows, or prompts as branches of one row.
   `replayed` runs it for many vectors at once.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from repscope.models.engine.base import tapped
from repscope.models.engine.hooks import Handler, first_tensor, hidden_argument, unhooked, with_argument
from repscope.models.engine.token_network import TokenNetwork
from repscope.models.sites import Site
from repscope.models.variants.branches import BranchAttention, Branches

_FEW = 0.7  #: share of the cells up to which a last block runs for those that are read


@dataclass(frozen=True, eq=False)
class Call:
    """Arguments with which the network called a block; hidden: the tensor among them that stands for its hidden states."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden: Tensor

    def again(self, hidden: Tensor) -> Tensor:
        """The block's output for other hidden states."""
        args, kwargs = with_argument(self.args, self.kwargs, self.hidden, hidden)
        out = first_tensor(self.block(*args, **kwargs))
        assert out is not None
        return out

    def storing(self, cache: Any) -> "Call":
        """The call with a cache in place of that which holds nothing."""
        args = tuple(cache if _is_through(x) else x for x in self.args)
        return replace(self, args=args, kwargs={name: cache if _is_through(x) else x for name, x in self.kwargs.items()})


@dataclass(frozen=True, eq=False)
class Kept:
    """Results of one plain pass over one prompt: states at source and target, the state of the last token at the end, and the calls
    of the blocks behind the source.
    """

    ids: Int[Tensor, "1 token"]
    state: Float[Tensor, "token d_model"]
    target: Float[Tensor, "token d_model"]
    end: Float[Tensor, "d_model"]
    calls: list[Call]


@dataclass(frozen=True, eq=False)
class Group:
    """Prompts that share a replay.

    prompts: their indices. state: (row, token, d_model) at the source, for one vector. cells: for each prompt (token), the places
    of its tokens among row × token. calls: of the blocks behind the source. row, attention: where prompts are branches of one row.
    """

    prompts: Sequence[int]
    state: Float[Tensor, "row token d_model"]
    cells: Sequence[Int[np.ndarray, "token"]]
    calls: Sequence[Call]
    row: Branches | None = None
    attention: BranchAttention | None = None

    @property
    def tokens(self) -> int:
        """Tokens of one vector's rows."""
        return int(self.state.shape[0] * self.state.shape[1])

    def around(self) -> AbstractContextManager[Any]:
        """The context in which the blocks run."""
        return self.attention if self.attention is not None else nullcontext()


def kept_pass(net: TokenNetwork, row: Int[np.ndarray, "token"], source: Site, target: Site, end: Site) -> Kept:
    """A plain pass over one prompt."""
    seen: dict[Site, Tensor] = {}
    ids = torch.from_numpy(np.asarray(row))[None].to(net.device)
    calls = _recorded(net, (source, target, end), seen, {"input_ids": ids} | net.plain(), nullcontext())
    return Kept(ids, seen[source][0], seen[target][0], seen[end][0, -1].clone(), calls)


def rows_of(prompts: Sequence[int], kept: Sequence[Kept]) -> Group:
    """Prompts of one length as rows."""
    state = torch.stack([kept[i].state for i in prompts])
    cells = np.arange(state.shape[0] * state.shape[1]).reshape(state.shape[:2])
    return Group(prompts, state, list(cells), kept[prompts[0]].calls)


def row_of(net: TokenNetwork, row: Branches, kept: Sequence[Kept], source: Site, end: Site) -> Group:
    """Prompts as branches of one row, whose blocks are recorded in a pass over it."""
    attention = BranchAttention(torch.from_numpy(row.sees).to(net.device))
    calls = _recorded(net, (source, end), {}, _named(net, row.ids, row.positions), attention)
    if not attention.calls:
        raise RuntimeError("it does not attend by torch's scaled_dot_product_attention")
    first = kept[row.prompts[0]].state
    state = first.new_empty(len(row.ids), first.shape[1])
    for i, cells in zip(row.prompts, row.cells):
        state[torch.from_numpy(cells).to(state.device)] = kept[i].state
    return Group(row.prompts, state[None], row.cells, calls, row, attention)


def _named(net: TokenNetwork, ids: Int[np.ndarray, "cell"], positions: Int[np.ndarray, "cell"]) -> dict[str, Any]:
    """Arguments of a pass over one row with positions of its own."""
    row, at = (torch.from_numpy(x)[None].to(net.device) for x in (ids, positions))
    named = {"input_ids": row, "position_ids": at} | net.plain()
    if net.takes_cache:  # an empty cache prevents transformers from looking for packed prompts itself
        named |= {net.cache_name: _through()} | net.plain(use_cache=True)
    return named


def _recorded(
    net: TokenNetwork, reads: Sequence[Site], seen: dict[Site, Tensor], named: dict[str, Any], around: AbstractContextManager[Any]
) -> list[Call]:
    """The calls of the blocks behind the first of some sites, in a pass that stops at the last of them."""
    calls: list[Call] = []
    first, *_, last = reads
    assert first.layer is not None
    assert last.layer is not None

    def called(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = hidden_argument(args, kwargs)
        if hidden is not None:
            blank = hidden.new_empty(0)
            calls.append(Call(block, *with_argument(args, dict(kwargs), hidden, blank), blank))

    def reader(site: Site) -> Callable[[Tensor], None]:
        return lambda value: seen.__setitem__(site, value.clone())  # some families go on in place

    hooks = [net.block_list[i].register_forward_pre_hook(called, with_kwargs=True) for i in range(first.layer + 1, last.layer + 1)]
    try:
        wanted = [(net.tap(site), reader(site)) for site in dict.fromkeys(reads)]
        with unhooked(net.module), tapped(net.taps, wanted) as run, around:
            run(**named)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _through() -> Any:
    """A cache of transformers that holds nothing and returns what it is given."""
    from transformers import DynamicCache

    class Through(DynamicCache):
        repscope_through = True

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return key_states, value_states

    return Through()


def _is_through(value: Any) -> bool:
    return bool(getattr(value, "repscope_through", False))


def replayed(
    net: TokenNetwork, group: Group, blocks: slice, hidden: Float[Tensor, "row token d_model"], cache: Any = None
) -> Float[Tensor, "row token d_model"]:
    """Some of the recorded blocks on hidden states; cache: what receives their keys and values."""
    with unhooked(net.module, differentiable=torch.is_grad_enabled()), group.around():
        for call in group.calls[blocks]:
            hidden = (call if cache is None else call.storing(cache)).again(hidden)
    return hidden


def stored_below(net: TokenNetwork, group: Group, source: Site, cache: Any) -> None:
    """A pass over a row of branches up to the source; the cache receives keys and values."""
    assert group.row is not None
    named = _named(net, group.row.ids, group.row.positions) | {net.cache_name: cache}
    with unhooked(net.module), tapped(net.taps, [(net.tap(source), lambda value: None)]) as run, group.around():
        run(**named)


@dataclass(frozen=True, eq=False)
class LastBlock:
    """The last block of a replay, for those cells that are read: all cells up to their keys and values, these to the end.

    cells: sorted. every: the block's call for all cells. call: for these. attention: of these to all.
    """

    cells: Int[Tensor, "read"]
    every: Call
    call: Call
    attention: BranchAttention

    def run(
        self, net: TokenNetwork, hidden: Float[Tensor, "row cell d_model"], cache: Any = None
    ) -> Float[Tensor, "row read d_model"]:
        """The block's output at the cells that are read; cache: what receives the keys and values of all cells."""
        every = self.every if cache is None else self.every.storing(cache)
        with unhooked(net.module, differentiable=torch.is_grad_enabled()), self.attention:
            self.attention.collect(lambda: every.again(hidden))
            try:
                return self.call.again(hidden.index_select(1, self.cells))
            finally:
                self.attention.release()


def last_block(net: TokenNetwork, group: Group, read: Int[np.ndarray, "read"], source: Site, site: Site) -> LastBlock | None:
    """The block before a site, for some cells of a row of branches; None where all cells may as well run."""
    row, cells = group.row, np.unique(read)
    if row is None or len(cells) > _FEW * len(row.ids):
        return None
    at = torch.from_numpy(cells).to(net.device)
    sees = torch.from_numpy(row.sees).to(net.device)
    # Arguments of a call for these cells come from a pass over their tokens alone, whose states are of no use.
    calls = _recorded(net, (source, site), {}, _named(net, row.ids[cells], row.positions[cells]), BranchAttention(sees[at][:, at]))
    return LastBlock(at, group.calls[len(calls) - 1], calls[-1], BranchAttention(sees, at))


def whole_passes(
    net: TokenNetwork, source: Site, sites: Sequence[Site], held: Sequence[Kept], vectors: Float[Tensor, "vector d_model"]
) -> list[Float[Tensor, "row token d_model"]]:
    """Whole passes over prompts of one length with the vectors added by a hook, and what they have at some sites: the reference."""
    ids = torch.cat([k.ids for k in held]).repeat(len(vectors), 1)
    each = vectors.to(held[0].state).repeat_interleave(len(held), 0)[:, None]
    seen: list[list[Tensor]] = [[] for _ in sites]
    rows = [slice(None)] if net.batches(ids.shape[1]) else [slice(i, i + 1) for i in range(len(ids))]
    graded = torch.is_grad_enabled()
    for some in rows:
        add: Handler = lambda value, some=some: value + each[some]  # type: ignore[misc]  # noqa: E731 (a one-line hook)
        hooks = net.taps.hooked([(net.write_tap(source), add)])
        reads = [(net.tap(site), into.append) for site, into in zip(sites, seen)]
        with unhooked(net.module, differentiable=graded), hooks, tapped(net.taps, reads) as run:
            run(input_ids=ids[some], **net.plain())
    return [torch.cat(parts) for parts in seen]
