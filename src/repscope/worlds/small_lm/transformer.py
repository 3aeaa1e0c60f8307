"""Small language models in the GPT-2 layout, stacked along a leading axis of networks: states, logits and samples.

Pre-norm blocks, learned positions, ReLU, output tied to the embedding; weights have the names of Hugging Face's GPT2LMHeadModel,
so that any of them can be written as a folder. Written for networks this small, where time goes to overhead: attention is explicit
(torch's fused attention takes twice the time on 13 tokens), and `generate` keeps keys and values.
"""

from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from repscope.errors import UserError
from repscope.models.loading.stacked_weights import State, runs_of

_EPS = 1e-5
_LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class Shape:
    """Sizes of the networks. length: most tokens.

    Raises a `UserError` when heads do not divide the width, or a size is below one.
    """

    vocab: int
    length: int
    width: int
    layers: int = 2
    heads: int = 2

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit each other."""
        if min(self.vocab, self.length, self.width, self.layers, self.heads) < 1 or self.width % self.heads:
            raise UserError(f"{self} is no network: every size is at least 1, and the heads divide the width.")

    def settings(self) -> dict[str, object]:
        """The configuration of Hugging Face's GPT2LMHeadModel with the same function."""
        sizes = {"vocab_size": self.vocab, "n_positions": self.length, "n_embd": self.width, "n_layer": self.layers}
        off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return {**sizes, "n_head": self.heads, "activation_function": "relu", "bos_token_id": 0, "eos_token_id": 0, **off}


def initial(shape: Shape, seeds: list[int]) -> State:
    """Random weights as GPT-2's: normal with standard deviation 0.02, residual outputs 0.02 / √(2 layers); one network per seed."""
    return {k: torch.stack([w[k] for w in each]) for each in [[_initial(shape, s) for s in seeds]] for k in each[0]}


def _initial(shape: Shape, seed: int) -> State:
    generator, d = torch.Generator().manual_seed(seed), shape.width

    def normal(*size: int, scale: float = 0.02) -> Tensor:
        return scale * torch.randn(*size, generator=generator)

    found = {"transformer.wte.weight": normal(shape.vocab, d), "transformer.wpe.weight": normal(shape.length, d)}
    sizes = ((d, 3 * d), (d, d), (d, 4 * d), (4 * d, d))
    for i in range(shape.layers):
        for norm in ("ln_1", "ln_2"):
            found |= {f"transformer.h.{i}.{norm}.weight": torch.ones(d), f"transformer.h.{i}.{norm}.bias": torch.zeros(d)}
        for name, (inner, outer) in zip(_LINEAR, sizes, strict=True):
            scale = 0.02 / sqrt(2 * shape.layers) if name.endswith("c_proj") else 0.02
            found |= {
                f"transformer.h.{i}.{name}.weight": normal(inner, outer, scale=scale),
                f"transformer.h.{i}.{name}.bias": torch.zeros(outer),
            }
    return found | {"transformer.ln_f.weight": torch.ones(d), "transformer.ln_f.bias": torch.zeros(d)}


def hidden(
    shape: Shape, state: State, tokens: Int[Tensor, "network document token"]
) -> list[Float[Tensor, "network document token feature"]]:
    """The residual stream at the embedding and after each block. Differentiable."""
    n, b, t = tokens.shape
    x = _embedded(state, tokens) + state["transformer.wpe.weight"][:, None, :t]
    x = x.view(n, b * t, shape.width)
    found = [x]
    mask = torch.full((t, t), float("-inf")).triu(1)
    inner = shape.width // shape.heads
    for i in range(shape.layers):
        qkv = _linear(state, i, "attn.c_attn", _normed(state, f"h.{i}.ln_1", x)).view(n * b, t, 3, shape.heads, inner)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, -1, t, inner).unbind(0)
        weights = torch.baddbmm(mask, q, k.mT, alpha=1 / sqrt(inner)).softmax(-1)
        mixed = torch.bmm(weights, v).view(n * b, shape.heads, t, inner).transpose(1, 2).reshape(n, b * t, shape.width)
        x = _mlp(state, i, x + _linear(state, i, "attn.c_proj", mixed))
        found.append(x)
    return [y.view(n, b, t, shape.width) for y in found]


def logits(
    shape: Shape, state: State, tokens: Int[Tensor, "network document token"]
) -> Float[Tensor, "network document token vocabulary"]:
    """Logits of the next token at every position. Differentiable."""
    n, b, t = tokens.shape
    return _unembedded(state, hidden(shape, state, tokens)[-1].view(n, b * t, shape.width)).view(n, b, t, shape.vocab)


@torch.no_grad()
def generate(
    shape: Shape, state: State, start: Int[Tensor, "network document token"], new: int, generator: torch.Generator | None
) -> Int[Tensor, "network document token"]:
    """Continue documents by `new` tokens: sampled, or the most likely ones without a generator.

    Sampling takes the same random numbers whatever the networks are, so that two networks on one seed share them.
    """
    n, b, t = start.shape
    heads, inner = shape.heads, shape.width // shape.heads
    keys, values = (torch.empty(shape.layers, n * b * heads, t + new, inner) for _ in range(2))
    tokens, found = start.unbind(-1), list(start.unbind(-1))
    for at in range(t + new - 1):
        token = tokens[at] if at < t else found[at]
        x = _embedded(state, token[..., None])[:, :, 0] + state["transformer.wpe.weight"][:, None, at]
        for i in range(shape.layers):
            qkv = _linear(state, i, "attn.c_attn", _normed(state, f"h.{i}.ln_1", x)).view(n, b, 3, heads, inner)
            q, keys[i, :, at], values[i, :, at] = (part.reshape(-1, inner) for part in qkv.unbind(2))
            scores = torch.bmm(keys[i, :, : at + 1], q[..., None])[..., 0].mul_(1 / sqrt(inner)).softmax(-1)
            mixed = torch.bmm(scores[:, None], values[i, :, : at + 1]).view(n, b, shape.width)
            x = _mlp(state, i, x + _linear(state, i, "attn.c_proj", mixed))
        if at < t - 1:
            continue
        odds = _unembedded(state, x)
        if generator is not None:  # the exponential race: argmax of p / e is a sample of p
            odds = odds.softmax(-1) / torch.empty(n, b, shape.vocab).exponential_(generator=generator)
        found.append(odds.argmax(-1))
    return torch.stack(found, -1)


def _embedded(state: State, tokens: Int[Tensor, "network document token"]) -> Tensor:
    table = state["transformer.wte.weight"]
    offsets = table.shape[1] * torch.arange(runs_of(state))[:, None, None]
    return functional.embedding(tokens + offsets, table.flatten(0, 1))


def _unembedded(state: State, x: Float[Tensor, "network row feature"]) -> Float[Tensor, "network row vocabulary"]:
    return torch.bmm(_normed(state, "ln_f", x), state["transformer.wte.weight"].mT)


def _mlp(state: State, block: int, x: Float[Tensor, "network row feature"]) -> Float[Tensor, "network row feature"]:
    inside = torch.relu(_linear(state, block, "mlp.c_fc", _normed(state, f"h.{block}.ln_2", x)))
    return x + _linear(state, block, "mlp.c_proj", inside)


def _linear(state: State, block: int, name: str, x: Float[Tensor, "network row feature"]) -> Float[Tensor, "network row other"]:
    name = f"transformer.h.{block}.{name}"
    return torch.baddbmm(state[name + ".bias"][:, None], x, state[name + ".weight"])


def _normed(state: State, name: str, x: Float[Tensor, "network row feature"]) -> Float[Tensor, "network row feature"]:
    weight, bias = (state[f"transformer.{name}.{part}"][:, None] for part in ("weight", "bias"))
    return torch.addcmul(bias, functional.layer_norm(x, x.shape[-1:], eps=_EPS), weight)
