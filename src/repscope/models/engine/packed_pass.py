"""Forward passes over packed prompts, and the check that a network supports them.

1. Each pack runs as one row with position ids relative to each prompt; `PackedAttention` separates the prompts.
2. If a pack ends inside a shared segment's subtree, that segment's keys and values are cached for the next pack, and so are its
   hidden states if a later prompt needs them.
3. A prompt's rows are passed on once the pack with its last token has run.
4. The MLP of the last block that is needed may run only on tokens that are read (`last_block`).

Support is tested on the network, not looked up in a table of model families.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from repscope.models.engine.attention_probe import PARTS
from repscope.models.engine.base import BaseNetwork, tapped
from repscope.models.engine.hooks import unhooked
from repscope.models.engine.last_block import LastMLP, distinct_cells
from repscope.models.engine.packed_attention import PackedAttention
from repscope.models.engine.planner import Plan, packed
from repscope.models.engine.positions import CollectedRows, RequestedRows, RowReader, Sink
from repscope.models.engine.prefix_tree import Pack, Tree
from repscope.models.engine.proved_network import STOPS, ProvedNetwork, is_foreign
from repscope.models.prompts import Encoded, Ragged
from repscope.models.sites import Site, Tokens
from repscope.progress import progress


class _PackReader(RowReader):
    """Reads packs; keeps the hidden states of shared segments whose rows are requested by later packs."""

    def __init__(self, requested: RequestedRows, sink: Sink, planned: Plan) -> None:
        super().__init__(requested, sink)
        assert planned.tree is not None
        self.ids, self.tree = planned.ids, planned.tree
        self.by_leaf = np.argsort(self.tree.leaf, kind="stable")
        self.leaves = self.tree.leaf[self.by_leaf]
        start = self.tree.start[self.tree.leaf[planned.inverse]]
        self.carries = bool((requested.encoded.start < start).any())
        self.carried: dict[Site, dict[int, Tensor]] = {}
        self.places = np.zeros(len(self.tree.start), dtype=np.int64)  # (segment), its place on the axis [carried, pack]
        self.chain: tuple[int, ...] = ()
        self.keep: tuple[int, ...] = ()

    def begin(self, pack: Pack, keep: tuple[int, ...]) -> tuple[Int[np.ndarray, "token"], Int[np.ndarray, "token"]]:
        """Lay out the next pack; return its token ids and positions. `keep`: segments that the pack after it continues."""
        tree, segments = self.tree, range(pack.first, pack.last)
        self.chain, self.keep = pack.kept, keep
        axis = [*(pack.kept if self.carries else ()), *segments]
        self.places[axis] = np.cumsum([0, *(tree.stop - tree.start)[axis[:-1]]])
        ending = self.by_leaf[slice(*np.searchsorted(self.leaves, (pack.first, pack.last)))]
        self.rows = self.requested.of(ending, self._place) if len(ending) else None
        ids = np.concatenate([self.ids[tree.prompt[s]][tree.start[s] : tree.stop[s]] for s in segments])
        self.width = len(ids)
        return ids, np.concatenate([np.arange(tree.start[s], tree.stop[s]) for s in segments])

    def _place(self, _: Any, prompt: Int[np.ndarray, "n"], position: Int[np.ndarray, "n"]) -> tuple[Int[np.ndarray, "n"]]:
        segment = self.tree.holder(prompt, position)
        return (self.places[segment] + position - self.tree.start[segment],)

    def read(self) -> Int[Tensor, "token"] | None:
        """The tokens of the pack whose rows are needed; None for all, or most, of them."""
        if self.carries:
            return None
        cells = self.rows.cells[0] if self.rows is not None else torch.zeros(1, dtype=torch.long, device=self.requested.device)
        return distinct_cells(cells, self.width)

    def layout(self, site: Site, hidden: Tensor) -> Tensor:
        """(token, feature) of the pack, after the carried segments where there are any."""
        rows = super().layout(site, hidden)[0]
        if self.carries:
            tree, places = self.tree, self.places
            rows = torch.cat([*(self.carried[site][s] for s in self.chain), rows])
            self.carried[site] = {s: rows[places[s] : places[s] + tree.stop[s] - tree.start[s]].clone() for s in self.keep}
        return rows


def run_packed(
    net: ProvedNetwork,
    sites: Sequence[Site],
    encoded: Encoded,
    planned: Plan,
    picked: Tokens,
    sink: Sink,
    cached: Callable[[Pack], Any] | None = None,
    numbers: Int[np.ndarray, "distinct"] | None = None,
    mlp: LastMLP | None = None,
) -> int:
    """Run a packed plan; each site's hook passes the rows of the requested positions to the sink.

    `cached` gives the cache of transformers that receives each pack's keys and values; `numbers` are the indices of the distinct
    prompts for the installed edits, for which no beginnings are shared; `mlp` runs on the tokens that are read.

    Returns
    -------
    int
        Attention products replaced in the last pass; 0 if the network uses other attention functions, or none.
    """
    assert planned.tree is not None
    reader = _PackReader(RequestedRows(encoded, picked, planned.inverse, net.device), sink, planned)
    attention = PackedAttention(planned.tree, net.causal, net.device)
    reads = [(net.tap(site), partial(reader, site)) for site in sites]
    narrow = mlp.hooked() if mlp is not None else nullcontext()
    with unhooked(net.module), narrow, tapped(net.taps, reads) as run, attention, progress("Capturing", planned.tokens) as advance:
        for pack, keep in zip(planned.packs, (*(following.kept for following in planned.packs[1:]), ())):
            attention.begin(pack, keep)
            at = reader.begin(pack, keep)
            ids, positions = (torch.from_numpy(x)[None].to(net.device) for x in at)
            if mlp is not None:
                mlp.rows = reader.read()
            cells = None if numbers is None else (numbers[_prompts(planned.tree, pack)], at[1])
            with nullcontext() if cells is None else net.announced(np.zeros(1, dtype=np.int64), cells=cells):
                run(**_arguments(net, ids, positions, cached(pack) if cached is not None else None))
            advance(reader.width)
    return attention.calls


def _prompts(tree: Tree, pack: Pack) -> Int[np.ndarray, "token"]:
    """The distinct prompt of each token of a pack in which no beginnings are shared."""
    assert len(tree.prompt) == len(tree.leaf)
    segments = slice(pack.first, pack.last)
    return np.repeat(tree.prompt[segments], (tree.stop - tree.start)[segments])


def _arguments(net: ProvedNetwork, ids: Int[Tensor, "1 token"], positions: Int[Tensor, "1 token"], cache: Any) -> dict[str, Any]:
    """Arguments of a packed pass. An empty cache prevents transformers from looking for packs itself."""
    named: dict[str, Any] = {"input_ids": ids, "position_ids": positions} | net.plain()
    if cache is not None:
        return named | {net.cache_name: cache} | net.plain(use_cache=True)
    if net.causal and net.takes_cache:
        from transformers import DynamicCache

        class Through(DynamicCache):
            def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                return key_states, value_states

        named |= {net.cache_name: Through()} | net.plain(use_cache=True)
    return named


def cannot_pack(net: BaseNetwork, sites: Sequence[Site]) -> str:
    """Why prompts cannot be packed for these sites, as far as known without a forward pass; empty if no reason is found."""
    if net.anatomy is None or Site("resid_post", net.anatomy.blocks - 1) not in net.anatomy.taps:
        return "it has no blocks that were found"
    if "position_ids" not in inspect.signature(net.module.forward).parameters:
        return "it takes no token positions"
    # transformers leaves hooks after returning hidden states
    hooks = (hook for m in net.module.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    if any(is_foreign(hook, but=("transformers", "accelerate")) and hook not in net.taps.placed for hook in hooks):
        return "hooks hang on it, which may take each row for a prompt"
    for site in sites:
        if site.kind == "module" or net.tap(site).part in PARTS:
            return f"{site} is read row by row"
    return ""


def packing_differs(net: ProvedNetwork, size: int, others: Sequence[Int[np.ndarray, "token"]] = (), family: int = 0) -> str:
    """Why packing changes the output for prompts of up to `size` tokens; empty if it does not.

    Compares packed prompts with each alone, twice: packs that end within two prompts which share a half, and one pack of that half
    and short prompts, which have nothing in common. This detects attention windows, other sources of positions, attention kernels
    outside torch, and whatever else looks at the tokens before a prompt.
    """
    assert net.anatomy is not None
    rng = np.random.default_rng(0)
    long, tail = rng.integers(0, net.vocabulary, size), rng.integers(0, net.vocabulary, 5)
    branch = np.concatenate([long[: size // 2], (long[size // 2] + tail + 1) % net.vocabulary])
    short = net.trial(net.proofs.lengths(0))
    ids, together = Ragged.of([long, branch, *others]), Ragged.of([branch, *short])
    site = Site("resid_post", net.anatomy.blocks - 1)
    ours: list[Tensor] = []
    try:
        for some, most, groups in ((ids, size + family, family), (together, len(together.flat), 0)):
            rows = CollectedRows()
            plan = packed(some, most, share=net.causal, family=groups)
            calls = run_packed(net, [site], Encoded.whole(some), plan, Tokens("all"), rows)
            if not calls:
                return "it does not attend by torch's scaled_dot_product_attention"
            ours += torch.split(rows[site], some.lengths.tolist())
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, NotImplementedError) as error:
        return f"a packed pass stops with {type(error).__name__}"
    alone: list[Tensor] = []
    with unhooked(net.module), tapped(net.taps, [(net.tap(site), alone.append)]) as run:
        for row in (*ids, *short):
            run(input_ids=torch.from_numpy(row)[None].to(net.device), **net.plain())
    alone.insert(len(ids), alone[1])  # the branch is in both
    same = all(net.agree(mine, hidden[0]) for mine, hidden in zip(ours, alone, strict=True))
    return "" if same else f"packed, prompts of {size} tokens come out otherwise"


def last_mlp_differs(net: ProvedNetwork, site: Site, mlp: LastMLP) -> str:
    """Why running an MLP on the tokens that are read changes their rows at a site behind it; empty if it does not."""
    ids = Ragged.of(net.trial(net.proofs.lengths(0)))
    last = Encoded(ids, ids.lengths - 1, ids.lengths)
    plan, whole, narrowed = packed(ids, len(ids.flat), share=False), CollectedRows(), CollectedRows()
    with net.unedited():
        run_packed(net, [site], last, plan, Tokens("last"), whole)
        try:
            run_packed(net, [site], last, plan, Tokens("last"), narrowed, mlp=mlp)
        except STOPS as error:
            return f"its MLP stops on some of the tokens with {type(error).__name__}"
    return "" if net.agree(narrowed[site], whole[site]) else "its MLP mixes tokens"
