"""Tokenised prompts with selected token positions and spans.

Spans are located by the tokenizer's character offsets: a span's tokens are those whose characters overlap it. Special tokens that
the tokenizer puts before a text (BOS) are kept. Tokens that it appends (EOS) are kept for bidirectional networks ([SEP]) and
dropped for causal ones, which continue the text; a warning says so once. Special tokens inside the text are part of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Int

from repscope.errors import UserError, unknown
from repscope.models.inputs.given import Ids, PromptLike, as_prompts, see_unpadded
from repscope.models.inputs.notices import warn_once
from repscope.models.inputs.text_spans import Prompt, with_continuation
from repscope.models.sites import Tokens

__all__ = [
    "Encoded",
    "Ids",
    "Prompt",
    "PromptLike",
    "Ragged",
    "as_prompts",
    "encode",
    "shortened",
    "special_tokens",
    "token_ends",
    "token_span",
    "with_continuation",
]

_CHUNK = 1024  #: texts tokenised at once; an encoding with offsets is about 50 times as large as its ids
_PROBES = ("a", "the", "0", ".", "x")  #: texts that reveal the special tokens a tokenizer adds


@dataclass(frozen=True)
class Ragged(Sequence[Int[np.ndarray, "token"]]):
    """Rows of token ids, concatenated in one array (a few bytes per token). As prompts they are taken as they are: only lists and
    arrays of a user's are checked for padding.

    flat: all ids. offsets: (row + 1), start of each row.
    """

    flat: Int[np.ndarray, "total"]
    offsets: Int[np.ndarray, "row_plus_1"]

    @classmethod
    def of(cls, rows: Iterable[Int[np.ndarray, "token"]]) -> "Ragged":
        """From one array per row."""
        held = [np.asarray(row, dtype=np.int64) for row in rows]
        flat = np.concatenate(held) if held else np.empty(0, dtype=np.int64)
        return cls(flat, np.cumsum([0, *map(len, held)]))

    @classmethod
    def joined(cls, parts: "Sequence[Ragged]") -> "Ragged":
        """Concatenate the rows of several."""
        return cls(
            np.concatenate([part.flat for part in parts]),
            np.concatenate([[0], np.cumsum(np.concatenate([part.lengths for part in parts]))]),
        )

    @cached_property
    def lengths(self) -> Int[np.ndarray, "row"]:
        """Number of tokens in each row."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row = row % len(self)
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[Int[np.ndarray, "token"]]:
        return (self.flat[a:b] for a, b in zip(self.offsets, self.offsets[1:]))

    def take(self, rows: Int[np.ndarray, "row"]) -> "Ragged":
        """Selected rows, in any order, with repetition."""
        return Ragged.of(self[int(i)] for i in rows)


@dataclass(frozen=True)
class Encoded:
    """Prompts as token ids, each with its selected span of token positions.

    ids: the prompts. start, stop: (prompt), positions `start[i]:stop[i]`.
    """

    ids: Ragged
    start: Int[np.ndarray, "prompt"]
    stop: Int[np.ndarray, "prompt"]

    @classmethod
    def whole(cls, ids: Ragged) -> "Encoded":
        """All positions of each prompt."""
        return cls(ids, np.zeros(len(ids), dtype=np.int64), ids.lengths)


def encode(
    tokenizer: Any, prompts: Iterable[PromptLike], tokens: Tokens, limit: int | None = None, *, causal: bool = True
) -> Encoded:
    """Tokenise prompts and resolve the requested positions.

    Parameters
    ----------
    tokenizer
        A Hugging Face tokenizer; spans need a fast one.
    prompts
        Texts, `Prompt`s, chats, or token ids as they are. Rows of a `Ragged` are ids that a network read or generated, where the
        padding token is a token like any other; other rows of ids are checked for padding.
    tokens
        Which positions.
    limit
        Maximum number of tokens per prompt.
    causal
        Whether the network is causal; then tokens that the tokenizer appends are dropped.

    Raises
    ------
    UserError
        For an empty or too long prompt, or a span that is absent or covers no token; names the prompt.
    """
    parts: list[Ragged] = []
    spans: list[np.ndarray] = []
    waiting, done = as_prompts(tokenizer, prompts), 0
    while held := list(islice(waiting, _CHUNK)):
        rows, found = zip(*_chunk(tokenizer, held, tokens, done, causal, padded=not isinstance(prompts, Ragged)))
        ends = np.empty((len(held), 2), dtype=np.int64)
        for i, (row, span) in enumerate(zip(rows, found), start=done):
            if not len(row):
                raise UserError(f"Prompt {i} is empty: it has no token.")
            if limit is not None and len(row) > limit:
                raise UserError(f"Prompt {i} has {len(row)} tokens and the network takes {limit}; shorten it.")
            start, stop = span or (0, len(row))
            ends[i - done] = _picked(tokens, start, stop, i)
        parts.append(Ragged.of(rows))
        spans.append(ends)
        done += len(held)
    if not done:
        raise UserError("There is no prompt: the list is empty.")
    starts, stops = np.concatenate(spans).T
    return Encoded(Ragged.joined(parts), starts, stops)


def shortened(tokenizer: Any, texts: Sequence[str], longest: int, *, causal: bool) -> list[Ids]:
    """Token ids of texts, truncated to `longest`; `causal` as for `encode`."""
    after = _around(tokenizer)[1] if causal else 0
    rows = tokenizer(list(texts), truncation=True, max_length=longest + after)["input_ids"]
    return [np.asarray(row[: len(row) - after], dtype=np.int64) for row in rows]


def token_span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int] | None:
    """The token positions whose characters overlap `start:end`; None where no token does."""
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
    return (inside[0], inside[-1] + 1) if inside else None


def _chunk(
    tokenizer: Any, prompts: Sequence[Prompt | Ids], tokens: Tokens, first: int, causal: bool, padded: bool
) -> list[tuple[Ids, tuple[int, int] | None]]:
    """The ids and the span of each prompt; `padded`: whether rows of ids could be."""
    out: dict[int, tuple[Ids, tuple[int, int] | None]] = {}
    texts = {i: prompt for i, prompt in enumerate(prompts) if isinstance(prompt, Prompt)}
    if tokens.span and texts and not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{tokens} needs a fast tokenizer, which provides character offsets; this model's tokenizer does not.")
    for special in (True, False):
        rows = [i for i, prompt in texts.items() if prompt.special is special]
        if not rows:
            continue
        given = [texts[i].text for i in rows]
        numbers = [first + i for i in rows]
        encoding = _tokenized(tokenizer, given, numbers, special, bool(tokens.span))
        ids = [np.asarray(row, dtype=np.int64) for row in encoding["input_ids"]]
        if special:
            ids = _open_ended(tokenizer, given, ids, numbers, causal)
        for j, i in enumerate(rows):
            span = _span(texts[i], tokens, encoding["offset_mapping"][j], first + i) if tokens.span else None
            out[i] = (ids[j], span)
    plain = {i: prompt for i, prompt in enumerate(prompts) if not isinstance(prompt, Prompt)}
    if plain and tokens.span:
        raise UserError(f"Prompt {first + min(plain)} is token ids, which have no span {tokens.span!r}; give a Prompt.")
    if padded:
        see_unpadded(tokenizer, list(plain.values()), [first + i for i in plain])
    out |= {i: (row, None) for i, row in plain.items()}
    return [out[i] for i in range(len(prompts))]


def _tokenized(tokenizer: Any, texts: Sequence[str], numbers: Sequence[int], special: bool, offsets: bool = False) -> Any:
    """Tokenizer output for texts.

    Raises
    ------
    UserError
        For a text that is not Unicode; names the prompt.
    """
    try:
        return tokenizer(
            list(texts), add_special_tokens=special, return_offsets_mapping=offsets, return_attention_mask=False, verbose=False
        )
    except (TypeError, UnicodeError):
        for i, text in zip(numbers, texts):
            try:
                text.encode()
            except UnicodeError as error:
                raise UserError(f"Prompt {i} holds half of a surrogate pair, which is no character; mend the text.") from error
        raise


def _open_ended(tokenizer: Any, texts: Sequence[str], ids: list[Ids], numbers: Sequence[int], causal: bool) -> list[Ids]:
    """The ids without what the tokenizer has appended, where the network is causal; what stands before is there once.

    Raises
    ------
    UserError
        For a text that begins with the token that the tokenizer puts there, and where what was appended cannot be told apart.
    """
    before, after = _around(tokenizer)
    for i, row in zip(numbers, ids):
        if before and len(row) > before and row[before] == row[before - 1]:
            raise UserError(
                f"Prompt {i} begins with {tokenizer.decode([int(row[before])])!r}, which the tokenizer puts there too: leave "
                "it out, or give Prompt(text, special=False)."
            )
    if not causal or not after:
        return ids
    out = []
    for i, row, own in zip(numbers, ids, _tokenized(tokenizer, texts, numbers, False)["input_ids"]):
        stop = before + len(own)
        if not np.array_equal(row[before:stop], own):
            raise UserError(
                f"What the tokenizer appends to prompt {i} cannot be told from its text; give Prompt(text, special=False)."
            )
        if stop < len(row):
            warn_once(
                tokenizer,
                f"The tokenizer appends {tokenizer.decode([int(x) for x in row[stop:]])!r} to every text, which is left out here: "
                "this network is causal and continues a text where it ends.",
            )
        out.append(row[:stop])
    return out


def _around(tokenizer: Any) -> tuple[int, int]:
    """How many tokens the tokenizer puts before a text and after it. Not kept: its options can be changed."""
    for text in _PROBES:
        whole, own = (tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"] for special in (True, False))
        for before in range(len(whole) - len(own) + 1) if own else ():
            if list(whole[before : before + len(own)]) == list(own):
                return before, len(whole) - len(own) - before
    return 0, 0


def special_tokens(tokenizer: Any, *, causal: bool) -> tuple[Ids, Ids]:
    """The token ids that the tokenizer puts before and after a text; none after it where the network is causal."""
    before, after = _around(tokenizer)
    whole = np.asarray(tokenizer(_PROBES[0], add_special_tokens=True, verbose=False)["input_ids"], dtype=np.int64)
    return whole[:before], whole[len(whole) - (0 if causal else after) :]


def _span(prompt: Prompt, tokens: Tokens, offsets: Sequence[tuple[int, int]], i: int) -> tuple[int, int]:
    if tokens.span not in prompt.spans:
        raise unknown(f"span in prompt {i}", tokens.span, prompt.spans)
    found = token_span(offsets, *prompt.spans[tokens.span])
    if found is None:
        raise UserError(f"The span {tokens.span!r} of prompt {i} covers no token.")
    return found


def token_ends(tokens: Tokens, lengths: Int[np.ndarray, "prompt"]) -> tuple[Int[np.ndarray, "prompt"], Int[np.ndarray, "prompt"]]:
    """First position, and the one after the last, of a choice without a span, in prompts of so many tokens.

    Raises
    ------
    UserError
        When a prompt is too short for it; names the prompt.
    """
    both = np.array([_picked(tokens, 0, int(length), i) for i, length in enumerate(lengths)], dtype=np.int64)
    return both[:, 0], both[:, 1]


def _picked(tokens: Tokens, start: int, stop: int, i: int) -> tuple[int, int]:
    if tokens.pick == "last":
        return stop - 1, stop
    if tokens.pick == "first":
        return start, start + 1
    if tokens.pick in ("mean", "all"):
        return start, stop
    at = int(tokens.pick)
    position = stop + at if at < 0 else start + at
    if not start <= position < stop:
        raise UserError(f"Prompt {i} has {stop - start} tokens there, so it has no token {at}.")
    return position, position + 1
