"""Local learning coefficients of stacked networks: Langevin chains of all of them at once, each with its own n beta and noise.

As `learning_coefficient`, with random batches and therefore without Metropolis's rule:

1. w <- w - e / 2 (n beta dL/dw + localisation (w - w*)) + sqrt(e) noise, for every network by itself; n beta is n / ln n.
2. lambda = n beta times the mean, over draws after the burn-in, of L(w) - L(w*), both on the batch of the draw. The batches are the
   same in all chains and at the start, so that their noise cancels.
3. The chain is as short as its steps: what it has not reached does not count. So values of one setting compare checkpoints, and say
   nothing of half the number of weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.loading.stacked_weights import State

BatchLoss = Callable[[State, int], Float[Tensor, "network"]]  #: weights and number of a batch → each network's mean loss


@dataclass(frozen=True)
class ChainSettings:
    """Settings. rate: e. localisation: of the pull to the start. chains, draws, burn_in: numbers of chains, and of their steps.

    Raises a `UserError` for numbers that sample nothing.
    """

    rate: float
    localisation: float
    chains: int = 2
    draws: int = 60
    burn_in: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that sample nothing."""
        if self.chains < 1 or self.draws < 2 or self.burn_in < 0 or not self.rate > 0 or self.localisation < 0:
            raise UserError("Chains need a rate above 0, a localisation not below 0, two draws and a chain.")


@dataclass(frozen=True, eq=False)
class StackedCoefficients:
    """values: of every network and chain; NaN where a chain left for an infinite loss. traces: L(w) - L(w*) at each draw."""

    values: Float[np.ndarray, "network chain"]
    traces: Float[np.ndarray, "chain draw network"]

    @property
    def drift(self) -> Float[np.ndarray, "network"]:
        """Mean of the second half of the draws minus that of the first, as a share of the mean; far from 0 a chain still moves."""
        half = self.traces.shape[1] // 2
        mean = self.traces.mean((0, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            found: np.ndarray = (self.traces[:, half:].mean((0, 1)) - self.traces[:, :half].mean((0, 1))) / mean
        return found


def stacked_coefficients(
    loss: BatchLoss, start: State, n: Int[np.ndarray, "network"] | Float[np.ndarray, "network"], settings: ChainSettings
) -> StackedCoefficients:
    """The local learning coefficient of every network of a stack.

    Parameters
    ----------
    loss
        (weights, number of a batch) → mean loss of each network on its batch, differentiable.
    start
        Weights, the networks on the leading axis.
    n
        Training examples of each network.
    settings
        Of the chains.

    Raises
    ------
    UserError
        For fewer than three examples, or when the loss at the start is not a number.
    """
    if np.asarray(n).min() < 3:
        raise UserError("A learning coefficient needs three training examples or more per network.")
    n_beta = torch.from_numpy(np.asarray(n / np.log(n), dtype=np.float32))
    s = settings
    with torch.no_grad():
        before = torch.stack([loss(start, s.burn_in + draw) for draw in range(s.draws)]).double()
    if not bool(torch.isfinite(before).all()):
        raise UserError("The loss at the trained weights is not a number; the training diverged, or the batch is empty.")
    traces = torch.full((s.chains, s.draws, len(n)), torch.nan, dtype=torch.float64)
    for chain in range(s.chains):
        generator = torch.Generator().manual_seed(1_000_003 * s.seed + chain)
        weights = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
        for step in range(s.burn_in + s.draws):
            with torch.enable_grad():
                each = loss(weights, step)
                slopes = torch.autograd.grad(each.sum(), list(weights.values()), allow_unused=True)
            if step >= s.burn_in:
                traces[chain, step - s.burn_in] = each.detach().double() - before[step - s.burn_in]
            _moved(weights, start, slopes, n_beta, s, generator)
    values = n_beta.double() * traces.mean(1)
    values = torch.where(torch.isfinite(values), values, torch.nan)
    return StackedCoefficients(values.T.contiguous().numpy(), traces.numpy())


@torch.no_grad()
def _moved(
    weights: State,
    start: State,
    slopes: tuple[Tensor | None, ...],
    n_beta: Float[Tensor, "network"],
    settings: ChainSettings,
    generator: torch.Generator,
) -> None:
    """One Langevin step, in place."""
    for (name, value), slope in zip(weights.items(), slopes):
        pull = settings.localisation * (value - start[name])
        if slope is not None:
            pull += slope * n_beta.view(-1, *(1,) * (value.dim() - 1))
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        value.add_(pull, alpha=-settings.rate / 2).add_(noise, alpha=sqrt(settings.rate))
