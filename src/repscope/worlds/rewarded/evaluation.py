"""Reward of networks and their divergence from reference networks in next tokens, with little noise.

1. A network completes prompts; seeds of prompts and samples are the caller's, so that two evaluations share their random numbers.
2. The expected reward replaces each sampled token by its probability of being good, given the tokens before it (the mean over the
   last draw is exact: Rao–Blackwell). The same for KL(network ‖ reference) in nats per token: a sum over the vocabulary at each
   position of the samples.
3. Networks do not depend on each other, so that each of torch's threads has some of them: products this small gain nothing from
   being divided. All random numbers are drawn before, for all networks, so that the numbers are those of one thread.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.models.loading.stacked_weights import State, runs_of, select_runs
from repscope.worlds.hans.stacked import in_threads
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
        prompts = self.worlds.prompts(self.documents, generator_of(self.seed, self.stage, "prompts"))
        generator = generator_of(self.seed, self.stage, "samples")
        noise = stacked.races(prompts.shape[:2], self.shape.vocab, self.worlds.completion, generator)
        found: dict[str, Any] = {name: np.empty(runs_of(state)) for name in ("reward", "KL")}

        @torch.no_grad()  # a thread of its own does not inherit it
        def evaluate(places: list[int]) -> None:
            own = select_runs(state, places)
            documents = stacked.generate(self.shape, own, prompts[places], self.worlds.completion, [e[places] for e in noise])
            p = log_probabilities(self.shape, own, documents)
            found["reward"][places] = p.exp()[..., 1 : self.worlds.good + 1].sum(-1).mean((1, 2)).double().numpy()
            if reference is not None:
                q = log_probabilities(self.shape, select_runs(reference, places), documents)
                found["KL"][places] = (p.exp() * (p - q)).sum(-1).mean((1, 2)).double().numpy()

        parts = np.array_split(np.arange(runs_of(state)), min(torch.get_num_threads(), runs_of(state)))
        in_threads(evaluate, [part.tolist() for part in parts])
        return found if reference is not None else {"reward": found["reward"]}


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
