"""Network with a tokenizer: prompts become token ids, and edits are resolved and checked before each operation.

What the methods of `LanguageModel` share; arguments are documented there.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.activations import Activations
from repscope.models.edits import Edit
from repscope.models.engine.contexts import DistinctContexts, distinct_contexts
from repscope.models.engine.decoding import EffectCheck
from repscope.models.engine.edit_positions import check_effect, resolve_edit_positions
from repscope.models.engine.fingerprint import WeightSource
from repscope.models.engine.generating_network import GeneratingNetwork
from repscope.models.engine.generation import Continuation, Sampling, growing_texts
from repscope.models.engine.hooks import unhooked
from repscope.models.engine.memory import memory_kept
from repscope.models.engine.planner import Plan
from repscope.models.engine.positions import as_float, ranges, row_offsets, row_positions
from repscope.models.engine.row_writer import Rows
from repscope.models.inputs.text_spans import described
from repscope.models.prompts import Encoded, Prompt, PromptLike, Ragged, as_prompts, encode
from repscope.models.sites import Site, Tokens, names_one

_HEAD_ROWS = 128  #: contexts of which the head gives logits at once: enough for its product, and few enough for a cache
_FAMILY = 96  #: tokens of a group of rows that attend in one masked product: pairs of sentences, with their variants


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities of continuations.

    logprob: (prompt), of the whole continuation. tokens: (prompt), its number of tokens. each: per prompt, one value per token.
    """

    logprob: Float[np.ndarray, "prompt"]
    tokens: Int[np.ndarray, "prompt"]
    each: list[Float[np.ndarray, "token"]]


class TextNetwork(GeneratingNetwork):
    """A Hugging Face model and its tokenizer, fed with prompts. Neither is modified."""

    def __init__(self, model: Any, tokenizer: Any, source: WeightSource) -> None:
        super().__init__(model, source)
        self.tokenizer = tokenizer
        self._effective: set[tuple[str, ...]] = set()  #: kinds of requests that the installed edits are known to change

    @contextmanager
    def edit(self, *edits: Edit) -> Iterator[Self]:
        """As `BaseNetwork.edit`; inside, a request whose rows are all unchanged by the edits raises.

        >>> import repscope as rs
        >>> from repscope.worlds.tiny import tiny
        >>> lm = tiny()
        >>> with lm.edit(rs.Edit.replace("mlp_out.1", 0.0, tokens="last")):
        ...     lm.logits(["A map of Paris"]).shape
        (1, 256)
        """
        known, self._effective = self._effective, set()
        try:
            with super().edit(*edits):
                yield self
        finally:
            self._effective = known

    def prompt_list(self, prompts: Iterable[PromptLike]) -> list[Any]:
        """The prompts as a list of `Prompt`s and token ids, to be iterated repeatedly."""
        return list(as_prompts(self.tokenizer, prompts))

    def repeatable(self, prompts: Iterable[PromptLike]) -> Iterable[PromptLike]:
        """The prompts, as a list where edits are installed, which iterate them again."""
        return self.prompt_list(prompts) if self.installed and not isinstance(prompts, Ragged) else prompts

    def encoded(self, prompts: Iterable[PromptLike], picked: Tokens) -> Encoded:
        """The prompts as token ids of the vocabulary, with the requested positions."""
        encoded = encode(self.tokenizer, prompts, picked, self.context, causal=self.causal)
        self.checked(encoded.ids)
        return encoded

    def run_once_per_pass(self, sites: Sequence[Site]) -> None:
        """Check on the probe that modules named by their path run once per pass."""
        self.check_single_calls(sites, lambda: self.module(input_ids=self.probe, **self.plain()))

    def resolve_edits(self, prompts: Any, ids: Ragged, ends: Int[np.ndarray, "prompt"] | None = None) -> None:
        """Set the positions of the installed edits; see `resolve_edit_positions`."""
        if self.installed:
            resolve_edit_positions(self, self.tokenizer, prompts, ids, ends)

    def check_edits(
        self,
        prompts: Any,
        encoded: Encoded,
        sites: Sequence[Site],
        picked: Tokens,
        ends: Int[np.ndarray, "prompt"] | None = None,
        only_one: bool = False,
    ) -> None:
        """Set the positions of the installed edits, and check that they change the requested rows.

        The check runs once per kind of request: sites, tokens, and whether more than one token follows a prompt.
        """
        check = self.effect_check(prompts, encoded, sites, picked, ends, only_one)
        if check is not None:
            check(False)

    def effect_check(
        self,
        prompts: Any,
        encoded: Encoded,
        sites: Sequence[Site],
        picked: Tokens,
        ends: Int[np.ndarray, "prompt"] | None = None,
        only_one: bool = False,
    ) -> EffectCheck | None:
        """Set the positions of the installed edits; return the check of `check_edits`, None if it was made before."""
        self.resolve_edits(prompts, encoded.ids, ends)
        key = (*map(str, sites), str(picked), str(ends is None), str(only_one))
        if not self.installed or key in self._effective:
            return None

        def check(seen: bool) -> None:
            if not seen:
                check_effect(self, encoded, sites, picked)
            self._effective.add(key)

        return check

    def activations(
        self,
        at: str | Site | Sequence[str | Site],
        encoded: Encoded,
        picked: Tokens,
        run: Callable[[Rows], None],
        dtype: str = "float32",
        out: Path | None = None,
    ) -> Activations:
        """The rows that `run` writes."""
        requested, offsets = self.requested_sites(at), row_offsets(encoded, picked)
        started = time.perf_counter()
        with Rows(list(dict.fromkeys(requested)), int(offsets[-1]), dtype, out) as rows:
            run(rows)
        return Activations(
            rows=rows.finish(),
            tokens=picked,
            offsets=offsets,
            positions=row_positions(encoded, picked),
            model=self.fingerprint,
            single=names_one(at),
            seconds=time.perf_counter() - started,
            requested=tuple(requested),
        )

    def token_scores(self, joined: Sequence[Prompt], batch_tokens: int | None) -> TokenScores:
        """Log-probabilities of the span `continuation` of each prompt."""
        head, picked = self.head(), Tokens("all", "continuation")
        spans = self.encoded(joined, picked)
        if bool((spans.start == 0).any()):
            i = int(np.argmin(spans.start))
            raise UserError(f"Nothing stands before continuation {i}, so it has no probability; give it a prompt.")
        before = Encoded(spans.ids, spans.start - 1, spans.stop - 1)  # the logits of a token are read one position earlier
        self.check_edits(joined, before, [self.last], Tokens("all"), spans.start, bool((spans.stop - spans.start).max() == 1))
        offsets = row_offsets(before, Tokens("all"))
        targets = torch.from_numpy(np.concatenate([row[a:b] for row, a, b in zip(spans.ids, spans.start, spans.stop)]))
        nats = np.empty(int(offsets[-1]))

        def sink(_: Site, destination: Int[np.ndarray, "row"], hidden: Tensor) -> None:
            logp = as_float(head(hidden)).log_softmax(-1)
            target = targets[torch.from_numpy(destination)].to(logp.device)
            nats[destination] = logp.gather(1, target[:, None])[:, 0].double().cpu().numpy()

        planned = self.planned(before.ids, batch_tokens, [self.last])
        with unhooked(self.model):
            self.run([self.last], before, planned, Tokens("all"), sink)
        each = np.split(nats, offsets[1:-1])
        return TokenScores(np.array([e.sum() for e in each]), np.diff(offsets), each)

    def sequence_scores(
        self, rows: Ragged, first: Int[np.ndarray, "prompt"], batch_tokens: int | None = None
    ) -> list[Float[np.ndarray, "token"]]:
        """Log-probabilities (nats) of the tokens of each row from position `first` on, which is 1 or more, given those before.

        Rows without their last token, whose prediction nobody reads, are contexts of what follows. What contexts share runs once,
        and the head once per distinct context that is read, however many tokens follow it. Under edits, and where rows cannot be
        packed, whole rows are run.
        """
        self.checked(rows)
        if bool((first < 1).any()) or bool((first >= rows.lengths).any()):
            i = int(np.flatnonzero((first < 1) | (first >= rows.lengths))[0])
            raise UserError(
                f"Row {i} has {rows.lengths[i]} tokens, and none to score from position {first[i]} on; give a longer one."
            )
        ids = rows if self.installed else Ragged.of(row[:-1] for row in rows)
        read = distinct_contexts(ids, first - 1, rows.lengths - 1, share=not self.installed)
        self.check_edits(rows, read.encoded, [self.last], Tokens("all"), first, False)
        targets = np.concatenate([row[a:] for row, a in zip(rows, first)])
        planned = self.planned(ids, batch_tokens, [self.last], family=_FAMILY)
        return np.split(self._read_nats(read, planned, targets), np.cumsum(rows.lengths - first)[:-1])

    def _read_nats(self, read: DistinctContexts, planned: Plan, targets: Int[np.ndarray, "target"]) -> Float[np.ndarray, "target"]:
        """Log-probability of each target after its context."""
        head, nats = self.head(), np.empty(len(targets))
        by_context = np.argsort(read.context, kind="stable")
        stops = np.cumsum(np.bincount(read.context, minlength=read.count))

        def sink(_: Site, destination: Int[np.ndarray, "row"], hidden: Tensor) -> None:
            for begin in range(0, len(destination), _HEAD_ROWS):
                which = destination[begin : begin + _HEAD_ROWS]
                logits = as_float(head(hidden[begin : begin + _HEAD_ROWS]))
                counts = stops[which] - np.where(which > 0, stops[which - 1], 0)
                if not counts.sum():
                    continue
                each = by_context[np.repeat(stops[which] - counts, counts) + ranges(counts)]
                row, token = (
                    torch.from_numpy(x).to(logits.device) for x in (np.repeat(np.arange(len(which)), counts), targets[each])
                )
                nats[each] = (logits[row, token] - logits.logsumexp(-1)[row]).double().cpu().numpy()

        with unhooked(self.model), memory_kept():
            self.run([self.last], read.encoded, planned, Tokens("all"), sink)
        return nats

    def continuations(
        self,
        prompts: Iterable[PromptLike],
        sampling: Sampling,
        batch_tokens: int | None,
        use_cache: bool,
        on_token: Callable[[int, str], None] | None,
    ) -> list[Continuation]:
        """The continuation of each prompt, in batches, longest prompts first."""
        new_tokens = sampling.max_new_tokens
        if not self.causal and self._altered:
            raise UserError(
                f"A hook or forward function set on {self.name} lets later tokens change earlier ones; remove it to continue texts."
            )
        if not self.generates:
            raise UserError(f"{self.name} is no causal language model with a head, so it cannot continue a text.")
        check_batch_tokens(batch_tokens)
        held = self.prompt_list(prompts)
        ids = self.encoded(held, Tokens("last")).ids
        lengths = ids.lengths
        if self.context is not None and lengths.max() + new_tokens > self.context:
            i = int(lengths.argmax())
            raise UserError(
                f"Prompt {i} has {lengths[i]} tokens and {new_tokens} new ones are requested, but the network takes "
                f"{self.context} in all."
            )
        check = None
        if self.installed:
            # An extra token represents a generated one: the rows of the prompt's last token and of that one must change.
            longer = ids if new_tokens == 1 else Ragged.of(np.append(row, row[-1]) for row in ids)
            last = Encoded(longer, lengths - 1, longer.lengths)
            check = self.effect_check(held, last, [self.last], Tokens("all"), lengths, new_tokens == 1)

        def show(rows: Int[np.ndarray, "row"]) -> Callable[[Int[np.ndarray, "row"]], None]:
            assert on_token is not None
            return growing_texts(self.model, self.tokenizer, rows, on_token)

        found = self.continued(ids, sampling, batch_tokens, use_cache, None if on_token is None else show, check)
        return [Continuation(self.tokenizer.decode(new, skip_special_tokens=True), new, stopped) for new, stopped in found]


def check_batch_tokens(batch_tokens: Any) -> None:
    """Raise unless the token budget of a batch is a positive whole number or None."""
    if batch_tokens is not None:
        check_count("batch_tokens", batch_tokens)


def check_count(name: str, value: Any, least: float = 1) -> None:
    """Raise unless a count is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise UserError(f"{name} is {described(value)}; it must be a whole number, 1 or more.")
