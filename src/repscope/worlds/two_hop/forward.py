"""Forward passes of stacked transformers on facts and two-hop queries that share their beginnings.

A query is three tokens [h r1 r2], a fact its first two. Attention is causal, so the state at h depends on h alone, and that at r1
on (h, r1) alone: the rows of a batch are a tree. Every entity is computed once, every fact once, and every query has one row:

1. Level 0: all entities. Level 1: the facts of the batch; each attends to its entity and itself. Level 2: the second relations;
   each attends to its entity, its fact and itself.
2. All levels go through the linear maps of a block as one product per network.
3. In the last block nothing reads the output of level 0.
The same numbers as `transformer.logits` on whole rows, which the tests compare.
"""

from math import sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from repscope.models.loading.stacked_weights import State
from repscope.worlds.small_lm import transformer
from repscope.worlds.small_lm.transformer import Shape
from repscope.worlds.two_hop.facts import Batch


def fact_logits(
    shape: Shape,
    state: State,
    entities: int,
    head: Int[Tensor, "network fact"],
    first: Int[Tensor, "network fact"],
    second: Int[Tensor, "network fact hop"],
) -> tuple[Float[Tensor, "network fact vocabulary"], Float[Tensor, "network fact hop vocabulary"]]:
    """Logits after each fact [h r1], and after each query [h r1 r2] that begins with it. Relations are tokens. Differentiable."""
    n, facts, hops = second.shape
    d, heads = shape.width, shape.heads
    table, places = state["transformer.wte.weight"], state["transformer.wpe.weight"]
    levels = (entities, facts, facts * hops)
    tokens = torch.cat([torch.arange(entities).expand(n, -1), first, second.flatten(1)], 1)
    offsets = table.shape[1] * torch.arange(n)[:, None]
    x = functional.embedding(tokens + offsets, table.flatten(0, 1))
    x = x + torch.cat([places[:, i : i + 1].expand(-1, rows, -1) for i, rows in enumerate(levels)], 1)
    parent = (head + entities * torch.arange(n)[:, None]).flatten()
    for i in range(shape.layers):
        qkv = transformer.after_norm(state, f"h.{i}.ln_1", f"h.{i}.attn.c_attn", x)
        entity, fact, query = (part.view(n, -1, 3, heads, d // heads) for part in torch.split(qkv, list(levels), 1))
        above = entity[:, :, 1:].flatten(0, 1)[parent].view(n, facts, 2, heads, -1).unbind(2)  # of each fact's entity
        asks, key, value = fact.unbind(2)  # unbound once: each select would fill a gradient of the whole with zeros
        parts = query.view(n, facts, hops, 3, heads, -1).unbind(3)
        mixed = [
            _mixed(asks, [above[0], key], [above[1], value]).flatten(2),
            _mixed(
                parts[0], [above[0][:, :, None], key[:, :, None], parts[1]], [above[1][:, :, None], value[:, :, None], parts[2]]
            ).reshape(n, facts * hops, d),
        ]
        if i == shape.layers - 1:
            x = x[:, entities:]
        else:
            mixed.insert(0, entity[:, :, 2].flatten(2))
        x = transformer.linear(state, f"h.{i}.attn.c_proj", torch.cat(mixed, 1), x)
        x = transformer.mlp(shape, state, i, x)
    found = transformer.unembedded(state, x)
    return found[:, :facts], found[:, facts:].view(n, facts, hops, -1)


def _mixed(query: Float[Tensor, "*row head inner"], keys: list[Tensor], values: list[Tensor]) -> Float[Tensor, "*row head inner"]:
    """Attention of each row over a few others, of which each has a key and a value that broadcast to the rows."""
    scale = 1 / sqrt(query.shape[-1])
    scores = torch.stack([(query * key).sum(-1) for key in keys], -1)
    weights = (scores * scale).softmax(-1)[..., None].unbind(-2)
    found = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:]):
        found = torch.addcmul(found, weight, value)
    return found


def loss(shape: Shape, relations_from: int, state: State, batch: Batch) -> Float[Tensor, "network"]:
    """Mean cross-entropy of a batch, as if drawn from all facts and trained queries; relations begin at `relations_from`.

    Facts weigh 1 / (1 + phi), queries phi / (1 + phi).
    """
    first, second = batch.first + relations_from, batch.second + relations_from
    one, two = fact_logits(shape, state, relations_from, batch.head, first, second)
    bridge, answer, phi = batch.bridge, batch.answer, batch.phi
    nats = functional.cross_entropy(one.flatten(0, 1), bridge.flatten(), reduction="none").view(bridge.shape).mean(1)
    more = functional.cross_entropy(two.flatten(0, 2), answer.flatten(), reduction="none").view(answer.shape)
    return (nats + phi * (more * batch.weight).sum((1, 2))) / (1 + phi)
