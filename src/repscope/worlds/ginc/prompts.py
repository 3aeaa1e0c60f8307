"""Prompts of a GINC world: examples of a fixed length with a delimiter after each, for all numbers of examples in one pass.

1. A prompt has a concept and one start slot. Each example draws a value uniformly and rolls out `length` symbols from there; the
   last is the label's place. A delimiter follows.
2. As examples are independent given concept and slot, the prompt of k_max examples and one more holds the prompts of all smaller k:
   what a causal network predicts after the last input symbol of example k is its answer after k examples.
3. The oracle knows concept and start slot: p(label | input symbols of this example). The label is its most probable symbol, as in
   the paper; the margin is the difference between its two largest probabilities. Below .1 a label is nearly a coin's.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from repscope.errors import UserError
from repscope.worlds.ginc.world import DELIMITER, GincWorld

NEAR_TIE = 0.1  #: margin below which a label is nearly a coin's


@dataclass(frozen=True, eq=False)
class GincPrompts:
    """Prompts. tokens: k_max + 1 examples of `length` symbols, each with its delimiter. concept, slot: latent, per prompt.

    oracle: distribution of the label for every example. length: symbols of an example, label included.
    """

    tokens: Int[np.ndarray, "prompt token"]
    concept: Int[np.ndarray, "prompt"]
    slot: Int[np.ndarray, "prompt"]
    oracle: Float[np.ndarray, "prompt example symbol"]
    length: int

    @property
    def examples(self) -> int:
        """Examples per prompt; the last is the query after examples − 1 others."""
        return int(self.oracle.shape[1])

    @property
    def positions(self) -> Int[np.ndarray, "example"]:
        """Places of the last input symbol of each example: the next token is the label."""
        return np.arange(self.examples) * (self.length + 1) + self.length - 2

    @property
    def labels(self) -> Int[np.ndarray, "prompt example"]:
        """The oracle's most probable symbol."""
        found: np.ndarray = self.oracle.argmax(-1)
        return found

    @property
    def margins(self) -> Float[np.ndarray, "prompt example"]:
        """Difference between the oracle's two largest probabilities."""
        two = np.partition(self.oracle, -2, axis=-1)[..., -2:]
        found: np.ndarray = two[..., 1] - two[..., 0]
        return found

    def reordered(self, order: Int[np.ndarray, "example"]) -> "GincPrompts":
        """The same prompts with their examples in another order."""
        blocks = self.tokens.reshape(len(self.tokens), self.examples, self.length + 1)
        tokens = blocks[:, order].reshape(self.tokens.shape)
        return GincPrompts(tokens, self.concept, self.slot, self.oracle[:, order], self.length)


def prompts(
    world: GincWorld, count: int, examples: int, length: int, rng: np.random.Generator, concepts: tuple[int, ...] | None = None
) -> GincPrompts:
    """Prompts of `examples` examples and a query; concepts are drawn uniformly, by default from those of pretraining.

    Raises
    ------
    UserError
        For an example without an input symbol.
    """
    if length < 2 or examples < 0:
        raise UserError(f"A prompt has {examples} examples of {length} symbols; an example has an input symbol and a label.")
    sizes = world.sizes
    chosen = np.asarray(world.seen if concepts is None else concepts)
    concept = chosen[rng.integers(0, len(chosen), count)]
    slot = rng.integers(1, sizes.slots, count)
    every = examples + 1
    concepts_of, slots_of = np.repeat(concept, every), np.repeat(slot, every)
    state = world.state(rng.integers(0, sizes.values, count * every), slots_of)
    tokens = np.full((count * every, length + 1), DELIMITER, np.int64)
    for t in range(length):
        tokens[:, t] = world.symbols[state]
        if t + 1 < length:
            state = world.step(concepts_of, state, rng)
    oracle = answers(world, tokens[:, : length - 1], concepts_of, slots_of)
    return GincPrompts(tokens.reshape(count, -1), concept, slot, oracle.reshape(count, every, sizes.symbols), length)


def answers(
    world: GincWorld,
    inputs: Int[np.ndarray, "example input"],
    concept: Int[np.ndarray, "example"],
    slot: Int[np.ndarray, "example"],
) -> Float[np.ndarray, "example symbol"]:
    """The oracle's p(next symbol | input symbols), with a known concept and start slot and a uniform value."""
    sizes = world.sizes
    out = np.empty((len(inputs), sizes.symbols))
    emission = np.eye(sizes.symbols)[world.symbols]
    for c in np.unique(concept):
        rows = np.flatnonzero(concept == c)
        alive = np.zeros((len(rows), sizes.values, sizes.slots))
        alive[np.arange(len(rows)), :, slot[rows]] = 1 / sizes.values
        alpha = alive.reshape(len(rows), -1)
        for t in range(inputs.shape[1]):
            alpha = alpha * (world.symbols == inputs[rows, t, None])
            alpha = (alpha / alpha.sum(-1, keepdims=True)) @ world.transitions[c]
        out[rows] = alpha @ emission
    return out
