"""Objectives of direction discovery: losses of a set of effects.

delta[k, i, t] is the effect of direction k on token t of prompt i; a hat is its mean over t at unit norm. Each objective gives one
loss per direction; a solver minimises their sum.

| name | loss of direction k |
|---|---|
| `l2(p, q)` | -sum_i (sum_t ||delta||_2^p)^(1/q), the norm over features: MELBO (Mack and Turner 2024) |
| `magnitude` | -mean_{i,t} log ||delta||, scale-invariant gradient |
| `contrastive(tau, negatives)` | NT-Xent, -mean_i log(P / (P + N)): P the sum of exp(cos/tau) to the same direction on other prompts, N to other directions; after LatentCLR (Yüksel et al. 2021) and NoiseCLR (Dalva and Yanardag 2024) |
| `soft_orthogonal` | sum_{l != k} cos(mean_i delta_k, mean_i delta_l)^2: proposed by Mack as an addition to MELBO |

`subtract_skip` first subtracts the injected vector: the skip connections carry it to the target, so any set of directions would
satisfy the contrastive objective alone. Objectives form weighted sums: `l2(2, 2) + 0.5 * contrastive()` or "l2 + 0.5 * contrastive".
"""  # noqa: E501

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from repscope.errors import UserError, unknown


@dataclass(frozen=True, eq=False)
class Seen:
    """Input of an objective.

    delta: effects. vectors: added vectors. rows: (row), the prompt of each. prompts: number of all prompts, also if the rows cover
    only some. spread: (feature), standard deviation of the target's coordinates.
    """

    delta: Float[Tensor, "direction row feature"]
    vectors: Float[Tensor, "direction width"]
    rows: Int[Tensor, "row"]
    prompts: int
    spread: Float[Tensor, "feature"]

    def moved(self, subtract_skip: bool) -> Float[Tensor, "direction row feature"]:
        """Effects; with `subtract_skip`, minus the injected vector.

        Raises
        ------
        UserError
            If source and target differ in width.
        """
        if not subtract_skip:
            return self.delta
        if self.delta.shape[-1] != self.vectors.shape[-1]:
            raise UserError(
                f"There is no skip path to subtract: vectors have {self.vectors.shape[-1]} features and effects "
                f"{self.delta.shape[-1]}."
            )
        return self.delta - self.vectors[:, None]

    def by_prompt(self, rows: Float[Tensor, "direction row *feature"]) -> Float[Tensor, "direction prompt *feature"]:
        """Sums over the rows of each prompt present."""
        _, place = torch.unique(self.rows, return_inverse=True)
        count = int(place.max()) + 1
        if count == rows.shape[1]:
            return rows
        sums: Tensor = rows.new_zeros(len(rows), count, *rows.shape[2:]).index_add(1, place, rows)
        return sums

    def counts(self) -> Float[Tensor, "prompt"]:
        """Number of rows of each prompt present."""
        counts: Tensor = torch.unique(self.rows, return_counts=True)[1]
        return counts.to(self.delta.dtype)


Terms = Callable[[Seen], Float[Tensor, "direction"]]


@dataclass(frozen=True)
class Objective:
    """A weighted sum of objectives.

    parts: (weight, name, terms). coupled: whether the loss of one direction depends on other directions or on all prompts jointly.
    """

    parts: tuple[tuple[float, str, Terms], ...]
    coupled: bool

    def terms(self, seen: Seen) -> Float[Tensor, "direction"]:
        """Loss per direction."""
        each = [weight * terms(seen) for weight, _, terms in self.parts]
        return torch.stack(each).sum(0)

    def __add__(self, other: "Objective") -> "Objective":
        return Objective(self.parts + other.parts, self.coupled or other.coupled)

    def __rmul__(self, weight: float) -> "Objective":
        _need_positive("weight of an objective", weight)
        return Objective(tuple((weight * w, name, terms) for w, name, terms in self.parts), self.coupled)

    def __str__(self) -> str:
        return " + ".join(name if weight == 1 else f"{weight:g} * {name}" for weight, name, _ in self.parts)


def l2(p: float = 2, q: float | None = None, *, subtract_skip: bool = False) -> Objective:
    """MELBO's norm of the effects; default q = p.

    Raises
    ------
    UserError
        For an exponent that is not finite and above zero.
    """
    q = p if q is None else q
    _need_positive("exponent p", p)
    _need_positive("exponent q", q)
    return _one(f"l2({p:g}, {q:g}{_skip(subtract_skip)})", partial(_l2, p, q, subtract_skip))


def magnitude(*, per_spread: bool = False, subtract_skip: bool = False) -> Objective:
    """Mean log norm of the effects; `per_spread` standardises each coordinate, so that massive activations do not dominate."""
    name = "magnitude" + ("(per_spread)" if per_spread else "") + ("(subtract_skip)" if subtract_skip else "")
    return _one(name, partial(_magnitude, per_spread, subtract_skip))


def contrastive(
    tau: float = 0.5, negatives: Literal["all", "same_prompt"] = "all", *, sign_blind: bool = False, subtract_skip: bool = False
) -> Objective:
    """NT-Xent on normalised effects. `same_prompt`: negatives from the same prompt only. `sign_blind`: |cos|.

    Raises
    ------
    UserError
        For a temperature that is not finite and above zero, or other negatives.
    """
    _need_positive("temperature tau", tau)
    if negatives not in ("all", "same_prompt"):
        raise unknown("choice of negatives", negatives, ("all", "same_prompt"))
    name = f"contrastive({tau:g}, {negatives}{', sign_blind' if sign_blind else ''}{_skip(subtract_skip)})"
    return _one(name, partial(_contrastive, tau, negatives == "all", sign_blind, subtract_skip), coupled=True)


def soft_orthogonal(*, subtract_skip: bool = False) -> Objective:
    """Overlap of mean effects."""
    name = "soft_orthogonal" + ("(subtract_skip)" if subtract_skip else "")
    return _one(name, partial(_soft_orthogonal, subtract_skip), coupled=True)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "l2": l2,
    "magnitude": magnitude,
    "contrastive": contrastive,
    "soft_orthogonal": soft_orthogonal,
}


def objective(text: "str | Objective") -> Objective:
    """Read "l2", "magnitude + 0.5 * contrastive".

    >>> str(objective("magnitude + 0.5 * soft_orthogonal"))
    'magnitude + 0.5 * soft_orthogonal'

    Raises
    ------
    UserError
        For an unknown name, or a weight that is not finite and above zero.
    """
    if isinstance(text, Objective):
        return text
    if not isinstance(text, str):
        raise UserError(f"An objective is a text such as 'magnitude + contrastive', and this is of {type(text).__name__}.")
    total: Objective | None = None
    for term in text.split("+"):
        found = re.fullmatch(r"\s*(?:([\d.eE-]+)\s*\*)?\s*(\w+)\s*", term)
        if found is None or found[2] not in OBJECTIVES:
            raise unknown("objective", term.strip(), OBJECTIVES)
        one = OBJECTIVES[found[2]]()
        if found[1]:
            one = _number(found[1]) * one
        total = one if total is None else total + one
    assert total is not None
    return total


def _l2(p: float, q: float, subtract_skip: bool, seen: Seen) -> Float[Tensor, "direction"]:
    sizes = seen.moved(subtract_skip).norm(dim=-1)
    return -seen.by_prompt(sizes.pow(p)).pow(1 / q).sum(1)


def _magnitude(per_spread: bool, subtract_skip: bool, seen: Seen) -> Float[Tensor, "direction"]:
    moved = seen.moved(subtract_skip)
    if per_spread:
        moved = moved / seen.spread.clamp_min(1e-6 * seen.spread.max())
    logs = moved.norm(dim=-1).clamp_min(torch.finfo(moved.dtype).tiny).log()
    return -(seen.by_prompt(logs) / seen.counts()).sum(1) / seen.prompts


def _contrastive(tau: float, everywhere: bool, sign_blind: bool, skip: bool, seen: Seen) -> Float[Tensor, "direction"]:
    pooled = functional.normalize(seen.by_prompt(seen.moved(skip)), dim=-1)
    k, n = pooled.shape[:2]
    if n < 2:
        raise UserError("The contrastive objective compares a direction's effects on several prompts; give two or more.")
    if k < 2:
        raise UserError("The contrastive objective compares directions; ask for two or more.")
    own = torch.einsum("kif,kjf->kij", pooled, pooled)
    near = _heat(own, tau, sign_blind).logsumexp(2)
    if everywhere:
        flat = pooled.flatten(0, 1)
        every = torch.unflatten(_heat(flat @ flat.T, tau, sign_blind).logsumexp(1), 0, (k, n))
    else:
        here = torch.einsum("kif,lif->ikl", pooled, pooled)
        every = torch.logaddexp(near, _heat(here, tau, sign_blind).logsumexp(2).T)
    return (every - near).mean(1)


def _heat(cos: Float[Tensor, "*batch a a"], tau: float, sign_blind: bool) -> Float[Tensor, "*batch a a"]:
    """cos / tau, with self-similarity excluded."""
    itself = torch.eye(cos.shape[-1], dtype=torch.bool, device=cos.device)
    return ((cos.abs() if sign_blind else cos) / tau).masked_fill(itself, float("-inf"))


def _soft_orthogonal(subtract_skip: bool, seen: Seen) -> Float[Tensor, "direction"]:
    means = seen.by_prompt(seen.moved(subtract_skip)) / seen.counts()[:, None]
    unit = functional.normalize(means.mean(1), dim=-1)
    return (unit @ unit.T).square().fill_diagonal_(0.0).sum(1)


def _one(name: str, terms: Terms, coupled: bool = False) -> Objective:
    return Objective(((1.0, name, terms),), coupled)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _need_positive(what: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UserError(f"The {what} is {value}; it must be finite and above 0.")


def _skip(subtract_skip: bool) -> str:
    return ", subtract_skip" if subtract_skip else ""
