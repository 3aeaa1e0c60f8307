"""Network that continues token ids: the fastest way whose logits agree with plain passes.

Ways, from the fastest: rows at their own positions with keys and values in place (`decoding`); transformers' `generate` in a
left-padded batch with a cache, one prompt at a time with a cache, or without one. A trial forces tokens and compares the logits of
each step with plain passes over the whole text so far (`proofs`); the first way that agrees is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.engine.decoding import EffectCheck, cannot_decode, decoded
from repscope.models.engine.generation import GenerationBatch, Sampling, choice, continued, ends_of, forced_logits
from repscope.models.engine.hooks import unhooked
from repscope.models.engine.proved_network import STOPS
from repscope.models.engine.token_network import TokenNetwork
from repscope.models.prompts import Ragged

_STEPS = 3  #: steps of a generation trial
_PROVED = 600  #: tokens up to which fast paths are tried when nobody runs prompts that long


@dataclass(frozen=True)
class Generation:
    """Mode of generation. batch: several prompts at once. cache: with cached keys and values, or states. own: in buffers of our
    own (`decoding`), not by transformers' `generate`. why: why not faster.
    """

    name: str
    batch: bool
    cache: bool
    own: bool = False
    why: str = ""


WAYS = (
    Generation("in a batch, each row at its own position", True, True, own=True),
    Generation("in a batch with a cache", True, True),
    Generation("one prompt at a time with a cache", False, True),
    Generation("one prompt at a time without a cache", False, False),
)


class GeneratingNetwork(TokenNetwork):
    """A Hugging Face model fed with token ids, with or without a head. It is not modified."""

    def fast_paths(self, longest: int | None = None) -> dict[str, str]:
        """The ways to run this network that are faster than one prompt at a time, each with the reason where it does not hold.

        Proves what is not proved yet, for prompts of up to so many tokens; without a number, for short ones and those beyond every
        length at which the network changes its behaviour, as far as a proof takes seconds.
        """
        near = [s for s in self.proofs.switches if s <= _PROVED]
        longest = longest or max([16, *(s + 1 for s in near)])
        found = {"packed prompts": self.unpackable(Ragged.of([np.arange(longest) % self.vocabulary]), [])}
        found["padded batches"] = self.batched_below(longest)[1]
        found["shared prefix"] = self.prefix_refused(longest)
        if not self.generates:
            return found
        try:
            way = self.generation(longest)
            return found | {"generation in batches": "" if way.batch else f"{way.name}; {way.why}"}
        except UserError as error:
            return found | {"generation in batches": str(error)}

    def generation(self, longest: int, worth: float = float("inf"), *, own: bool = True) -> Generation:
        """The fastest mode of generation, up to `longest` tokens, whose logits agree with plain passes.

        own: whether rows at their own positions are considered.

        Raises a `UserError` when no mode agrees.
        """
        whys: list[str] = []
        for way in WAYS if own else WAYS[1:]:
            trial = partial(self._generation_differs, way)
            if not (why := self.proofs.refused(f"generation, {way.name}", longest, trial, worth if way.batch else float("inf"))):
                return replace(way, why="; ".join(dict.fromkeys(whys)))
            whys.append(why)
        raise UserError(f"{self.name} cannot continue texts of {longest} tokens: {whys[-1]}.")

    def _generation_differs(self, way: Generation, lengths: Sequence[int]) -> str:
        """Why this mode's logits differ from those of plain passes; empty if they agree."""
        prompts = [row[: max(1, len(row) - 2)] for row in self.trial(lengths if way.batch or max(lengths) < 10 else lengths[:1])]
        new = np.stack(self.trial([_STEPS] * len(prompts)))
        if way.own and (why := cannot_decode(self)):
            return why
        try:
            ours = self.forced(way, prompts, new)
        except (*STOPS, UserError) as error:
            return f"{way.name}, generation stops with {type(error).__name__}"
        for row, given, logits in zip(prompts, new, ours, strict=True):
            for step in range(_STEPS):
                whole = np.concatenate([row, given[:step]])
                if self.context is not None and len(whole) > self.context:
                    break
                if not self.agree(logits[step], self.next_logits(whole)):
                    return f"{way.name}, the logits after {len(whole)} tokens come out otherwise than in a plain pass"
        return ""

    def forced(
        self, way: Generation, prompts: Sequence[Int[np.ndarray, "token"]], new: Int[np.ndarray, "prompt step"]
    ) -> list[Float[Tensor, "step vocab"]]:
        """The logits of every step with teacher forcing, for each prompt."""
        if way.own:
            seen: list[Tensor] = []

            def force(logits: Float[Tensor, "row vocab"], rows: Int[np.ndarray, "row"]) -> Int[Tensor, "row"]:
                seen.append(logits)
                return torch.from_numpy(new[rows, len(seen) - 1]).to(logits.device)

            with self.unedited():
                decoded(self, Ragged.of(prompts), np.arange(len(prompts)), force, new.shape[1])
            return list(torch.stack(seen, dim=1))
        out: list[Float[Tensor, "step vocab"]] = []
        each = range(len(prompts))
        for group in [list(each)] if way.batch else [[i] for i in each]:
            batch = GenerationBatch.of([prompts[i] for i in group], self.pad, self.device)
            with self.unedited(), unhooked(self.model), self.taps.settled() as state:
                state.rewind()
                logits = forced_logits(self.model, batch, new[group], use_cache=way.cache)
            out += list(logits.transpose(0, 1))
        return out

    def next_logits(self, row: Int[np.ndarray, "token"]) -> Float[Tensor, "vocab"]:
        """Next-token logits after a prompt, in a plain pass of the whole model."""
        key = b"logits" + np.asarray(row, dtype=np.int64).tobytes()
        if key not in self._alone:
            ids = torch.from_numpy(np.asarray(row, dtype=np.int64))[None].to(self.device)
            with self.unedited(), unhooked(self.model), self.taps.settled() as state:
                state.rewind()
                self._alone[key] = self.model(input_ids=ids, **self.plain()).logits[0, -1]
        return self._alone[key]

    def continued(
        self,
        ids: Ragged,
        sampling: Sampling,
        batch_tokens: int | None,
        use_cache: bool,
        on_tokens: Callable[[Int[np.ndarray, "row"]], Callable[[Int[np.ndarray, "row"]], None]] | None,
        check: EffectCheck | None = None,
    ) -> list[tuple[Int[np.ndarray, "token"], bool]]:
        """The new tokens of each prompt and whether an end-of-text token ended them, in batches, longest prompts first.

        on_tokens: given the prompts of a batch, what is called at each step with the new token of each. check: of the installed
        edits, before the first token is chosen.
        """
        lengths, draws, new_tokens = ids.lengths, sampling.draws(ids), sampling.max_new_tokens
        out: list[tuple[Int[np.ndarray, token], bool]] = [(ids[0][:0], False)] * len(lengths)
        order = np.argsort(lengths, kind="stable")[::-1]
        while len(order):
            width = int(lengths[order[0]])
            total = width + new_tokens
            worth = float((lengths[order] + new_tokens).sum()) if len(order) > 1 else 0.0
            way = self.generation(total, worth, own=use_cache and not cannot_decode(self))
            most = max(1, (batch_tokens or 4 * self.batch_tokens) // total) if way.batch else 1
            rows, order = np.split(order, [most])
            show = None if on_tokens is None else on_tokens(rows)
            if way.own:
                choose = choice(sampling, [draws[i] for i in rows])
                found = decoded(self, ids.take(rows), rows, choose, new_tokens, ends_of(self.model), show, batch_tokens, check)
            else:
                if check is not None:
                    check(False)
                batch = GenerationBatch.of([ids[i] for i in rows], self.pad, self.device)
                tells = not self.installed or self.shares_prefix(total)  # edits need a cache that tells how long it is
                with unhooked(self.model), self.taps.settled() as state, self.announced(rows, width - lengths[rows]):
                    state.rewind()
                    each, cached = [draws[i] for i in rows], use_cache and way.cache and tells
                    found = continued(self.model, batch, sampling, each, use_cache=cached, on_tokens=show)
            check = None
            for i, one in zip(rows, found):
                out[i] = one
        return out
