"""Do the shifts of in-context learning and of fine-tuning match task by task, beyond what all tasks share?

With a_i the mean shift of task i in one way (k examples in the prompt) and b_i in another (fine-tuning), at one site:

    raw cosine        mean over tasks of cos(a_i, b_i)
    centred matrix    C_ij = cos(a_i - mean a, b_j - mean b)
    match             mean of C_ii minus mean of C_ij, i ≠ j
    top-1             share of tasks i with C_ii the largest of its row; ties count as their share
    permutation p     tasks of one side permuted: share of orders whose mean diagonal is at least as large; all orders
                      for at most six tasks. "over all sites": the largest match over sites is compared (Westfall & Young 1993), so
                      that the sites with p ≤ .05 are chosen with an error of 5 % in all
    common share      ‖mean a‖² / mean ‖a_i‖²: the share of the shifts' energy that all tasks have in common

Raw cosines are high for any two shifts that share format and position, so only differences between tasks say that tasks match.
With T tasks and a perfect match, C_ij of other tasks is about -1/(T - 1), so the match can reach T/(T - 1); permuted tasks give 0.
Intervals are over tasks, each of which gives C_ii minus the mean of its row and column; they are conditional on the centring.

`match_rows` takes a from one half of the queries and b from the other one, so that no single query, and no noise of the base, can
match; a way compared with itself then gives the ceiling. A site where a way does not move a task (blocks below the first one that
is fine-tuned) has no direction and is left out of the match.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations as all_orders
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from repscope import stats
from repscope.conditions import ESTIMATE, PERMUTED_TASKS
from repscope.errors import UserError
from repscope.models.sites import Site
from repscope.results import Row, at
from repscope.stats.groups import TIE
from repscope.stats.permutation import PERMUTATIONS, orders

LEAST = 3  #: tasks
_ALL = 6  #: up to so many tasks all orders are taken
Shifts = Float[np.ndarray, "task site feature"]
Halves = Float[np.ndarray, "task half site feature"]

DEFINITIONS = {
    "raw cosine": "cosine of the mean shifts of one task, mean over tasks",
    "match": "cosine of shifts centred over tasks: same task minus other tasks",
    "match, same task": "cosine of shifts centred over tasks, same task",
    "match, other tasks": "cosine of shifts centred over tasks, other tasks",
    "top-1": "share of tasks whose own shift is the most similar, centred over tasks",
    "permutation p": "tasks of one side permuted, one-sided",
    "permutation p over all sites": "as permutation p, the largest match over all sites of a kind",
    "common share": "‖mean shift over tasks‖² / mean ‖shift‖²",
}


@dataclass(frozen=True, eq=False)
class Match:
    """How shifts of the same tasks in two ways match, at each site.

    raw: (task, site), cosines. centred: (site, task, task), cosines after centring over tasks; rows are the first way. p, p_all:
    (site), by permutation, alone and over all sites. drawn: (order, site), match under permuted tasks.
    """

    raw: Float[np.ndarray, "task site"]
    centred: Float[np.ndarray, "site task task"]
    p: Float[np.ndarray, "site"]
    p_all: Float[np.ndarray, "site"]
    drawn: Float[np.ndarray, "order site"]

    @property
    def same(self) -> Float[np.ndarray, "task site"]:
        """Centred cosine of each task with itself."""
        return np.diagonal(self.centred, axis1=1, axis2=2).T

    @property
    def others(self) -> Float[np.ndarray, "task site"]:
        """Mean centred cosine of each task with the others, over its row and its column."""
        count = self.centred.shape[1] - 1
        rows, columns = self.centred.sum(2).T, self.centred.sum(1).T
        found: np.ndarray = (rows + columns - 2 * self.same) / (2 * count)
        return found

    @property
    def top(self) -> Float[np.ndarray, "task site"]:
        """1 where a task's own shift is the most similar one, 1/n where n are."""
        largest = self.centred.max(2).T
        ties = (self.centred >= largest.T[:, :, None] - TIE).sum(2).T
        return np.asarray(np.where(self.same >= largest - TIE, 1.0 / ties, 0.0))


def task_match(first: Shifts, second: Shifts, *, permutations: int = PERMUTATIONS, seed: int = 0) -> Match:
    """Match shifts of the same tasks in two ways.

    Parameters
    ----------
    first, second
        Mean shifts of each task, tasks in the same order.
    permutations
        Orders of tasks; all orders for at most six tasks.

    Raises
    ------
    UserError
        For fewer than three tasks, shapes that differ, values that are not finite, and shifts that are the same in all tasks.

    >>> x = np.random.default_rng(0).normal(size=(5, 1, 64))
    >>> found = task_match(x, x + 100)
    >>> round(float(found.same.mean()), 3), float(found.p[0]) <= 1 / 60
    (1.0, True)
    """
    x, y = (np.asarray(side, dtype=np.float64) for side in (first, second))
    if x.shape != y.shape or x.ndim != 3:
        raise UserError(
            f"The shifts have the shapes {x.shape} and {y.shape}; both must be (task, site, feature) of the same tasks."
        )
    if len(x) < LEAST:
        raise UserError(f"There are {len(x)} tasks; matching them needs {LEAST} or more.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UserError("Some shifts are not finite, so they have no cosine; look at the network's outputs.")
    raw = (_unit(x) * _unit(y)).sum(-1)
    a, b = (_unit(side - side.mean(0), side) for side in (x, y))
    if not (a.any(-1).all() and b.any(-1).all()):
        raise UserError("The shifts of a task are the mean of all tasks, or zero, so they have no direction to match.")
    centred = np.einsum("isf,jsf->sij", a, b)
    tasks, total = np.arange(len(x)), centred.sum((1, 2))

    def match(diagonal: Float[np.ndarray, "*order site"]) -> Float[np.ndarray, "*order site"]:
        found: np.ndarray = diagonal / len(tasks) - (total - diagonal) / (len(tasks) * (len(tasks) - 1))
        return found

    own = match(np.trace(centred, axis1=1, axis2=2))
    drawn = match(centred[:, tasks, _orders(len(x), permutations, seed)].sum(-1).T)
    largest = drawn.max(1)
    p, p_all = (
        np.array([stats.p_value(value - TIE, draws) for value, draws in zip(own, columns)])
        for columns in (drawn.T, [largest] * len(own))
    )
    return Match(raw, centred, p, p_all, drawn)


def match_rows(
    shifts: Mapping[str, Halves],
    pairs: Sequence[tuple[str, str, str, str]],
    sites: Sequence[Site],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    **where: Any,
) -> tuple[list[Row], dict[str, Float[np.ndarray, "site task task"]]]:
    """Rows of the match of several pairs of ways, at sites of several kinds, and the centred cosines of the estimates.

    Parameters
    ----------
    shifts
        Way → mean shifts of all tasks at these sites, of two halves of the queries.
    pairs
        (item, condition, first way, second way) for each pair; p over all sites is of the sites of one kind.
    where
        Other columns of the rows, such as `model`.

    Returns
    -------
    rows, cosines
        Cosines: item → the centred matrix, NaN at sites that are left out.

    Raises
    ------
    UserError
        As `task_match`.
    """
    rows, cosines = list[Row](), dict[str, np.ndarray]()
    moved = {way: directed(np.asarray(values)) for way, values in shifts.items()}
    for kind in dict.fromkeys(site.kind for site in sites):
        of_kind = [i for i, site in enumerate(sites) if site.kind == kind]
        for item, condition, first, second in pairs:
            group = [i for i in of_kind if moved[first][i] and moved[second][i]]
            if not group:
                continue
            a, b = (np.asarray(shifts[way])[:, half, group] for half, way in enumerate((first, second)))
            found = task_match(a, b, permutations=permutations, seed=seed)
            for s, i in enumerate(group):
                rows += _rows(found, s, {"item": item, "condition": condition, "seed": seed, **at(sites[i]), **where})
            if condition == ESTIMATE:
                held = cosines.setdefault(item, np.full((len(sites), len(a), len(a)), np.nan))
                held[group] = found.centred
    for way, values in shifts.items():
        for site, share in zip(sites, common_share(np.asarray(values, dtype=np.float64).mean(1))):
            place = {"metric": "common share", "definition": DEFINITIONS["common share"], "item": way, **at(site), **where}
            if np.isfinite(share):
                rows.append(Row(value=float(share), n=len(values), unit="task", seed=seed, **place))
    return rows, cosines


def directed(shifts: Halves) -> Bool[np.ndarray, "site"]:
    """Whether every task's shift, centred over tasks, has a direction at each site, in both halves of the queries."""
    x = np.asarray(shifts, dtype=np.float64)
    found: np.ndarray = np.logical_and.reduce(_unit(x - x.mean(0), x).any(-1), axis=(0, 1))
    return found


def common_share(shifts: Shifts) -> Float[np.ndarray, "site"]:
    """Share of the shifts' energy that all tasks have in common; NaN where all shifts are zero."""
    x = np.asarray(shifts, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        found: np.ndarray = (x.mean(0) ** 2).sum(-1) / (x**2).sum(-1).mean(0)
    return found


def _rows(found: Match, s: int, where: dict[str, Any]) -> list[Row]:
    values = {
        "raw cosine": found.raw,
        "match": found.same - found.others,
        "match, same task": found.same,
        "match, other tasks": found.others,
        "top-1": found.top,
    }
    rows = [Row.over(v[:, s], "task", metric=m, definition=DEFINITIONS[m], **where) for m, v in values.items()]
    for metric, p in (("permutation p", found.p), ("permutation p over all sites", found.p_all)):
        n = found.centred.shape[1]
        rows.append(Row(metric=metric, definition=DEFINITIONS[metric], value=float(p[s]), n=n, unit="task", **where))
    if where["condition"] == ESTIMATE:
        chance = stats.null(found.drawn[:, s], unit="order of tasks")
        rows.append(Row.of(chance, metric="match", definition=DEFINITIONS["match"], **where | {"condition": PERMUTED_TASKS}))
    return rows


def _orders(n: int, permutations: int, seed: int) -> Int[np.ndarray, "order task"]:
    """Orders of tasks: all but the identity, which counts as the observed one, or random ones."""
    if n <= _ALL:
        return np.array(list(all_orders(range(n)))[1:])
    return orders(n, permutations, np.random.default_rng(seed))


def _unit(
    x: Float[np.ndarray, "*axis feature"], scale: Float[np.ndarray, "*axis feature"] | None = None
) -> Float[np.ndarray, "*axis feature"]:
    """Each vector at norm 1. Those that are zero up to rounding of `scale` (default: of x itself), at their site, are zero."""
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    largest = np.linalg.norm(x if scale is None else scale, axis=-1, keepdims=True).max(0, keepdims=True, initial=0.0)
    return np.asarray(np.divide(x, norm, out=np.zeros_like(x), where=norm > 1e-12 * largest))
