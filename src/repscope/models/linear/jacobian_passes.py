"""Forward passes from source sites to a target, grouped for computing Jacobians.

1. Each prompt is split into positions before the source, whose keys and values are cached, and positions from there to the target.
2. Prompts with equal lengths of both parts and equal source and target positions form one group and run together.
3. A pass adds zeros at the sources, where its graph begins, reads the target and stops.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from repscope.errors import UserError
from repscope.models.engine.base import BaseNetwork, several_calls, tapped
from repscope.models.engine.edit_positions import resolve_edit_positions
from repscope.models.engine.fingerprint import of_module
from repscope.models.engine.hooks import Handler, unhooked
from repscope.models.engine.token_network import TokenNetwork
from repscope.models.linear.linearization import Explicit, Linearized
from repscope.models.prompts import PromptLike, as_prompts, encode
from repscope.models.sites import KINDS, Site, Tokens, names_one

KEPT_BYTES = 1 << 30  #: graphs that stay in memory
PRODUCT_TOKENS = 1440  #: row-tokens of one backward pass; fewer make small products, more gain nothing
WHOLE_BYTES = 64 << 20  #: of one residual stream where whole matrices are made: MLPs' derivatives serve all vectors of a pass
_NEVER_TARGETS = ("q", "k", "v", "pattern")


@dataclass(eq=False)
class Group:
    """Inputs that go through one pass.

    inputs: their indices. make: runs the pass. bytes: estimated size of its graph. held: the pass, if it is cached.
    """

    inputs: Sequence[int]
    make: Callable[[], Linearized]
    bytes: float
    held: Linearized | None = None

    def linearized(self) -> Linearized:
        """The cached pass, or a new one."""
        return self.held if self.held is not None else self.make()


@dataclass(frozen=True, eq=False)
class Plan:
    """Passes for Jacobians.

    groups: inputs that share a pass. single: whether a single source was named, not a list. unchanged: raises if the network has
    changed since.
    """

    sources: Sequence[Site]
    target: Site
    groups: Sequence[Group]
    single: bool
    unchanged: Callable[[], None]


class Prefixes:
    """Caches of the positions before the source, for several Jacobians of the same prompts: what they share is run once.

    For one network without edits; a cache that is here is never changed.
    """

    def __init__(self) -> None:
        self._held: list[tuple[Int[Tensor, "row token"], Any]] = []

    def cache(self, net: TokenNetwork, ids: Int[Tensor, "row token"]) -> Any:
        """The cache of these positions, from the longest beginning that is here. Runs within the settings of its caller."""
        count, held = max(
            ((self._shared(kept, ids), cache) for kept, cache in self._held), key=lambda pair: pair[0], default=(0, None)
        )
        if count == ids.shape[1]:
            return held
        cache = copy.deepcopy(held) if count else net.cache()
        net.module(input_ids=ids[:, count:], **{net.cache_name: cache}, **net.plain(use_cache=True))
        self._held.append((ids, cache))
        return cache

    @staticmethod
    def _shared(kept: Int[Tensor, "row token"], ids: Int[Tensor, "row token"]) -> int:
        tokens = kept.shape[1]
        return tokens if len(kept) == len(ids) and tokens <= ids.shape[1] and torch.equal(kept, ids[:, :tokens]) else 0


def plan_jacobian(
    net: TokenNetwork,
    tokenizer: Any,
    prompts: Iterable[PromptLike],
    source: str | Site | Sequence[str | Site],
    target: str | Site,
    source_tokens: str | int,
    target_tokens: str | int,
    watch: Sequence[Site] = (),
    prefixes: Prefixes | None = None,
    at_once: int | None = None,
) -> Plan:
    """The Jacobians of prompts; see `LanguageModel.jacobian`. `watch` are sites whose part in them is to be told (see `pieces`)."""
    sources, end = endpoints(net, source, target)
    held = list(as_prompts(tokenizer, prompts))
    begin, read = Tokens.spanning(source_tokens), Tokens.spanning(target_tokens)
    if begin.pooled:
        raise UserError(f"A source is one position or several, and {begin} is an average: choose last, all or a span.")
    if read.ragged:
        raise UserError(f"The target is one vector a prompt, and {read} names several: choose last, or a mean.")
    whole = encode(tokenizer, held, begin, net.context, causal=net.causal)
    net.checked(whole.ids)
    ends = encode(tokenizer, held, read, net.context, causal=net.causal)
    if net.causal and bool((late := whole.start >= ends.stop).any()):
        i = int(np.argmax(late))
        raise UserError(
            f"In prompt {i} the source stands at token {whole.start[i]}, behind the target at token {ends.stop[i] - 1}, which it "
            "cannot reach: the Jacobian is zero."
        )
    installed = tuple(net.installed)
    longest, worth = int(whole.ids.lengths.max()), len(whole.ids.flat)
    # after a cached prefix, keys and values are those of all tokens, and a pass has the last ones alone
    of_all = any(site.kind in ("k", "v", "pattern") for site in (*sources, end, *watch))
    continues = not of_all and net.shares_prefix(longest, worth)
    together = net.batches(longest, worth)
    cut = np.minimum(whole.start, ends.start) if continues else np.zeros_like(whole.start)
    stop = np.where(net.causal, ends.stop, whole.ids.lengths)
    keys: dict[tuple[int, ...], list[int]] = {}
    for i in range(len(held)):
        spans = (whole.start[i], min(int(whole.stop[i]), int(stop[i])), ends.start[i], ends.stop[i], stop[i])
        keys.setdefault((int(cut[i]), *(int(x - cut[i]) for x in spans)), []).append(i)
    blocks = 1 + (net.blocks - 1 if end.layer is None else end.layer) - min(s.layer or 0 for s in sources)
    token_bytes = 4 * blocks * net.token_bytes  # its graph and the second one keep about so much of each token
    groups = []
    for key, inputs in keys.items():
        tokens = key[-1]
        most = (
            max(1, PRODUCT_TOKENS // (4 * tokens)) if together else 1
        )  # prompts that share a pass, so that several vectors still do
        for part in np.array_split(inputs, -(-len(inputs) // min(most, at_once or most))):
            rows = [whole.ids[int(i)] for i in part]
            aimed = partial(_aimed, net, tokenizer, held, installed)
            make = partial(_prompt_pass, net, sources, end, rows, key, part, watch, aimed, None if installed else prefixes)
            groups.append(Group([int(i) for i in part], make, token_bytes * tokens * len(part)))
    return Plan(sources, end, groups, names_one(source), _unchanged(net))


def plan_jacobian_of_inputs(
    net: BaseNetwork,
    run: Callable[[Callable[..., None], int, int], None],
    total: int,
    source: str | Site | Sequence[str | Site],
    target: str | Site,
    batch: int,
) -> Plan:
    """The Jacobians of tensors, the features of each as one axis; `run` passes some to the network. See `Network.jacobian`."""
    sources, end = endpoints(net, source, target)
    installed = tuple(net.installed)

    def make(start: int, stop: int) -> Linearized:
        _see_edited(net, installed)
        made = _pass(net, sources, end, lambda go: run(go, start, stop), Explicit(), (PRODUCT_TOKENS // batch,) * 2)
        if stop - start > 1:
            for reached in torch.autograd.grad(made.target[0].sum(), made.leaves, retain_graph=True, allow_unused=True):
                if reached is not None and bool(reached[1:].any()):
                    raise UserError(f"{end} of one input depends on {sources[0]} of another, so no input has a Jacobian.")
        return made

    groups = []
    for start in range(0, total, batch):
        stop = min(total, start + batch)
        groups.append(Group(range(start, stop), partial(make, start, stop), 0.0 if total <= batch else KEPT_BYTES + 1.0))
    return Plan(sources, end, groups, names_one(source), _unchanged(net))


def endpoints(net: BaseNetwork, source: str | Site | Sequence[str | Site], target: str | Site) -> tuple[list[Site], Site]:
    """The sites that are meant. A kind without a block is all its blocks up to the target.

    Raises a `UserError` for a site that cannot be one end, or a source behind the target.
    """
    ends = net.resolve(target)
    if len(ends) != 1:
        raise UserError(f"The target {target} is {len(ends)} sites; name one, such as {ends[-1]}.")
    end = ends[0]
    if end.kind in _NEVER_TARGETS:
        raise UserError(f"{end} is no target of a Jacobian; choose what it leads to, such as z or attn_out.")
    sources = net.resolve(source)
    asked = [source] if isinstance(source, (str, Site)) else list(source)
    named = {s for name in asked if not (isinstance(name, str) and _all_blocks(name)) for s in net.resolve(name)}
    if end.kind != "module":
        if behind := [s for s in named if s.kind != "module" and s.depth > end.depth]:
            raise UserError(f"The source {behind[0]} is behind the target {end}; nothing leads from it there.")
        sources = [s for s in sources if s in named or s.depth < end.depth]
    if not sources:
        raise UserError(f"No block of {source} stands before the target {end}.")
    for site in sources:
        net.write_tap(site)
        if site.kind == "pattern":
            raise UserError(f"{site} is no source of a Jacobian: its width differs by prompt; choose z or v.")
    return sources, end


def _all_blocks(name: str) -> bool:
    """Whether a name means every block of a kind: `resid_post`, `resid_post.*`, `z.*.*`."""
    kind, *numbers = name.split(".")
    return kind in KINDS and KINDS[kind].per_block and set(numbers) <= {"*"}


def _unchanged(net: BaseNetwork) -> Callable[[], None]:
    """A function that raises if the weights have changed since: products would mix two networks."""

    def now() -> object:
        held = [p for p in net.module.parameters() if not p.is_meta]  # those on another device are brought anew for each pass
        seen = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in held]
        return seen, None if len(held) < len(list(net.module.parameters())) else of_module(net.module)

    before = now()

    def see() -> None:
        if now() != before:
            raise UserError(
                "The weights have changed since this Jacobian was made, so its products would be of two networks: make it again."
            )

    return see


def _aimed(net: TokenNetwork, tokenizer: Any, held: Sequence[PromptLike], installed: tuple[Any, ...]) -> None:
    """Check that the installed edits are those under which the Jacobian was requested, and resolve their positions."""
    _see_edited(net, installed)
    if installed:
        resolve_edit_positions(net, tokenizer, held, encode(tokenizer, held, Tokens("all"), net.context, causal=net.causal).ids)


def _see_edited(net: BaseNetwork, installed: tuple[Any, ...]) -> None:
    """Check that the installed edits are those under which the Jacobian was requested."""
    if len(installed) != len(net.installed) or any(a is not b for a, b in zip(installed, net.installed)):
        raise UserError(
            "This Jacobian was made under other edits than those of now, and is too large to keep: ask for products in the context "
            "in which it was made."
        )


def _prompt_pass(
    net: TokenNetwork,
    sources: Sequence[Site],
    target: Site,
    rows: Sequence[Int[np.ndarray, "token"]],
    key: tuple[int, ...],
    inputs: Int[np.ndarray, "row"],
    watch: Sequence[Site],
    aimed: Callable[[], None],
    prefixes: Prefixes | None = None,
) -> Linearized:
    """One pass over prompts with the lengths in `key`: tokens before, source positions, target positions, and the end."""
    before, first, last, read_from, read_to, tokens = key
    ids = torch.from_numpy(np.stack([row[: before + tokens] for row in rows])).to(net.device)
    aimed()

    cache = None
    if before:
        with unhooked(net.module), net.taps.settled() as state, net.announced(inputs):
            state.rewind()
            cache = (prefixes or Prefixes()).cache(net, ids[:, :before])

    def passed(split: bool) -> Linearized:
        attention = Explicit()
        arguments: dict[str, Any] = net.plain()
        if cache is not None:
            own = copy.deepcopy(cache)  # some families keep more in it than keys and values
            held = _apart(own, attention) if split else own
            arguments = {net.cache_name: held} | net.plain(use_cache=True)

        places = (slice(first, last), slice(read_from, read_to))
        with net.announced(inputs):
            return _pass(
                net,
                sources,
                target,
                lambda go: go(input_ids=ids[:, before:], **arguments),
                attention,
                _vectors_at_once(net, tokens * len(rows)),
                places,
                tokens,
                watch,
            )

    if cache is None:
        return passed(False)
    kept: list[Linearized] = []

    def tried(_: Sequence[int]) -> str:
        return _joins_otherwise(net, passed, kept)

    why = net.proofs.refused("earlier keys out of the graph", before + tokens, tried)
    return kept[0] if kept and not why else passed(not why)


def _vectors_at_once(net: TokenNetwork, row_tokens: int) -> tuple[int, int]:
    """Vectors of one backward pass over so many row-tokens, and the same where whole matrices are made."""
    few, width = PRODUCT_TOKENS // row_tokens, net.anatomy.width if net.anatomy is not None else 1 << 20
    return few, max(few, WHOLE_BYTES // (4 * width * row_tokens))


def _joins_otherwise(net: TokenNetwork, passed: Callable[[bool], Linearized], kept: list[Linearized]) -> str:
    """Why joining earlier keys and values inside attention differs from joining them in the cache; empty if it does not."""
    try:
        kept[:] = [passed(True)]
        return "" if net.agree(kept[0].target, passed(False).target) else "joined inside attention they give another target"
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        return f"joined inside attention they stop with {type(error).__name__}"


def _apart(cache: Any, attention: Explicit) -> Any:
    """A view of the cache that passes its content to `attention` and returns new keys and values unchanged."""
    from transformers import DynamicCache

    class Apart(DynamicCache):
        def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            if attention.before is not None:
                raise RuntimeError("attention was not by torch's scaled_dot_product_attention")
            layer: Any = self.layers[layer_idx]
            attention.before = (layer.keys, layer.values)
            return key_states, value_states

    apart = Apart()
    apart.layers = cache.layers
    return apart


def _pass(
    net: BaseNetwork,
    sources: Sequence[Site],
    target: Site,
    run: Callable[[Callable[..., None]], None],
    attention: Explicit,
    product_rows: tuple[int, int],
    places: tuple[slice, slice] | None = None,
    tokens: int = 0,
    watch: Sequence[Site] = (),
) -> Linearized:
    """One pass that adds zeros at the sources, reads the target and stops there."""
    leaves: dict[Site, Tensor] = {}
    points: dict[Site, Tensor] = {}
    watched: dict[Site, tuple[Tensor, Tensor]] = {}
    seen: list[Tensor] = []

    def whole(site: Site, value: Tensor) -> Tensor:
        if places is not None and (value.dim() < 3 or value.shape[1] != tokens):
            raise UserError(f"{site} is {tuple(value.shape)} in a pass of {tokens} tokens: no vector a token; choose another site.")
        return value

    def added(site: Site) -> Handler:
        def handle(value: Tensor) -> Tensor | None:
            if site in leaves:
                raise several_calls(site)
            if places is None:
                leaves[site], points[site] = torch.zeros_like(value, requires_grad=True), value.detach()
                return value + leaves[site]
            at = places[0]
            part = whole(site, value)[:, at]
            leaves[site] = torch.zeros_like(part[:, 0], requires_grad=True)
            points[site] = part.detach().mean(1)
            wide = leaves[site][:, None].expand_as(part)
            return value + functional.pad(wide, (0, 0) * (value.dim() - 2) + (at.start, value.shape[1] - at.stop))

        return handle

    def watching(site: Site) -> Handler:
        def handle(value: Tensor) -> Tensor | None:
            if site in watched:
                raise several_calls(site)
            leaf = torch.zeros_like(value, requires_grad=True)
            watched[site] = (value + leaf, leaf)
            return watched[site][0].clone()  # some families go on in place

        return handle

    def read(value: Tensor) -> None:
        seen.append((value if places is None else whole(target, value)[:, places[1]].mean(1)).flatten(1))

    hooks = [(net.write_tap(site), added(site)) for site in sources]
    hooks += [(net.write_tap(site), watching(site)) for site in watch]
    # Taps into attention stand inside: they are shown its operands, and it is computed by what stands outside of them.
    with (
        attention,
        unhooked(net.module, differentiable=True),
        net.taps.hooked(hooks),
        tapped(net.taps, [(net.tap(target), read)]) as go,
    ):
        run(go)
    if missed := [str(s) for s in sources if s not in leaves]:
        raise UserError(f"{', '.join(missed)} did not run before {target}; its Jacobian is nothing.")
    if not seen[0].requires_grad:
        raise UserError(f"{target} does not depend on {', '.join(map(str, sources))}; the Jacobian is nothing.")
    order = [watched[site] for site in watch if site in watched]
    return Linearized([leaves[s] for s in sources], [points[s] for s in sources], seen[0], product_rows, places, order)
