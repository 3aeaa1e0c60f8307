"""The match at a block that is chosen on other tasks.

Chance matches of a few tasks are the same on any queries, so a block that is chosen on one half of the queries and reported on the
other still profits from them (in `tests/studies/test_context.py` by 0.09 in six tasks and four blocks without any match). So each
task's match is taken at the block where all other tasks match best:

    b_i = argmax over blocks of the match over tasks without i, from C without row i and column i
    match = mean over tasks i of C_ii(b_i) minus the mean of row i and column i of C(b_i)

The permutation p repeats all of it, the choice included, with the tasks of one side permuted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

import numpy as np
from jaxtyping import Float, Int

from repscope import stats
from repscope.stats.groups import TIE
from repscope.stats.permutation import PERMUTATIONS, orders

_ALL, _ORDERS = 6, 64  #: up to so many tasks all orders are taken; orders that are held at a time


@dataclass(frozen=True, eq=False)
class Chosen:
    """Centred cosines C (site, task, task), each task at a site that the other tasks choose."""

    centred: Float[np.ndarray, "site task task"]
    seed: int = 0

    @cached_property
    def sites(self) -> Int[np.ndarray, "task"]:
        """The site of each task."""
        found: np.ndarray = _scores(self.centred)[1].argmax(0)
        return found

    @property
    def same(self) -> Float[np.ndarray, "task"]:
        """Centred cosine of each task with itself at its site."""
        return np.asarray([self.centred[s, i, i] for i, s in enumerate(self.sites)])

    @cached_property
    def match(self) -> Float[np.ndarray, "task"]:
        """Match of each task at its site."""
        return _matches(self.centred)

    @cached_property
    def drawn(self) -> Float[np.ndarray, "order"]:
        """Match under permuted tasks, each with its own choice of sites."""
        return np.concatenate([_matches(part).mean(-1) for part in self._permuted()])

    @property
    def p(self) -> float:
        """Share of orders of tasks whose match is at least as large."""
        return float(stats.p_value(self.match.mean() - TIE, self.drawn))

    def _permuted(self) -> Iterator[Float[np.ndarray, "order site task task"]]:
        n = self.centred.shape[1]
        drawn = (
            np.array(list(permutations(range(n)))[1:]) if n <= _ALL else orders(n, PERMUTATIONS, np.random.default_rng(self.seed))
        )
        for start in range(0, len(drawn), _ORDERS):
            yield np.moveaxis(self.centred[:, :, drawn[start : start + _ORDERS]], 2, 0)


def _matches(centred: Float[np.ndarray, "*order site task task"]) -> Float[np.ndarray, "*order task"]:
    """Match of each task at the site that the others choose."""
    own, others = _scores(centred)
    found: np.ndarray = np.take_along_axis(own, others.argmax(-2)[..., None, :], axis=-2)[..., 0, :]
    return found


def _scores(
    centred: Float[np.ndarray, "*order site task task"],
) -> tuple[Float[np.ndarray, "*order site task"], Float[np.ndarray, "*order site task"]]:
    """Per site and task: the task's own match, and the match over all other tasks."""
    n = centred.shape[-1]
    same, row, column = np.diagonal(centred, axis1=-2, axis2=-1), centred.sum(-1), centred.sum(-2)
    own = same - (row + column - 2 * same) / (2 * (n - 1))
    left = same.sum(-1, keepdims=True) - same  # of the diagonal without the task
    whole = centred.sum((-2, -1))[..., None] - row - column + same
    return own, left / (n - 1) - (whole - left) / ((n - 1) * (n - 2))
