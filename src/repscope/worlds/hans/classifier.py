"""The built-in small transformer: pre-LN, learned positions, bidirectional, a class read off the first token.

One module, plain torch, as anybody would write it: what checkpoints load into, and the slow twin of `stacked`, which runs many of
them at once. Weights have torch's names and shapes, so that a checkpoint is a file of safetensors that any tool reads.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from repscope.errors import UserError
from repscope.models.loading.stacked_weights import Shape


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm, added to the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d, self.heads = shape.width, shape.heads
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(d, shape.ff * d), nn.Linear(shape.ff * d, d)

    def forward(self, x: Float[Tensor, "example token width"]) -> Float[Tensor, "example token width"]:
        """The residual stream after the block."""
        a = self.ln1(x)
        q, k, v = (self._by_head(p(a)) for p in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
        x = x + self.o((weights @ v).transpose(1, 2).flatten(2))
        moved: Float[Tensor, "example token width"] = x + self.down(torch.relu(self.up(self.ln2(x))))
        return moved

    def _by_head(self, x: Float[Tensor, "example token width"]) -> Float[Tensor, "example head token inner"]:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)


class SmallTransformer(nn.Module):
    """The network. `forward` gives the logits of classes at the first token, `words` those of words at given places."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.heads = shape, shape.heads
        self.embed = nn.Embedding(shape.vocabulary, shape.width)
        self.position = nn.Embedding(shape.tokens, shape.width)
        self.blocks = nn.ModuleList([Block(shape) for _ in range(shape.blocks)])
        self.ln_final = nn.LayerNorm(shape.width)
        if shape.classes:
            self.head = nn.Linear(shape.width, shape.classes)
        else:
            self.unembed = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, ids: Int[Tensor, "example token"]) -> Float[Tensor, "example class"]:
        """Logits of classes."""
        logits: Float[Tensor, "example class"] = self.head(self.hidden(ids)[:, 0])
        return logits

    def words(self, ids: Int[Tensor, "example token"], places: Int[Tensor, "example"]) -> Float[Tensor, "example vocabulary"]:
        """Logits of words at one place of each text."""
        logits: Float[Tensor, "example vocabulary"] = self.unembed(self.hidden(ids)[torch.arange(len(ids)), places])
        return logits

    def hidden(self, ids: Int[Tensor, "example token"]) -> Float[Tensor, "example token width"]:
        """The residual stream after the last norm."""
        x = self.embed(ids) + self.position.weight
        for block in self.blocks:
            x = block(x)
        final: Float[Tensor, "example token width"] = self.ln_final(x)
        return final


def random_weights(shape: Shape, seed: int) -> dict[str, Tensor]:
    """Random weights of one network, each tensor of the scale that keeps the residual stream near length one a coordinate.

    The seed alone decides them: a network drawn alone is the one that is drawn among others.
    """
    generator = torch.Generator().manual_seed(seed)
    inner, depth = 1 / math.sqrt(shape.width), 1 / math.sqrt(2 * shape.blocks)
    scales = {
        "embed": 0.1,
        "position": 0.1,
        "q": inner,
        "k": inner,
        "v": inner,
        "o": inner * depth,
        "up": inner,
        "down": inner / math.sqrt(shape.ff) * depth,
        "unembed": inner,
        "head": 0.02,
    }
    state = {}
    for name, value in SmallTransformer(shape).state_dict().items():
        layer, kind = name.split(".")[-2:]
        if kind == "bias":
            state[name] = torch.zeros_like(value)
        elif layer.startswith("ln"):
            state[name] = torch.ones_like(value)
        else:
            state[name] = torch.randn(value.shape, generator=generator) * scales[layer]
    return state


def random_head(shape: Shape, seed: int, scale: float = 0.02) -> dict[str, Tensor]:
    """Random weights of the head alone, as `random_weights` would name them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape.classes, shape.width, generator=generator) * scale
    return {"head.weight": weight, "head.bias": torch.zeros(shape.classes)}


def as_module(shape: Shape, state: dict[str, Tensor]) -> SmallTransformer:
    """A network with these weights.

    Raises
    ------
    UserError
        When names or shapes are not those of the network.
    """
    net = SmallTransformer(shape)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"The weights are not those of {shape}: {str(error).splitlines()[-1].strip()}") from error
    return net.eval()


__all__ = ["Shape", "SmallTransformer", "as_module", "random_head", "random_weights"]
