"""Network with token inputs: hidden states, logits and gradients from planned forward passes.

One run over prompts:
1. Ids are planned (`planner`); each pass runs the blocks up to the last requested site, without the head.
2. If the network supports it, prompts are packed without padding, and shared prefixes run once (`packed_pass`). Agreement with
   plain passes is verified on the network, once per power of two of the prompt length. This detects attention windows, other
   sources of positions and attention kernels outside torch.
3. Else they are padded. Causal networks are padded on the right without a mask (causality was verified at load); others get a
   mask. A prefix shared by all prompts and not edited runs once; its keys and values are repeated for each batch.
4. Batches and prefixes are verified too, on both sides of every length at which the network's behaviour changes (`proofs`).
   Prompts for which they disagree run one at a time.
5. Hooks select the requested positions, or average them in float32, so that besides the result only one batch is in memory.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.edits import Installed
from repscope.models.engine.base import tapped
from repscope.models.engine.edited_packs import cannot_place, edited_packing_differs, kinds_of
from repscope.models.engine.fingerprint import WeightSource
from repscope.models.engine.hooks import Handler, HookPoint, unhooked
from repscope.models.engine.last_block import LastMLP, kind_of, last_mlp, worth_narrowing
from repscope.models.engine.memory import memory_kept, token_budget, token_bytes
from repscope.models.engine.packed_pass import cannot_pack, last_mlp_differs, packing_differs, run_packed
from repscope.models.engine.planner import Plan, plan
from repscope.models.engine.positions import RequestedRows, RowReader, Sink, padded
from repscope.models.engine.proved_network import ProvedNetwork
from repscope.models.prompts import Encoded, Ragged
from repscope.models.sites import Site, Tokens
from repscope.progress import progress

_LONG = 2048  #: tokens of a run that repays keeping freed memory: activations are as large in every pass


class PaddedReader(RowReader):
    """Reads padded batches; the hidden states of a prefix that ran once precede those of each batch."""

    def __init__(self, requested: RequestedRows, sink: Sink, planned: Plan) -> None:
        super().__init__(requested, sink)
        self.longest = int(planned.ids.lengths.max())
        self.needs_prefix = bool(planned.prefix) and bool((requested.encoded.start < planned.prefix).any())
        self.shift = 0 if self.needs_prefix else planned.prefix
        self.prefix_rows: dict[Site, Tensor] = {}

    def begin(self, batch: Int[np.ndarray, "row"], width: int) -> None:
        """Lay out the next batch; before the first, the shared prefix runs."""
        self.rows, self.width = self.requested.of(batch, lambda row, _, at: (row, at - self.shift)), width

    def layout(self, site: Site, hidden: Tensor) -> Tensor:
        """(row, token, feature) of the batch, after the prefix where rows of it are requested."""
        if site.kind in ("k", "v"):  # with a cache, those of earlier columns stand before
            hidden = hidden[:, -self.width :]
        if site.kind == "pattern":
            hidden = torch.nn.functional.pad(hidden, (0, self.longest - hidden.shape[-1]))
        hidden = super().layout(site, hidden)
        if self.needs_prefix and self.rows is None:  # the shared prefix is running
            self.prefix_rows[site] = hidden.clone()
        elif self.needs_prefix:
            before = self.prefix_rows[site]
            hidden = torch.cat([before.expand(len(hidden), *before.shape[1:]), hidden], dim=1)
        return hidden


class TokenNetwork(ProvedNetwork):
    """A Hugging Face model fed with token ids, with or without a head. It is not modified."""

    def __init__(self, model: Any, source: WeightSource) -> None:
        super().__init__(model, source)
        self._head: Callable[[Tensor], Tensor] | None = None

    @property
    def last(self) -> Site:
        """The site that the head reads: the final norm, or the last block where none follows it."""
        if self.anatomy is not None and Site("final_norm") in self.anatomy.taps:
            return Site("final_norm")
        return self.resolve("resid_post.-1")[0]

    def checked(self, ids: Ragged) -> None:
        """Check that all token ids are in the vocabulary.

        Raises a `UserError` when one is not; names the prompt.
        """
        outside = np.flatnonzero((ids.flat >= self.vocabulary) | (ids.flat < 0))
        if outside.size:
            i = int(np.searchsorted(ids.offsets, outside[0], side="right")) - 1
            raise UserError(f"Prompt {i} holds a token id that is not in the network's vocabulary of {self.vocabulary}.")

    @cached_property
    def offloaded(self) -> bool:
        """Whether some weights are read from disk or another device at each pass."""
        return any(getattr(getattr(m, "_hf_hook", None), "offload", False) for m in self.module.modules())

    @cached_property
    def token_bytes(self) -> float:
        """Estimated memory per token of a pass."""
        blocks = self.block_list
        return token_bytes(blocks[0], self.model.dtype.itemsize) if len(blocks) else 1.0

    @property
    def batch_tokens(self) -> int:
        """Default token budget of one forward pass."""
        return token_budget(str(self.device), self.token_bytes, offloaded=self.offloaded)

    def planned(
        self,
        ids: Ragged,
        batch_tokens: int | None,
        sites: Sequence[Site] = (),
        *,
        share: bool = True,
        pack: bool = True,
        prefix: bool = True,
        family: int = 0,
    ) -> Plan:
        """The plan of a run; under edits no two prompts are one, packs share nothing, and no prefix that an edit touches is shared.

        share: whether anything that prompts share runs once; else each is a row. prefix: whether a prefix may, where prompts are
        padded. family: most tokens of a group of prompts that share every common token and attend in one product (`prefix_tree`).
        """
        if batch_tokens is None:  # a single prompt is a pass by itself, so nobody need look at the memory
            batch_tokens = self.batch_tokens if len(ids) > 1 else 1
        edited = [i for i in self.installed if not i.asleep]
        untouched = min((int(i.start.min()) for i in edited if i.start is not None), default=None)
        sharing = share and self.causal and (untouched is None or untouched > 0)
        why = cannot_place(self, edited) if pack and share else "each prompt is to be a row"
        family = 0 if edited else family
        planned = plan(
            ids,
            batch_tokens,
            share=sharing,
            pack=why,
            refuses=lambda: self.unpackable(ids, sites, family) or self._edited_packing_differs(edited),
            most=self.context,
            limit=untouched if prefix else 0,
            merge=not edited,
            family=family,
        )
        if planned.prefix and not self.shares_prefix(int(ids.lengths.max()), len(ids.flat)):
            planned = plan(ids, batch_tokens, share=False, pack=planned.why, merge=not edited)
        return self.separated(planned)

    def separated(self, planned: Plan) -> Plan:
        """The plan with prompts run alone whose results differ in a batch."""
        if all(len(batch) == 1 for batch in planned.batches):
            return planned
        longest = int(planned.ids.lengths.max())
        below, why = self.batched_below(longest, len(planned.ids.flat))
        if not why:
            return planned
        cut: list[Int[np.ndarray, row]] = []
        for batch in planned.batches:
            together = planned.ids.lengths[batch] < below
            cut += [batch[together]] if together.any() else []
            cut += [batch[i : i + 1] for i in np.flatnonzero(~together)]
        return replace(planned, batches=cut, why=f"{planned.why}; one at a time: {why}")

    def unpackable(self, ids: Ragged, sites: Sequence[Site], family: int = 0) -> str:
        """Why these prompts are not packed for these sites, tested by a pass if necessary; empty if they are."""
        return cannot_pack(self, sites) or self._packing_differs(int(ids.lengths.max()), family)

    def _packing_differs(self, longest: int, family: int) -> str:
        """Why packed passes differ from plain passes, for prompts of up to `longest` tokens; empty if they do not."""
        size = min(max(32, 1 << (longest - 1).bit_length()), self.context or 1 << 40)
        proofs, key = self.proofs, ("packed families" if family else "packed prompts", size)
        if key not in proofs.found:
            around = [n for s in proofs.switches if s < size for n in (s - 1, s + 1)]
            with self.unedited():
                proofs.found[key] = packing_differs(self, size, self.trial([n for n in around if 0 < n < size]), family)
        return proofs.found[key]

    def _edited_packing_differs(self, edits: Sequence[Installed]) -> str:
        """Why packed passes differ from plain passes under edits of these kinds, tried once; empty if they do not."""
        if not edits:
            return ""
        proofs, key = self.proofs, (f"packed edits {kinds_of(self, edits)}", 0)
        if key not in proofs.found:
            proofs.found[key] = edited_packing_differs(self, edits, self.last, proofs.lengths(0))
        return proofs.found[key]

    def _last_mlp(self, sites: Sequence[Site], encoded: Encoded, planned: Plan, picked: Tokens) -> LastMLP | None:
        """The MLP that runs only on the tokens that are read; None where all are read, edited behind it, or it mixes tokens."""
        read = int((encoded.stop - encoded.start).sum()) if picked.ragged or picked.pooled else len(encoded.ids)
        mlp = last_mlp(self, sites) if worth_narrowing(planned.tokens, read) else None
        if mlp is None:
            return None
        behind = Site("mlp_act", sites[-1].layer).depth
        if any(i.site.kind == "module" or i.site.depth >= behind for i in self.installed if not i.asleep):
            return None
        key = (kind_of(self, sites, mlp), 0)
        if key not in self.proofs.found:
            self.proofs.found[key] = last_mlp_differs(self, sites[-1], mlp)
        return None if self.proofs.found[key] else mlp

    def run(
        self,
        sites: Sequence[Site],
        encoded: Encoded,
        planned: Plan,
        picked: Tokens,
        sink: Sink,
        numbers: Int[np.ndarray, "prompt"] | None = None,
    ) -> None:
        """Run the plan; each site's hook passes the rows of its requested positions to the sink.

        `numbers` are the prompt indices for the installed edits, if not all prompts are run.
        """
        for site in sites:
            if site.kind == "module":
                self.laid_out(site)
        numbers = np.arange(len(encoded.ids)) if numbers is None else numbers
        requested = RequestedRows(encoded, picked, planned.inverse, self.device)
        if planned.tree is not None:
            edited = any(not installed.asleep for installed in self.installed)
            mlp, at = self._last_mlp(sites, encoded, planned, picked), numbers[requested.first] if edited else None
            with memory_kept() if planned.tokens > _LONG else nullcontext():
                run_packed(self, sites, encoded, planned, picked, sink, numbers=at, mlp=mlp)
            return
        reader = PaddedReader(requested, sink, planned)
        reads = [(self.tap(site), partial(reader, site)) for site in sites]
        with unhooked(self.module), tapped(self.taps, reads) as run, progress("Capturing", planned.tokens) as advance:
            cache = None
            if planned.prefix:
                cache, reader.width = self.cache(), planned.prefix
                shared = torch.from_numpy(planned.ids[0][: planned.prefix][None]).to(self.device)
                with self.announced(numbers[:1]):
                    run(input_ids=shared, **{self.cache_name: cache}, **self.plain(use_cache=True))
                advance(planned.prefix)
            for batch in reversed(planned.batches):  # the longest first: memory peaks at once or not at all
                ids, lengths = padded([planned.ids[i][planned.prefix :] for i in batch], self.pad)
                reader.begin(batch, ids.shape[1])
                with self.announced(numbers[requested.first[batch]]):
                    run(**self.inputs(ids, lengths, cache))
                advance(ids.size)

    def differentiate(
        self,
        sites: Sequence[Site],
        encoded: Encoded,
        picked: Tokens,
        read: tuple[Site, Int[np.ndarray, "prompt"]],
        scalar: Callable[[Float[Tensor, "row feature"], Int[np.ndarray, "row"]], Tensor],
        sink: Sink,
        batch_tokens: int,
        hooks: Sequence[tuple[HookPoint, Handler]] = (),
    ) -> None:
        """Gradients at the sites of a sum of scalars, one per prompt, each read at one site and position of its prompt.

        `scalar` maps these vectors, and the indices of their prompts, to the sum; `hooks` are attached to the network meanwhile.
        """
        target, position = read
        for site in (*sites, target):
            if site.kind == "module":
                self.laid_out(site)
        planned = self.separated(plan(encoded.ids, batch_tokens, share=False, pack="gradients are of rows", merge=False))
        reader = PaddedReader(RequestedRows(encoded, picked, planned.inverse, self.device), sink, planned)
        for batch in planned.batches:
            ids, lengths = padded([encoded.ids[i] for i in batch], self.pad)
            reader.begin(batch, ids.shape[1])

            def run(ids: Any = ids, lengths: Any = lengths, batch: Any = batch) -> Tensor:
                seen: list[Tensor] = []
                with tapped(self.taps, [(self.tap(target), seen.append)]) as go, self.announced(batch):
                    go(**self.inputs(ids, lengths, None))
                at = torch.from_numpy(position[batch]).to(seen[0].device)
                return scalar(seen[0][torch.arange(len(batch), device=at.device), at], batch)

            with self.taps.hooked(hooks):
                for site, grad in zip(sites, self.differentiated(sites, run)):
                    reader(site, grad)

    def head(self) -> Callable[[Float[Tensor, "row d_model"]], Float[Tensor, "row vocab"]]:
        """The map from the final norm's output to logits, verified on the probe.

        Raises a `UserError` when the model has no head, or one that is more than such a map.
        """
        if self._head is not None:
            return self._head
        module = self.model.get_output_embeddings()
        if module is None:
            raise UserError(f"{self.name} has no language-model head, so it gives no logits.")
        norm = self.tap(self.last)
        numbers = dict.fromkeys(
            float(v)
            for k, v in self.text_config.to_dict().items()
            if "logit" in k and isinstance(v, (int, float)) and not isinstance(v, bool) and v
        )
        #: what families do to logits, each with every number that the configuration has for them; the probe says which it is
        ways: list[Callable[[Tensor], Tensor]] = [lambda y: y]
        for n in numbers:
            ways += [lambda y, n=n: torch.tanh(y / n) * n, lambda y, n=n: y * n, lambda y, n=n: y / n]  # type: ignore[misc]

        seen: list[Tensor] = []
        with self.unedited(), unhooked(self.model), self.taps.settled() as state:
            with tapped(self.taps, [(norm, seen.append)]) as run:
                run(input_ids=self.probe, **self.plain())
            state.rewind()
            theirs = self.model(input_ids=self.probe, **self.plain()).logits
            try:
                raw: Tensor = module(seen[0])
                fits = [way for way in ways if self.agree(way(raw), theirs)]
            except RuntimeError:  # a projection to another width stands between (OPT-350m)
                fits = []
        if not fits:
            raise UserError(f"The head of {self.name} is more than a map of {self.last}; its logits are not read here.")
        self._head = lambda x: fits[0](module(x))
        return self._head
