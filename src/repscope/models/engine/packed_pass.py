"""Forward passes over packed prompts, and the check that a network supports them.

1. Each pack runs as one row with position ids relative to each prompt; `PackedAttention` separates the prompts.
2. If a pack ends inside a shared segment's subtree, that segment's keys and values are cached for the next pack, and so are its
   hidden states if a later prompt needs them.
3. A prompt's rows are passed on once the pack with its last token has run.

Support is tested on the network, not looked up in a table of model families.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.models.engine.attention_probe import PARTS
from repscope.models.engine.base import BaseNetwork, Read, tapped
from repscope.models.engine.hooks import unhooked
from repscope.models.engine.packed_attention import PackedAttention
from repscope.models.engine.planner import Plan, packed
from repscope.models.engine.positions import Users, Wanted
from repscope.models.prompts import Encoded, Ragged
from repscope.models.sites import Site, Tokens
from repscope.progress import progress

Sink = Callable[[Site, Int[np.ndarray, "row"], Float[Tensor, "row *feature"]], None]
Inputs = Callable[[Int[Tensor, "1 token"], Int[Tensor, "1 token"]], dict[str, Any]]


def run_packed(
    net: BaseNetwork,
    inputs: Inputs,
    sites: Sequence[Site],
    encoded: Encoded,
    planned: Plan,
    picked: Tokens,
    offsets: Int[np.ndarray, "n"],
    sink: Sink,
    *,
    causal: bool,
) -> int:
    """Run a packed plan; each site's hook passes the rows of the requested positions to the sink.

    `inputs` converts token ids and positions to the network's arguments; `offsets` is the first row of each prompt.

    Returns
    -------
    int
        Attention products replaced in the last pass; 0 if the network uses other attention functions, or none.
    """
    tree = planned.tree
    assert tree is not None
    users = Users.by(planned.inverse)
    by_leaf = np.argsort(tree.leaf, kind="stable")
    leaves = tree.leaf[by_leaf]
    carries = bool((encoded.start < tree.start[tree.leaf[planned.inverse]]).any())
    carried: dict[Site, dict[int, Tensor]] = {site: {} for site in sites}
    attention = PackedAttention(tree, causal, net.device)
    where = np.zeros(len(tree.start), dtype=np.int64)  # (segment), its place on the axis [carried, pack]
    wanted: Wanted | None = None
    kept: tuple[int, ...] = ()
    keep: Sequence[int] = ()
    width = 0

    def reader(site: Site) -> Read:
        def read(hidden: Tensor) -> None:
            rows = (torch.unflatten(hidden, 0, (-1, width)) if hidden.dim() == 2 else hidden)[0]
            if carries:
                mine = carried[site]
                rows = torch.cat([*(mine[s] for s in kept), rows])
                carried[site] = {s: rows[where[s] : where[s] + tree.stop[s] - tree.start[s]].clone() for s in keep}
            if wanted is not None:
                sink(site, wanted.destination, wanted.take(rows))

        return read

    reads = [(net.tap(site), reader(site)) for site in sites]
    with unhooked(net.module), tapped(net.taps, reads) as run, attention, progress("Capturing", planned.tokens) as advance:
        for pack, following in zip(planned.packs, (*planned.packs[1:], None)):
            kept, keep = pack.kept, following.kept if following is not None else ()
            attention.begin(pack, keep)
            segments = range(pack.first, pack.last)
            axis = [*(kept if carries else ()), *segments]
            where[axis] = np.cumsum([0, *(tree.stop - tree.start)[axis[:-1]]])
            ids = np.concatenate([planned.ids[tree.prompt[s]][tree.start[s] : tree.stop[s]] for s in segments])
            positions = np.concatenate([np.arange(tree.start[s], tree.stop[s]) for s in segments])
            width = len(ids)
            ending = by_leaf[np.searchsorted(leaves, pack.first) : np.searchsorted(leaves, pack.last)]
            wanted = None
            if len(ending):

                def place(
                    _: Int[np.ndarray, "n"], prompt: Int[np.ndarray, "n"], position: Int[np.ndarray, "n"]
                ) -> tuple[Int[np.ndarray, "n"]]:
                    held = tree.holder(prompt, position)
                    return (where[held] + position - tree.start[held],)

                wanted = Wanted.of(ending, users, encoded, picked, offsets, net.device, place)
            run(**inputs(*(torch.from_numpy(x)[None].to(net.device) for x in (ids, positions))))
            advance(width)
    return attention.calls


def cannot_pack(net: BaseNetwork, sites: Sequence[Site]) -> str:
    """Why prompts cannot be packed for these sites, as far as known without a forward pass; empty if no reason is found."""
    if net.anatomy is None or Site("resid_post", net.anatomy.blocks - 1) not in net.anatomy.taps:
        return "it has no blocks that were found"
    if "position_ids" not in inspect.signature(net.module.forward).parameters:
        return "it takes no token positions"
    if any(_foreign(hook) for m in net.module.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())):
        return "hooks hang on it, which may take each row for a prompt"
    for site in sites:
        if site.kind == "module" or net.tap(site).part in PARTS:
            return f"{site} is read row by row"
    return ""


def _foreign(hook: Any) -> bool:
    """Whether a hook is neither transformers' (which leaves some after returning hidden states) nor accelerate's."""
    home = str(getattr(getattr(hook, "func", hook), "__module__", ""))
    return home.split(".")[0] not in ("transformers", "accelerate")


def tried(
    net: BaseNetwork,
    inputs: Inputs,
    plain: Callable[[Int[Tensor, "1 token"]], dict[str, Any]],
    size: int,
    vocabulary: int,
    agree: Callable[[Tensor, Tensor], bool],
    *,
    causal: bool,
    others: Sequence[Int[np.ndarray, "token"]] = (),
) -> str:
    """Why packing changes the output for prompts of up to `size` tokens; empty if it does not.

    Compares packed prompts, two of which share a half, with each alone. This detects attention windows, other sources of positions
    and attention kernels outside torch.
    """
    assert net.anatomy is not None
    rng = np.random.default_rng(0)
    long, tail = rng.integers(0, vocabulary, size), rng.integers(0, vocabulary, 5)
    ids = Ragged.of([long, np.concatenate([long[: size // 2], (long[size // 2] + tail + 1) % vocabulary]), *others])
    site = Site("resid_post", net.anatomy.blocks - 1)
    encoded = Encoded(ids, np.zeros(len(ids), dtype=np.int64), ids.lengths)
    rows: dict[int, Tensor] = {}
    alone: list[Tensor] = []

    def sink(_: Site, destination: Int[np.ndarray, "row"], hidden: Tensor) -> None:
        rows.update(zip(destination.tolist(), hidden.clone()))

    halves = packed(ids, size, share=causal)
    try:
        taken = run_packed(net, inputs, [site], encoded, halves, Tokens("all"), ids.offsets, sink, causal=causal)
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, NotImplementedError) as error:
        return f"a packed pass stops with {type(error).__name__}"
    if not taken:
        return "it does not attend by torch's scaled_dot_product_attention"
    with unhooked(net.module), tapped(net.taps, [(net.tap(site), alone.append)]) as run:
        for row in ids:
            run(**plain(torch.from_numpy(row)[None].to(net.device)))
    ours = torch.split(torch.stack([rows[i] for i in sorted(rows)]), ids.lengths.tolist())
    same = all(agree(mine, hidden[0]) for mine, hidden in zip(ours, alone, strict=True))
    return "" if same else f"packed, prompts of {size} tokens come out otherwise"
