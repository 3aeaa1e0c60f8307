"""Six ways of training stacked networks towards a reward, one update at a time.

`sft`: cross-entropy of given completions. Three sources of completions: another process, samples of a policy trained by RL (which
separates the loss from the data), and the best of the network's own samples before training.
`dpo` (Rafailov et al. 2023, eq. 7): pairs of completions by the network before training, the one with more reward is chosen; the
reference is an explicit copy of that network, so the first loss is log 2.
`reinforce`: own samples, advantage = reward minus the mean of the batch. `grpo` (Shao et al. 2024): groups of samples of one
prompt, advantage = (reward − mean) / standard deviation of the group, ratio clipped, two updates per batch, no KL penalty.

All use AdamW without weight decay, one learning rate, the same number of documents per update. Batches follow from the seed and the
step. A run with `rounded` weights rounds them to bfloat16 after every update, as training in that precision does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.models.loading.stacked_weights import State, runs_of
from repscope.worlds.hans.stacked import one_thread
from repscope.worlds.rewarded.descent import Descent
from repscope.worlds.rewarded.evaluation import of_completions, samples
from repscope.worlds.rewarded.task import RewardedWorlds, generator_of
from repscope.worlds.small_lm.transformer import Shape

Loss = Literal["sft", "dpo", "reinforce", "grpo"]
BETA = 0.1  #: of DPO
CLIP = 0.2  #: of GRPO's ratio
GROUP = 8  #: GRPO's samples per prompt
UPDATES = 2  #: GRPO's updates per batch


@dataclass(frozen=True)
class Method:
    """A way of training. name: in tables. loss: its loss. source: of its completions, a key of the data that a run is given."""

    name: str
    loss: Loss
    source: str = ""


OFF_POLICY = "SFT, demonstrations"
RL_SAMPLES = "SFT, samples of RL"
BEST = "SFT, best of base"
DPO, REINFORCE, GRPO = "DPO", "REINFORCE", "GRPO"
METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(OFF_POLICY, "sft", "demonstrations"),
        Method(RL_SAMPLES, "sft", "samples of RL"),
        Method(BEST, "sft", "best of base"),
        Method(DPO, "dpo", "pairs"),
        Method(REINFORCE, "reinforce"),
        Method(GRPO, "grpo"),
    )
}


@dataclass
class Tuning:
    """Training of stacked networks, network i in world i, by one method.

    shape, start: the networks before training. data: completions by source, (network, document, token); of pairs, documents of the
    networks before training. rate: of AdamW. documents: per update; of DPO pairs. seed: of every batch. rounded: weights in
    bfloat16.
    """

    shape: Shape
    start: State
    worlds: RewardedWorlds
    method: Method
    data: Mapping[str, Int[Tensor, "network document token"]]
    rate: float
    documents: int = 64
    seed: int = 0
    rounded: bool = False
    step: int = 0
    losses: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Copy the weights and make their optimiser; of DPO, the log-probabilities of the reference."""
        first = {name: _rounded(v) if self.rounded else v.detach().clone() for name, v in self.start.items()}
        self._weights = {name: v.requires_grad_() for name, v in first.items()}
        self._descent = Descent(self._weights)
        self._batch: tuple[Tensor, Tensor, Tensor] | None = None
        if self.method.loss == "dpo":
            pool = self.data[self.method.source]
            with torch.no_grad():
                self._reference = torch.cat(
                    [of_completions(self.shape, self.start, part).sum(-1) for part in torch.split(pool, 512, 1)], 1
                )
            self._rewards = self.worlds.reward(pool)

    @property
    def state(self) -> State:
        """A copy of the weights."""
        return {name: v.detach().clone() for name, v in self._weights.items()}

    @property
    def flops(self) -> float:
        """Floating-point operations per update and network: 6 per weight and token trained, 2 per token sampled or scored."""
        weights = sum(v[0].numel() for v in self.start.values())
        trained = {"sft": 1, "dpo": 2, "reinforce": 1, "grpo": 1}[self.method.loss]
        read = {"sft": 0.0, "dpo": 4.0, "reinforce": 1.0, "grpo": 1 / UPDATES}[self.method.loss]  # DPO samples and scores its pairs
        return weights * self.documents * self.worlds.length * (6 * trained + 2 * read)

    def update(self) -> Float[np.ndarray, "network"]:
        """One update of every network; its losses before it."""
        with one_thread(), torch.enable_grad():
            each = self._loss()
            self._descent.update(each.sum(), self.rate)
            if self.rounded:
                with torch.no_grad():
                    for v in self._weights.values():
                        v.copy_(_rounded(v))
        found: np.ndarray = each.detach().double().numpy()
        if self.method.loss == "dpo" and not self.step and not self.rounded and np.abs(found - math.log(2)).max() > 1e-4:
            raise RuntimeError(f"the first loss of DPO is {found}, not log 2: its reference is not the network before training")
        self.step += 1
        self.losses.append(found)
        return found

    def _loss(self) -> Float[Tensor, "network"]:
        loss, n = self.method.loss, self.documents
        if loss == "sft":
            return -of_completions(self.shape, self._weights, _taken(self.data[self.method.source], self._drawn(n))).mean((1, 2))
        if loss == "dpo":
            return self._preferences(self._drawn(n), self._drawn(n, "second"))
        if loss == "reinforce":
            with torch.no_grad():
                documents = samples(self.shape, self.state, self.worlds, n, self._key())
                rewards = self.worlds.reward(documents)
                advantage = rewards - rewards.mean(1, keepdim=True)
            return -(advantage * of_completions(self.shape, self._weights, documents).sum(-1)).mean(1)
        return self._clipped(n)

    def _preferences(self, a: Tensor, b: Tensor) -> Float[Tensor, "network"]:
        """DPO's loss on pairs; pairs of equal reward teach nothing and are left out."""
        pool = self.data[self.method.source]
        swap = self._rewards.gather(1, a) < self._rewards.gather(1, b)
        chosen, rejected = torch.where(swap, b, a), torch.where(swap, a, b)
        unequal = (self._rewards.gather(1, chosen) > self._rewards.gather(1, rejected)).float()
        both = torch.cat([_taken(pool, chosen), _taken(pool, rejected)], 1)
        own = of_completions(self.shape, self._weights, both).sum(-1) - self._reference.gather(1, torch.cat([chosen, rejected], 1))
        margin = own[:, : chosen.shape[1]] - own[:, chosen.shape[1] :]
        each = -torch.nn.functional.logsigmoid(BETA * margin)
        return (each * unequal).sum(1) / unequal.sum(1).clamp_min(1)

    def _clipped(self, n: int) -> Float[Tensor, "network"]:
        """GRPO's clipped objective; every second update has the batch and the old probabilities of the one before."""
        group = min(GROUP, n)
        if self._batch is None or self.step % UPDATES == 0:
            with torch.no_grad():
                documents = self._groups(n // group, group)
                rewards = self.worlds.reward(documents).view(len(documents), -1, group)
                advantage = (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-4)
                self._batch = documents, advantage.flatten(1), of_completions(self.shape, self._weights, documents)
        documents, advantage, before = self._batch
        ratio = (of_completions(self.shape, self._weights, documents) - before).exp()
        gain = torch.minimum(ratio * advantage[..., None], ratio.clamp(1 - CLIP, 1 + CLIP) * advantage[..., None])
        return -gain.mean((1, 2))

    def _groups(self, prompts: int, group: int) -> Int[Tensor, "network document token"]:
        from repscope.worlds.small_lm import transformer as stacked

        key = self._key()
        starts = self.worlds.prompts(prompts, generator_of(*key, "prompts")).repeat_interleave(group, 1)
        return stacked.generate(self.shape, self.state, starts, self.worlds.completion, generator_of(*key, "samples"))

    def _key(self) -> tuple[int | str, ...]:
        return self.seed, self.method.name, self.step

    def _drawn(self, n: int, part: str = "first") -> Int[Tensor, "network document"]:
        pool = self.data[self.method.source].shape[1]
        return torch.randint(pool, (runs_of(self.start), n), generator=generator_of(*self._key(), part))


def _taken(
    pool: Int[Tensor, "network pool token"], index: Int[Tensor, "network document"]
) -> Int[Tensor, "network document token"]:
    return pool.gather(1, index[..., None].expand(*index.shape, pool.shape[-1]))


def _rounded(weights: Tensor) -> Tensor:
    """Weights as bfloat16 stores them."""
    return weights.detach().bfloat16().to(weights.dtype)
