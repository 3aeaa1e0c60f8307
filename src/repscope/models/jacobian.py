"""Jacobian: the linear operator between two sites of a network, prompt by prompt.

    J = ∂ target / ∂ δ,   δ added to the source at its positions, every other position's state there held as it is

With one source position this is the map of LRE (Hernandez et al. 2024, arXiv 2308.09124); with several, δ is the same at each, as
steering adds it, and J is the sum over them. The target is one position or the mean of several.

1. Keys and values of the positions before the source are computed once; positions after the target are left out (causal networks).
2. The pass from there is made once and its graph kept (`linearized`): blocks below the source run once, products run through the
   blocks between only. A product costs about what a forward pass over (positions from the source on) × (blocks between) costs.
3. Many vectors, and prompts of equal shape, go through one backward pass; all source blocks come from the same passes.
4. Graphs are kept up to a budget of memory; beyond it they are made again for each product, so memory does not grow with prompts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.errors import UserError
from repscope.models.engine.memory import memory_kept
from repscope.models.engine.positions import as_float
from repscope.models.linear.jacobian_passes import KEPT_BYTES, Group, Plan
from repscope.models.linear.linearization import Linearized
from repscope.models.linear.svd import Triplets, leading
from repscope.models.sites import PerSite, Site
from repscope.progress import progress


@dataclass(eq=False)
class _Shared:
    """What the Jacobians of several sources of the same passes share: groups, and points and values once they are known."""

    groups: Sequence[Group]
    points: list[np.ndarray] = field(default_factory=list)
    value: np.ndarray | None = None
    unbatched: str = ""
    unchanged: Callable[[], None] = lambda: None


class Jacobian:
    """The Jacobians from one or several sources to a target, one for each prompt. Made by `lm.jacobian(…)`.

    sources, target: the sites. Several sources share every backward pass: `vjp` and `matrix` then give one array a source, and
    `jac["resid_post.8"]` is the Jacobian of one of them.
    """

    def __init__(self, sources: Sequence[Site], target: Site, shared: _Shared, at: Sequence[int], single: bool) -> None:
        self.sources, self.target, self._shared, self._at, self._single = tuple(sources), target, shared, at, single

    @classmethod
    def over(cls, plan: Plan) -> "Jacobian":
        """Make every group's pass once, see what is there, and keep as many as the budget allows."""
        shared = _Shared(plan.groups, unchanged=plan.unchanged)
        count, kept = sum(len(g.inputs) for g in plan.groups), 0.0
        for group in plan.groups:
            made = group.make()
            if shared.value is None:
                shared.value = np.empty((count, made.target.shape[1]), as_numpy(made.target).dtype)
                shared.points = [np.empty((count, int(np.prod(leaf.shape[1:]))), shared.value.dtype) for leaf in made.leaves]
            shared.value[list(group.inputs)] = as_numpy(made.target)
            for point, there in zip(shared.points, made.points):
                point[list(group.inputs)] = as_numpy(there.flatten(1))
            if kept + group.bytes <= KEPT_BYTES:
                group.held, kept = made, kept + group.bytes
        return cls(plan.sources, plan.target, shared, range(len(plan.sources)), plan.single)

    def __len__(self) -> int:
        return 0 if self._shared.value is None else len(self._shared.value)

    def __repr__(self) -> str:
        named = str(self.sources[0]) if len(self.sources) == 1 else f"{self.sources[0]} … {self.sources[-1]}"
        return f"Jacobian({named} → {self.target}, {len(self)} prompts)"

    def __getitem__(self, source: "str | Site") -> "Jacobian":
        """The Jacobian of one source; it shares the passes.

        Raises
        ------
        UserError
            For a site that is not among the sources.
        """
        site = Site.parse(source)
        if site not in self.sources:
            raise UserError(f"{site} is not a source of this Jacobian; it has {', '.join(map(str, self.sources))}.")
        return Jacobian([site], self.target, self._shared, [self._at[self.sources.index(site)]], True)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_target, d_source) of one source's Jacobian."""
        assert self._shared.value is not None
        return self._shared.value.shape[1], self._shared.points[self._one()].shape[1]

    @property
    def point(self) -> Float[np.ndarray, "prompt d_source"]:
        """The source's vectors at which the Jacobians are taken; of several positions their mean."""
        return self._shared.points[self._one()]

    @property
    def value(self) -> Float[np.ndarray, "prompt d_target"]:
        """The target's vectors there; LRE's bias is value - J point."""
        assert self._shared.value is not None
        return self._shared.value

    @property
    def unbatched(self) -> str:
        """Why vectors go through this network one by one, empty where they go together."""
        return self._shared.unbatched

    def vjp(self, u: Float[np.ndarray, "vector d_target"]) -> Any:
        """uᵀJ: (prompt, vector, d_source), from one backward pass for many vectors; several sources give a mapping of sites.

        Raises
        ------
        UserError
            For vectors of another width, or that are not finite.
        """
        vectors = self._vectors(u, self.value.shape[1], "u")
        outs = [np.empty((len(self), len(vectors), self._shared.points[i].shape[1]), self.value.dtype) for i in self._at]
        for group, made in self._passes():
            for out, found in zip(outs, made.vjp(vectors, self._at)):
                out[list(group.inputs)] = as_numpy(found.transpose(0, 1))
        return outs[0] if self._single else PerSite(zip(self.sources, outs))

    def jvp(self, v: Float[np.ndarray, "vector d_source"]) -> Float[np.ndarray, "prompt vector d_target"]:
        """Jv of each prompt.

        Raises
        ------
        UserError
            As `vjp`; and for several sources, of which one must be chosen.
        """
        vectors = self._vectors(v, self.shape[1], "v")
        out = np.empty((len(self), len(vectors), self.shape[0]), self.value.dtype)
        for group, made in self._passes():
            out[list(group.inputs)] = as_numpy(made.jvp(vectors, self._one()).transpose(0, 1))
        return out

    def matrix(self) -> Any:
        """The whole Jacobians: (prompt, d_target, d_source); several sources, all from the same passes, give a mapping of sites."""
        widths = [self._shared.points[i].shape[1] for i in self._at]
        outs = [np.empty((len(self), self.value.shape[1], width), self.value.dtype) for width in widths]
        self._whole(lambda inputs, i, rows, found: outs[i].__setitem__(_at(inputs, rows), found))
        return outs[0] if self._single else PerSite(zip(self.sources, outs))

    def mean(self) -> "MeanJacobian":
        """The average over prompts, as an operator; products are summed as they come, in float64."""
        return MeanJacobian(self)

    def svd(self, k: int = 16, **options: Any) -> Triplets:
        """Leading singular triplets of a single prompt's Jacobian; of several, ask `mean().svd`.

        Raises
        ------
        UserError
            For several prompts.
        """
        if len(self) != 1:
            raise UserError(f"There are {len(self)} Jacobians, one a prompt: ask for jac.mean().svd(), or give one prompt.")
        return self.mean().svd(k, **options)

    def _one(self) -> int:
        if len(self.sources) != 1:
            raise UserError(f"There are {len(self.sources)} sources; choose one, such as jac[{str(self.sources[0])!r}].")
        return self._at[0]

    def _vectors(self, given: Any, width: int, name: str) -> Tensor:
        try:
            wide = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"{name} is no array of numbers; give (vector, {width}) for {self!r}.") from error
        with np.errstate(over="ignore"):
            vectors = wide.astype(self.value.dtype)
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise UserError(f"{name} has the shape {vectors.shape}; it must be (vector, {width}) for {self!r}.")
        if not np.isfinite(vectors).all():
            held = "not finite" if not np.isfinite(wide).all() else f"beyond {vectors.dtype}, in which products are taken"
            raise UserError(f"{name} is {held}.")
        return torch.from_numpy(np.ascontiguousarray(vectors))

    def _passes(self) -> Iterator[tuple[Group, Linearized]]:
        self._shared.unchanged()
        for group in self._shared.groups:
            made = group.linearized()
            yield group, made
            self._shared.unbatched = self._shared.unbatched or made.unbatched

    def _whole(self, put: Callable[[Sequence[int], int, slice, np.ndarray], None]) -> None:
        """Every row of every Jacobian, a block of rows at a time, handed on with its inputs, its source and which rows."""
        rows = self.value.shape[1]
        with progress("Jacobian", rows * len(self)) as advance, memory_kept():
            for group, made in self._passes():
                edges = np.linspace(0, rows, -(-rows // made.product_rows) + 1).astype(int)  # parts of one size
                for first, stop in pairwise(edges.tolist()):
                    part = slice(first, stop)
                    u = torch.eye(stop - first, rows).roll(first, 1)
                    for i, found in enumerate(made.vjp(u, self._at)):
                        put(group.inputs, i, part, as_numpy(found.transpose(0, 1)))
                    advance((stop - first) * len(group.inputs))


class MeanJacobian:
    """The average of prompts' Jacobians, as an operator. Made by `Jacobian.mean`."""

    def __init__(self, each: Jacobian) -> None:
        self._each = each

    def __repr__(self) -> str:
        return f"Mean{self._each!r}"

    @property
    def shape(self) -> tuple[int, int]:
        """(d_target, d_source)."""
        return self._each.shape

    @property
    def bias(self) -> Float[np.ndarray, "d_target"]:
        """The mean of value - J point over prompts: with the mean Jacobian, LRE's affine map (arXiv 2308.09124, equation 3)."""
        each, total = self._each, np.zeros(self.shape[0])
        at = each._one()
        for group, made in each._passes():
            points = torch.from_numpy(each.point[list(group.inputs)])
            total += as_numpy(made.along(points, at)).astype(np.float64).sum(0)
        bias: np.ndarray = each.value.mean(0, dtype=np.float64) - total / len(each)
        return bias

    def jvp(self, v: Float[np.ndarray, "vector d_source"]) -> Float[np.ndarray, "vector d_target"]:
        """Jv averaged over prompts, in float64; raises as `Jacobian.jvp`."""
        each = self._each
        vectors, total = each._vectors(v, self.shape[1], "v"), np.zeros((len(v), self.shape[0]))
        for _, made in each._passes():
            total += as_numpy(made.jvp(vectors, each._one())).astype(np.float64).sum(1)
        return total / len(each)

    def vjp(self, u: Float[np.ndarray, "vector d_target"]) -> Any:
        """uᵀJ averaged over prompts, in float64; raises as `Jacobian.vjp`."""
        each = self._each
        vectors = each._vectors(u, each.value.shape[1], "u")
        totals = [np.zeros((len(u), each._shared.points[i].shape[1])) for i in each._at]
        for _, made in each._passes():
            for total, found in zip(totals, made.vjp(vectors, each._at)):
                total += as_numpy(found).astype(np.float64).sum(1)
        outs = [total / len(each) for total in totals]
        return outs[0] if each._single else PerSite(zip(each.sources, outs))

    def matrix(self) -> Any:
        """The mean Jacobian (d_target, d_source) in float64, summed as it comes; several sources give a mapping of sites."""
        matrices = PerSite((site, weight) for site, (weight, _) in self.affine().items())
        return matrices[self._each.sources[0]] if self._each._single else matrices

    def affine(self) -> dict[Site, tuple[Float[np.ndarray, "d_target d_source"], Float[np.ndarray, "d_target"]]]:
        """For each source the mean Jacobian W and the mean b of value - J point, in float64, from the same products: LRE's map."""
        each = self._each
        rows, points = each.value.shape[1], [each._shared.points[i].astype(np.float64) for i in each._at]
        totals = [np.zeros((rows, p.shape[1])) for p in points]
        moved = [np.zeros(rows) for _ in points]

        def add(inputs: Sequence[int], i: int, part: slice, found: np.ndarray) -> None:
            totals[i][part] += found.sum(0, dtype=np.float64) / len(each)
            moved[i][part] += np.einsum("prd,pd->r", found, points[i][list(inputs)]) / len(each)

        each._whole(add)
        value = each.value.mean(0, dtype=np.float64)
        return PerSite((site, (w, value - m)) for site, w, m in zip(each.sources, totals, moved))

    def svd(
        self, k: int = 16, *, seed: int = 0, tolerance: float = 0.01, products: int = 192, block: int | None = None
    ) -> Triplets:
        """The leading singular triplets, by block Krylov iteration with a certificate (see `krylov`).

        Parameters
        ----------
        k
            How many.
        seed
            Of the random start.
        tolerance
            Relative error of each value that the certificate must show before the iteration ends.
        products
            Most products Jv and uᵀJ, each vector counting as one.
        block
            Vectors that go through together; 8, or fewer where k or the Jacobian is smaller, when not given.

        Raises
        ------
        UserError
            For k beyond the Jacobian's smaller side, or fewer products than one iteration takes; for several sources.
        """
        self._each._one()
        with progress("Singular triplets", products) as advance:
            return leading(
                self.jvp, self.vjp, self.shape, k, seed=seed, tolerance=tolerance, products=products, block=block, advance=advance
            )


def as_numpy(x: Tensor) -> Float[np.ndarray, "..."]:
    """A tensor as an array, in float32 where numpy has no such type."""
    array: np.ndarray = as_float(x.detach()).cpu().numpy()
    return array


def _at(inputs: Sequence[int], rows: slice) -> Any:
    return np.ix_(list(inputs), range(rows.start, rows.stop))
