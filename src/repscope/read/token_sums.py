"""Most likely tokens of many sums αx + γb of the same states, from one product with the head.

An RMSNorm divides by the root mean square, and a head without bias is linear. So L(x) = rms(x) · head(norm(x)) is linear in x, and
the most likely token of αx + γb, whatever its norm, is the largest entry of αL(x) + γL(b). Choosing β among ten values then costs
two products with the vocabulary in place of ten.

Networks with another norm, a bias or a soft cap of the logits are found out on a sum of each batch, and computed sum by sum.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from repscope.read.known_facts import HEAD_ROWS, most_likely

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

_AGREE = 1e-4  #: of the largest logit; rounding is of the order of 1e-6


def most_likely_of_sums(
    lm: "LanguageModel",
    states: Float[np.ndarray, "row d_model"],
    bias: Float[np.ndarray, "d_model"],
    sums: Sequence[tuple[float, float]],
) -> Int[np.ndarray, "sum row"]:
    """The most likely next token of α states + γ bias for each (α, γ), by final norm and head."""
    found = np.empty((len(sums), len(states)), dtype=np.int64)
    for first in range(0, len(states), HEAD_ROWS):
        rows = states[first : first + HEAD_ROWS]
        at = slice(first, first + len(rows))
        linear = _linear(lm, np.concatenate([rows, bias[None]]))
        a, c = max(sums, key=lambda pair: abs(pair[1]))
        mixed = _linear(lm, (a * rows[:1] + c * bias))[0]
        if np.abs(mixed - a * linear[0] - c * linear[-1]).max() > _AGREE * np.abs(mixed).max():
            found[:, at] = [most_likely(lm, a * rows + c * bias) for a, c in sums]
        else:
            for i, (a, c) in enumerate(sums):
                found[i, at] = (a * linear[:-1] + c * linear[-1]).argmax(-1)
    return found


def _linear(lm: "LanguageModel", states: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, "row vocab"]:
    """L of the module's docstring."""
    size = np.sqrt(np.mean(np.square(states, dtype=np.float64), -1, keepdims=True)).astype(np.float32)
    logits: np.ndarray = lm.unembed(states.astype(np.float32)) * size
    return logits
