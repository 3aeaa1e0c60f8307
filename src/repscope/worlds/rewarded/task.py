"""Corpora of Markov chains, demonstrations of another process, and the reward: the share of good tokens. One world per network.

1. A document is a start token, a prompt of one token, and a completion. Its topic (one of two, drawn per document) decides which
   chain its tokens follow: what a network learns in pretraining is the chains, and which of them a document follows.
2. The reward of a document is the share of good tokens in its completion. Good tokens are as frequent as others in the corpus.
3. Demonstrations follow a third chain, in which the weights of good tokens are raised: an expert that is not a variant of the
   corpus.

Every world has chains of its own, drawn from its seed, so that an interval over seeds is one over worlds, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError

START = 0  #: the token with which every document begins
PROMPT = 2  #: tokens before the completion: the start and the prompt
TOPICS = 2


@dataclass(frozen=True)
class RewardedWorlds:
    """Worlds, one per seed, that differ in their chains only.

    vocabulary: tokens with the start token. good: number of good tokens, which are 1 … good. completion: tokens of a completion.
    sharpness: standard deviation of the logits of the chains. lift: factor of the weights of good tokens in demonstrations.

    Raises a `UserError` for sizes that leave no other token or no completion.
    """

    seeds: tuple[int, ...]
    vocabulary: int = 24
    good: int = 6
    completion: int = 12
    sharpness: float = 2.0
    lift: float = 12.0

    def __post_init__(self) -> None:
        """Refuse worlds without a good token, without another one, or without a completion."""
        if not 0 < self.good < self.vocabulary - 1 or self.completion < 1 or not self.seeds:
            raise UserError(f"{self} has no good tokens, no others, no completion or no seed; every number has to be at least 1.")

    @property
    def length(self) -> int:
        """Tokens of a document."""
        return PROMPT + self.completion

    @cached_property
    def chains(self) -> Float[Tensor, "world chain token token"]:
        """Transition probabilities: of each topic, then of the demonstrations. No chain returns to the start token."""
        drawn = []
        for seed in self.seeds:
            generator = torch.Generator().manual_seed(_number(seed, "chains"))
            chains = torch.randn(TOPICS + 1, self.vocabulary, self.vocabulary, generator=generator, dtype=torch.float64)
            weights = (self.sharpness * chains).softmax(-1)
            weights[:, :, START] = 0
            weights[TOPICS, :, 1 : self.good + 1] *= self.lift
            drawn.append(weights / weights.sum(-1, keepdim=True))
        return torch.stack(drawn)

    @cached_property
    def stationary(self) -> Float[Tensor, "world chain token"]:
        """How often each token occurs in a long document of each chain."""
        share = torch.full(self.chains.shape[:-1], 1 / self.vocabulary, dtype=torch.float64)
        for _ in range(400):
            share = (share[..., None, :] @ self.chains)[..., 0, :]
        return share

    @property
    def entropy(self) -> Float[np.ndarray, "world"]:
        """Nats per token that remain for a reader who knows the chains and the topic: the floor of the loss on the corpus."""
        each = -(self.chains * self.chains.clamp_min(1e-300).log()).sum(-1)
        return np.asarray((self.stationary * each).sum(-1)[:, :TOPICS].mean(-1))

    def corpus(
        self, documents: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "world document token"], Int[Tensor, "world document"]]:
        """Documents of the corpus, and their topics."""
        topics = torch.randint(TOPICS, (len(self.seeds), documents), generator=generator)
        return self._documents(topics, self._prompts(topics, generator), generator), topics

    def prompts(self, documents: int, generator: torch.Generator) -> Int[Tensor, "world document 2"]:
        """Prompts as in the corpus: the start token and one more."""
        topics = torch.randint(TOPICS, (len(self.seeds), documents), generator=generator)
        return self._prompts(topics, generator)

    def demonstrations(self, documents: int, generator: torch.Generator) -> Int[Tensor, "world document token"]:
        """Completions of the corpus's prompts by the other process."""
        prompts = self.prompts(documents, generator)
        return self._documents(torch.full(prompts.shape[:2], TOPICS), prompts, generator)

    def reward(self, documents: Int[Tensor, "*batch token"]) -> Float[Tensor, "*batch"]:
        """Share of good tokens in each completion."""
        completion = documents[..., PROMPT:]
        return ((completion >= 1) & (completion <= self.good)).float().mean(-1)

    def select(self, worlds: Sequence[int]) -> "RewardedWorlds":
        """These worlds, in this order."""
        seeds = tuple(self.seeds[i] for i in worlds)
        return RewardedWorlds(seeds, self.vocabulary, self.good, self.completion, self.sharpness, self.lift)

    def _prompts(self, topics: Int[Tensor, "world document"], generator: torch.Generator) -> Int[Tensor, "world document 2"]:
        shares = self.stationary.cumsum(-1).flatten(0, 1)[self._rows(topics)]
        first = _drawn(shares, generator)
        return torch.stack([torch.full_like(first, START), first], -1)

    def _documents(self, chain: Tensor, prompts: Tensor, generator: torch.Generator) -> Int[Tensor, "world document token"]:
        shares = self.chains.cumsum(-1).flatten(0, 2)
        rows, tokens = self._rows(chain), [*prompts.unbind(-1)]
        for _ in range(self.completion):
            tokens.append(_drawn(shares[rows * self.vocabulary + tokens[-1]], generator))
        return torch.stack(tokens, -1)

    def _rows(self, chain: Int[Tensor, "world document"]) -> Int[Tensor, "world document"]:
        return chain + (TOPICS + 1) * torch.arange(len(self.seeds))[:, None]


def generator_of(*parts: int | str) -> torch.Generator:
    """A generator of random numbers of its own for each combination of parts (seeds, purposes, steps)."""
    return torch.Generator().manual_seed(_number(*parts))


def _number(*parts: int | str) -> int:
    entropy = [p if isinstance(p, int) else int.from_bytes(p.encode()[:16].ljust(16, b" "), "little") for p in parts]
    return int(np.random.SeedSequence(entropy).generate_state(2, np.uint32).astype(np.uint64) @ np.array([1, 2**31], np.uint64))


def _drawn(shares: Float[Tensor, "world document token"], generator: torch.Generator) -> Int[Tensor, "world document"]:
    """A token per row of cumulative shares."""
    u = torch.rand(shares.shape[:-1], generator=generator, dtype=torch.float64)
    return (shares < u[..., None]).sum(-1).clamp_max(shares.shape[-1] - 1)
