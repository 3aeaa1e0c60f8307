"""Sequences: documents cut to a context length, as token ids.

1. A document's tokens, without special tokens, are cut into consecutive pieces of `length` minus the special tokens.
2. The special tokens that the tokenizer adds (BOS in front; [CLS] and [SEP] around a text for bidirectional networks) are put
   around each piece. They are context: no row of a store is theirs.

A piece never spans two documents, and a document's last piece is as short as it is.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int
from safetensors.numpy import load, save

from repscope.errors import UserError
from repscope.models.inputs.text_spans import Prompt
from repscope.models.prompts import Ragged, encode, special_tokens
from repscope.models.sites import Tokens

_CHUNK = 1024  #: documents tokenised at once


class Texts(Protocol):
    """Documents, such as a `Corpus`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...


@dataclass(frozen=True)
class Sequences:
    """Token ids of pieces of documents.

    ids: (token), all sequences one after the other. offsets: (sequence + 1), first token of each. document: (sequence), index of
    its
    document. start: (sequence), index in the document of its first token that is not special. lead, tail: special tokens around
    each sequence.
    """

    ids: Int[np.ndarray, "token"]
    offsets: Int[np.ndarray, "sequence_plus_1"]
    document: Int[np.ndarray, "sequence"]
    start: Int[np.ndarray, "sequence"]
    lead: int = 0
    tail: int = 0

    def __len__(self) -> int:
        return len(self.document)

    @cached_property
    def lengths(self) -> Int[np.ndarray, "sequence"]:
        """Tokens of each sequence, special tokens included."""
        lengths: np.ndarray = np.diff(self.offsets)
        return lengths

    def rows(self, skip: int = 0) -> Int[np.ndarray, "sequence"]:
        """Tokens of each sequence without special ones and without the first `skip`."""
        rows: np.ndarray = np.maximum(self.lengths - self.lead - self.tail - skip, 0)
        return rows

    def take(self, chosen: Int[np.ndarray, "sequence"]) -> "Sequences":
        """The chosen sequences, in that order."""
        held = self.ragged.take(chosen)
        ids, offsets = held.flat.astype(np.int32), held.offsets
        return Sequences(ids, offsets, self.document[chosen], self.start[chosen], self.lead, self.tail)

    @cached_property
    def ragged(self) -> Ragged:
        """The ids as the engine takes them; a list of arrays, one per sequence."""
        return Ragged(self.ids.astype(np.int64), self.offsets)

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        arrays = {"ids": self.ids, "offsets": self.offsets, "document": self.document, "start": self.start}
        return bytes(save({**arrays, "special": np.array([self.lead, self.tail])}))

    @classmethod
    def from_bytes(cls, content: bytes) -> "Sequences":
        """From `to_bytes`."""
        held = load(content)
        lead, tail = (int(n) for n in held["special"])
        return cls(held["ids"], held["offsets"], held["document"], held["start"], lead, tail)


def cut(lm: Any, documents: Texts | Sequence[str], length: int = 128) -> Sequences:
    """Cut documents to sequences of at most `length` tokens.

    Parameters
    ----------
    lm
        The language model whose tokenizer is used.
    documents
        A `Corpus` or a list of texts. Empty documents give no sequence.
    length
        Tokens per sequence, special tokens included.

    Raises
    ------
    UserError
        When the network takes fewer tokens, no token fits beside the special ones, or there is no text.

    >>> from repscope.worlds.tiny import tiny
    >>> held = cut(tiny(), ["A map of Paris", "", "Rome"], 8)
    >>> held.document.tolist(), held.start.tolist(), held.lengths.tolist()
    ([0, 0, 2], [0, 8, 0], [8, 6, 4])
    """
    lead, tail = special_tokens(lm.tokenizer, causal=lm.causal)
    size = length - len(lead) - len(tail)
    if size < 1:
        raise UserError(f"The length is {length}, and special tokens take {len(lead) + len(tail)}; choose a larger one.")
    if lm.context is not None and length > lm.context:
        raise UserError(f"The length is {length}, and {lm.name} takes {lm.context} tokens; choose a smaller one.")
    parts: list[np.ndarray] = []
    document: list[int] = []
    start: list[int] = []
    for number, ids in _tokens(lm, documents):
        for first in range(0, len(ids), size):
            parts.append(np.concatenate([lead, ids[first : first + size], tail]).astype(np.int32))
            document.append(number)
            start.append(first)
    if not parts:
        raise UserError("There is no text in these documents; give others.")
    offsets = np.cumsum([0, *map(len, parts)])
    whole = np.concatenate(parts)
    outside = np.flatnonzero((whole < 0) | (whole >= lm.vocabulary))
    if outside.size:
        at = document[int(np.searchsorted(offsets, outside[0], side="right")) - 1]
        raise UserError(f"Document {at} has a token that is not in the vocabulary of {lm.name}; use its own tokenizer.")
    return Sequences(whole, offsets, np.array(document, np.int32), np.array(start, np.int32), len(lead), len(tail))


def _tokens(lm: Any, documents: Iterable[str]) -> Iterator[tuple[int, Int[np.ndarray, "token"]]]:
    """Number and token ids of each document that has any."""
    waiting, number = iter(documents), 0
    while held := list(islice(waiting, _CHUNK)):
        kept = [i for i, text in enumerate(held) if text]
        encoded = (
            encode(lm.tokenizer, [Prompt(held[i], special=False) for i in kept], Tokens("all"), causal=lm.causal) if kept else None
        )
        if encoded is not None:
            yield from ((number + i, ids) for i, ids in zip(kept, encoded.ids, strict=True))
        number += len(held)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Digest of what a tokenizer does to texts: its rules and vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{type(tokenizer).__name__}\0{told}".encode()).hexdigest()[:16]
