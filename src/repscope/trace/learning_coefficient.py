"""Local learning coefficient of a trained network by Langevin sampling, for any module and loss.

lambda = n beta (E[L(w)] - L(w*)), the expectation over the posterior exp(-n beta L(w) - gamma |w - w*|^2 / 2) around the trained
weights w* (Lau et al. 2023, arXiv 2308.12108). Small values say that few directions matter: d / 2 for a quadratic of d dimensions,
less for a degenerate minimum.

1. Langevin steps of the rate e: w <- w - e / 2 (n beta dL/dw + gamma (w - w*)) + sqrt(e) noise. With `adjusted`, Metropolis's rule
   accepts each step or not (MALA): then the rate has no bias; it needs the same loss at every call, so no random batches.
2. Only draws after the burn-in count, and never the start: their mean loss minus L(w*).
3. Without it, the rate makes the estimate too high: of a direction of curvature h by the factor 1 / (1 - e n beta h / 4).
   Localisation makes it too low: by n beta h / (n beta h + gamma). `calibration` sweeps both; a plateau is what to look for.
4. Chains that leave for an infinite loss are counted, not averaged. The module is left as it was found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, log, sqrt

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from repscope import stats
from repscope.errors import UserError
from repscope.progress import progress
from repscope.stats import Estimate

_LEAST_ACCEPTED = 0.2
LossOf = Callable[[nn.Module, torch.Generator], Tensor]  #: module, and random numbers for a batch → mean loss


@dataclass(frozen=True)
class Sampling:
    """Settings. n: training examples. beta: inverse temperature, 1 / ln n if None. rate: e. localisation: gamma.

    chains, draws, burn_in: numbers of chains, and of steps that count and that do not. adjusted: Metropolis's rule.

    Raises a `UserError` for numbers that sample nothing.
    """

    n: int
    beta: float | None = None
    rate: float = 1e-5
    localisation: float = 1.0
    chains: int = 4
    draws: int = 200
    burn_in: int = 100
    adjusted: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that sample nothing."""
        if self.n < 3 or self.chains < 2 or self.draws < 2 or self.burn_in < 0:
            raise UserError("Sampling needs three training examples, two chains (for an interval) and two draws.")
        if not self.rate > 0 or self.localisation < 0 or not (self.beta is None or self.beta > 0):
            raise UserError("The rate and beta must be above 0, and the localisation not below 0.")

    @property
    def n_beta(self) -> float:
        """n beta."""
        return self.n * (1 / log(self.n) if self.beta is None else self.beta)


@dataclass(frozen=True, eq=False)
class LearningCoefficient:
    """The estimate with its interval over chains, and what shows whether to trust it.

    traces: loss at each step, burn-in included. start: L(w*). accepted: share of steps that were taken (1 without Metropolis's
    rule). diverged: chains without a finite loss, which are left out. drift: mean of the second half of the draws minus the first,
    in units of the coefficient; far from 0 the burn-in is too short.
    """

    estimate: Estimate
    traces: Float[np.ndarray, "chain step"]
    start: float
    n_beta: float
    accepted: float
    diverged: int
    drift: float
    burn_in: int

    @property
    def warning(self) -> str:
        """Why not to trust it, in one sentence; "" if nothing shows."""
        if self.diverged:
            return f"{self.diverged} of {len(self.traces)} chains left for an infinite loss; lower the rate."
        if self.estimate.value < 0:
            return "The estimate is below 0: the weights are not at a minimum; train longer, or raise the localisation."
        if self.accepted < _LEAST_ACCEPTED:
            return f"Only {100 * self.accepted:.0f} % of the steps were accepted, so chains hardly move; lower the rate."
        if abs(self.drift) > 0.5 * abs(self.estimate.value):
            return "The loss still drifts over the draws; raise the burn-in."
        return ""

    def frame(self) -> pd.DataFrame:
        """The traces as a table: chain, step, loss, and whether the step is burn-in."""
        chains, steps = self.traces.shape
        at = np.tile(np.arange(steps), chains)
        return pd.DataFrame(
            {"chain": np.repeat(np.arange(chains), steps), "step": at, "loss": self.traces.ravel(), "burn-in": at < self.burn_in}
        )


def learning_coefficient(module: nn.Module, loss: LossOf, sampling: Sampling) -> LearningCoefficient:
    """The local learning coefficient of a module at its present weights.

    Parameters
    ----------
    module
        Trained; only parameters that require gradients are sampled. Its mode (training or evaluation) is not changed.
    loss
        (module, random numbers) → mean loss over the data or a batch drawn by those numbers, differentiable.
    sampling
        Settings.

    Raises
    ------
    UserError
        When no parameter is trained, the loss at the start is not a number, or every chain diverges.
    """
    weights = [p for p in module.parameters() if p.requires_grad]
    if not weights:
        raise UserError("No parameter of the module requires gradients, so there is nothing to sample; unfreeze the weights.")
    start = [p.detach().clone() for p in weights]
    grads = [p.grad for p in weights]
    traces, taken = np.full((sampling.chains, sampling.burn_in + sampling.draws), np.nan), 0.0
    try:
        first = _start(module, loss, sampling)
        with progress("Langevin chains", sampling.chains) as advance:
            for chain in range(sampling.chains):
                generator = torch.Generator().manual_seed(1_000_003 * sampling.seed + chain)
                traces[chain], share = _chain(module, loss, sampling, weights, start, generator)
                taken += share / sampling.chains
                advance(1)
    finally:
        with torch.no_grad():
            for p, value, grad in zip(weights, start, grads):
                p.copy_(value)
                p.grad = grad
    finite = np.isfinite(traces).all(1)
    if finite.sum() < 2:
        raise UserError(
            f"{int((~finite).sum())} of {len(traces)} chains left for an infinite loss; lower the rate of {sampling.rate:g}."
        )
    if not taken:
        raise UserError(
            f"Metropolis's rule accepted no step, so the chains never left the start; lower the rate of {sampling.rate:g}."
        )
    draws = traces[finite, sampling.burn_in :]
    each = sampling.n_beta * (draws.mean(1) - first)
    half = draws.shape[1] // 2
    drift = sampling.n_beta * float(draws[:, half:].mean() - draws[:, :half].mean())
    estimate = stats.mean(each, unit="chain", seed=sampling.seed)
    return LearningCoefficient(estimate, traces, first, sampling.n_beta, taken, int((~finite).sum()), drift, sampling.burn_in)


def calibration(
    module: nn.Module, loss: LossOf, sampling: Sampling, rates: Sequence[float], localisations: Sequence[float] = ()
) -> pd.DataFrame:
    """The estimate for several rates and localisations: rate, localisation, value, lo, hi, accepted, diverged, drift, warning.

    Cells in which every chain diverges have no value and say so.
    """
    from dataclasses import replace

    rows = []
    for rate in rates:
        for localisation in localisations or (sampling.localisation,):
            row: dict[str, object] = {"rate": rate, "localisation": localisation}
            try:
                found = learning_coefficient(module, loss, replace(sampling, rate=rate, localisation=localisation))
            except UserError as error:
                rows.append(row | {"value": np.nan, "lo": np.nan, "hi": np.nan, "warning": str(error)})
                continue
            e = found.estimate
            more = {"accepted": found.accepted, "diverged": found.diverged, "drift": found.drift, "warning": found.warning}
            rows.append(row | {"value": e.value, "lo": e.lo, "hi": e.hi} | more)
    return pd.DataFrame(rows)


def _start(module: nn.Module, loss: LossOf, sampling: Sampling) -> float:
    """L(w*): of random batches, the mean over as many as a chain has draws, as noise in it would be noise in every chain."""
    generator = torch.Generator().manual_seed(1_000_003 * sampling.seed + 999)
    with torch.no_grad():
        values = [float(loss(module, generator)) for _ in range(2)]
        if not all(map(isfinite, values)):
            raise UserError("The loss at the trained weights is not a number; the training diverged, or the batch is empty.")
        if values[0] != values[1]:
            if sampling.adjusted:
                raise UserError("The loss differs between two calls at the same weights, and Metropolis's rule needs it equal.")
            values += [float(loss(module, generator)) for _ in range(sampling.draws)]
    return float(np.mean(values))


def _chain(
    module: nn.Module,
    loss: LossOf,
    sampling: Sampling,
    weights: list[nn.Parameter],
    start: list[Tensor],
    generator: torch.Generator,
) -> tuple[Float[np.ndarray, "step"], float]:
    """Losses of one chain and the share of steps taken; the rest of a chain that diverges is missing."""
    steps, rate, gamma = sampling.burn_in + sampling.draws, sampling.rate, sampling.localisation
    with torch.no_grad():
        for p, began in zip(weights, start):
            p.copy_(began)

    def energy() -> tuple[float, float, list[Tensor]]:
        """Loss, n beta L plus the localisation, and the gradient of that."""
        with torch.enable_grad():
            value = loss(module, generator)
            slopes = torch.autograd.grad(value, weights, allow_unused=True)
        at = float(value.detach())
        with torch.no_grad():
            away = [p - w for p, w in zip(weights, start)]
            pull = 0.5 * gamma * sum(float(a.square().sum()) for a in away)
            grads = [gamma * a if s is None else sampling.n_beta * s + gamma * a for s, a in zip(slopes, away)]
        return at, sampling.n_beta * at + pull, grads

    losses, taken = np.full(steps, np.nan), 0
    value, total, grads = energy()
    for step in range(steps):
        with torch.no_grad():
            before = [p.detach().clone() for p in weights]
            noise = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in weights]
            for p, g, e in zip(weights, grads, noise):
                p.add_(g, alpha=-rate / 2).add_(e, alpha=sqrt(rate))
        found = energy()
        if not isfinite(found[1]):
            if not sampling.adjusted:
                return losses, taken / steps
            accept = False
        elif sampling.adjusted:
            back = sum(float((b - p + rate / 2 * g).detach().square().sum()) for b, p, g in zip(before, weights, found[2]))
            forth = sum(float(rate * e.square().sum()) for e in noise)
            odds = total - found[1] + (forth - back) / (2 * rate)
            accept = log(max(float(torch.rand((), generator=generator)), 1e-12)) < odds
        else:
            accept = True
        if accept:
            value, total, grads = found
            taken += 1
        else:
            with torch.no_grad():
                for p, b in zip(weights, before):
                    p.copy_(b)
        losses[step] = value
    return losses, taken / steps
