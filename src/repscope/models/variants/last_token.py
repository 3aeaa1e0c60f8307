"""Many variants of a prompt's last token: each replays only that token, from the block at which it differs.

A change at the last token reaches no other token of a causal network. So:

1. One pass over the other tokens caches their keys and values: the prefix.
2. The last token runs alone. The pass begins with one row, the unchanged prompt; variants are added as rows at the input of their
   block, as in `prompt_variants`. Hundreds of variants share each matrix product.
3. All rows attend to the one prefix, which is not copied: queries of all rows are one product with its keys, and each row's own key
   is one more score of the same softmax.

Replacing each of H heads in each of L blocks takes L·H/2 single tokens through the network, not L·H prompts. It is tested on the
network (`proofs`) against plain passes; where it differs (other attention than torch's), `prompt_variants` runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache

from repscope.errors import UserError
from repscope.models.engine.base import tapped
from repscope.models.engine.hooks import Handler, HookPoint, unhooked
from repscope.models.engine.token_network import TokenNetwork
from repscope.models.sites import Site
from repscope.models.variants.block_replay import unedited
from repscope.models.variants.prompt_variants import PromptVariant, alone, run_variants

_ROUNDING = 1e-6  #: of the largest output: rows of one product are not equal to the last bit
_STOPS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError, UserError)
Change = Callable[[Tensor], Tensor]

_PASS_ROWS = 512  #: variants of one pass; larger matrices gain nothing more on a CPU


@dataclass(frozen=True, eq=False)
class LastTokenVariant:
    """One variant: the activations of a prompt's last token at one site.

    site: resolved; `z.L.H` is one head. value: what is put there, of the site's shape at one token, or a function of what is there.
    """

    site: Site
    value: Tensor | Change


class _Prefix(DynamicCache):
    """Keys and values of the tokens before the last; `frozen`, it leaves them and returns the last token's own."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.frozen = False
        self.current: int | None = None  #: block whose attention runs next

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Append in the pass over the prefix; afterwards return what was given."""
        if not self.frozen:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self.current = layer_idx
        return key_states, value_states


class _LastTokenAttention(TorchFunctionMode):
    """Attention of rows of one token each to one shared prefix and to themselves, in place of torch's."""

    def __init__(self, prefix: _Prefix) -> None:
        super().__init__()
        self.prefix, self.calls = prefix, 0

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
    ) -> Float[Tensor, "row head 1 d_head"]:
        layer, self.prefix.current = self.prefix.current, None
        if layer is None or query.shape[2] != 1 or key.shape[2] != 1:
            raise RuntimeError("attention is not of one token per row")
        self.calls += 1
        cached: Any = self.prefix.layers[layer]
        keys, values = cached.keys[0], cached.values[0]  # (kv_head, key, d_head)
        rows, heads, _, size = query.shape
        groups = keys.shape[0]
        repeats = key.shape[1] // groups
        factor = scale if scale is not None else size**-0.5
        wide = torch.promote_types(query.dtype, torch.float32)
        q = query.reshape(rows, groups, heads // groups, size).transpose(0, 1)  # (kv_head, row, group, d_head)
        own_key, own_value = (x[:, ::repeats, 0].transpose(0, 1)[:, :, None] for x in (key, value))  # (kv_head, row, 1, d_head)
        there = (q.flatten(1, 2) @ keys.transpose(-1, -2)).view(groups, rows, heads // groups, -1)
        scores = torch.cat([there, (q * own_key).sum(-1, keepdim=True)], dim=-1).to(wide) * factor
        if attn_mask is not None:
            mask = attn_mask[:, :, 0].expand(rows, heads, -1).reshape(rows, groups, heads // groups, -1).transpose(0, 1)
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        weights = scores.softmax(-1).to(query.dtype)
        mixed = (weights[..., :-1].flatten(1, 2) @ values).view(groups, rows, heads // groups, -1) + weights[..., -1:] * own_value
        out: Tensor = mixed.transpose(0, 1).reshape(rows, heads, 1, -1)
        return out


def last_token_variants(
    net: TokenNetwork, ids: Int[np.ndarray, "token"], variants: Sequence[LastTokenVariant]
) -> Float[Tensor, "variant_plus_1 d_model"]:
    """The final norm's output at the last token: first of the unchanged prompt, then of each variant in the order given.

    Raises a `UserError` for a network that is not causal or is under edits, a site that cannot be changed, or variants of which
    none changes the output.
    """
    if not net.causal:
        raise UserError(f"{net.name} is not causal: its last token reaches the others, so variants of it need whole passes.")
    unedited(net)
    for site in dict.fromkeys(variant.site for variant in variants):
        net.write_tap(site)
        if site.kind == "module" or (site.kind == "embed") or (site.kind in ("k", "v", "pattern")):
            raise UserError(f"{site} cannot be varied at the last token alone; use a site such as z.8.3 or resid_post.8.")
    if len(ids) > 1 and not last_token_refused(net, len(ids)):
        out = _fast(net, ids, variants)
    else:
        out = _reference(net, ids, variants)
    apart = (out[1:] - out[:1]).abs()
    if variants and bool((apart <= _ROUNDING * out[:1].abs().max()).all()):
        raise UserError(
            f"The {len(variants)} interventions at {variants[0].site} … {variants[-1].site} change no logit of {net.name}: "
            "they put there what was there, or nothing reads these sites."
        )
    return out


def last_token_refused(net: TokenNetwork, length: int) -> str:
    """Why the last token of prompts of this length cannot be replayed alone; empty if it can."""
    if not net.batches(length):
        return f"rows of {net.name} depend on their neighbours in a batch"
    return net.prefix_refused(length) or net.proofs.refused("last token alone", length, partial(_differs, net))


def _reference(net: TokenNetwork, ids: Int[np.ndarray, "token"], variants: Sequence[LastTokenVariant]) -> Tensor:
    """The same by `prompt_variants`."""
    at = len(ids) - 1
    unchanged = PromptVariant(Site("resid_post", net.blocks - 1), at, at + 1, lambda there: there)
    forks = [PromptVariant(v.site, at, at + 1, _of_rows(v.value)) for v in variants]
    return run_variants(net, ids, [unchanged, *forks])


def _of_rows(value: Tensor | Change) -> Tensor | Change:
    """A value for one token as one for a span of one token."""
    return (lambda there: value(there[0])[None]) if callable(value) else value[None]


def _fast(net: TokenNetwork, ids: Int[np.ndarray, "token"], variants: Sequence[LastTokenVariant]) -> Tensor:
    order = sorted(range(len(variants)), key=lambda i: variants[i].site.depth)
    groups = [order[i : i + _PASS_ROWS] for i in range(0, len(order), _PASS_ROWS)] or [[]]
    prefix = _Prefix(net.text_config)
    tokens = torch.from_numpy(np.asarray(ids))[None].to(net.device)
    out: list[Tensor | None] = [None] * (len(variants) + 1)
    with unhooked(net.module), net.taps.settled() as state:
        state.rewind()
        net.module(input_ids=tokens[:, :-1], **{net.cache_name: prefix}, **net.plain(use_cache=True))
        prefix.frozen = True
        for group in groups:
            seen: list[Tensor] = []
            hooks = net.taps.hooked(_hooks(net, [variants[i] for i in group]))
            attention = _LastTokenAttention(prefix)
            with hooks, tapped(net.taps, [(net.tap(net.last), seen.append)]) as run, attention:
                run(input_ids=tokens[:, -1:], **{net.cache_name: prefix}, **net.plain(use_cache=True))
            if not attention.calls:
                raise RuntimeError("it does not attend by torch's scaled_dot_product_attention")
            for row, i in enumerate([-1, *group]):
                out[i + 1] = seen[0][row, -1].clone()
    if prefix.get_seq_length() != len(ids) - 1:
        raise RuntimeError("its cache has grown")
    return torch.stack([row for row in out if row is not None])


def _hooks(net: TokenNetwork, ordered: Sequence[LastTokenVariant]) -> list[tuple[HookPoint, Handler]]:
    """At each block first the new rows, then their values: one hook for all heads of a block."""
    entries: dict[HookPoint, int] = {}
    groups: dict[Site, list[tuple[int, LastTokenVariant]]] = {}
    for row, variant in enumerate(ordered, start=1):
        site = variant.site
        entry = site if site.kind in ("final_norm", "resid_post") else Site("resid_pre", site.layer)
        entries[net.tap(entry)] = row + 1
        groups.setdefault(Site(site.kind, site.layer), []).append((row, variant))
    hooks: list[tuple[HookPoint, Handler]] = [(tap, partial(_with_rows, rows)) for tap, rows in entries.items()]
    return hooks + [(net.write_tap(site), partial(_changed, group)) for site, group in groups.items()]


def _with_rows(rows: int, value: Tensor) -> Tensor | None:
    """Append copies of the first row up to a number of rows."""
    fresh = rows - len(value)
    return torch.cat([value, value[:1].expand(fresh, *value.shape[1:])]) if fresh > 0 else None


def _changed(group: Sequence[tuple[int, LastTokenVariant]], value: Float[Tensor, "row 1 *feature"]) -> Tensor:
    new = value.clone()
    for row, variant in group:
        there = (row, 0) if variant.site.head is None else (row, 0, variant.site.head)
        new[there] = (variant.value(value[there]) if callable(variant.value) else variant.value).to(value)
    return new


def _differs(net: TokenNetwork, lengths: Sequence[int]) -> str:
    """Why variants of the last token alone differ from those of whole passes; empty if they agree."""
    sites = [Site("resid_post", min(1, net.blocks - 1))]
    if net.anatomy is not None:
        sites += [Site("z", layer, 0) for layer in range(net.blocks) if Site("z", layer) in net.anatomy.taps][:1]
    generator = torch.Generator()

    def other(there: Tensor) -> Tensor:
        noise = torch.randn(there.shape, generator=generator.manual_seed(0)).to(there)
        new: Tensor = there + noise * there.norm() / noise.norm()
        return new

    variants = [LastTokenVariant(site, other) for site in sites]
    for row in net.trial([n for n in lengths if n > 1] or [6]):
        tokens = torch.from_numpy(row)[None].to(net.device)
        at = len(row) - 1
        with net.unedited():
            try:
                quick = _fast(net, row, variants)
            except _STOPS as error:
                return f"the last token alone stops with {type(error).__name__} ({' '.join(str(error).split())[:80]})"
            whole = [alone(net, tokens, PromptVariant(v.site, at, at + 1, _of_rows(v.value)), 1)[0] for v in variants]
            if not net.agree(quick[1:], torch.stack(whole)):
                return f"the last token of a prompt of {len(row)} tokens comes out otherwise when it runs alone"
    return ""
