"""Unsupervised discovery of directions: `discover` and its result.

1. The subject prepares the prompts (`subject`). 2. The scale is given or calibrated (`calibration`). 3. A solver (`solvers`) finds
unit vectors that minimise an objective (`objectives`). 4. The result records cost and seed; `directions()` gives a `DirectionSet`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.directions import Direction, DirectionSet
from repscope.discovery.calibration import Calibration, Fluency, calibrate
from repscope.discovery.objectives import Objective, objective
from repscope.discovery.solvers import SOLVERS, SolverOptions, SolverTask
from repscope.discovery.subject import Context, LanguageSubject, Subject
from repscope.errors import UserError, unknown
from repscope.models.engine.memory import memory_kept
from repscope.models.language import LanguageModel


@dataclass(frozen=True, eq=False)
class DiscoveryResult:
    """Discovered directions with their provenance.

    vectors: unit vectors. scale: norm at which effects were taken. relative: scale over the median norm of a source state.
    losses: loss of each direction before each step; empty for closed forms. values: numbers per direction by name (`sigma`,
    `alpha`, `deviation`). seconds, cost: of the search; cost in forward equivalents (one vector through one prompt, forward or
    backward). objective: empty if the solver uses none. calibration: if the scale was calibrated. why: reason for full passes.
    """

    vectors: Float[np.ndarray, "direction width"]
    scale: float
    relative: float
    losses: Float[np.ndarray, "step direction"]
    values: Mapping[str, Float[np.ndarray, "direction"]]
    seconds: float
    cost: float
    solver: str
    objective: str
    site: str
    model: str
    seed: int
    calibration: Calibration | None = None
    why: str = ""

    def __len__(self) -> int:
        return len(self.vectors)

    def directions(self, does: Sequence[Mapping[str, float]] | None = None) -> DirectionSet:
        """As a `DirectionSet`; `does` adds numbers per direction."""
        how = f"{self.solver}({self.objective}), seed {self.seed}" if self.objective else f"{self.solver}, seed {self.seed}"
        made = [
            Direction(
                np.ascontiguousarray(vector, dtype=np.float32),
                self.site,
                f"{self.solver}-{k}",
                scale=self.scale,
                found_by=how,
                does={name: float(of[k]) for name, of in self.values.items()} | dict(does[k] if does else {}),
            )
            for k, vector in enumerate(self.vectors)
        ]
        return DirectionSet(made, self.model, f"{len(self)} directions found without labels by {how}")


def discover(
    subject: "Subject | LanguageModel",
    prompts: Any,
    objective: str | Objective = "magnitude + contrastive",
    solver: str = "sphere",
    n: int = 32,
    *,
    scale: float | Literal["calibrate"] = "calibrate",
    steps: int | None = None,
    seed: int = 0,
    options: SolverOptions | None = None,
) -> DiscoveryResult:
    """Find directions.

    Parameters
    ----------
    subject
        A language model (source and target at a quarter and three quarters of its blocks), a `LanguageSubject` for other sites, or
        a `FunctionSubject`.
    prompts
        Texts; for a function, states (sample, width); or a context of the subject, for which next-token damage is not measured.
    objective
        A name or a weighted sum such as "magnitude + 0.5 * contrastive"; used by the solvers `sphere` and `sequential`.
    solver
        One of `SOLVERS`.
    n
        Number of directions.
    scale
        Norm of the added vectors, or `calibrate`.
    steps
        Iterations; default: the solver's own.
    seed
        Random seed.
    options
        Advanced settings.

    Raises
    ------
    UserError
        For an unknown objective or solver, n below 1 or above the solver's maximum, a scale that is not above zero, no prompts, a
        target that is not after the source, or a NaN loss.
    """
    subject = LanguageSubject(subject) if isinstance(subject, LanguageModel) else subject
    options = options or SolverOptions()
    row = SOLVERS.get(solver)
    if row is None:
        raise unknown("solver", solver, SOLVERS)
    goal = _goal(objective)
    if row.alone and goal.coupled:
        raise UserError(f"The solver {solver} learns one direction after the other, and {goal} compares them: use sphere, or l2.")
    if n < 1:
        raise UserError(f"{n} directions are asked for; ask for at least 1.")
    if scale != "calibrate" and not 0 < float(scale) < float("inf"):
        raise UserError(f"The scale is {scale}; it must be above 0.")
    if steps is not None and steps < 1:
        raise UserError(f"{steps} steps are asked for; ask for at least 1.")
    context = prompts if isinstance(prompts, Context) else subject.context(prompts)
    if row.orthogonal and n > context.width:
        raise UserError(f"{n} directions are asked for; {solver} finds at most {context.width}, one for each dimension.")
    calibration = None
    if scale == "calibrate":
        calibration = _calibrated(subject, context, prompts, seed, options)
    size = calibration.scale if calibration is not None else float(scale)
    task = SolverTask(subject, context, goal, n, size, row.steps if steps is None else steps, seed, options)
    before, started = context.cost, time.perf_counter()
    with memory_kept(), torch.no_grad():
        found = row.run(task)
    return DiscoveryResult(
        vectors=_numpy(found.vectors),
        scale=size,
        relative=size / context.norm,
        losses=_numpy(found.losses),
        values={name: _numpy(of) for name, of in found.values.items()},
        seconds=time.perf_counter() - started,
        cost=context.cost - before,
        solver=solver,
        objective=str(goal) if row.descends else "",
        site=subject.site,
        model=subject.model,
        seed=seed,
        calibration=calibration,
        why=context.why,
    )


_goal = objective  # the argument of `discover` has the parser's name


def _calibrated(subject: Subject, context: Context, prompts: Any, seed: int, options: SolverOptions) -> Calibration:
    fluency = None
    if isinstance(subject, LanguageSubject) and prompts is not context and subject.speaks:
        fluency = Fluency(subject.lm, subject.source, prompts)
    return calibrate(subject, context, ratio=options.ratio, seed=seed, fluency=fluency, damage=options.damage)


def _numpy(x: Tensor) -> np.ndarray:
    return np.asarray(x.detach().cpu().numpy())
