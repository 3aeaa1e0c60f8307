"""Learners of a grammar's corpus, and how well they tell good sentences from bad ones as they learn.

1. GPT-2 layouts and GRUs, one stack of networks per kind: each network has its own initial weights and its own corpus.
2. At checkpoints, spaced evenly in the logarithm of the step: loss on held-out sentences (nats per token), and for every pair the
   difference of the summed log-probabilities, and of those per token.
3. n-gram models of the same corpora at the same checkpoints: interpolated by Witten & Bell (1991), without settings.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError, unknown
from repscope.models.loading.stacked_weights import State
from repscope.worlds.grammar.sentences import Grammar, Pairs
from repscope.worlds.small_lm import recurrent, transformer
from repscope.worlds.small_lm.training import Logits, Training, next_token_loss, train_by

LENGTH, BATCH = 24, 16
_HELD_OUT = 64  #: documents


@dataclass(frozen=True, eq=False)
class Curves:
    """What learners of one kind did. steps: (step), of training. losses: nats per token on held-out documents. sums, means: good
    minus bad sentence, summed log-probability and per token."""

    kind: str
    steps: Int[np.ndarray, "step"]
    losses: Float[np.ndarray, "run step"]
    sums: Float[np.ndarray, "run step pair"]
    means: Float[np.ndarray, "run step pair"]


def _gpt2(width: int, layers: int, vocab: int, seeds: list[int]) -> tuple[Logits, State]:
    shape = transformer.Shape(vocab, LENGTH, width, layers, heads=4)
    return partial(transformer.logits, shape), transformer.initial(shape, seeds)


def _gru(width: int, vocab: int, seeds: list[int]) -> tuple[Logits, State]:
    shape = recurrent.Shape("gru", vocab, width)
    return partial(recurrent.logits, shape), recurrent.initial(shape, seeds)


NETWORKS: dict[str, Callable[[int, list[int]], tuple[Logits, State]]] = {
    "GPT-2 64 × 2": partial(_gpt2, 64, 2),
    "GPT-2 32 × 1": partial(_gpt2, 32, 1),
    "GRU 64": partial(_gru, 64),
}
NGRAMS = {"2-gram": 2, "3-gram": 3, "5-gram": 5}
KINDS = (*NETWORKS, *NGRAMS)


def checkpoints(steps: int, count: int) -> Int[np.ndarray, "step"]:
    """Steps at which learners are evaluated: the first ones and the last, evenly in the logarithm."""
    found: np.ndarray = np.unique(np.geomspace(4, steps, count).round().astype(np.int64))
    return found


def learn(kind: str, grammar: Grammar, pairs: Pairs, runs: int, steps: int, count: int = 16, *, seed: int = 0) -> Curves:
    """Train learners of a kind and evaluate them at checkpoints.

    Raises
    ------
    UserError
        For an unknown kind, or a single run, which has no order to share.
    """
    if kind not in KINDS:
        raise unknown("kind of learner", kind, KINDS)
    if runs < 2:
        raise UserError(f"{runs} run has no order to share; train at least 2.")
    at = checkpoints(steps, count)
    heldout = grammar.corpus(_HELD_OUT, LENGTH, np.random.default_rng([seed, 1]))
    corpora = _corpora(grammar, runs, steps + 1, seed)
    if kind in NGRAMS:
        return _ngrams(kind, grammar, pairs, heldout, corpora, at)
    seeds = [7919 * seed + 31 * i + 1 for i in range(runs)]
    logits, start = NETWORKS[kind](len(grammar.words), seeds)
    held: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    loss_of = next_token_loss(logits, lambda step: corpora[step].long())
    wanted = {int(step) for step in at}

    def loss(state: State, step: int) -> Float[Tensor, "network"]:
        if step in wanted:
            with torch.no_grad():
                held.append(_evaluated(partial(logits, state), heldout, pairs, runs))
        return loss_of(state, step)

    schedule = Training(steps + 1, rate=3e-3, warm_up=max(1, min(50, steps // 4)))
    train_by(loss, start, schedule, title=f"{kind}, {grammar.name}")
    losses, sums, means = (np.stack(each, axis=1) for each in zip(*held))
    return Curves(kind, at, losses, sums, means)


@lru_cache(maxsize=2)  # learners of all kinds read the same corpora, and writing one takes longer than reading it
def _corpora(grammar: Grammar, runs: int, steps: int, seed: int) -> Int[Tensor, "step run document token"]:
    """What each run reads at each step."""
    rngs = [np.random.default_rng([seed, 2, run]) for run in range(runs)]
    each = [torch.stack([grammar.corpus(BATCH, LENGTH + 1, rng) for rng in rngs]) for _ in range(steps)]
    return torch.stack(each).short()


def _evaluated(
    logits: Callable[[Tensor], Tensor], heldout: Int[Tensor, "document token"], pairs: Pairs, runs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Held-out loss of each network, and its margins on each pair."""
    tokens = heldout.expand(runs, -1, -1)
    nats = -_nats(logits, tokens).double().mean((1, 2)).numpy()
    sums, means = [], []
    for side, length in ((pairs.good, pairs.good_length), (pairs.bad, pairs.bad_length)):
        each = _nats(logits, side.expand(runs, -1, -1)).double()
        scored = torch.arange(each.shape[-1]) < length[:, None]
        sums.append((each * scored).sum(-1).numpy())
        means.append(sums[-1] / length.numpy())
    return nats, sums[0] - sums[1], means[0] - means[1]


def _nats(logits: Callable[[Tensor], Tensor], tokens: Int[Tensor, "run row token"]) -> Float[Tensor, "run row token"]:
    """Log-probability of every token but the first."""
    found = logits(tokens[..., :-1])
    own = found.gather(-1, tokens[..., 1:, None])[..., 0]
    return own - found.logsumexp(-1)


class NGrams:
    """Counts of up to n tokens, and the probability of a token after a context: Witten–Bell interpolation down to a uniform one.

    P(w | h) = (count(h w) + kinds(h) P(w | h')) / (count(h) + kinds(h)), with kinds the number of different tokens after h, and
    h' the context without its first token.
    """

    def __init__(self, order: int, vocabulary: int) -> None:
        self.order, self.vocabulary = order, vocabulary
        self.counts: list[dict[tuple[int, ...], dict[int, int]]] = [defaultdict(dict) for _ in range(order)]
        self._totals: dict[tuple[int, ...], int] = defaultdict(int)

    def add(self, document: list[int]) -> None:
        """Count a document."""
        for at in range(1, len(document)):
            for k in range(min(self.order, at + 1)):
                context = tuple(document[at - k : at])
                after = self.counts[k][context]
                after[document[at]] = after.get(document[at], 0) + 1
                self._totals[context] += 1

    def probability(self, context: tuple[int, ...], token: int) -> float:
        """Of a token after the last tokens of a context."""
        found = 1 / self.vocabulary
        for k in range(min(self.order, len(context) + 1)):
            some = context[len(context) - k :]
            after = self.counts[k].get(some)
            if after is None:  # a longer context was never seen either
                break
            kinds = len(after)
            found = (after.get(token, 0) + kinds * found) / (self._totals[some] + kinds)
        return found

    def nats(self, document: list[int]) -> Float[np.ndarray, "token"]:
        """Log-probability of every token but the first, in nats."""
        n = self.order - 1
        contexts = (tuple(document[max(0, at - n) : at]) for at in range(1, len(document)))
        return np.log([self.probability(context, token) for context, token in zip(contexts, document[1:])])


def _ngrams(
    kind: str,
    grammar: Grammar,
    pairs: Pairs,
    heldout: Int[Tensor, "document token"],
    corpora: Int[Tensor, "step run document token"],
    at: Int[np.ndarray, "step"],
) -> Curves:
    """n-gram models that have read as many documents as networks at each checkpoint."""
    models: list[NGrams] = []
    held: list[tuple[np.ndarray, ...]] = []
    sides = [
        [row[: 1 + int(n)].tolist() for row, n in zip(rows, lengths)]
        for rows, lengths in ((pairs.good, pairs.good_length), (pairs.bad, pairs.bad_length))
    ]
    some = heldout[: _HELD_OUT // 2].tolist()
    for step in range(int(at[-1]) + 1):
        if step in at:
            scores = [[[m.nats(row) for row in rows] for rows in sides] for m in models]
            losses = np.array([-np.mean([m.nats(row).mean() for row in some]) for m in models])
            sums = np.array([[[each.sum() for each in side] for side in both] for both in scores])
            means = np.array([[[each.mean() for each in side] for side in both] for both in scores])
            held.append((losses, sums[:, 0] - sums[:, 1], means[:, 0] - means[:, 1]))
        batch = corpora[step]
        models = models or [NGrams(NGRAMS[kind], len(grammar.words)) for _ in batch]
        for model, documents in zip(models, batch.tolist()):
            for document in documents:
                model.add(document)
    losses, sums, means = (np.stack(each, axis=1) for each in zip(*held))
    return Curves(kind, at, losses, sums, means)
