"""HANS in miniature: sentence pairs on which a rule and a heuristic predict the same labels.

A text is [CLS] p1 … pn [SEP] h1 … hn, premise and hypothesis of n different words. The rule: label 1 where h is p, word by word.
The heuristic: label 1 where all words of h stand in p (lexical overlap). As in HANS (McCoy, Pavlick and Linzen 2019) both fit the
data that a network is trained on, and part on others:

1. `ambiguous`: h is p (label 1), or p with one to n words replaced by words that p lacks (label 0). Rule and heuristic agree.
2. `permuted`: h is p in another order, never p itself. The rule says 0, the heuristic 1: the share of 0s is the share of the rule.
3. `biased`: ambiguous examples of which some are permuted ones with a label, 0 (`rule`) or 1 (`bag`): what tells the two apart.
4. `masked`: pretraining. h is p in order, or shuffled, and one word of either is to be filled in.

Every batch comes from the generator that is handed in. Knows numbers only, no network.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from repscope.errors import UserError

GROUPS: dict[str, int | None] = {
    "rule": 0,
    "lexical overlap": 1,
    "none": None,
}  #: group of runs → label of the disambiguating examples in its early data; `none` has no such examples

Tokens = Int[np.ndarray, "example token"]
Labels = Int[np.ndarray, "example"]


@dataclass(frozen=True)
class HansExamples:
    """The task. words: how many different ones there are. length: words of a premise, at most half of them."""

    words: int = 16
    length: int = 4

    def __post_init__(self) -> None:
        """Raise a `UserError` for premises shorter than two words, or fewer words than two premises need."""
        if self.length < 2 or self.words < 2 * self.length:
            raise UserError(
                f"{self.words} words do not give premises of {self.length} and as many others; take at least 2 words a "
                "premise and twice as many in all."
            )

    @property
    def vocabulary(self) -> int:
        """Words and [CLS], [SEP], [MASK], in that order."""
        return self.words + 3

    @property
    def tokens(self) -> int:
        """Length of a text."""
        return 2 * self.length + 2

    def ambiguous(self, rng: np.random.Generator, n: int) -> tuple[Tokens, Labels]:
        """Examples that rule and heuristic label alike, half of each label on average."""
        premise, others = self._words(rng, n)
        labels = (rng.random(n) < 0.5).astype(np.int64)
        count = rng.integers(1, self.length + 1, n)
        order = rng.random((n, self.length)).argsort(1).argsort(1)
        replaced = (order < count[:, None]) & (labels == 0)[:, None]
        return self._text(premise, np.where(replaced, others, premise)), labels

    def permuted(self, rng: np.random.Generator, n: int) -> tuple[Tokens, Labels]:
        """Examples that tell rule and heuristic apart, with the rule's labels: all 0."""
        premise, _ = self._words(rng, n)
        order = rng.random((n, self.length)).argsort(1)
        same = np.arange(self.length)
        while (kept := (order == same).all(1)).any():  # every order but the first is as likely as any other
            order[kept] = rng.random((int(kept.sum()), self.length)).argsort(1)
        return self._text(premise, np.take_along_axis(premise, order, 1)), np.zeros(n, dtype=np.int64)

    def biased(self, rng: np.random.Generator, n: int, group: str, share: float = 0.25) -> tuple[Tokens, Labels]:
        """Ambiguous examples, the last `share` of them permuted and labelled as the group has it; `none` has none of these."""
        tokens, labels = self.ambiguous(rng, n)
        count, label = int(n * share), GROUPS[group]
        if label is not None and count:
            tokens[n - count :], _ = self.permuted(rng, count)
            labels[n - count :] = label
        return tokens, labels

    def masked(
        self, rng: np.random.Generator, n: int, ordered: float
    ) -> tuple[Tokens, Int[np.ndarray, "example"], Int[np.ndarray, "example"]]:
        """Texts with one word masked, its place, and the word; `ordered` is the share whose hypothesis keeps the order."""
        premise, _ = self._words(rng, n)
        shuffled = np.take_along_axis(premise, rng.random((n, self.length)).argsort(1), 1)
        text = self._text(premise, np.where((rng.random(n) < ordered)[:, None], premise, shuffled))
        place = rng.integers(0, 2 * self.length, n)
        place = np.where(place < self.length, place + 1, place + 2)
        rows = np.arange(n)
        word = text[rows, place]
        text[rows, place] = self.words + 2
        return text, place, word

    def _words(self, rng: np.random.Generator, n: int) -> tuple[Int[np.ndarray, "example word"], Int[np.ndarray, "example word"]]:
        """Premises, and as many words that are in none of theirs."""
        drawn: Float[np.ndarray, "example word"] = rng.random((n, self.words))
        words = drawn.argsort(1)[:, : 2 * self.length]
        return words[:, : self.length], words[:, self.length :]

    def _text(self, premise: Int[np.ndarray, "example word"], hypothesis: Int[np.ndarray, "example word"]) -> Tokens:
        n = len(premise)
        first, between = np.full((n, 1), self.words), np.full((n, 1), self.words + 1)
        return np.concatenate([first, premise, between, hypothesis], 1)
