"""Most likely tokens of many sums αx + γb of the same states, from one product with the head.

An RMSNorm divides by the root mean square, and a head without bias is linear. So L(x) = rms(x) · head(norm(x)) is linear in x, and
the most likely token of αx + γb, whatever its norm, is the largest entry of αL(x) + γL(b). Choosing β among ten values then costs
two products with the vocabulary in place of ten.

On a CPU where most of the vocabulary is ruled out in half precision (`largest_logits`), each sum is a state of its own.

Networks with another norm, a bias or a soft cap of the logits are found out on a sum of each batch, and computed sum by sum.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from repscope.read.known_facts import HEAD_ROWS, most_likely
from repscope.read.largest_logits import plain_head

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

Sums = tuple[np.ndarray, np.ndarray, Sequence[tuple[float, float]]]  #: states (row, d_model), bias (d_model), pairs (α, γ)
_TOGETHER = 4096  #: sums that share a product with the head
_PART = 1 << 17  #: entries of the logits that are in use at once
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
            found[:, at] = _largest(linear[:-1], linear[-1], sums)
    return found


def most_likely_of_each(lm: "LanguageModel", asked: Iterable[Sums]) -> Iterator[Int[np.ndarray, "sum row"]]:
    """`most_likely_of_sums` of several sets of states, in their order; where that is faster, some share a product with the head.

    Only the sets that share a product are in memory at once.
    """
    if plain_head(lm) is None:
        for states, bias, sums in asked:
            yield most_likely_of_sums(lm, states, bias, sums)
        return
    held: list[np.ndarray] = []
    for states, bias, sums in asked:
        held.append(np.stack([a * states + c * bias for a, c in sums]).astype(np.float32))
        if sum(len(x) * x.shape[1] for x in held) >= _TOGETHER:
            yield from _together(lm, held)
            held = []
    yield from _together(lm, held)


def _together(lm: "LanguageModel", held: Sequence[Float[np.ndarray, "sum row d_model"]]) -> list[Int[np.ndarray, "sum row"]]:
    if not held:
        return []
    found = most_likely(lm, np.concatenate([x.reshape(-1, x.shape[2]) for x in held]))
    ends = np.cumsum([len(x) * x.shape[1] for x in held])[:-1]
    return [part.reshape(x.shape[:2]) for part, x in zip(np.split(found, ends), held)]


def _largest(
    x: Float[np.ndarray, "row vocab"], b: Float[np.ndarray, "vocab"], sums: Sequence[tuple[float, float]]
) -> Int[np.ndarray, "sum row"]:
    """The place of the largest entry of αx + γb; a part of the vocabulary at a time, so that all sums read it from the cache."""
    width = max(1, _PART // len(x))
    most = np.full((len(sums), len(x)), -np.inf, dtype=x.dtype)
    found, rows = np.zeros(most.shape, dtype=np.int64), np.arange(len(x))
    for first in range(0, x.shape[1], width):
        part, bias = x[:, first : first + width], b[first : first + width]
        for i, (a, c) in enumerate(sums):
            mixed = a * part
            mixed += c * bias
            places = mixed.argmax(-1)
            values = mixed[rows, places]
            higher = values > most[i]
            most[i, higher], found[i, higher] = values[higher], first + places[higher]
    return found


def _linear(lm: "LanguageModel", states: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, "row vocab"]:
    """L of the module's docstring."""
    size = np.sqrt(np.mean(np.square(states, dtype=np.float64), -1, keepdims=True)).astype(np.float32)
    logits = lm.unembed(states.astype(np.float32))
    logits *= size
    return logits
