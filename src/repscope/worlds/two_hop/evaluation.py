"""What stacked networks know of two-hop worlds: facts and queries, the bridge in their states, and what patching the bridge does.

1. Facts and queries: whether the answer is the most likely token, and its negative log-probability in nats, per example.
2. Probe: ridge regression of one-hot bridges on the residual stream, fitted on half of the facts (at r1) or of the held-out queries
   (at r2) and evaluated on the other half; so the code of the bridge must be shared by facts that the probe never saw. Control:
   permuted bridges.
3. Patch: the residual stream of a held-out query at one token is replaced by that of another query whose bridge is b'. Success: the
   most likely answer becomes t(b', r2), where it is another one than before, from facts that are in distribution. Control: how
   often that answer is given without the patch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.models.loading.stacked_weights import State
from repscope.worlds.small_lm import transformer
from repscope.worlds.small_lm.transformer import Shape
from repscope.worlds.two_hop.facts import HELD_OUT, FactWorlds, Queries

FACTS, OOD_FACTS = "facts", "facts OOD"
PLACES = {"h": 0, "r1": 1, "r2": 2}  #: tokens of a query
_RIDGE = 1e-2  #: times the mean squared norm of a state


@dataclass(frozen=True)
class Evaluated:
    """hits, nats: by kind of example, of each network and example. probes, controls: accuracy by (site, token) and network, and of
    permuted bridges. patches, unpatched: success by (site, token) and network, and without a patch."""

    hits: Mapping[str, Float[np.ndarray, "network example"]]
    nats: Mapping[str, Float[np.ndarray, "network example"]]
    probes: Mapping[tuple[str, str], Float[np.ndarray, "network"]]
    controls: Mapping[tuple[str, str], Float[np.ndarray, "network"]]
    patches: Mapping[tuple[str, str], Float[np.ndarray, "network"]]
    unpatched: Mapping[tuple[str, str], Float[np.ndarray, "network"]]


@torch.no_grad()
def evaluate(shape: Shape, worlds: FactWorlds, state: State, queries: Mapping[str, Queries], seed: int = 0) -> Evaluated:
    """Everything that is measured of stacked networks; `queries` by kind, the held-out ones among them."""
    hits, nats = dict[str, np.ndarray](), dict[str, np.ndarray]()
    n, generator = len(worlds.networks), torch.Generator().manual_seed(seed)
    every = torch.arange(worlds.facts)
    heads, firsts = (part.expand(n, -1) for part in (every // worlds.relations, every % worlds.relations))
    tokens = torch.stack([heads, firsts + worlds.entities], -1)
    states = transformer.hidden(shape, state, tokens)
    bridges, outside = worlds.tails.flatten(1), worlds.outside.flatten(1)
    found = _scores(_logits(state, states[-1][:, :, 1]), bridges)
    for name, chosen in ((FACTS, ~outside), (OOD_FACTS, outside)):
        hits[name], nats[name] = (_of(value, chosen) for value in found)
    for kind, asked in queries.items():
        last = transformer.hidden(shape, state, _tokens(worlds, asked))[-1][:, :, 2]
        one, two = _scores(_logits(state, last), asked.answer)
        hits[kind], nats[kind] = one.numpy(), two.numpy()
    held = queries[HELD_OUT]
    streams = transformer.hidden(shape, state, _tokens(worlds, held))
    probes, controls = dict[tuple[str, str], np.ndarray](), dict[tuple[str, str], np.ndarray]()
    for layer in range(shape.layers + 1):
        for token, x, labels in (("r1", states[layer][:, :, 1], bridges), ("r2", streams[layer][:, :, 2], held.bridge)):
            order = torch.randperm(x.shape[1], generator=generator)
            probes[site(layer), token] = _probed(x[:, order], labels[:, order], worlds.entities)
            permuted = labels[:, order[torch.randperm(len(order), generator=generator)]]
            controls[site(layer), token] = _probed(x[:, order], permuted, worlds.entities)
    patches, unpatched = _patched(shape, worlds, state, held, streams, generator)
    return Evaluated(hits, nats, probes, controls, patches, unpatched)


def site(layer: int) -> str:
    """The residual stream before the first block (0) or after block layer − 1."""
    return f"resid_post.{layer - 1}" if layer else "embed"


def _tokens(worlds: FactWorlds, asked: Queries) -> Int[Tensor, "network query 3"]:
    return torch.stack([asked.head, asked.first + worlds.entities, asked.second + worlds.entities], -1)


def _logits(state: State, x: Float[Tensor, "network row feature"]) -> Float[Tensor, "network row vocabulary"]:
    return transformer.unembedded(state, x)


def _scores(
    logits: Float[Tensor, "network row vocabulary"], answers: Int[Tensor, "network row"]
) -> tuple[Float[Tensor, "network row"], Float[Tensor, "network row"]]:
    """Whether the answer is the most likely token, and its negative log-probability."""
    logs = logits.double().log_softmax(-1)
    return (logs.argmax(-1) == answers).double(), -logs.gather(-1, answers[..., None])[..., 0]


def _of(values: Float[Tensor, "network fact"], chosen: Tensor) -> Float[np.ndarray, "network fact"]:
    """The chosen facts of each network, of which every graph has the same number."""
    return values[chosen].view(len(values), -1).numpy()


def _probed(
    x: Float[Tensor, "network row feature"], labels: Int[Tensor, "network row"], classes: int
) -> Float[np.ndarray, "network"]:
    """Accuracy on the second half of the rows of a ridge classifier fitted on the first half."""
    x = x.double()
    half = x.shape[1] // 2
    x = x - x[:, :half].mean(1, keepdim=True)
    x = torch.cat([x, x.square().sum(-1).mean(1).sqrt()[:, None, None].expand(-1, x.shape[1], 1)], -1)  # and a constant
    train, test = x[:, :half], x[:, half:]
    targets = torch.nn.functional.one_hot(labels[:, :half], classes).double()
    gram = train.mT @ train
    ridge = _RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)
    maps = torch.linalg.solve(gram + ridge[:, None, None] * torch.eye(x.shape[-1], dtype=x.dtype), train.mT @ targets)
    return np.asarray(((test @ maps).argmax(-1) == labels[:, half:]).double().mean(1).numpy())


def _patched(
    shape: Shape,
    worlds: FactWorlds,
    state: State,
    held: Queries,
    streams: list[Float[Tensor, "network query token feature"]],
    generator: torch.Generator,
) -> tuple[dict[tuple[str, str], np.ndarray], dict[tuple[str, str], np.ndarray]]:
    """Success of patches by (site, token), and of no patch."""
    donor = torch.roll(torch.randperm(held.head.shape[1], generator=generator), 1)
    at = torch.arange(len(held.head))[:, None]
    bridge = held.bridge[:, donor]
    wanted = worlds.tails[at, bridge, held.second]
    valid = (wanted != held.answer) & ~worlds.outside[at, bridge, held.second]
    count = valid.sum(1).clamp_min(1)

    def success(x: Tensor) -> np.ndarray:
        given = _logits(state, x[:, :, 2]).argmax(-1)
        return np.asarray((((given == wanted) & valid).sum(1) / count).double().numpy())

    before = success(streams[-1])
    found, without = dict[tuple[str, str], np.ndarray](), dict[tuple[str, str], np.ndarray]()
    for layer in range(shape.layers):
        for token, place in PLACES.items():
            if token == "r2":  # replaced, the donor's own second relation would come with it
                continue
            x = streams[layer].clone()
            x[:, :, place] = streams[layer][:, donor, place]
            found[site(layer), token] = success(transformer.blocks(shape, state, x, layer)[-1])
            without[site(layer), token] = before
    return found, without
