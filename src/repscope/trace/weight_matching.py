"""Weight matching (Git Re-Basin): permutation of a network's units to fit another's weights.

Input: the weights of two networks of one architecture, and its symmetries. Output: a permutation of each group of units, and the
second network's weights in that order; its function is unchanged. Algorithm 1 of Ainsworth, Hayase & Srinivasa 2022, "Git
Re-Basin", arXiv 2209.04836:

1. Start with the given order of units.
2. Visit the groups in random order. With all other orders fixed, the inner product of the two networks' weights is a sum of
   pairwise scores: for unit i of the first and unit j of the second, the inner product of their incoming and outgoing weights,
   with the other axes permuted.
3. The order that maximises the sum is a linear assignment, solved exactly. It is accepted if the inner product grows.
4. Heads of attention: the score of two heads is the sum of their best inner assignments (query and key dimensions in one order,
   value and output dimensions in another); the heads are then assigned.
5. Repeat until a whole sweep has no gain: a local optimum.
6. Our addition: a second search starts from an order built outwards from the fixed axes (inputs, outputs, vocabulary). It scores
   each group only by weights whose other axes are already ordered; the others add only noise. In deep networks or with many groups,
   step 1 misses even a permuted copy, and this search finds it. Further searches start from random orders. The result has the
   largest inner product; of equal ones the earliest search.

Scores are not exact if one tensor has a group on two of its axes (a residual stream through a single layer); due to step 3 the
inner product still never falls. All computations are in float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from repscope.errors import UserError
from repscope.trace.unit_symmetries import Axis, Heads, Symmetries, symmetries

__all__ = ["Axis", "Heads", "Matching", "Permutations", "State", "Symmetries", "match", "permute", "symmetries"]

#: a network's tensors by name, as `state_dict()` has them
State = Mapping[str, Float[Tensor, "..."] | Int[Tensor, "..."]]
#: per group: unit i of the result is the original unit with this number
Permutations = Mapping[str, Int[np.ndarray, "unit"]]

_GAIN = 1e-12  #: smallest gain of the normalised inner product above rounding


@dataclass(frozen=True, eq=False)
class Matching:
    """The permutation of the second network's units that fits the first.

    Attributes
    ----------
    permutations
        Per group.
    before
        Cosine between all permutable weights in the given order of units.
    path
        Cosine at the start of the search and after each sweep. It never falls.
    converged
        Whether the last sweep had no gain.
    restart
        Start of this search: 0 the given order, 1 outwards from the fixed axes, others random.
    symmetries
        The symmetries of the architecture.
    """

    permutations: Permutations
    before: float
    path: tuple[float, ...]
    converged: bool
    restart: int
    symmetries: Symmetries

    @property
    def after(self) -> float:
        """Cosine between the weights after matching."""
        return self.path[-1]

    @property
    def sweeps(self) -> int:
        """Sweeps over all groups."""
        return len(self.path) - 1

    @property
    def moved(self) -> float:
        """Share of units whose position changed."""
        return float(np.mean(np.concatenate([p != np.arange(len(p)) for p in self.permutations.values()])))

    def apply(self, state: State) -> dict[str, Tensor]:
        """A permuted copy of weights; tensors without a symmetry are unchanged."""
        return _applied(state, self.symmetries, self.permutations)


def match(a: State, b: State, symmetries: Symmetries, seed: int = 0, sweeps: int = 100, restarts: int = 2) -> Matching:
    """Permute b's units to maximise the inner product of its weights with a's.

    Parameters
    ----------
    a, b
        Two networks of one architecture. Neither is changed.
    symmetries
        Of that architecture.
    seed
        Of the order of groups and the random starts.
    sweeps
        Maximum of sweeps per search.
    restarts
        Number of searches. 1: the paper's algorithm, from the given order.

    Raises
    ------
    UserError
        If a tensor is missing, of another shape, or not finite.
    """
    if sweeps < 1 or restarts < 1:
        raise UserError(f"{sweeps} sweeps and {restarts} restarts search for nothing; take at least one of each.")
    _checked(a, symmetries)
    _checked(b, symmetries)
    for name in {**a, **b}:
        shapes = [tuple(s[name].shape) if name in s else None for s in (a, b)]
        if shapes[0] != shapes[1]:
            held = [f"of shape {shape}" if shape is not None else "not there" for shape in shapes]
            raise UserError(f"{name} is {held[0]} in one network and {held[1]} in the other; match two of one architecture.")
    pair = _Pair(a, b, symmetries)
    start = {group: np.arange(size) for group, size in symmetries.sizes.items()}
    before, best = pair.similarity(start), None
    for restart in range(restarts):
        random = np.random.default_rng([seed, restart])
        begin = start if restart == 0 else pair.outwards(start, random) if restart == 1 else _random(symmetries, random)
        found, path, converged = pair.descend(begin, random, sweeps)
        if best is None or path[-1] > best.after + _GAIN:
            best = Matching(found, before, tuple(path), converged, restart, symmetries)
    assert best is not None
    return best


def permute(state: State, symmetries: Symmetries, seed: int) -> dict[str, Tensor]:
    """A copy with units in random order and the same function: the control of a matching."""
    _checked(state, symmetries)
    return _applied(state, symmetries, _random(symmetries, np.random.default_rng(seed)))


class _Pair:
    """Two networks' weights in float64, of unit norm, and the scores of their units."""

    def __init__(self, a: State, b: State, symmetries: Symmetries) -> None:
        self.symmetries = symmetries
        self.axes: dict[str, list[Axis]] = {}
        for x in symmetries.axes:
            if x.weighed:
                self.axes.setdefault(x.tensor, []).append(x)
        self.a, self.b = _unit(a, self.axes), _unit(b, self.axes)

    def similarity(self, permutations: Permutations, among: frozenset[str] | None = None) -> float:
        """Cosine of the weights, or the contribution of the tensors with one of these groups."""
        return float(
            sum(
                np.vdot(self.a[name], self._ordered(name, permutations))
                for name, axes in self.axes.items()
                if among is None or among & {x.group for x in axes}
            )
        )

    def outwards(self, start: Permutations, random: np.random.Generator) -> Permutations:
        """An order of all groups, each next the one with the largest share of weights to groups already ordered."""
        orders, left, settled = dict(start), list(self.symmetries.moves), frozenset[str]()
        random.shuffle(left)
        while left:
            move = max(left, key=lambda m: self._anchored(m, settled))
            left.remove(move)
            orders |= self._best(move, orders, settled)
            settled |= frozenset(move.groups)
        return orders

    def _anchored(self, move: Heads, settled: frozenset[str]) -> float:
        """Share of a move's squared weights whose other axes are already ordered."""
        touched = [x for axes in self.axes.values() for x in axes if x.group in move.groups]
        size = [float(np.vdot(self.a[x.tensor], self.a[x.tensor])) for x in touched]
        return sum(s for s, x in zip(size, touched) if self._counts(x, settled)) / (sum(size) or 1.0)

    def _counts(self, x: Axis, settled: frozenset[str] | None) -> bool:
        """Whether a tensor's other axes are already ordered."""
        return settled is None or all(y is x or y.group in settled for y in self.axes[x.tensor])

    def descend(
        self, start: Permutations, random: np.random.Generator, sweeps: int
    ) -> tuple[dict[str, np.ndarray], list[float], bool]:
        """Sweeps from a start: final orders, similarity at the start and after each sweep, whether the last had no gain."""
        orders, moves = dict(start), self.symmetries.moves
        path = [self.similarity(orders)]
        for _ in range(sweeps):
            gained = False
            for i in random.permutation(len(moves)):
                among = frozenset(moves[i].groups)
                tried = orders | self._best(moves[i], orders)
                if self.similarity(tried, among) > self.similarity(orders, among) + _GAIN:
                    orders, gained = tried, True
            path.append(self.similarity(orders) if gained else path[-1])
            if not gained:
                return orders, path, True
        return orders, path, False

    def _best(self, move: Heads, permutations: Permutations, settled: frozenset[str] | None = None) -> dict[str, np.ndarray]:
        """Best orders of the groups of a move with all others fixed; with `settled`, scored only by tensors between those."""
        count, parts = move.count, []
        for group in move.groups:
            size = self.symmetries.sizes[group] // count
            scores = self._scores(group, permutations, settled).reshape(count, size, count, size)
            parts.append(scores.transpose(0, 2, 1, 3))  # head of a, head of b, unit of a, unit of b
        # which unit goes where, were these two heads paired
        inner = [[[_assigned(s[h, k]) for k in range(count)] for h in range(count)] for s in parts]
        pairs = np.array(
            [
                [sum(s[h, k][np.arange(len(p[h][k])), p[h][k]].sum() for s, p in zip(parts, inner)) for k in range(count)]
                for h in range(count)
            ]
        )
        partner = _assigned(pairs)
        return {
            group: np.concatenate([k * s.shape[2] + p[h][k] for h, k in enumerate(partner)])
            for group, s, p in zip(move.groups, parts, inner)
        }

    def _scores(self, group: str, permutations: Permutations, settled: frozenset[str] | None) -> Float[np.ndarray, "unit unit"]:
        """Inner product of all incoming and outgoing weights of each unit of a with each unit of b."""
        size = self.symmetries.sizes[group]
        total = np.zeros((size, size))
        for name, axes in self.axes.items():
            for x in axes:
                if x.group == group and self._counts(x, settled):
                    one = np.moveaxis(self.a[name], x.axis, 0).reshape(size, -1)
                    other = np.moveaxis(self._ordered(name, permutations, but=x), x.axis, 0).reshape(size, -1)
                    total += one @ other.T
        return total

    def _ordered(self, name: str, permutations: Permutations, but: Axis | None = None) -> np.ndarray:
        tensor = self.b[name]
        for x in self.axes[name]:
            if x is not but:
                tensor = tensor.take(_entries(permutations[x.group], x.block), axis=x.axis)
        return tensor


def _assigned(scores: Float[np.ndarray, "unit unit"]) -> Int[np.ndarray, "unit"]:
    return np.asarray(linear_sum_assignment(scores, maximize=True)[1])


def _unit(state: State, names: Mapping[str, object]) -> dict[str, np.ndarray]:
    arrays = {name: state[name].detach().to("cpu", torch.float64).numpy() for name in names}
    length = np.sqrt(sum(float(np.vdot(x, x)) for x in arrays.values())) or 1.0
    return {name: x / length for name, x in arrays.items()}


def _entries(order: Int[np.ndarray, "unit"], block: int) -> Int[np.ndarray, "entry"]:
    """Units to the entries of an axis on which each takes a block of neighbours."""
    return (order[:, None] * block + np.arange(block)).ravel()


def _random(symmetries: Symmetries, random: np.random.Generator) -> dict[str, np.ndarray]:
    found = {}
    for move in symmetries.moves:
        heads = random.permutation(move.count)
        for group in move.groups:
            size = symmetries.sizes[group] // move.count
            found[group] = np.concatenate([head * size + random.permutation(size) for head in heads])
    return found


def _applied(state: State, symmetries: Symmetries, permutations: Permutations) -> dict[str, Tensor]:
    _checked(state, symmetries)
    found = {name: tensor.detach().clone() for name, tensor in state.items()}
    for x in symmetries.axes:
        entries = torch.from_numpy(_entries(permutations[x.group], x.block))
        found[x.tensor] = found[x.tensor].index_select(x.axis, entries.to(found[x.tensor].device))
    return found


def _checked(state: State, symmetries: Symmetries) -> None:
    for x in symmetries.axes:
        if x.tensor not in state:
            raise UserError(f"The weights have no {x.tensor}; hand in the state dict of the network with these symmetries.")
        tensor, length = state[x.tensor], symmetries.sizes[x.group] * x.block
        if tensor.ndim <= x.axis or tensor.shape[x.axis] != length:
            raise UserError(
                f"{x.tensor} is of shape {tuple(tensor.shape)}, and its symmetry has {length} entries on axis {x.axis}; take "
                "the symmetries of the network whose weights these are."
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"{x.tensor} holds weights that are not finite; match checkpoints from before training diverged.")
