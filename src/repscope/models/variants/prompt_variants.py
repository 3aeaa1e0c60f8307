"""Many variants of one prompt in one forward pass, each with other values at one site.

A variant has other values at one site from one position on. Run separately, n variants cost n passes. Here:

1. Keys and values of positions before a variant are those of the unchanged prompt and are computed once.
2. So are the blocks below a variant: a pass starts with one row, and each variant is added as a row at the input of its block.
3. Variants that begin at nearby positions share a pass; the last site is read at the prompt's last position.

If attention cannot take rows added later (BLOOM: its position bias has one entry per row), or the cache is of another kind, all
rows run from the first block; if rows depend on each other, one variant runs at a time. This is tested on the network (`proofs`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.engine.base import tapped
from repscope.models.engine.hooks import Handler, HookPoint, unhooked
from repscope.models.engine.token_network import TokenNetwork
from repscope.models.sites import Site

_KEPT = 4  #: prompts whose keys and values are kept for later ones
_SHORT = 24  #: row-tokens before the variants that join their pass: one of few tokens takes as long as reading the weights
_PASS_TOKENS = 512  #: row-tokens of a pass at its top; larger matrices gain nothing more on a CPU


@dataclass(frozen=True, eq=False)
class PromptVariant:
    """One variant of a prompt.

    site: resolved site at which it differs. start, stop: positions. value: (stop - start, *feature) to put there, or a function of
    the present activations.
    """

    site: Site
    start: int
    stop: int
    value: Tensor | Callable[[Tensor], Tensor]


class Beginnings:
    """Keys and values of the latest prompts, for prompts that begin alike (few-shot examples before each query).

    For prompts of one network under the same edits; `run_variants` fills it.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[list[int], Any]] = []

    def filled(self, net: TokenNetwork, ids: Int[Tensor, "1 token"]) -> Any:
        """The cache of a prompt's positions: the longest beginning that a kept prompt shares is taken over, the rest is run. None
        where it forgets the beginning, as that of a sliding window does.
        """
        row = ids[0].tolist()
        shared, best = self.shared(row)
        whole = net.cache()
        if best is not None and shared:
            _copied(best, whole, shared)
        if shared < len(row):
            net.module(input_ids=ids[:, shared:], **{net.cache_name: whole}, **net.plain(use_cache=True))
        if any(layer.keys.shape[-2] != len(row) for layer in whole.layers):
            return None
        self._kept = [(row, whole), *self._kept][:_KEPT]
        return whole

    def shared(self, row: Sequence[int]) -> tuple[int, Any]:
        """How many tokens the most alike of the kept prompts shares with a prompt, and its cache; None if there is none."""
        return max(((_alike(row, held), cache) for held, cache in self._kept), key=lambda pair: pair[0], default=(0, None))


def _alike(row: Sequence[int], held: Sequence[int]) -> int:
    """Tokens at which two prompts begin alike."""
    count = 0
    for a, b in zip(row, held):
        if a != b:
            break
        count += 1
    return count


def _copied(source: Any, target: Any, tokens: int) -> None:
    """Put the first positions of a cache into an empty one."""
    for layer, kept in enumerate(source.layers):
        target.update(kept.keys[:, :, :tokens], kept.values[:, :, :tokens], layer)


def run_variants(
    net: TokenNetwork,
    ids: Int[np.ndarray, "token"],
    forks: Sequence[PromptVariant],
    *,
    pass_tokens: int = _PASS_TOKENS,
    beginnings: Beginnings | None = None,
) -> Float[Tensor, "fork d_model"]:
    """The final norm's output at the last position of each variant. Arguments as `run_variants_last`."""
    return run_variants_last(net, ids, forks, 1, pass_tokens=pass_tokens, beginnings=beginnings)[:, 0]


def run_variants_last(
    net: TokenNetwork,
    ids: Int[np.ndarray, "token"],
    forks: Sequence[PromptVariant],
    ends: int,
    *,
    pass_tokens: int = _PASS_TOKENS,
    beginnings: Beginnings | None = None,
) -> Float[Tensor, "fork end d_model"]:
    """The final norm's output at the last `ends` positions of each variant of a prompt, for a causal network.

    Positions of variants count from 0; `pass_tokens` limits the row-tokens of one pass; `beginnings` keeps what later prompts may
    share. Raises a `UserError` for a network that is not causal, a site that cannot be changed, or a position outside the prompt.
    """
    if not net.causal:
        raise UserError(f"{net.name} is not causal: later tokens reach earlier ones, so its prompts cannot be forked.")
    if placed := [i.edit for i in net.installed if i.edit.tokens != "all" or i.edit.per_prompt]:
        raise UserError(f"{placed[0]} acts at some positions of some prompt, and forks are of no prompt: edit all tokens.")
    for fork in forks:
        net.write_tap(fork.site)
        if not 0 <= fork.start < fork.stop <= len(ids):
            raise UserError(f"A fork at {fork.site} is at {fork.start}:{fork.stop}; the prompt has {len(ids)} tokens.")
    if not 1 <= ends <= len(ids):
        raise UserError(f"The last {ends} positions are asked for; the prompt has {len(ids)} tokens.")
    row = torch.from_numpy(np.asarray(ids))[None].to(net.device)
    if not net.batches(len(ids)):  # a row depends on its neighbours
        return torch.stack([alone(net, row, fork, ends) for fork in forks])
    grows = not variants_refused(net, len(ids))
    # What a pass makes of its embeddings (masks, positions) has one entry a row, so forks there are rows from the bottom.
    below = [i for i, fork in enumerate(forks) if fork.site.kind == "embed"]
    above = [i for i, fork in enumerate(forks) if fork.site.kind != "embed"]
    parts = [(below, False), (above, grows)]
    kept = beginnings or Beginnings()
    done = [(i, _forked(net, row, [forks[j] for j in i], pass_tokens, grow, ends, kept)) for i, grow in parts if i]
    order = torch.tensor([j for i, _ in done for j in i], device=net.device)
    return torch.cat([rows for _, rows in done])[order.argsort()]


def alone(net: TokenNetwork, ids: Tensor, fork: PromptVariant, ends: int) -> Float[Tensor, "end d_model"]:
    """One variant in a pass of its own: the reference."""

    seen: list[Tensor] = []
    hooks = net.taps.hooked([(net.write_tap(fork.site), lambda value: _with_values(value, [(0, fork)], 0))])
    reads = tapped(net.taps, [(net.tap(net.last), seen.append)])
    with unhooked(net.module), net.announced(np.zeros(1, dtype=np.int64)), hooks, reads as run:
        run(input_ids=ids, **net.plain())
    return seen[0][0, -ends:].clone()


def _forked(
    net: TokenNetwork,
    ids: Tensor,
    forks: Sequence[PromptVariant],
    pass_tokens: int,
    grow: bool,
    ends: int = 1,
    beginnings: Beginnings | None = None,
) -> Tensor:
    target = net.tap(net.last)
    out: list[Tensor | None] = [None] * len(forks)
    with unhooked(net.module), net.taps.settled() as state, net.announced(np.zeros(1, dtype=np.int64)):
        whole, kept = None, beginnings or Beginnings()
        starts = [min(ids.shape[1] - ends, fork.start) for fork in forks]
        for group in _groups(forks, ids.shape[1], pass_tokens):
            start = min(starts[i] for i in group) if grow else 0
            order = sorted(group, key=lambda i: forks[i].site.depth)
            inputs: dict[str, Any] = net.plain()
            own, held = None, whole
            if start and held is None:
                there, cache = kept.shared(ids[0, :start].tolist())
                if (start - there) * (len(group) + 1) <= _SHORT:
                    start, held = there, cache
            if start:
                if held is None:
                    state.rewind()
                    held = whole = kept.filled(net, ids[:, : max(starts)])
                    if whole is None:
                        return _forked(net, ids, forks, pass_tokens, False, ends)
                own = net.cache()
                _copied(held, own, start)
                inputs = net.plain(use_cache=True) | {net.cache_name: own}
            rows = _Rows([forks[i] for i in order], ids.shape[1], own, grow)
            seen: list[Tensor] = []
            with net.taps.hooked(rows.hooks(net)), tapped(net.taps, [(target, seen.append)]) as run:
                run(input_ids=ids[:, start:] if grow else ids.expand(len(order) + 1, -1), **inputs)
            for row, i in enumerate(order, start=1):
                out[i] = seen[0][row, -ends:].clone()
    return torch.stack([row for row in out if row is not None])


class _Rows:
    """The rows of one pass: row 0 is the prompt, each variant is added at its block and differs from its site on."""

    def __init__(self, forks: Sequence[PromptVariant], total: int, cache: Any, grow: bool) -> None:
        self.forks, self.total, self.cache, self.grow = forks, total, cache, grow

    def hooks(self, net: TokenNetwork) -> list[tuple[HookPoint, Handler]]:
        """Hooks in the order of the pass: at each block first the new rows, then their values."""
        hooks: list[tuple[HookPoint, Handler]] = []
        sites = list(dict.fromkeys(fork.site for fork in self.forks))
        entries: dict[HookPoint, int] = {}
        if self.grow:
            for number, fork in enumerate(self.forks, start=1):
                entries[self._entry(net, fork.site)] = number + 1  # rows that must be there from then on
            hooks += [(tap, partial(_with_rows, rows)) for tap, rows in entries.items()]
            if self.cache is not None:
                hooks += [(net.tap(Site("resid_pre", layer)), partial(self._widen, layer)) for layer in range(net.blocks)]
        for site in sites:
            hooks.append((net.write_tap(site), partial(self._changed, site)))
        return hooks

    def _entry(self, net: TokenNetwork, site: Site) -> HookPoint:
        if site.kind in ("final_norm", "resid_post"):
            return net.tap(site)
        if site.kind == "module":
            raise UserError(f"{site} is a raw module; fork at a site of a block, such as resid_post.8.")
        return net.tap(Site("resid_pre", site.layer))

    def _widen(self, layer: int, value: Tensor) -> None:
        """Expand earlier positions' keys and values to the number of rows that the block now has."""
        cached = self.cache.layers[layer]
        cached.keys, cached.values = (kept[:1].expand(len(value), -1, -1, -1) for kept in (cached.keys, cached.values))

    def _changed(self, site: Site, value: Tensor) -> Tensor:
        at_site = [(row, fork) for row, fork in enumerate(self.forks, start=1) if fork.site == site]
        return _with_values(value, at_site, self.total - value.shape[1])


def _with_rows(rows: int, value: Tensor) -> Tensor | None:
    """Append copies of the first row up to a number of rows; None if there are enough."""
    fresh = rows - len(value)
    return torch.cat([value, value[:1].expand(fresh, *value.shape[1:])]) if fresh > 0 else None


def _with_values(value: Tensor, forks: Sequence[tuple[int, PromptVariant]], first: int) -> Tensor:
    """The activations with the values of some rows' variants; the first column is position `first`."""
    new = value.clone()
    for row, fork in forks:
        at = slice(fork.start - first, fork.stop - first)
        there = value[row, at]
        new[row, at] = (fork.value(there) if callable(fork.value) else fork.value).to(value)
    return new


def _groups(forks: Sequence[PromptVariant], total: int, pass_tokens: int) -> Iterator[list[int]]:
    """Variants that share a pass: the latest starts first, until the pass is full; on average half of its rows are present."""
    order = sorted(range(len(forks)), key=lambda i: (-forks[i].start, forks[i].site.depth))
    group: list[int] = []
    for i in order:
        tokens = (len(group) + 1) * (total - forks[i].start)
        if (group and tokens > pass_tokens and forks[i].start != forks[group[-1]].start) or (group and tokens > 4 * pass_tokens):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def variants_refused(net: TokenNetwork, length: int) -> str:
    """Why rows cannot be added at later blocks of a pass over a prompt of this length; empty if they can."""
    return net.prefix_refused(length) or net.proofs.refused("growing rows", length, lambda n: _grows_otherwise(net, n))


def _grows_otherwise(net: TokenNetwork, lengths: Sequence[int]) -> str:
    """Why variants added at later blocks differ from variants run from the first block; empty if they do not."""
    kinds = [Site("resid_post", layer) for layer in range(min(2, net.blocks))]
    generator = torch.Generator().manual_seed(0)

    def other(there: Tensor) -> Tensor:
        noise = torch.randn(there.shape, generator=generator.manual_seed(0)).to(there)
        new: Tensor = there + noise * there.norm() / noise.norm()
        return new

    for row in net.trial([n for n in lengths if n > 5] or [6]):
        ids = torch.from_numpy(row)[None].to(net.device)
        forks = [PromptVariant(kind, at, at + 1, other) for kind in kinds for at in (2, len(row) - 2)]
        with net.unedited():
            try:
                quick = _forked(net, ids, forks, _PASS_TOKENS, True)
            except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
                return f"a growing batch stops with {type(error).__name__}"  # attention wants one entry a row in what came before
            if not net.agree(quick, _forked(net, ids, forks, _PASS_TOKENS, False)):
                return f"in a growing batch, forks of a prompt of {len(row)} tokens come out otherwise"
    return ""
