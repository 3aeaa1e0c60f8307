"""Small language models in the GPT-2 layout, stacked along a leading axis of networks: states, logits and samples.

Pre-norm blocks, learned positions, output tied to the embedding; weights have the names of Hugging Face's GPT2LMHeadModel, so that
`files` writes any of them as a folder. What makes it quick on networks this small:

1. A norm's gain and shift go into the weights that follow it: W' = g ∘ W, b' = b + s·W. Autograd passes through these small
   products, and no row of activations is multiplied by a gain, forward or backward.
2. Residuals are added by the product itself.
3. Attention is explicit below 32 tokens (torch's fused attention needs twice the time on 13) and torch's fused one from there on.
4. `generate` keeps keys and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from repscope.errors import UserError, unknown
from repscope.models.loading.stacked_weights import State, runs_of

_EPS = 1e-5  #: of GPT-2's layer norms
_SHORT = 32  #: tokens below which explicit attention is quicker than torch's fused one
_LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class Shape:
    """Sizes of the networks. length: most tokens. activation: of the MLP, whose width is 4 × `width`.

    Raises a `UserError` when heads do not divide the width, a size is below one, or the activation is unknown.
    """

    vocab: int
    length: int
    width: int
    layers: int = 2
    heads: int = 2
    activation: Literal["relu", "gelu_new"] = "relu"

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit each other."""
        if min(self.vocab, self.length, self.width, self.layers, self.heads) < 1 or self.width % self.heads:
            raise UserError(f"{self} is no network: every size is at least 1, and the heads divide the width.")
        if self.activation not in ("relu", "gelu_new"):
            raise unknown("activation", self.activation, ("relu", "gelu_new"))

    @property
    def parameters(self) -> int:
        """Trainable numbers of one network."""
        d = self.width
        return (self.vocab + self.length + 2) * d + self.layers * (12 * d * d + 13 * d)

    def settings(self) -> dict[str, object]:
        """The configuration of Hugging Face's GPT2LMHeadModel with the same function."""
        sizes = {"vocab_size": self.vocab, "n_positions": self.length, "n_embd": self.width, "n_layer": self.layers}
        off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        ends = {"bos_token_id": None, "eos_token_id": None}  # GPT-2's own lie outside the vocabulary; no symbol ends a document
        return {**sizes, "n_head": self.heads, "activation_function": self.activation, **ends, **off}


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
    return blocks(shape, state, _embedded(state, tokens) + state["transformer.wpe.weight"][:, None, : tokens.shape[-1]])


def blocks(
    shape: Shape, state: State, x: Float[Tensor, "network document token feature"], first: int = 0
) -> list[Float[Tensor, "network document token feature"]]:
    """`x`, which stands in place of the input of block `first`, and the output of each block from there on. Differentiable."""
    n, b, t, d = x.shape
    found, x = [x], x.reshape(n, b * t, d)
    for i in range(first, shape.layers):
        qkv = after_norm(state, f"h.{i}.ln_1", f"h.{i}.attn.c_attn", x).view(n * b, t, 3, shape.heads, -1)
        x = linear(state, f"h.{i}.attn.c_proj", _attention(qkv).reshape(n, b * t, d), x)
        x = mlp(shape, state, i, x)
        found.append(x.view(n, b, t, d))
    return found


def logits(
    shape: Shape, state: State, tokens: Int[Tensor, "network document token"]
) -> Float[Tensor, "network document token vocabulary"]:
    """Logits of the next token at every position. Differentiable."""
    n, b, t = tokens.shape
    return unembedded(state, hidden(shape, state, tokens)[-1].view(n, b * t, shape.width)).view(n, b, t, shape.vocab)


@torch.no_grad()
def generate(
    shape: Shape,
    state: State,
    start: Int[Tensor, "network document token"],
    new: int,
    generator: torch.Generator | Sequence[Float[Tensor, "network document vocabulary"]] | None = None,
) -> Int[Tensor, "network document token"]:
    """Continue documents by `new` tokens: sampled, or the most likely ones without a generator (or its `races`).

    Sampling takes the same random numbers whatever the networks are, so that two networks on one seed share them.

    Raises
    ------
    UserError
        When the documents would be longer than the networks' positions.
    """
    n, b, t = start.shape
    if t < 1 or t + new > shape.length:
        raise UserError(f"{t} tokens and {new} new ones do not fit {shape.length} positions; start from at least 1, ask for fewer.")
    heads, inner = shape.heads, shape.width // shape.heads
    keys, values = (torch.empty(shape.layers, n * b * heads, t + new, inner) for _ in range(2))
    tokens, found = start.unbind(-1), list(start.unbind(-1))
    for at in range(t + new - 1):
        token = tokens[at] if at < t else found[at]
        x = _embedded(state, token[..., None])[:, :, 0] + state["transformer.wpe.weight"][:, None, at]
        for i in range(shape.layers):
            qkv = after_norm(state, f"h.{i}.ln_1", f"h.{i}.attn.c_attn", x).view(n, b, 3, heads, inner)
            q, keys[i, :, at], values[i, :, at] = (part.reshape(-1, inner) for part in qkv.unbind(2))
            scores = torch.bmm(keys[i, :, : at + 1], q[..., None])[..., 0].mul_(1 / sqrt(inner)).softmax(-1)
            mixed = torch.bmm(scores[:, None], values[i, :, : at + 1]).view(n, b, shape.width)
            x = mlp(shape, state, i, linear(state, f"h.{i}.attn.c_proj", mixed, x))
        if at < t - 1:
            continue
        odds = unembedded(state, x)
        if generator is not None:  # the exponential race: argmax of p / e is a sample of p
            race = races((n, b), shape.vocab, 1, generator)[0] if isinstance(generator, torch.Generator) else generator[at - t + 1]
            odds = odds.softmax(-1) / race
        found.append(odds.argmax(-1))
    return torch.stack(found, -1)


def races(
    rows: Sequence[int], vocabulary: int, new: int, generator: torch.Generator
) -> list[Float[Tensor, "network document vocabulary"]]:
    """The random numbers of `new` sampled tokens, as `generate` draws them."""
    return [torch.empty(*rows, vocabulary).exponential_(generator=generator) for _ in range(new)]


def _embedded(state: State, tokens: Int[Tensor, "network document token"]) -> Float[Tensor, "network document token feature"]:
    table = state["transformer.wte.weight"]
    offsets = table.shape[1] * torch.arange(runs_of(state))[:, None, None]
    return functional.embedding(tokens + offsets, table.flatten(0, 1))


def unembedded(state: State, x: Float[Tensor, "network row feature"]) -> Float[Tensor, "network row vocabulary"]:
    """Logits of rows of the residual stream: the final norm, and the tied embedding."""
    table = state["transformer.wte.weight"]
    gain, shift = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    return torch.baddbmm(torch.bmm(shift[:, None], table.mT), normed(x), (table * gain[:, None]).mT)


def mlp(shape: Shape, state: State, block: int, x: Float[Tensor, "network row feature"]) -> Float[Tensor, "network row feature"]:
    """Rows after the MLP of a block, the residual added."""
    inside = after_norm(state, f"h.{block}.ln_2", f"h.{block}.mlp.c_fc", x)
    inside = torch.relu(inside) if shape.activation == "relu" else functional.gelu(inside, approximate="tanh")
    return linear(state, f"h.{block}.mlp.c_proj", inside, x)


def after_norm(state: State, norm: str, name: str, x: Float[Tensor, "network row feature"]) -> Float[Tensor, "network row other"]:
    """A linear map of normed rows, with the norm's gain and shift taken into its weights."""
    weight, bias = state[f"transformer.{name}.weight"], state[f"transformer.{name}.bias"]
    gain, shift = state[f"transformer.{norm}.weight"], state[f"transformer.{norm}.bias"]
    return torch.baddbmm(torch.baddbmm(bias[:, None], shift[:, None], weight), normed(x), gain[..., None] * weight)


def linear(
    state: State, name: str, x: Float[Tensor, "network row feature"], residual: Float[Tensor, "network row other"]
) -> Float[Tensor, "network row other"]:
    """A linear map of rows, the residual added."""
    return torch.baddbmm(residual, x, state[f"transformer.{name}.weight"]) + state[f"transformer.{name}.bias"][:, None]


def normed(x: Float[Tensor, "... feature"]) -> Float[Tensor, "... feature"]:
    """A layer norm without gain and shift."""
    return functional.layer_norm(x, x.shape[-1:], eps=_EPS)


def _attention(qkv: Float[Tensor, "document token 3 head inner"]) -> Float[Tensor, "document token head inner"]:
    """Causal attention of each document and head."""
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    n, heads, t, inner = q.shape
    if t >= _SHORT:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    q, k, v = (part.reshape(-1, t, inner) for part in (q, k, v))
    mask = torch.full((t, t), float("-inf"), dtype=q.dtype).triu(1)
    weights = torch.baddbmm(mask, q, k.mT, alpha=1 / sqrt(inner)).softmax(-1)
    return torch.bmm(weights, v).view(n, heads, t, inner).transpose(1, 2)
