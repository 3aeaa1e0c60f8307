"""Reward of networks and their divergence from reference networks in next tokens, with little noise.

1. A network completes prompts; seeds of prompts and samples are the caller's, so that two evaluations share their random numbers.
2. The expected reward replaces each sampled token by its probability of being good, given the tokens before it (the mean over the
   last draw is exact: Rao–Blackwell). The same for KL(network ‖ reference) in nats per token: a sum over the vocabulary at each
   position of the samples.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.models.loading.stacked_weights import State
from repscope.worlds.rewarded.task import PROMPT, RewardedWorlds, generator_of
from repscope.worlds.small_lm import transformer as stacked
from repscope.worlds.small_lm.transformer import Shape


@dataclass(frozen=True)
class Evaluator:
    """Evaluates stacked networks, network i in world i.

    reference: of the divergence; without it only the reward is evaluated. documents: sampled per network. seed: of prompts and
    samples. stage: what it is for; other stages have other random numbers.
    """

    shape: Shape
    worlds: RewardedWorlds
    reference: State | None
    documents: int
    seed: int
    stage: str = "choose"

    @torch.no_grad()
    def __call__(self, state: State) -> dict[str, Float[np.ndarray, "network"]]:
        """Reward of each network, and its KL from the reference."""
        return self._evaluated(state, self.reference)

    @torch.no_grad()
    def reward(self, state: State) -> Float[np.ndarray, "network"]:
        """The reward alone, without a pass of the reference; the same numbers."""
        return self._evaluated(state, None)["reward"]

    def _evaluated(self, state: State, reference: State | None) -> dict[str, Float[np.ndarray, "network"]]:
        documents = samples(self.shape, state, self.worlds, self.documents, (self.seed, self.stage))
        p = log_probabilities(self.shape, state, documents)
        found = {"reward": p.exp()[..., 1 : self.worlds.good + 1].sum(-1)}
        if reference is not None:
            found["KL"] = (p.exp() * (p - log_probabilities(self.shape, reference, documents))).sum(-1)
        return {name: each.mean((1, 2)).double().numpy() for name, each in found.items()}


@torch.no_grad()
def samples(
    shape: Shape, state: State, worlds: RewardedWorlds, documents: int, seed: tuple[int | str, ...]
) -> Int[Tensor, "network document token"]:
    """Prompts of the corpus, completed by each network."""
    prompts = worlds.prompts(documents, generator_of(*seed, "prompts"))
    return stacked.generate(shape, state, prompts, worlds.completion, generator_of(*seed, "samples"))


def log_probabilities(
    shape: Shape, state: State, documents: Int[Tensor, "network document token"]
) -> Float[Tensor, "network document position token"]:
    """Log-probabilities of next tokens at each position of the completion. Differentiable."""
    return stacked.logits(shape, state, documents[..., :-1])[:, :, PROMPT - 1 :].log_softmax(-1)


def of_completions(
    shape: Shape, state: State, documents: Int[Tensor, "network document token"]
) -> Float[Tensor, "network document position"]:
    """Log-probability of each token of the completions. Differentiable."""
    found = log_probabilities(shape, state, documents)
    return found.gather(-1, documents[..., PROMPT:, None])[..., 0]
