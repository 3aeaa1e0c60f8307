"""Do a network's directions survive training? The direction of the topic, at the output of each block.

On documents of the corpus, at their last token, half of them to fit and half to report:
1. reads: accuracy of the starting network's difference of means (with its threshold) on the tuned network's states; beside one
   refitted there, the starting network itself, and a random direction with a fitted threshold.
2. points: cosine of the starting network's direction and the refitted one; beside two refits on halves of the documents.
3. acts: the direction is added to the block's output at all tokens, and the next tokens move towards the tokens of its topic;
   effect in nats, of the starting network's direction in the tuned network, in the starting network, and of a random direction of
   equal norm.
"""

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.conditions import ESTIMATE, RANDOM
from repscope.models.loading.stacked_weights import State
from repscope.studies.drift import names
from repscope.studies.drift.measures import sites
from repscope.studies.drift.steering import added
from repscope.worlds.rewarded.evaluation import log_probabilities
from repscope.worlds.rewarded.task import PROMPT, TOPICS, RewardedWorlds, generator_of
from repscope.worlds.small_lm.transformer import Shape, hidden


@torch.no_grad()
def survival(shape: Shape, start: State, tuned: State, worlds: RewardedWorlds, documents: int, seed: int) -> pd.DataFrame:
    """One row per network, site, metric and condition: its value."""
    ids, topics = worlds.corpus(2 * documents, generator_of(seed, "directions"))
    before, after = (torch.stack([x[:, :, -1] for x in hidden(shape, s, ids)[1:]]) for s in (start, tuned))
    generator = generator_of(seed, "random directions")
    rows = []
    for block, (x, y) in enumerate(zip(before, after, strict=True)):
        own, refit = _fitted(x[:, :documents], topics[:, :documents]), _fitted(y[:, :documents], topics[:, :documents])
        random = torch.randn(own.shape, generator=generator)
        random *= own.norm(dim=-1, keepdim=True) / random.norm(dim=-1, keepdim=True)
        held, known = y[:, documents:], topics[:, documents:]
        halves = [_fitted(y[:, a], topics[:, a]) for a in (slice(0, documents // 2), slice(documents // 2, documents))]
        read = {
            ESTIMATE: _accuracy(held, known, own, _middle(x[:, :documents], topics[:, :documents], own)),
            names.REFITTED: _accuracy(held, known, refit, _middle(y[:, :documents], topics[:, :documents], refit)),
            names.BEFORE: _accuracy(x[:, documents:], known, own, _middle(x[:, :documents], topics[:, :documents], own)),
            RANDOM: _accuracy(held, known, random, _middle(y[:, :documents], topics[:, :documents], random)),
        }
        point = {ESTIMATE: _cosine(own, refit), names.TWO_HALVES: _cosine(*halves), RANDOM: _cosine(random, refit).abs()}
        act = {
            ESTIMATE: _effect(shape, tuned, worlds, ids[:, documents:], block, own),
            names.BEFORE: _effect(shape, start, worlds, ids[:, documents:], block, own),
            RANDOM: _effect(shape, tuned, worlds, ids[:, documents:], block, random),
        }
        for metric, found in ((names.READS, read), (names.POINTS, point), (names.ACTS, act)):
            for condition, values in found.items():
                for i, value in enumerate(values.double().tolist()):
                    rows.append(
                        {"network": i, "site": sites(shape)[block + 1], "metric": metric, "condition": condition, "value": value}
                    )
    return pd.DataFrame(rows)


def _fitted(
    x: Float[Tensor, "network document feature"], topics: Int[Tensor, "network document"]
) -> Float[Tensor, "network feature"]:
    """Mean of topic 1 minus mean of topic 0."""
    one = topics.float()[..., None]
    return (x * one).sum(1) / one.sum(1).clamp_min(1) - (x * (1 - one)).sum(1) / (1 - one).sum(1).clamp_min(1)


def _middle(x: Tensor, topics: Tensor, direction: Tensor) -> Float[Tensor, "network"]:
    """Threshold half way between the means of both topics."""
    one, along = topics.float(), (x * direction[:, None]).sum(-1)
    return ((along * one).sum(1) / one.sum(1).clamp_min(1) + (along * (1 - one)).sum(1) / (1 - one).sum(1).clamp_min(1)) / 2


def _accuracy(x: Tensor, topics: Tensor, direction: Tensor, threshold: Tensor) -> Float[Tensor, "network"]:
    """Share of documents on the side of their topic; a random direction may be reversed, and counts as the better of both."""
    right = (((x * direction[:, None]).sum(-1) > threshold[:, None]) == topics.bool()).float().mean(1)
    return right


def _cosine(a: Tensor, b: Tensor) -> Float[Tensor, "network"]:
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


def _effect(
    shape: Shape, state: State, worlds: RewardedWorlds, documents: Tensor, block: int, direction: Tensor
) -> Float[Tensor, "network"]:
    """By how much the added direction raises the expected log-odds of topic 1's chain over topic 0's for the next token, in
    nats."""
    chains = worlds.chains[:, :TOPICS].clamp_min(1e-6).log().float()
    odds = chains[:, 1] - chains[:, 0]
    odds[..., 0] = 0
    here = documents[..., PROMPT - 1 : -1]
    expected = [
        (log_probabilities(shape, s, documents).exp() * odds[torch.arange(len(odds))[:, None, None], here]).sum(-1).mean((1, 2))
        for s in (added(state, {block: direction}), state)
    ]
    return expected[0] - expected[1]
