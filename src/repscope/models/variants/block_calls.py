"""The blocks of a network called alone, from any block on, with hidden states of the caller's: what is below runs once.

    run(H, first, last) = blocks first … last applied to H (row, token, d_model), the input of block `first`

1. One pass over one prompt of a length records the arguments with which the network calls each block (masks, rotations, positions).
2. A run calls the blocks with these arguments and other hidden states, as many rows as wanted, all of that length. In a causal
   network shorter prompts may be padded on the right: what stands there reaches nothing before it.
3. After a prefix that rows share and nothing changes, only the tokens behind it run: its keys and values, computed once, stand
   before those of every row.
4. Check, per network and length (`proofs`): runs from two blocks with changed hidden states equal whole passes in which a hook puts
   the same states there. Where they do not, whole passes run, and `why` says so.

Runs are differentiable in the hidden states where gradients are enabled; weights get none. Hooks may be attached meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from repscope.errors import UserError
from repscope.models.engine.base import tapped
from repscope.models.engine.hooks import Handler, HookPoint, hidden_argument, unhooked
from repscope.models.engine.token_network import TokenNetwork
from repscope.models.sites import Site
from repscope.models.variants.block_replay import Call

Hooks = Sequence[tuple[HookPoint, Handler]]


@dataclass(frozen=True, eq=False)
class BlockCalls:
    """The blocks of a network, for prompts of one length.

    why: why whole passes run; empty where the blocks alone do. kept: keys and values of a shared prefix, by block.
    """

    net: TokenNetwork
    calls: tuple[Call, ...]
    why: str
    kept: tuple[tuple[Tensor, Tensor], ...] = ()

    def run(
        self, ids: Int[Tensor, "row token"], hidden: Float[Tensor, "row token d_model"], first: int, last: int, hooks: Hooks = ()
    ) -> Float[Tensor, "row token d_model"]:
        """The output of block `last` with `hidden` as the input of block `first`; `ids` are of the same rows, behind the prefix."""
        if not self.why:
            return _called(self.net, self.calls, hidden, first, last, hooks, self.kept)
        rows = [slice(None)] if self.net.batches(ids.shape[1]) else [slice(i, i + 1) for i in range(len(ids))]
        if hooks and len(rows) > 1:
            raise UserError(f"Rows of {self.net.name} depend on each other in a batch, so activations of many cannot be changed.")
        return torch.cat([_whole(self.net, ids[some], hidden[some], first, last, hooks) for some in rows])


def block_calls(net: TokenNetwork, length: int) -> BlockCalls:
    """The blocks for prompts of so many tokens.

    Raises
    ------
    UserError
        Under edits, which a call of a block would not see as a pass does.
    """
    if net.installed:
        raise UserError(f"{net.installed[0].edit} is installed, and blocks are called as they are: leave the `edit` context first.")
    why = net.proofs.refused("blocks alone", length, lambda lengths: _differs(net, lengths))
    return BlockCalls(net, () if why else tuple(_recorded(net, net.trial([length])[0])), why)


def block_calls_after(net: TokenNetwork, prefix: Int[np.ndarray, "token"], length: int) -> BlockCalls | None:
    """The blocks for so many tokens behind a prefix of one token or more; None where a prefix cannot be shared in this way.

    Raises
    ------
    UserError
        Under edits.
    """
    whole = block_calls(net, len(prefix) + length)
    if whole.why or not net.shares_prefix(len(prefix) + length):
        return None
    if net.proofs.refused("blocks alone after a prefix", len(prefix) + length, lambda lengths: _prefix_differs(net, lengths)):
        return None
    calls, kept = _recorded_after(net, prefix, net.trial([length])[0])
    return BlockCalls(net, tuple(calls), "", kept)


def _recorded(net: TokenNetwork, row: Int[np.ndarray, "token"], cache: Any = None) -> list[Call]:
    """The calls of all blocks in a plain pass over one prompt, which continues from a cache where there is one."""
    calls: list[Call] = []

    def called(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = hidden_argument(args, kwargs)
        if hidden is not None:
            calls.append(Call(block, args, dict(kwargs), hidden))

    handles = [block.register_forward_pre_hook(called, with_kwargs=True) for block in net.block_list]
    ids = torch.from_numpy(np.asarray(row, dtype=np.int64))[None].to(net.device)
    try:
        with unhooked(net.module), tapped(net.taps, [(net.tap(Site("resid_post", net.blocks - 1)), lambda value: None)]) as run:
            run(input_ids=ids, **(net.plain() if cache is None else {net.cache_name: cache} | net.plain(use_cache=True)))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _recorded_after(
    net: TokenNetwork, prefix: Int[np.ndarray, "token"], row: Int[np.ndarray, "token"]
) -> tuple[list[Call], tuple[tuple[Tensor, Tensor], ...]]:
    """The calls of a pass over tokens behind a prefix, without their cache, and the prefix's keys and values."""
    cache = net.cache()
    _recorded(net, prefix, cache)
    kept = tuple((layer.keys.clone(), layer.values.clone()) for layer in cache.layers)
    calls = _recorded(net, row, cache)
    if len(kept) != net.blocks or not all(any(x is cache for x in (*call.args, *call.kwargs.values())) for call in calls):
        raise ValueError("its blocks are not called with a cache of keys and values")
    return [_with_cache(call, cache, _CACHE) for call in calls], kept


def _with_cache(call: Call, old: Any, new: Any) -> Call:
    """A call with another cache, by position or by name."""
    args = tuple(new if x is old else x for x in call.args)
    return replace(call, args=args, kwargs={name: new if x is old else x for name, x in call.kwargs.items()})


_CACHE = object()  #: stands in recorded calls for the cache


def _filled(net: TokenNetwork, kept: Sequence[tuple[Tensor, Tensor]], rows: int) -> Any:
    """A cache that holds a prefix for so many rows; a run appends to it."""
    cache = net.cache()
    for layer, (keys, values) in enumerate(kept):
        cache.update(*(part.expand(rows, -1, -1, -1) for part in (keys, values)), layer)
    return cache


def _called(
    net: TokenNetwork,
    calls: Sequence[Call],
    hidden: Tensor,
    first: int,
    last: int,
    hooks: Hooks,
    kept: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    cache = _filled(net, kept, len(hidden)) if kept else None
    with unhooked(net.module, differentiable=torch.is_grad_enabled()), net.taps.hooked(hooks):
        for call in calls[first : last + 1]:
            hidden = (_with_cache(call, _CACHE, cache) if kept else call).again(hidden)
    return hidden


def _prefix_differs(net: TokenNetwork, lengths: Sequence[int]) -> str:
    """Why blocks called behind a prefix differ from blocks called for the whole prompt; empty if they agree."""
    try:
        for length in sorted({n for n in lengths if n > 2} or {4}):
            cut, last = length // 2, net.blocks - 1
            rows = np.stack(net.trial([length] * 3)[1:])
            rows[:, :cut] = rows[0, :cut]
            ids = torch.from_numpy(rows).to(net.device)
            first = min(1, last)
            seen: list[Tensor] = []
            with unhooked(net.module), tapped(net.taps, [(net.tap(Site("resid_pre", first)), seen.append)]) as run:
                run(input_ids=ids, **net.plain())
            hidden = seen[0].clone()
            hidden[:, cut:] *= 1.3
            calls, kept = _recorded_after(net, rows[0, :cut], rows[1, cut:])
            with torch.no_grad():
                quick = _called(net, calls, hidden[:, cut:], first, last, (), kept)
                slow = _whole(net, ids, hidden, first, last, ())[:, cut:]
            if not net.agree(quick, slow):
                return f"the blocks of {net.name} behind a prefix of {cut} tokens do not give what whole passes give"
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        return f"the blocks of {net.name} cannot be called behind a prefix ({str(error).splitlines()[0][:80]})"
    return ""


def _whole(net: TokenNetwork, ids: Tensor, hidden: Tensor, first: int, last: int, hooks: Hooks) -> Tensor:
    """A whole pass in which a hook puts the states there: the reference."""
    seen: list[Tensor] = []
    put = [(net.write_tap(Site("resid_pre", first)), lambda value: hidden.to(value)), *hooks]
    graded = torch.is_grad_enabled()
    reads = [(net.tap(Site("resid_post", last)), seen.append)]
    with unhooked(net.module, differentiable=graded), net.taps.hooked(put), tapped(net.taps, reads) as run:
        run(input_ids=ids, **net.plain())
    return seen[0]


def _differs(net: TokenNetwork, lengths: Sequence[int]) -> str:
    """Why blocks called alone differ from whole passes at prompts of these lengths; empty if they agree."""
    longest = max(lengths)
    if not net.batches(longest):
        return f"rows of {net.name} depend on their neighbours in a batch"
    generator = torch.Generator().manual_seed(0)
    last = net.blocks - 1
    try:
        for length in sorted(set(lengths)):
            calls = _recorded(net, net.trial([length])[0])
            if len(calls) != net.blocks:
                return f"{net.name} calls {len(calls)} blocks with hidden states, of {net.blocks}"
            ids = torch.from_numpy(np.stack(net.trial([length] * 3)[1:])).to(net.device)
            for first in sorted({0, net.blocks // 2}):
                seen: list[Tensor] = []
                with unhooked(net.module), tapped(net.taps, [(net.tap(Site("resid_pre", first)), seen.append)]) as run:
                    run(input_ids=ids, **net.plain())
                noise = torch.randn(seen[0].shape, generator=generator).to(seen[0])
                hidden = seen[0] + 0.3 * noise * seen[0].norm() / noise.norm()
                with torch.no_grad():
                    quick, slow = _called(net, calls, hidden, first, last, ()), _whole(net, ids, hidden, first, last, ())
                if not net.agree(quick, slow):
                    return f"the blocks of {net.name} from {first} on, called alone, do not give what whole passes give"
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        return f"the blocks of {net.name} cannot be called alone for several rows ({str(error).splitlines()[0][:80]})"
    return ""
