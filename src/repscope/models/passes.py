"""TokenNetwork: a network that reads token ids. Ids in, hidden states and logits out; never text.

One run over prompts:
1. Ids become a plan (`plan`); each of its passes runs through the blocks up to the last site asked for, never the head.
2. Where the network allows it prompts are packed: no padding, and what several of them share runs once (`packed`). That this gives
   what plain passes give is proved on the network, once for each power of two that prompts are long: windows of attention,
   positions from elsewhere, kernels that are not torch's all show there.
3. Else they are padded. Causal networks are padded on the right with no mask (later tokens cannot reach earlier ones, which was
   proved at load); others get a mask. A prefix that all prompts share, and that no edit touches, runs once; its keys and values
   are repeated for each batch.
4. Inside the hook the wanted positions are picked, or averaged in float32, and handed on: memory beyond what the caller keeps is
   one batch, whatever the number of prompts.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from repscope.errors import UserError
from repscope.models.anatomy import find_blocks, resolve
from repscope.models.edits import Pass
from repscope.models.fingerprint import Source
from repscope.models.gather import Users, Wanted, padded
from repscope.models.memory import token_budget, token_bytes
from repscope.models.packed import Sink, cannot_pack, run_packed, tried
from repscope.models.plan import Plan, plan
from repscope.models.prompts import Encoded, Ragged
from repscope.models.sited import Read, Sited, tapped
from repscope.models.sites import Site, Tokens
from repscope.models.taps import Handler, Tap, at_rest
from repscope.progress import progress

_SINGLE, _LOW = 1e-4, 3e-2  #: how far two passes over one input may differ, relative, in float32 and below


class TokenNetwork(Sited):
    """A Hugging Face model fed with token ids.

    Parameters
    ----------
    model
        With or without a head. Left as it is.
    source
        Where its weights come from.
    """

    def __init__(self, model: Any, source: Source) -> None:
        self.model = model
        body: nn.Module = model.base_model
        super().__init__(body, source=source)
        self.name = source.name
        self.prefix = str(getattr(model, "base_model_prefix", "")) if body is not model else ""
        self._takes_cache = "use_cache" in inspect.signature(body.forward).parameters
        if getattr(model.config, "is_encoder_decoder", False):
            raise UserError(
                f"{self.name} is an encoder–decoder, which is not supported yet; use `rs.Network` on one half of it."
            )
        self.vocabulary = vocabulary = int(model.get_input_embeddings().weight.shape[0])
        ids = torch.arange(6).repeat(2, 1) + vocabulary // 3
        ids[1, -1] += 1
        self.probe = ids.to(self.device) % vocabulary
        self.anatomy = resolve(body, model.get_input_embeddings(), {"input_ids": self.probe, **self.plain()})
        self._prefix_sound: bool | None = None
        self._packs: dict[int, str] = {}  #: power of two → why prompts of up to so many tokens are not packed
        self.keeps_apart: bool | None = (
            None  #: whether earlier keys stay out of a graph (see `between`), None until tried
        )
        self.forks_grow: bool | None = None  #: whether rows may come in on the way up (see `forks`), None until tried
        self._head: Callable[[Tensor], Tensor] | None = None

    @property
    def blocks(self) -> int:
        """How many blocks the network has."""
        return self.anatomy.blocks if self.anatomy else 0

    @property
    def entries(self) -> tuple[nn.Module, ...]:
        """The body and the whole model: some heads (OPT) call a part of the body and not its own forward."""
        return (self.module,) if self.model is self.module else (self.module, self.model)

    @property
    def causal(self) -> bool:
        """Whether later tokens leave earlier ones as they are."""
        return bool(self.anatomy and self.anatomy.causal)

    @property
    def last(self) -> Site:
        """The site that the head reads: the final norm, or the last block where none follows it."""
        if self.anatomy is not None and Site("final_norm") in self.anatomy.taps:
            return Site("final_norm")
        return self.resolve("resid_post.-1")[0]

    def agree(self, a: Tensor, b: Tensor) -> bool:
        """Whether two ways to one tensor give the same, to the rounding of its precision."""
        tolerance = _SINGLE if a.dtype in (torch.float32, torch.float64) else _LOW
        return bool((a.double() - b.double()).norm() <= tolerance * b.double().norm())

    def checked(self, ids: Ragged) -> None:
        """See that all token ids are in the vocabulary.

        Raises
        ------
        UserError
            When one is not; names the prompt.
        """
        outside = np.flatnonzero((ids.flat >= self.vocabulary) | (ids.flat < 0))
        if outside.size:
            i = int(np.searchsorted(ids.offsets, outside[0], side="right")) - 1
            raise UserError(
                f"Prompt {i} holds a token id that is not in the network's vocabulary of {self.vocabulary}."
            )

    @cached_property
    def offloaded(self) -> bool:
        """Whether some weights are read from disk, or brought from another memory, at each pass."""
        return any(getattr(getattr(m, "_hf_hook", None), "offload", False) for m in self.module.modules())

    @cached_property
    def token_bytes(self) -> float:
        """About what a pass holds of one token at once."""
        found = find_blocks(self.module)
        return token_bytes(found[1][0], self.model.dtype.itemsize) if found else 1.0

    @property
    def batch_tokens(self) -> int:
        """Tokens of one pass, when nobody says how many."""
        return token_budget(str(self.device), self.token_bytes, offloaded=self.offloaded)

    @property
    def context(self) -> int | None:
        """Most tokens that the network takes, None where its configuration does not say."""
        stated = getattr(self.model.config, "max_position_embeddings", None)
        offset = 2 if getattr(self.model.config, "model_type", "") in ("roberta", "xlm-roberta", "camembert") else 0
        return int(stated) - offset if stated and int(stated) > 0 else None

    def planned(
        self,
        ids: Ragged,
        batch_tokens: int | None,
        sites: Sequence[Site] = (),
        *,
        share: bool = True,
        pack: bool = True,
    ) -> Plan:
        """The plan of a run; under edits no two prompts are one, none are packed, and no prefix that an edit touches is shared."""
        if batch_tokens is None:  # a single prompt is a pass by itself, so nobody need look at the memory
            batch_tokens = self.batch_tokens if len(ids) > 1 else 1
        edited = [i for i in self.installed if not i.asleep]
        untouched = min((int(i.start.min()) for i in edited if i.start is not None), default=None)
        sharing = share and self.causal and (untouched is None or untouched > 0)
        why = "edits find their positions in rows" if edited else "" if pack and share else "each prompt is to be a row"
        planned = plan(
            ids, batch_tokens, share=sharing, pack=why, refuses=lambda: self.unpackable(ids, sites), most=self.context,
            limit=untouched, merge=not edited,
        )  # fmt: skip
        if planned.prefix and not self.shares_prefix():
            planned = plan(ids, batch_tokens, share=False, pack=planned.why, merge=not edited)
        return planned

    def unpackable(self, ids: Ragged, sites: Sequence[Site]) -> str:
        """Why these prompts are not packed for these sites, proved by a pass where it takes one; empty where they are."""
        return cannot_pack(self, sites) or self._packing_fails(int(ids.lengths.max()))

    def _packing_fails(self, longest: int) -> str:
        """Why packed passes do not give what plain passes give, for prompts of up to so many tokens; empty where they do."""
        size = min(max(32, 1 << (longest - 1).bit_length()), self.context or 1 << 40)
        if size not in self._packs:
            with self.unedited():
                self._packs[size] = tried(
                    self, self._packed_inputs, lambda row: {"input_ids": row, **self.plain()}, size, self.vocabulary, self.agree,
                    causal=self.causal,
                )  # fmt: skip
        return self._packs[size]

    def run(
        self, sites: Sequence[Site], encoded: Encoded, planned: Plan, picked: Tokens, sink: Sink,
        numbers: Int[np.ndarray, "prompt"] | None = None,
    ) -> None:  # fmt: skip
        """Run the plan; each site's hook hands the rows of its wanted positions to the sink as they pass.

        `numbers` says which prompts these are to the installed edits, where they are not all of them.
        """
        offsets = rows_of(encoded, picked)
        if planned.tree is not None:
            run_packed(self, self._packed_inputs, sites, encoded, planned, picked, offsets, sink, causal=self.causal)
            return
        numbers = np.arange(len(encoded.ids)) if numbers is None else numbers
        users = Users.by(planned.inverse)
        needs_prefix = bool(planned.prefix) and bool((encoded.start < planned.prefix).any())
        longest = int(planned.ids.lengths.max())
        prefix_rows: dict[Site, Tensor] = {}
        wanted: Wanted | None = None
        width = 0

        def reader(site: Site) -> Read:
            def read(hidden: Tensor) -> None:
                if site.kind in ("k", "v"):  # with a cache, those of earlier columns stand before
                    hidden = hidden[:, -width:]
                if site.kind == "pattern":
                    hidden = torch.nn.functional.pad(hidden, (0, longest - hidden.shape[-1]))
                if hidden.dim() == 2:  # rows and tokens as one axis
                    hidden = torch.unflatten(hidden, 0, (-1, width))
                if wanted is None:  # the shared prefix is running
                    if needs_prefix:
                        prefix_rows[site] = hidden.clone()
                    return
                if needs_prefix:
                    before = prefix_rows[site]
                    hidden = torch.cat([before.expand(len(hidden), *before.shape[1:]), hidden], dim=1)
                sink(site, wanted.destination, wanted.take(hidden))

            return read

        reads = [(self.tap(site), reader(site)) for site in sites]
        with at_rest(self.module), tapped(self.taps, reads) as run, progress("Capturing", planned.tokens) as advance:
            cache = None
            if planned.prefix:
                cache = self.cache()
                width = planned.prefix
                shared = torch.from_numpy(planned.ids[0][:width][None]).to(self.device)
                with self.announced(numbers[:1]):
                    run(input_ids=shared, past_key_values=cache, **self.plain(use_cache=True))
                advance(planned.prefix)
            for batch in reversed(planned.batches):  # the longest first: memory peaks at once or not at all
                ids, lengths = padded([planned.ids[i][planned.prefix :] for i in batch], self.pad)
                width = ids.shape[1]
                shift = 0 if needs_prefix else planned.prefix
                wanted = Wanted.of(
                    batch, users, encoded, picked, offsets, self.device, lambda row, _, at, shift=shift: (row, at - shift)
                )  # fmt: skip
                with self.announced(numbers[users.first[batch]]):
                    run(**self.inputs(ids, lengths, cache))
                advance(ids.size)

    def differentiate(
        self, sites: Sequence[Site], encoded: Encoded, picked: Tokens, read: tuple[Site, Int[np.ndarray, "prompt"]],
        scalar: Callable[[Float[Tensor, "row feature"], Int[np.ndarray, "row"]], Tensor], sink: Sink, batch_tokens: int,
        hooks: Sequence[tuple[Tap, Handler]] = (),
    ) -> None:  # fmt: skip
        """Gradients at the sites of a sum of scalars, one a prompt, read at one site and position of each prompt.

        `scalar` is given the vectors read and which prompts they are; `hooks` hang on the network meanwhile.
        """
        target, position = read
        offsets = rows_of(encoded, picked)
        longest = int(encoded.ids.lengths.max())
        planned = plan(encoded.ids, batch_tokens, share=False, pack="gradients are of rows", merge=False)
        users = Users.by(planned.inverse)
        for batch in planned.batches:
            ids, lengths = padded([encoded.ids[i] for i in batch], self.pad)

            def run(ids: Any = ids, lengths: Any = lengths, batch: Any = batch) -> Tensor:
                seen: list[Tensor] = []
                with tapped(self.taps, [(self.tap(target), seen.append)]) as go, self.announced(batch):
                    go(**self.inputs(ids, lengths, None))
                at = torch.from_numpy(position[batch]).to(seen[0].device)
                return scalar(seen[0][torch.arange(len(batch), device=at.device), at], batch)

            wanted = Wanted.of(batch, users, encoded, picked, offsets, self.device, lambda row, _, at: (row, at))
            with self.taps.hooked(hooks):
                grads = self.differentiated(sites, run)
            for site, grad in zip(sites, grads):
                if site.kind == "pattern":
                    grad = torch.nn.functional.pad(grad, (0, longest - grad.shape[-1]))
                shaped = torch.unflatten(grad, 0, (len(batch), -1)) if grad.dim() == 2 else grad
                sink(site, wanted.destination, wanted.take(shaped))

    @contextmanager
    def announced(
        self, prompts: Int[np.ndarray, "row"], offset: Int[np.ndarray, "row"] | None = None
    ) -> Iterator[None]:
        """Tell the installed edits which prompts the rows of the next passes are, and how many columns of padding stand before."""
        none = np.zeros(len(prompts), dtype=np.int64)
        self._pass = Pass(np.array(prompts), none if offset is None else offset)
        try:
            yield
        finally:
            self._pass = None

    def inputs(self, ids: Int[np.ndarray, "row token"], lengths: Int[np.ndarray, "row"], cache: Any) -> dict[str, Any]:
        """Arguments of a pass over rows padded on the right, after a cached prefix where there is one."""
        named: dict[str, Any] = {"input_ids": torch.from_numpy(ids).to(self.device)}
        if cache is not None:
            own = copy.deepcopy(cache)  # a pass appends to its cache; the prefix's own must stay as it is
            own.batch_repeat_interleave(len(ids))
            return named | {"past_key_values": own} | self.plain(use_cache=True)
        if (self.anatomy is None or not self.anatomy.causal) and lengths.min() < ids.shape[1]:
            mask = np.arange(ids.shape[1])[None] < lengths[:, None]
            named["attention_mask"] = torch.from_numpy(mask.astype(np.int64)).to(self.device)
        return named | self.plain()

    def _packed_inputs(self, ids: Int[Tensor, "1 token"], positions: Int[Tensor, "1 token"]) -> dict[str, Any]:
        """Arguments of a packed pass. The cache keeps nothing: beside one, transformers looks for no packs of its own."""
        named: dict[str, Any] = {"input_ids": ids, "position_ids": positions} | self.plain()
        if self.causal and self._takes_cache:
            from transformers import DynamicCache

            class Through(DynamicCache):
                def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                    return key_states, value_states

            named |= {"past_key_values": Through()} | self.plain(use_cache=True)
        return named

    def plain(self, use_cache: bool = False) -> dict[str, Any]:
        """Arguments that keep a pass from building a cache nobody asked for."""
        return {"use_cache": use_cache} if self._takes_cache else {}

    @property
    def pad(self) -> int:
        """The token id that fills rows up."""
        pad = getattr(self.model.config, "pad_token_id", None)
        return pad if isinstance(pad, int) and pad >= 0 else 0

    def cache(self) -> Any:
        """An empty cache of keys and values."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def shares_prefix(self) -> bool:
        """Whether a pass that goes on from a cached prefix gives what the whole pass gives; tried once, on the probe."""
        if self._prefix_sound is None:
            self._prefix_sound = self._prefix_agrees()
        return self._prefix_sound

    def _prefix_agrees(self) -> bool:
        assert self.anatomy is not None
        site = Site("resid_post", self.blocks - 1)
        if site not in self.anatomy.taps:
            return False
        seen: list[Tensor] = []
        cut = self.probe.shape[1] // 2
        try:
            with self.unedited(), at_rest(self.module), tapped(self.taps, [(self.tap(site), seen.append)]) as run:
                run(input_ids=self.probe, **self.plain())
                cache = self.cache()
                run(input_ids=self.probe[:1, :cut], past_key_values=cache, **self.plain(use_cache=True))
                own = copy.deepcopy(cache)
                own.batch_repeat_interleave(2)
                run(input_ids=self.probe[:, cut:], past_key_values=own, **self.plain(use_cache=True))
        except (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError):
            return False  # a family whose cache is of another kind: its prompts run whole
        return self.agree(seen[2], seen[0][:, cut:])

    def head(self) -> Callable[[Float[Tensor, "row d_model"]], Float[Tensor, "row vocab"]]:
        """The map from the final norm's output to logits, proved on the probe.

        Raises
        ------
        UserError
            When the model has no head, or one that is more than such a map.
        """
        if self._head is not None:
            return self._head
        module = self.model.get_output_embeddings()
        if module is None:
            raise UserError(f"{self.name} has no language-model head, so it gives no logits.")
        norm = self.tap(self.last)
        cap = getattr(self.model.config, "final_logit_softcapping", None)

        def head(x: Tensor) -> Tensor:
            y: Tensor = module(x)
            return torch.tanh(y / cap) * cap if cap else y

        seen: list[Tensor] = []
        with self.unedited(), at_rest(self.model):
            with tapped(self.taps, [(norm, seen.append)]) as run:
                run(input_ids=self.probe, **self.plain())
            theirs = self.model(input_ids=self.probe, **self.plain()).logits
            try:
                agree = self.agree(head(seen[0]), theirs)
            except RuntimeError:  # a projection to another width stands between (OPT-350m)
                agree = False
        if not agree:
            raise UserError(f"The head of {self.name} is more than a map of {self.last}; its logits are not read here.")
        self._head = head
        return head


def rows_of(encoded: Encoded, picked: Tokens) -> Int[np.ndarray, "prompt_plus_1"]:
    """Where each prompt's rows begin in a result, and where the last one's end."""
    counts = encoded.stop - encoded.start if picked.ragged else np.ones(len(encoded.ids), dtype=np.int64)
    offsets: np.ndarray = np.concatenate([[0], np.cumsum(counts)])
    return offsets
