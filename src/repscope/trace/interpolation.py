"""Losses along straight lines between networks: linear interpolation of many pairs in parallel.

1. Weights of the ends are stacked (run, …); a point of a pair is (1 − α) a + α b, α evenly spaced from 0 to 1.
2. Pairs share ends, which are evaluated once each; interior points are evaluated in chunks.
3. `evaluate` is the only call into a network: stacked weights → losses by name, one number per network, or two sums per example
   whose ratio is the loss.

If memory is too small for several networks, `streaming` evaluates one line at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int

from repscope.errors import UserError, unknown
from repscope.models.engine.memory import memory_kept
from repscope.models.loading.stacked_weights import Evaluate, State, runs_of
from repscope.progress import progress
from repscope.trace.barriers import height

POINTS = 10  #: per line, ends included: as Juneja et al. 2023
_HELD = 64 << 20  #: bytes of weights of a chunk


@dataclass(frozen=True, eq=False)
class Curves:
    """Losses along lines between runs.

    runs: their number. pairs: (pair, 2), ends of each line. alphas: (point). losses: name → (pair, point). each: name → (pair,
    point, example, 2), sums per example whose ratio is the loss, if measured per example.
    """

    runs: int
    pairs: Int[np.ndarray, "pair end"]
    alphas: Float[np.ndarray, "point"]
    losses: dict[str, Float[np.ndarray, "pair point"]]
    each: dict[str, Float[np.ndarray, "pair point example 2"]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        runs: int,
        pairs: Int[np.ndarray, "pair end"],
        alphas: Float[np.ndarray, "point"],
        found: dict[str, Float[np.ndarray, "pair point *sums"]],
    ) -> "Curves":
        """Curves from numbers or from sums per example."""
        each = {name: values for name, values in found.items() if values.ndim > 2}
        sums = {name: values.sum(-2) for name, values in each.items()}
        ratios = {name: values[..., 0] / values[..., 1] for name, values in sums.items()}
        return cls(runs, pairs, alphas, {name: ratios.get(name, values) for name, values in found.items()}, each)

    def matrix(self, loss: str, how: str) -> Float[np.ndarray, "run run"]:
        """Barriers between all runs, symmetric, zero on the diagonal, NaN for pairs without a line.

        Parameters
        ----------
        loss
            Name of the loss.
        how
            A name in `barriers.HEIGHTS`.

        Raises
        ------
        UserError
            For a loss that was not measured, or an unknown height.
        """
        if loss not in self.losses:
            raise unknown("loss", loss, self.losses)
        return self.filled(height(self.losses[loss], how))

    def filled(self, values: Float[np.ndarray, "pair"]) -> Float[np.ndarray, "run run"]:
        """Values per pair as a symmetric matrix."""
        found = np.full((self.runs, self.runs), np.nan)
        np.fill_diagonal(found, 0.0)
        i, j = self.pairs.T
        found[i, j] = found[j, i] = values
        return found

    def ends(self, loss: str) -> Float[np.ndarray, "run"]:
        """Loss of each run; NaN for runs without a line."""
        found = np.full(self.runs, np.nan)
        for end, point in ((0, 0), (1, -1)):
            found[self.pairs[:, end]] = self.losses[loss][:, point]
        return found


def all_pairs(runs: int) -> Int[np.ndarray, "pair end"]:
    """Every pair of different runs, once."""
    return np.array(list(combinations(range(runs), 2)), dtype=np.int64).reshape(-1, 2)


def check_states(
    runs: int, pairs: Int[np.ndarray, "pair end"] | Sequence[tuple[int, int]] | None, points: int
) -> Int[np.ndarray, "pair end"]:
    """Validated pairs; every pair when None.

    Raises
    ------
    UserError
        For fewer than two runs or three points, or a pair with an unknown run.
    """
    ends = all_pairs(runs) if pairs is None else np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    if runs < 2 or not len(ends):
        raise UserError(f"{runs} runs and {len(ends)} pairs give no line; take at least two runs.")
    if points < 3:
        raise UserError(f"A path of {points} points has no inside; take at least 3.")
    if ends.min() < 0 or ends.max() >= runs:
        raise UserError(f"A pair names run {int(ends.max())}, and there are {runs}, counted from 0.")
    return ends


@torch.no_grad()
def curves(
    state: State,
    evaluate: Evaluate,
    pairs: Int[np.ndarray, "pair end"] | Sequence[tuple[int, int]] | None = None,
    points: int = POINTS,
) -> Curves:
    """Losses along the lines between runs of a stack.

    Parameters
    ----------
    state
        Weights of the runs.
    evaluate
        Losses of stacked networks.
    pairs
        Ends of lines; every pair when None.
    points
        Per line, ends included.

    Raises
    ------
    UserError
        As `check_states`.
    """
    runs = runs_of(state)
    ends = check_states(runs, pairs, points)
    alphas = np.linspace(0.0, 1.0, points)
    with memory_kept(), progress("Paths", len(ends) * (points - 2) + runs) as advance:
        own = evaluate(state)
        advance(runs)
        found = {name: np.empty((len(ends), points, *values.shape[1:])) for name, values in own.items()}
        for name, values in own.items():
            found[name][:, 0], found[name][:, -1] = values[ends[:, 0]], values[ends[:, 1]]
        inside = [(pair, point) for pair in range(len(ends)) for point in range(1, points - 1)]
        size = sum(value[0].numel() * value.element_size() for value in state.values())
        chunk = max(1, _HELD // size)
        for start in range(0, len(inside), chunk):
            pair, point = np.array(inside[start : start + chunk]).T
            a, b = (torch.from_numpy(ends[pair, end]) for end in range(2))
            weight = torch.from_numpy(alphas[point])
            between = {name: _mixed(value, a, b, weight) for name, value in state.items()}
            for name, values in evaluate(between).items():
                found[name][pair, point] = values
            advance(len(pair))
    return Curves.of(runs, ends, alphas, found)


def _mixed(value: torch.Tensor, a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    w = weight.to(value.dtype).view(-1, *[1] * (value.ndim - 1))
    return torch.lerp(value[a], value[b], w)
