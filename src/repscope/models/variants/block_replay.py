"""Replay of the blocks after a source site, for many added vectors at once.

    effect(v) = f(h + v) - f(h),   h = resid_post.s of a prompt at all its positions,   f = blocks s+1 … t

1. One pass per prompt caches h, the target, and the arguments with which the network called each of those blocks (masks, rotations,
   positions).
2. A replay calls those blocks with h + v as hidden states: (vector × prompt, token, d_model) rows, without the head. Prompts of
   equal length share a replay, so there is no padding.
3. Check for each set of prompts: a replay of zeros gives the target, and a replay of two vectors the result of whole passes with
   these vectors added by a hook. Otherwise (BLOOM: its position bias has one entry per row) whole passes run, and `why` says so.

A replay is differentiable in v; weights get no gradients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from repscope.errors import UserError
from repscope.models.engine.base import tapped
from repscope.models.engine.hooks import Handler, first_tensor, hidden_argument, unhooked, with_argument
from repscope.models.engine.positions import as_float
from repscope.models.engine.token_network import TokenNetwork
from repscope.models.prompts import Encoded
from repscope.models.sites import Site

PART_TOKENS = 256  #: tokens of prompts that share a replay; vectors fill the pass up

Run = Callable[[Float[Tensor, "vector d_model"]], Float[Tensor, "vector row feature"]]


@dataclass(frozen=True, eq=False)
class Part:
    """Prompts that share a replay, as a differentiable function of vectors.

    prompts: their number. rows: indices of their rows among all effects. tokens: row-tokens per vector. run: maps vectors to their
    effects on these rows.
    """

    prompts: int
    rows: Int[Tensor, "row"]
    tokens: int
    run: Run


@dataclass(frozen=True, eq=False)
class Call:
    """Arguments with which the network called a block, and the hidden states among them."""

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


@dataclass(frozen=True, eq=False)
class BlockReplay:
    """The blocks between two sites, at some prompts.

    parts: what runs. rows: (row), the prompt of each row: one row a prompt, or one a token where all are targets. states, targets:
    for each prompt (token, d_model) at the source and the target. token_bytes: about what the graph of one token takes. why: why
    whole passes run, empty where the blocks alone do.
    """

    source: Site
    target: Site
    parts: Sequence[Part]
    rows: Int[Tensor, "row"]
    states: Sequence[Float[Tensor, "token d_model"]]
    targets: Sequence[Float[Tensor, "token d_model"]]
    token_bytes: float
    why: str


@dataclass(frozen=True, eq=False)
class _Kept:
    """Results of one pass over one prompt."""

    ids: Tensor
    state: Float[Tensor, "token d_model"]
    target: Float[Tensor, "token d_model"]
    calls: list[Call]


def block_replay(
    net: TokenNetwork, encoded: Encoded, source: str | Site, target: str | Site, *, pooled: bool, whole: bool = False
) -> BlockReplay:
    """Prepare replays of the blocks between two `resid_post` sites for prompts with the target's positions.

    `pooled`: the target is the mean over its positions, else one row each. `whole`: run whole passes in any case. Raises a
    `UserError` for other sites, a target that is not after the source, no prompt, or a network under edits.
    """
    begin, end = _ends(net, source, target)
    if not len(encoded.ids):
        raise UserError("There is no prompt; give at least one text to steer.")
    net.checked(encoded.ids)
    unedited(net)
    kept = [_kept(net, row, begin, end) for row in encoded.ids]
    sizes = np.ones(len(kept), dtype=np.int64) if pooled else encoded.stop - encoded.start
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    why = "whole passes were asked for" if whole else _cannot_replay(net, kept, begin, end)
    forward = _whole if why else _replayed
    parts = []
    for prompts in _groups(encoded):
        held = [kept[i] for i in prompts]
        places = slice(int(encoded.start[prompts[0]]), int(encoded.stop[prompts[0]]))
        rows = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in prompts])
        state, base = torch.stack([k.state for k in held]), torch.stack([k.target for k in held])
        replay = partial(forward, net, begin, end, held, state)
        run = partial(_effect, net, replay, _read(base, places, pooled), places, pooled)
        parts.append(Part(len(prompts), torch.from_numpy(rows).to(net.device), int(state.shape[0] * state.shape[1]), run))
    blocks = (end.layer or 0) - (begin.layer or 0) if not why else net.blocks
    return BlockReplay(
        begin,
        end,
        parts,
        torch.from_numpy(np.repeat(np.arange(len(kept)), sizes)).to(net.device),
        [as_float(k.state) for k in kept],
        [as_float(k.target) for k in kept],
        net.token_bytes * blocks,
        why,
    )


def unedited(net: TokenNetwork) -> None:
    """See that no edit is installed, which a replay would not see as a pass does.

    Raises a `UserError` when one is.
    """
    if net.installed:
        raise UserError(
            f"{net.installed[0].edit} is installed, and effects are of the network as it is: leave the `edit` context first."
        )


def _ends(net: TokenNetwork, source: str | Site, target: str | Site) -> tuple[Site, Site]:
    ends = []
    for name, asked in (("source", source), ("target", target)):
        sites = net.resolve(asked)
        if len(sites) != 1 or sites[0].kind != "resid_post":
            raise UserError(f"The {name} {asked} is not the output of one block; name one such as resid_post.0.")
        ends.append(sites[0])
    begin, end = ends
    if begin.depth >= end.depth:
        raise UserError(f"The source {begin} is not below the target {end}; nothing that is added there moves it.")
    return begin, end


def _groups(encoded: Encoded) -> list[list[int]]:
    """Prompts that share a replay: equal length and target positions, up to `PART_TOKENS` tokens."""
    same: dict[tuple[int, int, int], list[int]] = {}
    for i, length in enumerate(encoded.ids.lengths):
        same.setdefault((int(length), int(encoded.start[i]), int(encoded.stop[i])), []).append(i)
    groups = []
    for (length, *_), prompts in same.items():
        most = max(1, PART_TOKENS // length)
        groups += [part.tolist() for part in np.array_split(prompts, -(-len(prompts) // most))]
    return groups


def _kept(net: TokenNetwork, row: Int[np.ndarray, "token"], source: Site, target: Site) -> _Kept:
    """One plain pass over one prompt that records the calls of the blocks in between."""
    assert source.layer is not None
    assert target.layer is not None
    calls: list[Call] = []
    seen: list[Tensor] = []

    def called(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = hidden_argument(args, kwargs)
        if hidden is not None:
            calls.append(Call(block, args, dict(kwargs), hidden))

    ids = torch.from_numpy(np.asarray(row))[None].to(net.device)
    reads = [(net.tap(source), seen.append), (net.tap(target), seen.append)]
    hooks = [
        net.block_list[i].register_forward_pre_hook(called, with_kwargs=True) for i in range(source.layer + 1, target.layer + 1)
    ]
    try:
        with unhooked(net.module), tapped(net.taps, reads) as run:
            run(input_ids=ids, **net.plain())
    finally:
        for hook in hooks:
            hook.remove()
    return _Kept(ids, seen[0][0].clone(), seen[1][0].clone(), calls)


def _effect(
    net: TokenNetwork, replay: Callable[[Tensor], Tensor], base: Tensor, places: slice, pooled: bool, vectors: Tensor
) -> Float[Tensor, "vector row feature"]:
    unedited(net)
    y = torch.unflatten(replay(vectors), 0, (len(vectors), -1))
    return _read(y, places, pooled) - base


def _read(y: Float[Tensor, "*vector prompt token feature"], places: slice, pooled: bool) -> Tensor:
    """The mean over the target's positions, or one row per position, in float32 or wider."""
    there = as_float(y[..., places, :])
    return there.mean(-2) if pooled else there.flatten(-3, -2)


def _replayed(
    net: TokenNetwork, source: Site, target: Site, held: Sequence[_Kept], state: Tensor, vectors: Tensor
) -> Float[Tensor, "row token feature"]:
    """The blocks alone, called with the network's arguments for the group's first prompt."""
    hidden = (state + vectors.to(state)[:, None, None]).flatten(0, 1)
    with unhooked(net.module, differentiable=torch.is_grad_enabled()):
        for call in held[0].calls:
            hidden = call.again(hidden)
    return hidden


def _whole(
    net: TokenNetwork, source: Site, target: Site, held: Sequence[_Kept], state: Tensor, vectors: Tensor
) -> Float[Tensor, "row token feature"]:
    """Whole passes from the token ids with the vectors added by a hook: the reference."""
    ids = torch.cat([k.ids for k in held]).repeat(len(vectors), 1)
    each = vectors.to(state).repeat_interleave(len(held), 0)[:, None]
    seen: list[Tensor] = []
    rows = [slice(None)] if net.batches(ids.shape[1]) else [slice(i, i + 1) for i in range(len(ids))]
    graded = torch.is_grad_enabled()
    for some in rows:
        add: Handler = lambda value, some=some: value + each[some]  # type: ignore[misc]  # noqa: E731 (a one-line hook)
        hooks = net.taps.hooked([(net.write_tap(source), add)])
        with unhooked(net.module, differentiable=graded), hooks, tapped(net.taps, [(net.tap(target), seen.append)]) as run:
            run(input_ids=ids[some], **net.plain())
    return torch.cat(seen)


def _cannot_replay(net: TokenNetwork, kept: Sequence[_Kept], source: Site, target: Site) -> str:
    """Why the blocks alone differ from the whole network at these prompts; empty if they agree."""
    named = f"blocks {(source.layer or 0) + 1} to {target.layer} of {net.name}"
    if not net.batches(max(len(one.state) for one in kept)):
        return f"rows of {net.name} depend on their neighbours in a batch"
    lengths: dict[int, list[_Kept]] = {}
    for one in kept:
        lengths.setdefault(len(one.state), []).append(one)
    shortest = lengths[min(lengths)][:1]
    drawn = torch.randn(2, shortest[0].state.shape[1], generator=torch.Generator().manual_seed(0))
    drawn = drawn.to(shortest[0].state)
    drawn *= shortest[0].state.norm(dim=-1).median() / drawn.norm(dim=-1, keepdim=True)
    try:
        with torch.no_grad():
            for same in (some[i : i + 8] for some in lengths.values() for i in range(0, len(some), 8)):
                state, there = (torch.stack([getattr(k, name) for k in same]) for name in ("state", "target"))
                if not net.agree(_replayed(net, source, target, same, state, 0 * drawn[:1]), there):
                    return f"{named} called alone with the prompts' own states do not give what the network gives"
            state = torch.stack([k.state for k in shortest])
            a, b = (forward(net, source, target, shortest, state, drawn) for forward in (_replayed, _whole))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        return f"{named} cannot be called alone for several rows ({str(error).splitlines()[0][:80]})"
    return "" if net.agree(a, b) else f"{named} called alone with vectors added do not give what whole passes give"
