"""Minimal pairs: to which sentence of a pair does a causal language model give the higher probability?

1. Tokens by a convention (`CONVENTIONS`): what stands before a sentence, and which of its tokens are scored.
2. Log-probability of every scored token (nats). What sentences share is computed once (`LanguageModel.sequence_scores`).
3. Two scores of a sentence: the sum over its tokens, and the mean per token, which does not favour short sentences.
4. A pair is right if the good sentence has the higher score; a tie is half right. Accuracy per phenomenon has its interval over
   pairs, the mean over phenomena its interval over phenomena.
5. Baseline: the sentence with fewer tokens. Control (`control=True`): the same network with random weights.

Conventions. lm-eval (0.4): the BOS token, else EOS, then a space and the sentence; all tokens of the sentence are scored. minicons
(0.3): the tokens as the tokenizer gives them, the first not scored, whether it is BOS or a word. They differ in what the first word
adds, which matters where it differs or where a model was never trained with BOS; `plain` is lm-eval's without the space.
Warstadt et al. 2020, arXiv:1912.00582 (BLiMP: full sentences, summed). Takes sentences; knows no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from repscope import stats
from repscope.conditions import FEWER_TOKENS, RANDOM_WEIGHTS, over
from repscope.data.minimal_pairs import MinimalPairs
from repscope.errors import UserError, unknown
from repscope.models.prompts import Prompt, Ragged, encode
from repscope.models.sites import Tokens
from repscope.results import Result, Row

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

SUM, MEAN = "summed log-probability", "log-probability per token"
SCORES = (SUM, MEAN)
ALL = "all phenomena"
ACCURACY = "pair accuracy"


@dataclass(frozen=True)
class Convention:
    """How a sentence becomes tokens. bos: whether BOS (else EOS) stands before it, in place of what the tokenizer adds. space:
    whether a space does. meaning: one sentence."""

    name: str
    bos: bool
    space: bool
    meaning: str


CONVENTIONS: dict[str, Convention] = {
    c.name: c
    for c in (
        Convention("lm-eval", True, True, "BOS (else EOS), a space and the sentence; all of its tokens are scored."),
        Convention("plain", True, False, "BOS (else EOS) and the sentence; all of its tokens are scored."),
        Convention("minicons", False, False, "The tokens that the tokenizer gives; the first is not scored."),
    )
}


@dataclass(frozen=True, eq=False)
class PairScores:
    """Scores of both sentences of each pair.

    pairs: the sentences. good, bad: (pair), summed log-probability in nats. good_tokens, bad_tokens: (pair), scored tokens.
    convention: its name.
    """

    pairs: MinimalPairs
    good: Float[np.ndarray, "pair"]
    bad: Float[np.ndarray, "pair"]
    good_tokens: Int[np.ndarray, "pair"]
    bad_tokens: Int[np.ndarray, "pair"]
    convention: str

    def margin(self, score: str = SUM) -> Float[np.ndarray, "pair"]:
        """Score of the good sentence minus that of the bad one, in nats, or in nats per token.

        Raises
        ------
        UserError
            For another score than `SCORES`.
        """
        if score not in SCORES:
            raise unknown("score", score, SCORES)
        if score == SUM:
            return np.asarray(self.good - self.bad)
        return np.asarray(self.good / self.good_tokens - self.bad / self.bad_tokens)

    def right(self, score: str = SUM) -> Float[np.ndarray, "pair"]:
        """1 for each pair whose good sentence has the higher score, 0 for the others, one half for ties."""
        return credit(self.margin(score))

    @property
    def fewer(self) -> Float[np.ndarray, "pair"]:
        """The same for the sentence with fewer tokens: what a preference for short sentences alone would get right."""
        return credit((self.bad_tokens - self.good_tokens).astype(np.float64))


def credit(margin: Float[np.ndarray, "*pair"]) -> Float[np.ndarray, "*pair"]:
    """1 where a margin is above 0, 0 below, one half at 0."""
    return np.asarray((margin > 0) + 0.5 * (margin == 0))


def score_pairs(
    lm: "LanguageModel", pairs: MinimalPairs, convention: str = "lm-eval", *, batch_tokens: int | None = None
) -> PairScores:
    """Score both sentences of every pair.

    Parameters
    ----------
    lm
        A causal language model.
    pairs
        The sentences, see `repscope.data.minimal_pairs.read_pairs`.
    convention
        One of `CONVENTIONS`.
    batch_tokens
        Tokens per forward pass.

    Raises
    ------
    UserError
        For an unknown convention, a model that is not causal or has no BOS and no EOS token where one is needed, a sentence without
        a token to score, and a pair whose sentences are the same tokens.

    >>> from repscope.worlds.tiny import tiny
    >>> made = MinimalPairs("mine", ("A dog runs.",), ("A dog run.",), ("agreement",))
    >>> scored = score_pairs(tiny(), made, "minicons")
    >>> bool(np.isclose(scored.margin()[0], scored.good[0] - scored.bad[0])), scored.good_tokens, scored.bad_tokens
    (True, array([10]), array([9]))
    """
    rows, first = _rows(lm, pairs, convention)
    each = lm.sequence_scores(rows, first, batch_tokens)
    sums, tokens = np.array([e.sum() for e in each]), np.array([len(e) for e in each])
    n = len(pairs.good)
    return PairScores(pairs, sums[:n], sums[n:], tokens[:n], tokens[n:], convention)


def _rows(lm: "LanguageModel", pairs: MinimalPairs, convention: str) -> tuple[Ragged, Int[np.ndarray, "row"]]:
    """Token ids of the good sentences, then of the bad ones, and the first scored position of each."""
    if convention not in CONVENTIONS:
        raise unknown("convention", convention, CONVENTIONS)
    how = CONVENTIONS[convention]
    if not lm.causal:
        raise UserError(f"{lm.name} is not a causal language model, so a sentence has no probability; give a causal one.")
    sentences = (*pairs.good, *pairs.bad)
    if how.bos:
        token = lm.tokenizer.bos_token_id if lm.tokenizer.bos_token_id is not None else lm.tokenizer.eos_token_id
        if token is None:
            raise UserError(f"The tokenizer of {lm.name} has no BOS and no EOS token; use --convention minicons, which needs none.")
        texts = [Prompt((" " if how.space else "") + text, special=False) for text in sentences]
        ids = encode(lm.tokenizer, texts, Tokens("all"), causal=True).ids
        ids = Ragged.of(np.concatenate([[token], row]) for row in ids)
    else:
        ids = encode(lm.tokenizer, list(sentences), Tokens("all"), causal=True).ids
    n = len(pairs.good)
    if lm.context is not None and int(ids.lengths.max()) > lm.context:
        i = int(ids.lengths.argmax()) % n
        raise UserError(f"Pair {i} has {ids.lengths.max()} tokens and {lm.name} reads {lm.context}; leave it out.")
    if (ids.lengths < 2).any():
        i = int(np.argmin(ids.lengths)) % n
        raise UserError(f"A sentence of pair {i} is one token, which has nothing before it; use --convention lm-eval.")
    for i in range(n):
        if np.array_equal(ids[i], ids[n + i]):
            raise UserError(
                f"The sentences of pair {i} are the same tokens to {lm.name} ({pairs.good[i][:60]!r}); leave the pair out."
            )
    return ids, np.ones(len(ids), dtype=np.int64)


def minimal_pairs(
    lm: "LanguageModel",
    pairs: MinimalPairs,
    convention: str = "lm-eval",
    *,
    control: bool = False,
    batch_tokens: int | None = None,
    seed: int = 0,
) -> Result:
    """Accuracy of a model on minimal pairs, by phenomenon and by score.

    Parameters
    ----------
    lm, pairs, convention, batch_tokens
        As for `score_pairs`.
    control
        Whether the same network with random weights is scored too.
    seed
        Of the bootstrap and of the random weights.

    Returns
    -------
    Result
        `pair accuracy` per phenomenon and over all; the side table `pairs` has one row per pair.

    Raises
    ------
    UserError
        As `score_pairs`.
    """
    scored = score_pairs(lm, pairs, convention, batch_tokens=batch_tokens)
    rows = accuracy_rows(pairs.phenomenon, {score: scored.right(score) for score in SCORES}, seed=seed)
    rows += accuracy_rows(pairs.phenomenon, dict.fromkeys(SCORES, scored.fewer), condition=FEWER_TOKENS, seed=seed)
    rows += [_gain(scored, score, seed) for score in SCORES]
    if control:
        twin = score_pairs(lm.twin(seed), pairs, convention, batch_tokens=batch_tokens)
        rows += accuracy_rows(pairs.phenomenon, {score: twin.right(score) for score in SCORES}, condition=RANDOM_WEIGHTS, seed=seed)
    return Result.of(rows, side={"pairs": pair_table(scored)}, notes=pairs.notes)


def accuracy_rows(
    phenomenon: Sequence[str], right: dict[str, Float[np.ndarray, "pair"]], *, seed: int = 0, **where: Any
) -> list[Row]:
    """Accuracy of each phenomenon, with its interval over pairs, and their mean, with its interval over phenomena.

    `right` has the credit of each pair, by the name of the score.
    """
    names, codes = np.unique(np.array(phenomenon, dtype=object).astype(str), return_inverse=True)
    order = list(dict.fromkeys(phenomenon))
    found = []
    for score, held in right.items():
        at = {"metric": ACCURACY, "definition": score, "seed": seed, **where}
        means = {str(name): held[codes == i] for i, name in enumerate(names)}
        found += [Row.of(stats.proportion(means[name], unit="pair", seed=seed), item=name, **at) for name in order]
        if len(order) > 1:
            found.append(Row.of(stats.mean([means[name].mean() for name in order], unit="phenomenon", seed=seed), item=ALL, **at))
    return found


def _gain(scored: PairScores, score: str, seed: int) -> Row:
    """Accuracy minus that of the sentence with fewer tokens, over phenomena; over pairs where there is one phenomenon."""
    difference, names = scored.right(score) - scored.fewer, scored.pairs.phenomena
    at: dict[str, Any] = {"metric": "gain", "definition": f"accuracy, {score}", "condition": over(FEWER_TOKENS), "seed": seed}
    if len(names) == 1:
        return Row.of(stats.mean(difference, unit="pair", seed=seed), item=names[0], **at)
    means = [difference[scored.pairs.rows(name)].mean() for name in names]
    return Row.of(stats.mean(means, unit="phenomenon", seed=seed), item=ALL, **at)


def pair_table(scored: PairScores) -> Any:
    """One row per pair: phenomenon, both sentences, their summed log-probabilities and tokens, and whether each score is right."""
    import pandas as pd

    p = scored.pairs
    return pd.DataFrame(
        {
            "phenomenon": p.phenomenon,
            "good": p.good,
            "bad": p.bad,
            "good_logprob": scored.good,
            "bad_logprob": scored.bad,
            "good_tokens": scored.good_tokens,
            "bad_tokens": scored.bad_tokens,
            "right_sum": scored.right(SUM),
            "right_mean": scored.right(MEAN),
        }
    )
