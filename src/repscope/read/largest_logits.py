"""The most likely token of each state, with most of the vocabulary ruled out in half precision.

On a CPU with matrix units for bfloat16 (Intel AMX), a product in bfloat16 takes about a tenth of one in float32. Rounding errors of
such a product have a bound: with x = x' + x̃ and w = w' + w̃, where x' and w' are rounded,

    |x·w - x'·w'| ≤ |x̃||w| + |x'||w̃|      (Cauchy-Schwarz),

beside the rounding of sums and of the result. So a block of tokens whose largest logit plus its bound is below another's minus its
bound cannot hold the most likely token. What is left, a few blocks for each state, is computed in float32: the answer is that of
the whole product in float32, whatever the bound rules out.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from repscope.models.engine.hooks import unhooked

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

LEAST = 192  #: states from which the pass over the head's weights that bounds need is worth its time
_ROWS = 2048  #: states at once
_TOKENS = 4096  #: tokens of the vocabulary at once
_BLOCK = 16  #: tokens that share a bound
_PAIRS = 1024  #: pairs of a state and a block that are computed in float32 at once
_MANY = 0.1  #: part of the blocks that may be left; with more, the whole product is faster


def largest_logits(
    lm: "LanguageModel", states: Float[np.ndarray, "row d_model"], *, normed: bool = False
) -> Int[np.ndarray, "row"] | None:
    """The most likely next token of each state by final norm (unless `normed`) and head; None where the whole product is faster.

    Raises
    ------
    UserError
        As `lm.unembed`.
    """
    weight = plain_head(lm) if len(states) >= LEAST else None
    if weight is None:
        return None
    found: list[np.ndarray] = []
    for first in range(0, len(states), _ROWS):
        x = lm.head_inputs(states[first : first + _ROWS].astype(np.float32), normed=normed)
        if not found and not _same(lm, x[:2], weight):
            return None
        places = largest_products(weight, x)
        if places is None:
            return None
        found.append(places.numpy())
    return np.concatenate(found)


def plain_head(lm: "LanguageModel") -> Tensor | None:
    """The weight of a head that is one matrix in float32, on a CPU that multiplies bfloat16 in hardware; else None."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases of torch have none
    if lm.device.type != "cpu" or not capabilities.get("amx_bf16", False):
        return None
    module: Any = lm.model.get_output_embeddings()
    if type(module) is not nn.Linear or getattr(module, "bias", None) is not None or module.weight.dtype != torch.float32:
        return None
    weight: Tensor = module.weight.detach()
    return weight


def _same(lm: "LanguageModel", x: Float[Tensor, "row d"], weight: Float[Tensor, "token d"]) -> bool:
    """Whether the logits are the product, neither scaled nor capped."""
    with unhooked(lm.model):
        return torch.allclose(lm.head()(x), x @ weight.T, rtol=1e-4, atol=1e-4)


def largest_products(weight: Float[Tensor, "token d"], x: Float[Tensor, "row d"]) -> Int[Tensor, "row"] | None:
    """The first token of the largest weight @ x for each row of x; None where too little is ruled out, or for NaN and infinity."""
    half = x.bfloat16()
    if not bool(torch.isfinite(half).all()):
        return None
    size, kept, lost = x.norm(dim=1), half.float().norm(dim=1), (x - half).norm(dim=1)
    tops: list[Tensor] = []
    sizes: list[Tensor] = []
    losts: list[Tensor] = []
    for first in range(0, len(weight), _TOKENS):
        part = weight[first : first + _TOKENS]
        rounded = part.bfloat16()
        logits, of_part, of_rounding = rounded @ half.T, part.norm(dim=1), (part - rounded).norm(dim=1)
        if rest := -len(part) % _BLOCK:
            logits = nn.functional.pad(logits, (0, 0, 0, rest), value=-torch.inf)
            of_part, of_rounding = nn.functional.pad(of_part, (0, rest)), nn.functional.pad(of_rounding, (0, rest))
        tops.append(logits.view(-1, _BLOCK, len(x)).amax(1))
        sizes.append(of_part.view(-1, _BLOCK).amax(1))
        losts.append(of_rounding.view(-1, _BLOCK).amax(1))
    top, sums = torch.cat(tops).float(), 2.0**-22 * (x.shape[1] + 16)  # rounding of sums in single precision, here and below
    error = torch.outer(torch.cat(sizes), lost + sums * size) + torch.outer(torch.cat(losts), kept)
    error = (1 + 2.0**-7) * error + 2.0**-7 * top.abs()  # the product itself is rounded to bfloat16
    left = top + error >= (top - error).amax(0)
    if not bool(torch.isfinite(error).all()) or int(left.sum()) > max(4 * len(x), _MANY * left.numel()):
        return None
    return _among(weight, x, left)


def _among(weight: Float[Tensor, "token d"], x: Float[Tensor, "row d"], left: Tensor) -> Int[Tensor, "row"]:
    """The first token of the largest product for each row, among the blocks that are left to it (block, row)."""
    block, row = left.nonzero(as_tuple=True)
    tokens = (block[:, None] * _BLOCK + torch.arange(_BLOCK)).clamp(max=len(weight) - 1)
    values = torch.empty(len(block))
    places = torch.empty(len(block), dtype=torch.int64)
    for first in range(0, len(block), _PAIRS):
        at = slice(first, first + _PAIRS)
        values[at], which = (weight[tokens[at]] @ x[row[at], :, None])[..., 0].max(1)
        places[at] = tokens[at].gather(1, which[:, None])[:, 0]
    order = torch.from_numpy(np.lexsort((places.numpy(), -values.numpy(), row.numpy())))
    first_of_row = torch.searchsorted(row[order], torch.arange(len(x)))
    return places[order][first_of_row]
