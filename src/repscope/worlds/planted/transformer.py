"""Planted transformer: a random Llama into whose MLP directions are written, to judge methods on a network that runs as real
ones do. Knows no method.

1. Blocks of width 64 are drawn: attention and MLPs at `SPREAD`, embeddings of standard deviation 1, so that a state has a length of
   about 8, and each block adds about a tenth of that.
2. In block `PLANTED`, the first behind the source, the first neurons of the MLP become features. With x = RMSNorm(h), of length 8,
   neuron j writes gain_j u_j times

   | kind | neuron | in a Llama |
   |---|---|---|
   | `threshold` | silu(2 (<v_j, x> - 2)) | gate reads v_j with a bias, up is a bias of 1 |
   | `product` | silu(<v_j, x>) <v_j, x> | gate and up both read v_j, no bias |

   v_j, u_j random unit vectors, gains from 1.5 down to 0.7. For the network's own states <v_j, x> is about normal with deviation 1:
   one in forty passes the threshold, and the Jacobian there hardly sees a feature.
3. A vector as long as a state (`SCALE`) along v_j brings <v_j, x> to 8 / sqrt 2 = 5.7, well above the threshold. As RMSNorm shares
   8 out among all that is added, a sum of two features brings each to 4.0: one feature at a time moves the target most.

Target is the output of the block after the planted one. Prompts are random token ids of two lengths.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import unknown
from repscope.worlds.planted.functions import GAINS, drawn_from, unit_rows
from repscope.worlds.tiny import byte_tokenizer, untrained_llama

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

WIDTH, FEATURES, BLOCKS, VOCABULARY = 64, 12, 5, 1024
SOURCE, PLANTED, TARGET = 1, 2, 3  #: blocks
SPREAD = 0.05  #: standard deviation of the random weights
SCALE = 8.0  #: length of a vector: that of a state, the square root of the width
LENGTHS = (6, 6, 6, 9, 9, 9)  #: tokens of each prompt


@dataclass(frozen=True)
class Neuron:
    """How a planted neuron reads its direction v: gate and up as multiples of v, and their biases."""

    gate: float
    gate_bias: float
    up: float
    up_bias: float


NEURON_KINDS = {"threshold": Neuron(2.0, -4.0, 0.0, 1.0), "product": Neuron(1.0, 0.0, 1.0, 0.0)}


@dataclass(frozen=True, eq=False)
class PlantedTransformer:
    """A language model and what was planted in it. truth: (feature, width), what it responds to at the source. out: (feature,
    width), what it writes then. kind, seed: how it was drawn."""

    lm: "LanguageModel"
    truth: Float[Tensor, "feature width"]
    out: Float[Tensor, "feature width"]
    kind: str
    seed: int
    source: str = f"resid_post.{SOURCE}"
    target: str = f"resid_post.{TARGET}"

    def prompts(self, split: str = "train", lengths: tuple[int, ...] = LENGTHS) -> list[Int[np.ndarray, "token"]]:
        """Random token ids to find directions at, or others to judge them on."""
        generator = drawn_from("prompts", split, self.kind, self.seed)
        return [torch.randint(VOCABULARY, (n,), generator=generator).numpy() for n in lengths]


def planted_transformer(kind: str = "threshold", seed: int = 0) -> PlantedTransformer:
    """Draw a network and write features into it.

    Parameters
    ----------
    kind
        One of `NEURON_KINDS`.
    seed
        The network's; its prompts and any method draw from elsewhere.

    Raises
    ------
    UserError
        For an unknown kind.
    """
    from repscope.models.engine.fingerprint import WeightSource, of_module
    from repscope.models.language import LanguageModel

    if kind not in NEURON_KINDS:
        raise unknown("kind of planted transformer", kind, NEURON_KINDS)
    features = drawn_from("features", kind, seed)
    truth, out = (unit_rows(FEATURES, WIDTH, features) for _ in range(2))
    model = untrained_llama(
        0,
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=BLOCKS,
        num_key_value_heads=4,
        max_position_embeddings=256,
        mlp_bias=True,
    )
    _draw(model, drawn_from("transformer", kind, seed))
    _plant(model.model.layers[PLANTED].mlp, truth, out, NEURON_KINDS[kind])
    source = WeightSource(f"planted {kind}", of_module(model), "float32, random weights", None, None)
    lm = LanguageModel(model, byte_tokenizer(), f"planted {kind}", source)
    return PlantedTransformer(lm, truth, out, kind, seed)


def _draw(model: Any, generator: torch.Generator) -> None:
    """Every matrix from this generator; norms stay ones, biases zeros."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                spread = 1.0 if "embed_tokens" in name else SPREAD
                weight.copy_(spread * torch.randn(weight.shape, generator=generator))


def _plant(mlp: Any, truth: Tensor, out: Tensor, neuron: Neuron) -> None:
    some = slice(len(truth))
    with torch.no_grad():
        mlp.gate_proj.weight[some], mlp.gate_proj.bias[some] = neuron.gate * truth, neuron.gate_bias
        mlp.up_proj.weight[some], mlp.up_proj.bias[some] = neuron.up * truth, neuron.up_bias
        mlp.down_proj.weight[:, some] = (torch.linspace(*GAINS, len(truth))[:, None] * out).T


def readers(lm: "LanguageModel", source: int, target: int) -> Float[Tensor, "reader width"]:
    """What reads the residual stream between two blocks of a Llama, as one matrix: what a method that looks at weights may see."""
    layers = lm.model.model.layers[source + 1 : target + 1]
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    return torch.cat([layer.get_submodule(name).weight.detach() for layer in layers for name in names])
