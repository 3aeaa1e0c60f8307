"""Grammars as generators of sentences and of minimal pairs, and their sentences as token ids.

A grammar writes sentences with the phenomena that each one shows, and for each phenomenon pairs of sentences of which one
violates it. Sentences of a corpus follow each other without padding; token 0 ends every sentence and stands before the first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError, unknown

END = "."
Words = list[str]


@dataclass(frozen=True)
class Phenomenon:
    """What a pair tests. pair: a good and a bad sentence, without the end. distance: words between the two that depend on each
    other, typically. meaning: an example."""

    pair: Callable[[np.random.Generator], tuple[Words, Words]]
    distance: float
    meaning: str


@dataclass(frozen=True, eq=False)
class Grammar:
    """A grammar. words: the vocabulary, the end first. sentence: a sentence without its end, and the phenomena that it shows."""

    name: str
    words: tuple[str, ...]
    sentence: Callable[[np.random.Generator], tuple[Words, frozenset[str]]]
    phenomena: Mapping[str, Phenomenon]

    @cached_property
    def ids(self) -> dict[str, int]:
        """Word → token id."""
        return {word: i for i, word in enumerate(self.words)}

    def encoded(self, words: Words) -> list[int]:
        """Token ids of a sentence, its end included."""
        return [*(self.ids[word] for word in words), 0]

    def corpus(self, documents: int, length: int, rng: np.random.Generator) -> Int[Tensor, "document token"]:
        """Documents of consecutive sentences; each begins with an end, and its last sentence may be cut."""
        found = np.empty((documents, length), dtype=np.int64)
        for row in found:
            line = [0]
            while len(line) < length:
                line += self.encoded(self.sentence(rng)[0])
            row[:] = line[:length]
        return torch.from_numpy(found)

    def frequency(self, sentences: int = 4000, seed: int = 0) -> dict[str, float]:
        """Share of sentences that show each phenomenon."""
        rng, counts = np.random.default_rng(seed), dict.fromkeys(self.phenomena, 0)
        for _ in range(sentences):
            for name in self.sentence(rng)[1]:
                counts[name] += 1
        return {name: count / sentences for name, count in counts.items()}


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of several phenomena as padded token ids, an end before each sentence.

    phenomenon: (pair), its name. good, bad: (pair, token), padded with the end. good_length, bad_length: (pair), tokens to score.
    """

    phenomenon: tuple[str, ...]
    good: Int[Tensor, "pair token"]
    bad: Int[Tensor, "pair token"]
    good_length: Int[Tensor, "pair"]
    bad_length: Int[Tensor, "pair"]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The phenomena, in order."""
        return tuple(dict.fromkeys(self.phenomenon))

    def by_phenomenon(self, right: Float[np.ndarray, "*run pair"]) -> Float[np.ndarray, "*run phenomenon"]:
        """Mean over the pairs of each phenomenon."""
        of = np.array(self.phenomenon)
        return np.asarray(np.stack([right[..., of == name].mean(-1) for name in self.names], axis=-1))


def make_pairs(grammar: Grammar, count: int, seed: int = 0, phenomena: tuple[str, ...] = ()) -> Pairs:
    """Different pairs of each phenomenon.

    Raises
    ------
    UserError
        For an unknown phenomenon, or more pairs than the grammar has.
    """
    for name in phenomena:
        if name not in grammar.phenomena:
            raise unknown(f"phenomenon of the grammar {grammar.name}", name, grammar.phenomena)
    names, sentences = list[str](), list[tuple[list[int], list[int]]]()
    for name in phenomena or tuple(grammar.phenomena):
        rng, seen = np.random.default_rng([seed, sum(map(ord, name))]), set[str]()
        for _ in range(200 * count):
            if len(seen) == count:
                break
            good, bad = grammar.phenomena[name].pair(rng)
            if (key := " ".join([*good, "|", *bad])) not in seen:
                seen.add(key)
                names.append(name)
                sentences.append((grammar.encoded(good), grammar.encoded(bad)))
        if len(seen) < count:
            raise UserError(f"The grammar {grammar.name} has only {len(seen)} pairs of {name}; ask for fewer than {count}.")
    sides = [_padded([pair[side] for pair in sentences]) for side in (0, 1)]
    return Pairs(tuple(names), sides[0][0], sides[1][0], sides[0][1], sides[1][1])


def _padded(rows: list[list[int]]) -> tuple[Int[Tensor, "row token"], Int[Tensor, "row"]]:
    lengths = torch.tensor([len(row) for row in rows])
    found = torch.zeros(len(rows), 1 + int(lengths.max()), dtype=torch.long)
    for target, row in zip(found, rows):
        target[1 : 1 + len(row)] = torch.tensor(row)
    return found, lengths
