"""How much of a name's vector is a sum over its tokens: tokens of real names, combined in full grids.

A grid takes n real names of m tokens (m = 2 or 3), and runs every combination of a first, a second (and a third) token of theirs;
the n real names are its diagonal. The network is deterministic, so the vector is a function of m tokens without noise:

    v(a, b, c) = μ + Σ single(·) + Σ pair(·, ·) + triple(a, b, c)

1. Shares. Tokens are random draws, so variances are those of a random-effects analysis of variance: the mean square of each term
   minus what finer terms contribute to it (expected mean squares). They are unbiased, add up to the variance, and may be slightly
   below 0. Sums of squares alone would count 1/n of the pairs as singles.
2. Real names. If a network looked names up, the interaction (what no sum of single tokens explains) would be larger at real names
   than at combinations of the same tokens: ratio of their energies; 1 without a look-up.
3. Attributes. The vector of each real name is predicted by least squares from the combinations alone, as a sum of functions of
   single tokens, or of pairs too; a probe trained on other, whole names then reads the prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import numpy as np
from jaxtyping import Float, Int

from repscope.errors import UserError

ORDERS = {1: "single tokens", 2: "pairs", 3: "triples"}
SIZES = {2: 8, 3: 5}  #: names of a grid, by number of tokens


@dataclass(frozen=True)
class Grid:
    """Real names of one number of tokens. entities: (name), indices. tokens: (name, position), token ids."""

    entities: Int[np.ndarray, "name"]
    tokens: Int[np.ndarray, "name position"]

    @property
    def names(self) -> Int[np.ndarray, "combination position"]:
        """Token ids of every combination, in the order of `numpy.ndindex`."""
        n, m = self.tokens.shape
        picks = np.array(list(product(range(n), repeat=m)))
        found: np.ndarray = self.tokens[picks, np.arange(m)]
        return found


@dataclass(frozen=True, eq=False)
class Recombined:
    """Vectors of one grid, split.

    variances: by order (1 single tokens, 2 pairs, 3 triples), summed over features. real, others: mean energy of the interaction at
    real names and at other combinations. parts: by order, (name, d_model), the real names' vectors predicted from the combinations.
    """

    variances: dict[int, float]
    real: float
    others: float
    parts: dict[int, Float[np.ndarray, "name d_model"]]


def grids(
    tokens: Sequence[Sequence[int]], count: int, *, size: int | None = None, most: int | None = None, seed: int = 0
) -> list[Grid]:
    """Grids of the names with `count` tokens, drawn at random; no token stands twice at one position of a grid.

    Parameters
    ----------
    tokens
        Token ids of each name.
    count
        2 or 3.
    size
        Names of a grid.
    most
        Grids at most; each name is in at most one.
    """
    if count not in SIZES:
        raise UserError(f"Names of {count} tokens are not recombined; choose 2 or 3.")
    size = size or SIZES[count]
    waiting = [i for i in np.random.default_rng([seed, count]).permutation(len(tokens)).tolist() if len(tokens[i]) == count]
    made: list[Grid] = []
    while len(waiting) >= size and (most is None or len(made) < most):
        taken: list[int] = []
        for i in waiting:
            if len(taken) < size and all(a != b for j in taken for a, b in zip(tokens[i], tokens[j])):
                taken.append(i)
        if len(taken) < size:
            break
        waiting = [i for i in waiting if i not in taken]
        made.append(Grid(np.array(taken), np.array([tokens[i] for i in taken])))
    return made


def recombined(vectors: Float[np.ndarray, "combination d_model"], size: int, count: int) -> Recombined:
    """Split the vectors of all combinations of a grid of `size` names with `count` tokens, in the order of `Grid.names`.

    Raises
    ------
    UserError
        When there are not size**count vectors, or they do not vary.
    """
    if len(vectors) != size**count:
        raise UserError(f"A grid of {size} names with {count} tokens has {size**count} combinations, not {len(vectors)}.")
    x = vectors.astype(np.float64).reshape(*[size] * count, -1)
    if not np.square(x - x.mean(tuple(range(count)))).sum():
        raise UserError("All combinations have the same vector, so nothing can be split; read a later token or site.")
    components = _components(x, count)
    squares = {axes: float(np.square(part).sum()) for axes, part in components.items()}
    variances = _variances(squares, size, count)
    interaction = x - sum(part for axes, part in components.items() if len(axes) <= 1)
    energy = np.square(interaction).sum(-1)
    diagonal = np.zeros(energy.shape, dtype=bool)
    diagonal[tuple(np.arange(size) for _ in range(count))] = True
    flat = x.reshape(size**count, -1)
    rest = flat[~diagonal.ravel()]
    parts = {order: _predictor(size, count, order) @ rest for order in range(1, count)}
    return Recombined(variances, float(energy[diagonal].mean()), float(energy[~diagonal].mean()), parts)


def _components(x: np.ndarray, count: int) -> dict[tuple[int, ...], np.ndarray]:
    """The terms of the analysis of variance: for a set of axes, centred over them and averaged over the others."""
    found = {}
    for order in range(count + 1):
        for axes in combinations(range(count), order):
            part = x
            for axis in range(count):
                mean = part.mean(axis, keepdims=True)
                part = part - mean if axis in axes else mean
            found[axes] = np.broadcast_to(part, x.shape)
    return found


def _variances(squares: dict[tuple[int, ...], float], n: int, count: int) -> dict[int, float]:
    """Variance of each order, from expected mean squares: E[MS_S] = Σ over T ⊇ S of n^(count − |T|) σ²_T."""
    sigma: dict[tuple[int, ...], float] = {}
    for order in range(count, 0, -1):
        for axes in combinations(range(count), order):
            mean_square = squares[axes] / (n - 1) ** order
            finer = sum(n ** (count - len(t)) * v for t, v in sigma.items() if set(t) > set(axes))
            sigma[axes] = (mean_square - finer) / n ** (count - order)
    return {order: sum(v for axes, v in sigma.items() if len(axes) == order) for order in range(1, count + 1)}


@cache
def _predictor(size: int, count: int, order: int) -> Float[np.ndarray, "name combination"]:
    """The map from the vectors of the other combinations to least-squares predictions of the real names."""
    cells = np.array(list(product(range(size), repeat=count)))
    columns = []
    for k in range(1, order + 1):
        for axes in combinations(range(count), k):
            codes = np.ravel_multi_index(tuple(cells[:, a] for a in axes), [size] * k)
            columns.append(np.eye(size**k)[codes])
    design = np.concatenate([np.ones((len(cells), 1)), *columns], axis=1)
    real = (cells == cells[:, :1]).all(1)
    made: np.ndarray = design[real] @ np.linalg.pinv(design[~real])
    return made
