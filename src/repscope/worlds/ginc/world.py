"""A GINC world: hidden Markov models (concepts) that share a table of symbols and differ in how slots follow each other.

1. A hidden state is a value (of an entity) and a slot (a property): state = value · slots + slot. It emits one symbol with
   certainty: entry (value, slot) of a random table, drawn with replacement. Slot 0 emits the delimiter, symbol 0, for every value.
2. A concept is a transition matrix of slots: a mixture of as many random permutations as slots, weighted by softmax((u − ½) / T),
   u uniform. Values follow a matrix made alike, the same for all concepts, mixed with the identity: (1 − stay) V + stay I.
3. State transitions are the Kronecker product of the two. A concept's start is softmax((u − ½) / T_start) over states.
4. Delimiter: `published` leaves the rows of slot 0 as the product makes them, so that they differ between concepts, and a prompt,
   in which a delimiter is followed by an unlikely slot, speaks for the wrong concept. `uniform` replaces them by the uniform
   distribution over states of other slots, in every concept: what follows a delimiter says nothing, and examples count.

The construction is that of the paper's code (generate_data.py of p-lambda/incontext-learning); random numbers are numpy's own.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from repscope.errors import UserError

PUBLISHED, UNIFORM = "published", "uniform"
DELIMITER = 0  #: the symbol between examples
_VALUES_SEED = 3  #: added to the world's seed for the transitions of values, as in the paper's code


@dataclass(frozen=True)
class GincSizes:
    """Sizes of a world.

    concepts: in the pretraining distribution. unseen: further concepts, for tests. values, slots: hidden states are their product.
    symbols: with the delimiter. stay: probability mass on keeping the value. temperature: of the weights of permutations.
    start_temperature: of the start distributions. delimiter: `uniform` or `published`.

    Raises
    ------
    UserError
        For sizes that make no world.
    """

    concepts: int = 5
    unseen: int = 5
    values: int = 5
    slots: int = 8
    symbols: int = 30
    stay: float = 0.9
    temperature: float = 0.1
    start_temperature: float = 10.0
    delimiter: str = UNIFORM

    def __post_init__(self) -> None:
        """Refuse what makes no world."""
        least = {"concepts": 1, "unseen": 0, "values": 1, "slots": 2, "symbols": 2}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise UserError(f"A GINC world has {name}={getattr(self, name)}; it needs at least {smallest}.")
        if not 0 <= self.stay <= 1:
            raise UserError(f"stay={self.stay} is no probability; it is the mass on keeping a value.")
        if min(self.temperature, self.start_temperature) <= 0:
            raise UserError("Temperatures of a GINC world must be positive.")
        if self.delimiter not in (PUBLISHED, UNIFORM):
            raise UserError(f"There is no delimiter {self.delimiter!r}; it is {UNIFORM} or {PUBLISHED}.")

    @property
    def states(self) -> int:
        """Hidden states."""
        return self.values * self.slots


@dataclass(frozen=True, eq=False)
class GincWorld:
    """A world. Make one with `drawn`.

    table: symbol of each value and slot. value_transition: shared. slot_transitions: one per concept, first those of pretraining,
    then the unseen ones. starts: over states. seed: it was drawn with.
    """

    sizes: GincSizes
    table: Int[np.ndarray, "value slot"]
    value_transition: Float[np.ndarray, "value value"]
    slot_transitions: Float[np.ndarray, "concept slot slot"]
    starts: Float[np.ndarray, "concept state"]
    seed: int

    @classmethod
    def drawn(cls, sizes: GincSizes, seed: int) -> "GincWorld":
        """A random world."""
        rng = np.random.default_rng(seed)
        table = rng.integers(1, sizes.symbols, (sizes.values, sizes.slots))
        table[:, 0] = DELIMITER
        values = _mixture(np.random.default_rng(seed + _VALUES_SEED), sizes.values, sizes.temperature)
        values = (1 - sizes.stay) * values + sizes.stay * np.eye(sizes.values)
        starts, slots = [], []
        for _ in range(sizes.concepts + sizes.unseen):
            starts.append(_softmax(rng.random(sizes.states) - 0.5, sizes.start_temperature))
            slots.append(_mixture(rng, sizes.slots, sizes.temperature))
        return cls(sizes, table, values, np.stack(slots), np.stack(starts), seed)

    def __repr__(self) -> str:
        s = self.sizes
        return (
            f"GincWorld({s.concepts} concepts, {s.values} values × {s.slots} slots, {s.symbols} symbols, {s.delimiter} delimiter)"
        )

    @property
    def symbols(self) -> Int[np.ndarray, "state"]:
        """The symbol that each state emits."""
        return np.asarray(self.table.reshape(-1))

    @cached_property
    def transitions(self) -> Float[np.ndarray, "concept state state"]:
        """Transition matrices of states."""
        found: np.ndarray = np.stack([np.kron(self.value_transition, slots) for slots in self.slot_transitions])
        if self.sizes.delimiter == UNIFORM:
            after = np.tile(np.arange(self.sizes.slots) > 0, self.sizes.values).astype(float)
            found[:, :: self.sizes.slots] = after / after.sum()
        return found

    @property
    def seen(self) -> tuple[int, ...]:
        """Concepts of the pretraining distribution."""
        return tuple(range(self.sizes.concepts))

    @property
    def unseen(self) -> tuple[int, ...]:
        """Concepts outside of it."""
        return tuple(range(self.sizes.concepts, self.sizes.concepts + self.sizes.unseen))

    def state(self, value: Int[np.ndarray, "*n"], slot: Int[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
        """Index of the state of a value and a slot."""
        found: np.ndarray = value * self.sizes.slots + slot
        return found

    def documents(
        self, count: int, length: int, rng: np.random.Generator, concepts: tuple[int, ...] | None = None
    ) -> tuple[Int[np.ndarray, "document token"], Int[np.ndarray, "document"]]:
        """Documents from their start, each of one concept drawn uniformly, and those concepts."""
        chosen = np.asarray(self.seen if concepts is None else concepts)
        concept = chosen[rng.integers(0, len(chosen), count)]
        state = _drawn(np.cumsum(self.starts, axis=-1)[concept], rng)
        tokens = np.empty((count, length), np.int64)
        for t in range(length):
            tokens[:, t] = self.symbols[state]
            if t + 1 < length:
                state = self.step(concept, state, rng)
        return tokens, concept

    def step(self, concept: Int[np.ndarray, "n"], state: Int[np.ndarray, "n"], rng: np.random.Generator) -> Int[np.ndarray, "n"]:
        """The next state of each; value and slot follow each other independently, but after a uniform delimiter."""
        value, slot = np.divmod(state, self.sizes.slots)
        next_value = _drawn(self._cumulative_values[value], rng)
        next_slot = _drawn(self._cumulative_slots[concept, slot], rng)
        if self.sizes.delimiter == UNIFORM:
            free = slot == 0
            next_value = np.where(free, rng.integers(0, self.sizes.values, len(state)), next_value)
            next_slot = np.where(free, rng.integers(1, self.sizes.slots, len(state)), next_slot)
        return self.state(next_value, next_slot)

    @cached_property
    def _cumulative_values(self) -> Float[np.ndarray, "value value"]:
        return np.cumsum(self.value_transition, axis=-1)

    @cached_property
    def _cumulative_slots(self) -> Float[np.ndarray, "concept slot slot"]:
        return np.cumsum(self.slot_transitions, axis=-1)


def _drawn(cumulative: Float[np.ndarray, "n outcome"], rng: np.random.Generator) -> Int[np.ndarray, "n"]:
    """One outcome per row of cumulative probabilities, whose last entry counts as one."""
    u = rng.random(len(cumulative))
    found: np.ndarray = (cumulative[:, :-1] <= u[:, None]).sum(-1)
    return found


def _softmax(x: Float[np.ndarray, "n"], temperature: float) -> Float[np.ndarray, "n"]:
    e = np.exp((x - x.max()) / temperature)
    weights: np.ndarray = e / e.sum()
    return weights


def _mixture(rng: np.random.Generator, n: int, temperature: float) -> Float[np.ndarray, "n n"]:
    """A mixture of n random permutation matrices."""
    weights = _softmax(rng.random(n) - 0.5, temperature)
    found = np.zeros((n, n))
    for weight in weights:
        found[np.arange(n), rng.permutation(n)] += weight
    return found
