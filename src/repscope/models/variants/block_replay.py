"""Replay of the blocks after a source site, for many added vectors at once.

    effect(v) = f(h + v) - f(h),   h = resid_post.s of a prompt at all its positions,   f = blocks s+1 … t

1. One pass per prompt caches h, the target, and the arguments with which the network called each of those blocks (masks, rotations,
   positions).
2. A replay calls those blocks with h + v as hidden states, without the head. Prompts are branches of one row per vector, so that
   what they begin with in common runs once per vector (`branches`); else prompts of equal length are rows, without padding.
3. Check for each set of prompts: a replay of zeros gives the target, and a replay of two vectors the result of whole passes with
   these vectors added by a hook. Otherwise (BLOOM: its position bias has one entry per row) whole passes run, and `why` says so.
4. A replay may go on to a later site (`end`), so that effects there need no passes of their own.
5. Gradients at zero, for many cotangents, share one forward pass (`Part.pull`).

A replay is differentiable in v; weights get no gradients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.engine.packed_pass import cannot_pack
from repscope.models.engine.positions import as_float
from repscope.models.engine.token_network import TokenNetwork
from repscope.models.prompts import Encoded
from repscope.models.sites import Site
from repscope.models.variants.branches import MOST, branches
from repscope.models.variants.replay_group import Call, Group, Kept, kept_pass, row_of, rows_of
from repscope.models.variants.replay_part import STOPS, ReplayPart, unedited

__all__ = ["BlockReplay", "Call", "Part", "block_replay", "unedited"]

PART_TOKENS = 256  #: tokens of prompts of one length that share a replay; vectors fill the pass up
HELD_BYTES = 256 << 20  #: graphs at zero that stay in memory

Run = Callable[[Float[Tensor, "vector d_model"]], Float[Tensor, "vector row feature"]]
Both = tuple[Float[Tensor, "vector row feature"], Float[Tensor, "vector prompt d_model"]]
Onward = Callable[[Float[Tensor, "vector d_model"]], Both]
Pull = Callable[[Float[Tensor, "vector row feature"]], Float[Tensor, "vector d_model"] | None]


@dataclass(frozen=True, eq=False)
class Part:
    """Prompts that share a replay, as a differentiable function of vectors.

    prompts: their number. rows: indices of their rows among all effects. tokens: row-tokens per vector. run: maps vectors to their
    effects on these rows. onward: to these and the effects at a later site on each prompt's last token. pull: the gradients at zero
    of <cotangent, effect>, None where it cannot be had this way. numbers: the indices of the prompts. made: what does all this.
    """

    prompts: int
    rows: Int[Tensor, "row"]
    tokens: int
    run: Run
    onward: Onward | None = None
    pull: Pull | None = None
    numbers: Sequence[int] = ()
    made: ReplayPart | None = None


@dataclass(frozen=True, eq=False)
class BlockReplay:
    """The blocks between two sites, at some prompts.

    parts: what runs. rows: (row), the prompt of each row: one row a prompt, or one a token where all are targets. states, targets:
    for each prompt (token, d_model) at the source and the target. ends: (prompt, d_model), the last tokens at the later site.
    token_bytes: about what the graph of one token takes. why: why whole passes run, empty where the blocks alone do.
    """

    source: Site
    target: Site
    parts: Sequence[Part]
    rows: Int[Tensor, "row"]
    states: Sequence[Float[Tensor, "token d_model"]]
    targets: Sequence[Float[Tensor, "token d_model"]]
    ends: Float[Tensor, "prompt d_model"]
    token_bytes: float
    why: str


def block_replay(
    net: TokenNetwork,
    encoded: Encoded,
    source: str | Site,
    target: str | Site,
    *,
    pooled: bool,
    whole: bool = False,
    share: bool = True,
    end: str | Site | None = None,
) -> BlockReplay:
    """Prepare replays of the blocks between two `resid_post` sites for prompts with the target's positions.

    `pooled`: the target is the mean over its positions, else one row each. `whole`: run whole passes in any case. `share`: whether
    what prompts begin with in common runs once. `end`: a site not below the target, to which parts can go on. Raises a `UserError`
    for other sites, a target that is not after the source, no prompt, or a network under edits.
    """
    begin, read = _ends(net, source, target)
    last = read if end is None else _ends(net, source, end)[1]
    if last.depth < read.depth:
        raise UserError(f"The end {last} is below the target {read}; name a later block.")
    if not len(encoded.ids):
        raise UserError("There is no prompt; give at least one text to steer.")
    net.checked(encoded.ids)
    unedited(net)
    kept = [kept_pass(net, row, begin, read, last) for row in encoded.ids]
    sizes = np.ones(len(kept), dtype=np.int64) if pooled else encoded.stop - encoded.start
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    sites = (begin, read, last)
    make = partial(ReplayPart, net, sites, encoded, kept, pooled)
    held, why = _proved(net, encoded, kept, sites, make, share) if not whole else ([], "whole passes were asked for")
    held = held or [make(group, whole=True) for group in _of_equal_length(encoded, kept)]
    token_bytes = net.token_bytes * (net.blocks if why else (read.layer or 0) - (begin.layer or 0))
    parts = []
    for one in held:
        one.holds = token_bytes * sum(each.group.tokens for each in held) <= HELD_BYTES
        prompts = tuple(one.group.prompts)
        rows = torch.from_numpy(np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in prompts])).to(net.device)
        pull = None if why else one.pull
        parts.append(Part(len(prompts), rows, one.group.tokens, one.effect, one.onward, pull, prompts, one))
    return BlockReplay(
        begin,
        read,
        parts,
        torch.from_numpy(np.repeat(np.arange(len(kept)), sizes)).to(net.device),
        [as_float(k.state) for k in kept],
        [as_float(k.target) for k in kept],
        torch.stack([as_float(k.end) for k in kept]),
        token_bytes,
        why,
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


def _of_equal_length(encoded: Encoded, kept: Sequence[Kept], some: Sequence[int] | None = None) -> list[Group]:
    """Prompts of equal length as rows, up to `PART_TOKENS` tokens."""
    same: dict[int, list[int]] = {}
    for i in range(len(kept)) if some is None else some:
        same.setdefault(int(encoded.ids.lengths[i]), []).append(i)
    groups = []
    for length, prompts in same.items():
        most = max(1, PART_TOKENS // length)
        groups += [rows_of(part.tolist(), kept) for part in np.array_split(prompts, -(-len(prompts) // most))]
    return groups


def _proved(
    net: TokenNetwork,
    encoded: Encoded,
    kept: Sequence[Kept],
    sites: tuple[Site, Site, Site],
    make: Callable[[Group], ReplayPart],
    share: bool,
) -> tuple[list[ReplayPart], str]:
    """Parts whose replays agree with whole passes, sharing beginnings if they can; or none, and why."""
    begin, target, end = sites
    named = f"blocks {(begin.layer or 0) + 1} to {target.layer} of {net.name}"
    if not net.batches(int(encoded.ids.lengths.max())):
        return [], f"rows of {net.name} depend on their neighbours in a batch"

    def branched() -> list[Group]:
        rows = list(branches(encoded.ids))
        long = [i for row in rows if len(row.ids) > MOST for i in row.prompts]
        shared = [row_of(net, row, kept, begin, end) for row in rows if len(row.ids) <= MOST]
        return shared + _of_equal_length(encoded, kept, long)

    ways: list[Callable[[], list[Group]]] = [partial(_of_equal_length, encoded, kept)]
    if share and net.causal and not cannot_pack(net, [begin, end]):
        ways = [branched, *ways]
    short = min(range(len(kept)), key=lambda i: len(kept[i].state))
    drawn = torch.randn(2, kept[short].state.shape[1], generator=torch.Generator().manual_seed(0)).to(kept[short].state)
    drawn *= kept[short].state.norm(dim=-1).median() / drawn.norm(dim=-1, keepdim=True)
    why = ""
    for way in ways:
        try:
            parts = [make(group) for group in way()]
            why = next((said for part in parts if (said := part.differs(drawn, short in part.group.prompts))), "")
        except STOPS as error:
            why = f"cannot be called alone for several rows ({str(error).splitlines()[0][:80]})"
        if not why:
            return parts, ""
    return [], f"{named} {why}"
