"""Prompts: text with named spans of characters, and how they become token ids with spans of tokens.

Knows a tokenizer, never a network. A span is found from the tokenizer's character offsets: the tokens of a span are those
whose characters overlap it, so a subject of several tokens, at the start of a prompt or inside it, needs no search for token
strings. What the tokenizer adds by itself (BOS or nothing) stays exactly as it is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Int

from repscope.errors import UserError, unknown
from repscope.models.sites import Tokens

_SENTINEL = "repscope-content"
_CHUNK = 1024  #: texts tokenised at once; an encoding with offsets is some 50 times the size of its ids


@dataclass(frozen=True)
class Prompt:
    """A text and named spans of its characters, each (start, end) with the end not included.

    text: what the network reads. spans: name → (start, end). special: whether the tokenizer adds its special tokens, which a
    rendered chat template already holds.
    """

    text: str
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    special: bool = True

    @classmethod
    def fill(cls, template: str, **values: str) -> "Prompt":
        """A prompt from a template; each value is a span under its name. A lone `{}` takes the only value.

        >>> Prompt.fill("The place called {}", subject="Paris")
        Prompt(text='The place called Paris', spans={'subject': (17, 22)}, special=True)

        Raises
        ------
        UserError
            When a value is empty, or the template's places and the values differ.
        """
        if len(values) == 1 and template.count("{}") == 1:
            template = template.replace("{}", "{" + next(iter(values)) + "}")
        found = sorted((template.find("{" + name + "}"), name) for name in values)
        if found and found[0][0] < 0:
            raise UserError(f"The template {template!r} has no place {{{found[0][1]}}}.")
        if twice := [name for name in values if template.count("{" + name + "}") > 1]:
            raise UserError(f"The template {template!r} has the place {{{twice[0]}}} twice; a span is one place.")
        text, spans, done = "", {}, 0
        for at, name in found:
            if not values[name].strip():
                raise UserError(f"The value for {{{name}}} in the template {template!r} is empty.")
            text += template[done:at]
            spans[name] = (len(text), len(text) + len(values[name]))
            text += values[name]
            done = at + len(name) + 2
        return cls(text + template[done:], spans)


PromptLike = str | Prompt | Sequence[int] | Int[np.ndarray, "token"]


def chat(tokenizer: Any, content: str | Prompt, system: str | None, name: str) -> Prompt:
    """See `LanguageModel.chat`."""
    prompt = Prompt(content) if isinstance(content, str) else content
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"The tokenizer of {name} has no chat template; use plain prompts.")

    def rendered(text: str) -> str:
        turns = [{"role": "system", "content": system}] if system is not None else []
        turns.append({"role": "user", "content": text})
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    before = rendered(_SENTINEL).index(_SENTINEL)
    text = rendered(prompt.text)
    if text[before : before + len(prompt.text)] != prompt.text:
        raise UserError(f"The chat template of {name} changes the content {prompt.text[:40]!r} …; strip it first.")
    spans = {name: (a + before, b + before) for name, (a, b) in prompt.spans.items()}
    return Prompt(text, spans | {"content": (before, before + len(prompt.text))}, special=False)


def followed(prompt: str | Prompt, tail: str) -> Prompt:
    """A prompt and its continuation as one text, the continuation a span."""
    given = Prompt(prompt) if isinstance(prompt, str) else prompt
    span = (len(given.text), len(given.text) + len(tail))
    return Prompt(given.text + tail, {**given.spans, "continuation": span}, given.special)


@dataclass(frozen=True)
class Ragged(Sequence[Int[np.ndarray, "token"]]):
    """Rows of token ids, end to end in one array: a few bytes a token, however many prompts there are.

    flat: all ids. offsets: (row + 1), where each row begins.
    """

    flat: Int[np.ndarray, "total"]
    offsets: Int[np.ndarray, "row_plus_1"]

    @classmethod
    def of(cls, rows: Iterable[Int[np.ndarray, "token"]]) -> "Ragged":
        """From one array a row."""
        held = [np.asarray(row, dtype=np.int64) for row in rows]
        flat = np.concatenate(held) if held else np.empty(0, dtype=np.int64)
        return cls(flat, np.cumsum([0, *map(len, held)]))

    @classmethod
    def joined(cls, parts: "Sequence[Ragged]") -> "Ragged":
        """The rows of several, one after the other."""
        return cls(
            np.concatenate([part.flat for part in parts]),
            np.concatenate([[0], np.cumsum(np.concatenate([part.lengths for part in parts]))]),
        )

    @cached_property
    def lengths(self) -> Int[np.ndarray, "row"]:
        """Tokens of each row."""
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
        """Some of the rows, in any order, as often as named."""
        return Ragged.of(self[int(i)] for i in rows)


@dataclass(frozen=True)
class Encoded:
    """Prompts as token ids, and for each the span of token positions that a request is about.

    ids: the prompts. start, stop: (prompt), positions `start[i]:stop[i]`.
    """

    ids: Ragged
    start: Int[np.ndarray, "prompt"]
    stop: Int[np.ndarray, "prompt"]


def several(prompts: Iterable[PromptLike]) -> Iterable[PromptLike]:
    """The prompts themselves.

    Raises
    ------
    UserError
        For a single text, whose letters would be taken for prompts; for what a tokenizer returns, whose keys would be.
    """
    if isinstance(prompts, Mapping) or hasattr(prompts, "input_ids"):
        raise UserError("Prompts are texts or rows of token ids, and a mapping was given: pass the texts themselves.")
    if isinstance(prompts, (str, Prompt)):
        raise UserError(
            f"{str(getattr(prompts, 'text', prompts))[:40]!r} is one prompt, and a list of them is needed: put it in [ ]."
        )
    return prompts


def encode(tokenizer: Any, prompts: Iterable[PromptLike], tokens: Tokens, limit: int | None = None) -> Encoded:
    """Token ids of prompts and the positions asked for.

    Parameters
    ----------
    tokenizer
        A Hugging Face tokenizer; a fast one where spans are asked for.
    prompts
        Texts, `Prompt`s, or token ids as they are.
    tokens
        Which positions.
    limit
        Most tokens that the network takes.

    Raises
    ------
    UserError
        For an empty or too long prompt, a span that is not there or covers no token; names the prompt.
    """
    parts: list[Ragged] = []
    spans: list[np.ndarray] = []
    waiting, done = iter(several(prompts)), 0
    while held := list(islice(waiting, _CHUNK)):
        rows, found = zip(*_chunk(tokenizer, held, tokens, done))
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


def token_span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int] | None:
    """The token positions whose characters overlap `start:end`; None where no token does."""
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
    return (inside[0], inside[-1] + 1) if inside else None


def _chunk(tokenizer: Any, prompts: Sequence[PromptLike], tokens: Tokens, first: int) -> list[Any]:
    texts = [_as_prompt(p) for p in prompts]
    out: list[Any] = [None] * len(prompts)
    for special in (True, False):
        rows = [i for i, p in enumerate(texts) if p is not None and p.special is special]
        if not rows:
            continue
        if tokens.span and not getattr(tokenizer, "is_fast", False):
            raise UserError(f"{tokens} needs a fast tokenizer, which tells character offsets; this model's has none.")
        encoding = tokenizer(
            [texts[i].text for i in rows],  # type: ignore[union-attr]
            add_special_tokens=special,
            return_offsets_mapping=bool(tokens.span),
            return_attention_mask=False,
            verbose=False,
        )
        for j, i in enumerate(rows):
            row = np.asarray(encoding["input_ids"][j], dtype=np.int64)
            span = None
            if tokens.span:
                span = _span(texts[i], tokens, encoding["offset_mapping"][j], first + i)  # type: ignore[arg-type]
            out[i] = (row, span)
    for i, (given, text) in enumerate(zip(prompts, texts)):
        if text is None:
            if tokens.span:
                raise UserError(f"Prompt {first + i} is token ids, which have no span {tokens.span!r}; give a Prompt.")
            out[i] = (np.asarray(given, dtype=np.int64).ravel(), None)
    return out


def _as_prompt(given: PromptLike) -> Prompt | None:
    if isinstance(given, str):
        return Prompt(given)
    return given if isinstance(given, Prompt) else None


def _span(prompt: Prompt, tokens: Tokens, offsets: Sequence[tuple[int, int]], i: int) -> tuple[int, int]:
    if tokens.span not in prompt.spans:
        raise unknown(f"span in prompt {i}", tokens.span, prompt.spans)
    found = token_span(offsets, *prompt.spans[tokens.span])
    if found is None:
        raise UserError(f"The span {tokens.span!r} of prompt {i} covers no token.")
    return found


def token_ends(
    tokens: Tokens, lengths: Int[np.ndarray, "prompt"]
) -> tuple[Int[np.ndarray, "prompt"], Int[np.ndarray, "prompt"]]:
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
