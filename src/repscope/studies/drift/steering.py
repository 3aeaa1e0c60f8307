"""Is fine-tuning steering? How much of a tuned network's KL from its starting network constant vectors recover.

A constant vector at the output of a block is a change of the bias of its MLP; at the embedding, of all positions alike.
1. One vector: the mean difference of the states of both networks on samples of the tuned one, at the site and the scale that
   recover most on half of the documents; reported on the other half.
2. Fitted vectors: one per site, all sites at once, by gradient descent on the KL of the first half: no constant vectors do much
   better.
3. Controls: a random direction of equal norm at the same site; the vector of another method at equal norm.
Recovered: 1 − KL(tuned ‖ steered) / KL(tuned ‖ start). 0 is no help, 1 is everything, below 0 is harm.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.models.loading.stacked_weights import State, runs_of
from repscope.worlds.rewarded.descent import Descent
from repscope.worlds.rewarded.evaluation import log_probabilities
from repscope.worlds.rewarded.task import PROMPT, generator_of
from repscope.worlds.small_lm.transformer import Shape, hidden

EMBEDDING = -1
SCALES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
_RATE = 0.03  #: of Adam that fits vectors


@dataclass(frozen=True)
class Steering:
    """What constant vectors recover of each network, on the half that reports. vector: unscaled, at the chosen site. site, scale:
    chosen on the other half."""

    one: Float[np.ndarray, "network"]
    random: Float[np.ndarray, "network"]
    fitted: Float[np.ndarray, "network"]
    site: Int[np.ndarray, "network"]
    scale: Float[np.ndarray, "network"]
    vectors: Float[Tensor, "site network feature"]


def added(state: State, vectors: Mapping[int, Float[Tensor, "network feature"]]) -> State:
    """The networks with a constant vector added at the output of these blocks (−1: the embedding), for all tokens."""
    changed = dict(state)
    for block, vector in vectors.items():
        name = _table(state) if block == EMBEDDING else next(k for k in state if k.endswith(f"h.{block}.mlp.c_proj.bias"))
        changed[name] = changed[name] + (vector[:, None] if block == EMBEDDING else vector)
    return changed


def steering(
    shape: Shape, start: State, tuned: State, sampled: Int[Tensor, "network document token"], fitting: int, seed: int
) -> Steering:
    """How much constant vectors recover; `sampled`: samples of the tuned networks."""
    half = sampled.shape[1] // 2
    choose, report = sampled[:, :half], sampled[:, half:]
    with torch.no_grad():
        pairs = zip(hidden(shape, tuned, choose), hidden(shape, start, choose), strict=True)
        vectors = torch.stack([(a - b)[:, :, PROMPT - 1 :].mean((1, 2)) for a, b in pairs])  # site 0 is the embedding
        targets = [log_probabilities(shape, tuned, part) for part in (choose, report)]
        table = np.stack(
            [
                [recovered(shape, start, {i + EMBEDDING: scale * v}, choose, targets[0]) for scale in SCALES]
                for i, v in enumerate(vectors)
            ]
        )
        flat = table.reshape(-1, table.shape[-1]).argmax(0)
        site, scale = flat // len(SCALES), np.array(SCALES)[flat % len(SCALES)]
        chosen = placed(vectors, site, scale)
        random = torch.randn(vectors.shape, generator=generator_of(seed, "steering"))
        random *= vectors.norm(dim=-1, keepdim=True) / random.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        one, other = (recovered(shape, start, v, report, targets[1]) for v in (chosen, placed(random, site, scale)))
    fitted = _fit(shape, start, choose, targets[0], fitting)
    return Steering(one, other, recovered(shape, start, fitted, report, targets[1]), site, scale, vectors)


def placed(
    vectors: Float[Tensor, "site network feature"], site: Int[np.ndarray, "network"], scale: Float[np.ndarray, "network"]
) -> dict[int, Float[Tensor, "network feature"]]:
    """Of each network its vector at its own site, times its scale; zero at the other sites."""
    size = torch.from_numpy(scale).float()[:, None]
    return {i + EMBEDDING: v * size * torch.from_numpy(site == i)[:, None] for i, v in enumerate(vectors)}


@torch.no_grad()
def recovered(
    shape: Shape,
    start: State,
    vectors: Mapping[int, Tensor],
    documents: Tensor,
    target: Float[Tensor, "network document position token"],
) -> Float[np.ndarray, "network"]:
    """1 − KL(tuned ‖ steered) / KL(tuned ‖ start), by network."""
    divergences = [_divergence(shape, s, documents, target) for s in (added(start, vectors), start)]
    return np.asarray((1 - divergences[0] / divergences[1]).double())


def _divergence(shape: Shape, state: State, documents: Tensor, target: Tensor) -> Float[Tensor, "network"]:
    return (target.exp() * (target - log_probabilities(shape, state, documents))).sum(-1).mean((1, 2))


def _fit(shape: Shape, start: State, documents: Tensor, target: Tensor, steps: int) -> dict[int, Tensor]:
    """One vector per site that together minimise the KL on these documents."""
    width = start[_table(start)].shape[-1]
    found = {i: torch.zeros(runs_of(start), width, requires_grad=True) for i in range(EMBEDDING, shape.layers)}
    descent = Descent({str(i): v for i, v in found.items()})
    for step in range(steps):
        with torch.enable_grad():
            loss = _divergence(shape, added(start, found), documents, target).sum()
            descent.update(loss, _RATE * (1 - step / steps))
    return {i: v.detach() for i, v in found.items()}


def _table(state: State) -> str:
    return next(k for k in state if k.endswith("wpe.weight"))
