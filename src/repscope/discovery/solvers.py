"""Solvers of direction discovery: algorithms that return unit vectors.

| name | algorithm |
|---|---|
| `sphere` | all directions in parallel: Adam on the tangent gradient, then normalisation; a batched MELBO |
| `sequential` | one after the other, gradient and vector orthogonal to earlier ones: MELBO as published (Mack and Turner 2024) |
| `jacobian` | block power iteration on J^T J at zero: Jv by a central difference of effects, J^T u by one backward pass, QR, then Rayleigh–Ritz; J the mean over prompts. No double backward pass, any attention |
| `dct` | exponential DCT (Mack and Turner 2024): V <- QR(V); then jointly U <- unit(mean effect of R V) and V <- unit(gradient of <U, mean effect> in V); QR preserves signs, as effects are not odd in v |
| `pca` | leading principal components of the source states |
| `weights` | leading right singular vectors of a given weight with rows of unit norm, as SeFa (Shen and Zhou 2021) |
| `random` | uniform on the sphere: the control |

`dct` also fits effect(R v) ~ sum_l alpha_l (exp<v_l, v> - 1) u_l and orders directions by alpha^2. DCT's quadratic variant is not
offered: its published code differentiates a linear map, so no second derivative enters it.
"""  # noqa: E501

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from repscope.discovery.objectives import Objective
from repscope.discovery.subject import MEMORY, Context, Subject
from repscope.errors import UserError
from repscope.progress import Advance, progress

OVERSAMPLED = 8  #: extra vectors in the power iteration, so that the last requested ones converge
PROJECTED = 32  #: output directions whose gradients initialise DCT
STEP = 1e-2  #: step of a central difference, in median norms of a source state


@dataclass(frozen=True)
class SolverOptions:
    """Advanced settings of a search.

    rate: approximate rotation by a first step of Adam, in radians. start: of `dct`. published: whether DCT runs as its published
    code (see `_published`). memory: limit for graphs, bytes. ratio, damage: of `calibrate`. weight: (reader, width), for `weights`.
    """

    rate: float = 0.13
    start: Literal["jacobian", "random"] = "jacobian"
    published: bool = False
    memory: float = MEMORY
    ratio: float = 0.5
    damage: float = 0.5
    weight: Any = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class SolverTask:
    """Input of a solver.

    n: directions. scale: norm at which effects are taken. steps: iterations (per direction for `sequential`).
    """

    subject: Subject
    context: Context
    objective: Objective
    n: int
    scale: float
    steps: int
    seed: int = 0
    options: SolverOptions = SolverOptions()

    def drawn(self, count: int | None = None) -> Float[Tensor, "direction width"]:
        """Random unit vectors, from the seed."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(count or self.n, self.context.width, generator=generator)
        return functional.normalize(drawn.to(self.context.states), dim=1)


@dataclass(frozen=True, eq=False)
class Solution:
    """Output of a solver: unit vectors, (step, direction) losses, and named numbers per direction."""

    vectors: Float[Tensor, "direction width"]
    losses: Float[Tensor, "step direction"]
    values: dict[str, Float[Tensor, "direction"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Solver:
    """One row of the table.

    run: the solver. steps: default number. orthogonal: whether the dimension limits the number of directions. descends: whether it
    uses the objective. alone: whether the objective must be a sum over directions.
    """

    run: Callable[[SolverTask], Solution]
    steps: int
    orthogonal: bool = False
    descends: bool = False
    alone: bool = False


def _sphere(task: SolverTask) -> Solution:
    with progress("Discovering", task.steps * task.n) as advance:
        return _descended(task, task.drawn(), lambda x: x, advance)


def _sequential(task: SolverTask) -> Solution:
    start = task.drawn()
    learned = start[:0]
    losses = []
    with progress("Discovering", task.steps * task.n) as advance:
        for k in range(task.n):

            def free(x: Tensor, learned: Tensor = learned) -> Tensor:
                for _ in range(2):  # twice is enough for rounding (Kahan and Parlett)
                    x = x - (x @ learned.T) @ learned
                return x

            found = _descended(task, start[k : k + 1], free, advance)
            learned = torch.cat([learned, found.vectors])
            losses.append(found.losses)
    return Solution(learned, torch.cat(losses, 1))


def _descended(task: SolverTask, start: Tensor, free: Callable[[Tensor], Tensor], advance: Advance) -> Solution:
    """Adam on the sphere, within the subspace that `free` projects to; the step shrinks linearly over the second half."""
    unit = functional.normalize(free(start), dim=1)
    adam = torch.optim.Adam([unit], lr=task.options.rate / math.sqrt(unit.shape[1]), betas=(0.9, 0.98), eps=1e-30)
    losses = []
    for step in range(task.steps):
        for group in adam.param_groups:
            group["lr"] = task.options.rate / math.sqrt(unit.shape[1]) * min(1.0, 2 * (1 - step / task.steps))
        terms, grad = task.subject.loss_and_grad(task.context, task.scale * unit, task.objective, task.options.memory)
        _finite(terms, grad, step)
        grad = free(grad)
        unit.grad = grad - (grad * unit).sum(1, keepdim=True) * unit
        adam.step()
        unit.copy_(functional.normalize(free(unit), dim=1))
        losses.append(terms)
        advance(len(unit))
    unit.grad = None
    return Solution(unit, torch.stack(losses))


def _finite(terms: Tensor, grad: Tensor, step: int) -> None:
    if not bool(torch.isfinite(terms).all() and torch.isfinite(grad).all()):
        raise UserError(f"The loss is not a number at step {step}; take a smaller scale, or see that effects are finite.")


def mean_over(context: Context, delta: Float[Tensor, "direction row feature"]) -> Float[Tensor, "direction feature"]:
    """The mean over each prompt's rows, then over prompts."""
    return torch.einsum("krf,r->kf", delta, shares(context))


def shares(context: Context) -> Float[Tensor, "row"]:
    """Weight of each row in that mean."""
    counts = torch.bincount(context.rows, minlength=context.prompts)
    return 1.0 / (context.prompts * counts[context.rows]).to(context.states)


def jvp(subject: Subject, context: Context, vectors: Float[Tensor, "direction width"]) -> Float[Tensor, "direction feature"]:
    """Products of the mean Jacobian with unit vectors, by central differences."""
    step = STEP * context.norm
    both = subject.effect(context, torch.cat([step * vectors, -step * vectors]))
    ahead, behind = mean_over(context, both).chunk(2)
    return (ahead - behind) / (2 * step)


def _pulled(task: SolverTask, at: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Mean effects of vectors, and the gradient of <u, mean effect> in each."""
    delta, grad = task.subject.effect_and_vjp(task.context, at, _spread(task, u))
    return mean_over(task.context, delta), grad


def _spread(task: SolverTask, u: Float[Tensor, "direction feature"]) -> Float[Tensor, "direction row feature"]:
    """The cotangents of all effects that those of mean effects amount to."""
    return torch.einsum("kf,r->krf", u, shares(task.context))


def _jacobian(task: SolverTask) -> Solution:
    width = min(task.n + OVERSAMPLED, task.context.width)
    v = orthonormal(task.drawn(width))
    losses = []
    with progress("Power iteration", task.steps) as advance:
        for _ in range(task.steps):
            products = jvp(task.subject, task.context, v)
            losses.append(-products.norm(dim=1)[: task.n])
            pulled = task.subject.vjp_at_zero(task.context, _spread(task, products))
            _finite(losses[-1], pulled, len(losses) - 1)
            v = orthonormal(pulled)
            advance(1)
    _, sizes, mixed = torch.linalg.svd(jvp(task.subject, task.context, v).T, full_matrices=False)
    return Solution((mixed @ v)[: task.n], torch.stack(losses), {"sigma": sizes[: task.n]})


def _dct(task: SolverTask) -> Solution:
    v, u = (
        _published(task)
        if task.options.published
        else (_projected(task) if task.options.start == "jacobian" else task.drawn(), None)
    )
    if u is None:
        v = orthonormal(v)
        u = functional.normalize(mean_over(task.context, task.subject.effect(task.context, task.scale * v)), dim=1)
    losses = []
    with progress("DCT", task.steps) as advance:
        for step in range(task.steps):
            v = torch.linalg.qr(v.T)[0].T if task.options.published else orthonormal(v)
            effects, pulled = _pulled(task, task.scale * v, u)
            losses.append(-(u * effects).sum(1))
            _finite(losses[-1], pulled, step)
            u = functional.normalize(effects, dim=1)
            size = pulled.norm(dim=1, keepdim=True)
            v = torch.where(size > 0, pulled / size.clamp_min(1e-30), v)  # a zero gradient leaves v unchanged
            advance(1)
    alpha = alphas(u, v, mean_over(task.context, task.subject.effect(task.context, task.scale * v)))
    order = alpha.square().argsort(descending=True)
    return Solution(v[order], torch.stack(losses)[:, order], {"alpha": alpha[order]})


def _projected(task: SolverTask) -> Tensor:
    """Leading right singular vectors of the mean Jacobian projected to a few random output directions, then random vectors."""
    _, _, leading = torch.linalg.svd(_gradients(task), full_matrices=False)
    return torch.cat([leading, task.drawn()])[: task.n]


def _gradients(task: SolverTask) -> Float[Tensor, "output width"]:
    """Mean Jacobian projected to a few random output directions."""
    count = min(PROJECTED, task.n, task.context.features)
    u = _outputs(task, count, task.seed + 1)
    return task.subject.vjp_at_zero(task.context, _spread(task, u))


def _outputs(task: SolverTask, count: int, seed: int) -> Float[Tensor, "output feature"]:
    """Random output directions."""
    drawn = torch.randn(count, task.context.features, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(drawn, dim=1).to(task.context.states)


def _published(task: SolverTask) -> tuple[Tensor, Tensor | None]:
    """DCT's initialisation as published: V and U; U is None if computed from V's effects.

    From random vectors, U is random too. From the Jacobian, V are the first *columns* of the SVD's full right factor, whose *rows*
    are the singular vectors: orthonormal mixtures of all singular vectors. QR may flip signs.
    """
    if task.options.start == "random":
        return task.drawn(), _outputs(task, task.n, task.seed + 2)
    right = torch.linalg.svd(_gradients(task), full_matrices=True)[2]
    return right[:, : task.n].T.contiguous(), None


def alphas(
    u: Float[Tensor, "direction feature"], v: Float[Tensor, "direction width"], effects: Float[Tensor, "direction feature"]
) -> Float[Tensor, "direction"]:
    """DCT's strengths: ((U^T U) o expm1(V^T V)) alpha = <u_l, effect of R v_l>, by least squares where directions repeat."""
    gram = (u @ u.T).double() * torch.expm1((v @ v.T).double())
    solved: Tensor = torch.linalg.lstsq(gram, (u * effects).sum(1, keepdim=True).double(), driver="gelsd").solution
    return solved[:, 0].to(v)


def orthonormal(rows: Float[Tensor, "direction width"]) -> Float[Tensor, "direction width"]:
    """Gram–Schmidt by QR: each row keeps its sign."""
    q, r = torch.linalg.qr(rows.T)
    kept: Tensor = (q * torch.where(r.diagonal() < 0, -1.0, 1.0)).T
    return kept


def _pca(task: SolverTask) -> Solution:
    states = task.context.states
    _, sizes, v = torch.linalg.svd(states - states.mean(0), full_matrices=False)
    most = min(len(states) - 1, task.context.width)
    if most < task.n:
        raise UserError(f"There are {len(states)} source states, which have {most} principal components; {task.n} are asked for.")
    return Solution(v[: task.n], states.new_zeros(0, task.n), {"deviation": sizes[: task.n] / math.sqrt(len(states))})


def _weights(task: SolverTask) -> Solution:
    weight = None if task.options.weight is None else torch.as_tensor(task.options.weight)
    if weight is None or weight.dim() != 2 or weight.shape[1] != task.context.width:
        raise UserError(f"The solver `weights` takes a weight of shape (reader, {task.context.width}): pass weight=….")
    _, sizes, v = torch.linalg.svd(functional.normalize(weight.to(task.context.states), dim=1), full_matrices=False)
    if len(v) < task.n:
        raise UserError(f"The weight has {len(v)} singular vectors; {task.n} are asked for.")
    return Solution(v[: task.n], sizes.new_zeros(0, task.n), {"sigma": sizes[: task.n]})


def _random(task: SolverTask) -> Solution:
    return Solution(task.drawn(), task.context.states.new_zeros(0, task.n))


SOLVERS: dict[str, Solver] = {
    "sphere": Solver(_sphere, 200, descends=True),
    "sequential": Solver(_sequential, 60, orthogonal=True, descends=True, alone=True),
    "jacobian": Solver(_jacobian, 15, orthogonal=True),
    "dct": Solver(_dct, 10, orthogonal=True),
    "pca": Solver(_pca, 0, orthogonal=True),
    "weights": Solver(_weights, 0, orthogonal=True),
    "random": Solver(_random, 0),
}
