"""Several searches in one batch: all directions of all seeds go through the network together.

Seeds share the subject, the samples, the scale and the steps, and nothing else: each starts from its own random vectors, and an
objective that compares directions compares those of one seed. Adam works entry by entry, so every seed ends where `discover` with
that seed alone ends, up to the rounding of sums.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from repscope.discovery.objectives import Objective, Seen, objective
from repscope.discovery.search import DiscoveryResult
from repscope.discovery.solvers import SOLVERS, SolverOptions, SolverTask
from repscope.discovery.subject import Context, Subject
from repscope.errors import UserError
from repscope.models.engine.memory import memory_kept


@dataclass(frozen=True, eq=False)
class StackedTask(SolverTask):
    """A task whose directions are those of several seeds, one seed after the other. n: of all seeds together."""

    seeds: tuple[int, ...] = ()

    def drawn(self, count: int | None = None) -> Float[Tensor, "direction width"]:
        """The random unit vectors of each seed."""
        each = self.n // len(self.seeds)
        return torch.cat([SolverTask.drawn(replace(self, n=each, seed=seed)) for seed in self.seeds])


def grouped(goal: Objective, groups: int) -> Objective:
    """The objective within each of so many equal groups of directions."""
    if groups == 1 or not goal.coupled:
        return goal

    def terms(seen: Seen) -> Float[Tensor, "direction"]:
        parts = zip(seen.delta.chunk(groups), seen.vectors.chunk(groups))
        return torch.cat([goal.terms(replace(seen, delta=delta, vectors=vectors)) for delta, vectors in parts])

    return Objective(((1.0, str(goal), terms),), coupled=True)


def discover_seeds(
    subject: Subject,
    prompts: Any,
    goal: str | Objective,
    n: int,
    seeds: Sequence[int],
    *,
    scale: float,
    steps: int | None = None,
    options: SolverOptions | None = None,
) -> list[DiscoveryResult]:
    """Find directions by the solver `sphere`, for all seeds at once.

    Parameters
    ----------
    subject, prompts, n, scale, steps, options
        As for `discover`.
    goal
        The objective, as for `discover`.
    seeds
        Of the searches.

    Returns
    -------
    list
        One result per seed. `seconds` and `cost` are the seed's share.

    Raises
    ------
    UserError
        As `discover`; without a seed, or with the same seed twice.
    """
    seeds = tuple(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"The seeds are {list(seeds)}; give one or more, each once.")
    if n < 1:
        raise UserError(f"{n} directions are asked for; ask for at least 1.")
    if not 0 < scale < float("inf"):
        raise UserError(f"The scale is {scale}; it must be above 0.")
    row = SOLVERS["sphere"]
    steps = row.steps if steps is None else steps
    if steps < 1:
        raise UserError(f"{steps} steps are asked for; ask for at least 1.")
    wanted = objective(goal)
    context = prompts if isinstance(prompts, Context) else subject.context(prompts)
    made = grouped(wanted, len(seeds))
    task = StackedTask(subject, context, made, n * len(seeds), scale, steps, seeds[0], options or SolverOptions(), seeds)
    before, started = context.cost, time.perf_counter()
    with memory_kept(), torch.no_grad():
        found = row.run(task)
    seconds, cost = (time.perf_counter() - started) / len(seeds), (context.cost - before) / len(seeds)
    return [
        DiscoveryResult(
            vectors=vectors.detach().cpu().numpy(),
            scale=scale,
            relative=scale / context.norm,
            losses=losses.detach().cpu().numpy(),
            values={},
            seconds=seconds,
            cost=cost,
            solver="sphere",
            objective=str(wanted),
            site=subject.site,
            model=subject.model,
            seed=seed,
            why=context.why,
        )
        for seed, vectors, losses in zip(seeds, found.vectors.chunk(len(seeds)), found.losses.chunk(len(seeds), dim=1))
    ]
