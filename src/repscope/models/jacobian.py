"""Jacobian between two sites of a network, per prompt: products, matrix, mean and singular triplets.

    J = ∂ target / ∂ δ,   δ added to the source at its positions, the source's state at all other positions fixed

With one source position this is the map of LRE (Hernandez et al. 2024, arXiv 2308.09124); with several, δ is the same at each,
as in steering, and J is the sum over them. The target is one position or the mean of several.

1. Keys and values of the positions before the source are computed once; positions after the target are skipped (causal networks).
2. One forward pass from there builds a graph that is cached (`linearized`). A product runs only through the blocks between source
   and target, and costs about one forward pass over (positions from the source on) × (these blocks).
3. Many vectors, and prompts of equal shape, share one backward pass; all source blocks come from the same passes.
4. Graphs are cached up to a memory budget and recomputed for each product beyond it, so memory does not grow with prompts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope import notebook
from repscope.errors import UserError
from repscope.models.engine.memory import memory_kept
from repscope.models.engine.positions import as_float
from repscope.models.linear.jacobian_passes import KEPT_BYTES, Group, Plan
from repscope.models.linear.linearization import Linearized
from repscope.models.linear.low_rank import BLOCK, PART, PROBES, Certificate, LowRank, joint, most_rank
from repscope.models.linear.svd import Triplets, leading
from repscope.models.sites import PerSite, Site
from repscope.progress import progress

if TYPE_CHECKING:
    import altair as alt


@dataclass(eq=False)
class _Shared:
    """State shared by the Jacobians of several sources: groups, and the source and target values of the passes."""

    groups: Sequence[Group]
    points: list[np.ndarray] = field(default_factory=list)
    value: np.ndarray | None = None
    unbatched: str = ""
    unchanged: Callable[[], None] = lambda: None


class Jacobian:
    """The Jacobians from one or several sources to a target, one per prompt. Made by `lm.jacobian(…)`.

    Several sources share every backward pass: `vjp` and `matrix` return one array per source, and `jac["resid_post.8"]` is the
    Jacobian of one source.
    """

    def __init__(self, sources: Sequence[Site], target: Site, shared: _Shared, at: Sequence[int], single: bool) -> None:
        self.sources, self.target, self._shared, self._at, self._single = tuple(sources), target, shared, at, single

    @classmethod
    def over(cls, plan: Plan) -> "Jacobian":
        """Run every group's pass once, store source and target values, and cache as many graphs as the budget allows."""
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

    def figure(self) -> "alt.TopLevelMixin":
        """Leading singular values of the mean Jacobian, one line per source; computed when called, by products with the network."""
        return notebook.figure(self)

    def _repr_html_(self) -> str:
        return notebook.html(self)

    def __getitem__(self, source: "str | Site") -> "Jacobian":
        """The Jacobian of one source, from the same passes.

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
        """The source's vectors at which the Jacobians are evaluated; the mean over several positions."""
        return self._shared.points[self._one()]

    @property
    def value(self) -> Float[np.ndarray, "prompt d_target"]:
        """The target's vectors at `point`; LRE's bias is value - J point."""
        assert self._shared.value is not None
        return self._shared.value

    @property
    def unbatched(self) -> str:
        """Why vectors are processed one at a time in this network; empty if they are batched."""
        return self._shared.unbatched

    def vjp(self, u: Float[np.ndarray, "vector d_target"]) -> Any:
        """uᵀJ: (prompt, vector, d_source), batched over vectors; a mapping by site for several sources.

        Raises
        ------
        UserError
            For vectors of the wrong width, or not finite.
        """
        vectors = self._vectors(u, self.value.shape[1], "u")
        outs = [np.empty((len(self), len(vectors), self._shared.points[i].shape[1]), self.value.dtype) for i in self._at]
        for group, made in self._passes():
            for out, found in zip(outs, made.vjp(vectors, self._at)):
                out[list(group.inputs)] = as_numpy(found.transpose(0, 1))
        return outs[0] if self._single else PerSite(zip(self.sources, outs))

    def jvp(self, v: Float[np.ndarray, "vector d_source"]) -> Float[np.ndarray, "prompt vector d_target"]:
        """Jv per prompt, for a single source.

        Raises
        ------
        UserError
            As `vjp`; and for several sources.
        """
        vectors = self._vectors(v, self.shape[1], "v")
        out = np.empty((len(self), len(vectors), self.shape[0]), self.value.dtype)
        for group, made in self._passes():
            out[list(group.inputs)] = as_numpy(made.jvp([vectors], [self._one()]).transpose(0, 1))
        return out

    def matrix(self) -> Any:
        """The Jacobian matrices: (prompt, d_target, d_source); a mapping by site for several sources."""
        widths = [self._shared.points[i].shape[1] for i in self._at]
        outs = [np.empty((len(self), self.value.shape[1], width), self.value.dtype) for width in widths]
        self._whole(lambda inputs, i, rows, found: outs[i].__setitem__(_at(inputs, rows), found))
        return outs[0] if self._single else PerSite(zip(self.sources, outs))

    def mean(self) -> "MeanJacobian":
        """The average over prompts, as an operator; products are accumulated in float64."""
        return MeanJacobian(self)

    def svd(self, k: int = 16, **options: Any) -> Triplets:
        """Leading singular triplets for a single prompt; for several, use `mean().svd`.

        Raises
        ------
        UserError
            For several prompts.
        """
        if len(self) != 1:
            raise UserError(f"There are {len(self)} Jacobians, one per prompt: use jac.mean().svd(), or give one prompt.")
        return self.mean().svd(k, **options)

    def _one(self) -> int:
        if len(self.sources) != 1:
            raise UserError(f"There are {len(self.sources)} sources; choose one, such as jac[{str(self.sources[0])!r}].")
        return self._at[0]

    def _vectors(self, given: Any, width: int, name: str) -> Tensor:
        try:
            wide = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"{name} is not a numeric array; give (vector, {width}) for {self!r}.") from error
        with np.errstate(over="ignore"):
            vectors = wide.astype(self.value.dtype)
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise UserError(f"{name} has the shape {vectors.shape}; it must be (vector, {width}) for {self!r}.")
        if not np.isfinite(vectors).all():
            held = "not finite" if not np.isfinite(wide).all() else f"beyond {vectors.dtype}, the precision of the products"
            raise UserError(f"{name} is {held}.")
        return torch.from_numpy(np.ascontiguousarray(vectors))

    def _passes(self, groups: Sequence[Group] | None = None) -> Iterator[tuple[Group, Linearized]]:
        self._shared.unchanged()
        for group in self._shared.groups if groups is None else groups:
            made = group.linearized()
            yield group, made
            self._shared.unbatched = self._shared.unbatched or made.unbatched

    def _whole(self, put: Callable[[Sequence[int], int, slice, np.ndarray], None]) -> None:
        """Pass all rows of all Jacobians to `put`, block by block: inputs, source, rows, values."""
        rows = self.value.shape[1]
        with progress("Jacobian", rows * len(self)) as advance, memory_kept():
            for group, made in self._passes():
                edges = np.linspace(0, rows, -(-rows // made.whole_rows) + 1).astype(int)  # parts of one size
                for first, stop in pairwise(edges.tolist()):
                    part = slice(first, stop)
                    u = torch.eye(stop - first, rows).roll(first, 1)
                    for i, found in enumerate(made.vjp(u, self._at, made.whole_rows)):
                        put(group.inputs, i, part, as_numpy(found.transpose(0, 1)))
                    advance((stop - first) * len(group.inputs))


class MeanJacobian:
    """The average Jacobian over prompts, as an operator. Made by `Jacobian.mean`."""

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
            total += as_numpy(made.jvp([vectors], [each._one()])).astype(np.float64).sum(1)
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
        """The mean Jacobian (d_target, d_source) in float64; a mapping by site for several sources."""
        matrices = PerSite((site, weight) for site, (weight, _) in self.affine().items())
        return matrices[self._each.sources[0]] if self._each._single else matrices

    def affine(self) -> dict[Site, tuple[Float[np.ndarray, "d_target d_source"], Float[np.ndarray, "d_target"]]]:
        """LRE's affine map per source, in float64: the mean Jacobian W and the mean b of value - J point."""
        return self._affine(lambda inputs, i, part, found: None)

    def affine_of_each(
        self,
    ) -> tuple[
        dict[Site, tuple[Float[np.ndarray, "d_target d_source"], Float[np.ndarray, "d_target"]]],
        dict[Site, Float[np.ndarray, "prompt d_target d_source"]],
    ]:
        """As `affine`, and from the same products the Jacobians of all prompts, as `Jacobian.matrix`."""
        each = self._each
        shape = (len(each), each.value.shape[1])
        kept = [np.empty((*shape, each._shared.points[i].shape[1]), each.value.dtype) for i in each._at]
        maps = self._affine(lambda inputs, i, part, found: kept[i].__setitem__(_at(inputs, part), found))
        return maps, PerSite(zip(each.sources, kept))

    def _affine(
        self, put: Callable[[Sequence[int], int, slice, np.ndarray], None]
    ) -> dict[Site, tuple[Float[np.ndarray, "d_target d_source"], Float[np.ndarray, "d_target"]]]:
        """As `affine`; the rows of the Jacobians are passed to `put` as well."""
        each = self._each
        rows, points = each.value.shape[1], [each._shared.points[i].astype(np.float64) for i in each._at]
        totals = [np.zeros((rows, p.shape[1])) for p in points]
        moved = [np.zeros(rows) for _ in points]

        def add(inputs: Sequence[int], i: int, part: slice, found: np.ndarray) -> None:
            totals[i][part] += found.sum(0, dtype=np.float64) / len(each)
            moved[i][part] += np.einsum("prd,pd->r", found, points[i][list(inputs)]) / len(each)
            put(inputs, i, part, found)

        each._whole(add)
        value = each.value.mean(0, dtype=np.float64)
        return PerSite((site, (w, value - m)) for site, w, m in zip(each.sources, totals, moved))

    def low_rank(
        self, rank: int | None = None, *, tolerance: float = 0.0, seed: int = 0, block: int | None = None, probes: int = PROBES
    ) -> tuple[dict[Site, tuple[LowRank, Float[np.ndarray, "d_target"]]], Certificate]:
        """As `affine`, from few products: J ≈ QQᵀJ with one Q for all sources, and what that leaves out (see `low_rank`).

        Two products per column of Q serve all sources, where `affine` takes d_target. One of the two only chooses Q, and is taken
        over a part of the prompts in turn, where they are in several passes (`at_once` of `lm.jacobian`). The bias is the mean of
        value - QQᵀJ point.

        Parameters
        ----------
        rank
            Most columns of Q; by default as many as a third of d_target products give, if the factors then hold less than a quarter
            of the matrix's numbers (`most_rank`).
        tolerance
            Relative error (Frobenius) of all sources together at which fewer columns are enough; 0: all columns.
        seed
            Seed of the random start and the probes.
        block
            Vectors per product; by default a sixth of the rank, and at least 8. More take less time and give a larger error.
        probes
            Held-out random rows that estimate the error.

        Returns
        -------
        maps, certificate
            Per source the matrix (d_target, d_source) and the bias (d_target), in float64; the rank and the estimated errors.

        Raises
        ------
        UserError
            For a rank, a tolerance, a block or a number of probes that is not possible.
        """
        each = self._each
        points = [each._shared.points[i].astype(np.float64) for i in each._at]
        widths, height = [p.shape[1] for p in points], each.value.shape[1]
        moved: list[list[np.ndarray]] = [[] for _ in points]
        parts = _parts(each._shared.groups, PART * len(each))
        turns, multiplied = cycle(parts), [0]

        def back(u: Float[np.ndarray, "vector d_target"]) -> list[Float[np.ndarray, "vector d_source"]]:
            """uᵀJ for every source; what each vector says of the examples' own points is kept for the bias."""
            vectors = each._vectors(u, height, "u")
            totals, dots = [np.zeros((len(u), w)) for w in widths], [np.zeros(len(u)) for _ in widths]
            multiplied[0] += len(u) * len(each)
            for group, made in each._passes():
                for i, found in enumerate(made.vjp(vectors, each._at)):
                    rows = as_numpy(found)
                    totals[i] += rows.sum(1, dtype=np.float64) / len(each)
                    dots[i] += np.einsum("vpd,pd->v", rows, points[i][list(group.inputs)]) / len(each)
            for kept, new in zip(moved, dots):
                kept.append(new)
            return totals

        def forth(v: list[Float[np.ndarray, "vector d_source"]]) -> Float[np.ndarray, "vector d_target"]:
            """Σ Jv over the sources, averaged over the prompts whose turn it is."""
            vectors = [each._vectors(part, width, "v") for part, width in zip(v, widths)]
            total, groups = np.zeros((len(v[0]), height)), next(turns)
            count = sum(len(group.inputs) for group in groups)
            multiplied[0] += len(v[0]) * count
            for _, made in each._passes(groups):
                total += as_numpy(made.jvp(vectors, each._at)).sum(1, dtype=np.float64)
            return total / count

        scales = [float(np.sqrt(np.square(p).sum(1).mean())) or 1.0 for p in points]
        largest = max(sum(len(group.inputs) for group in part) for part in parts) / len(each)
        most = most_rank(height, widths, probes, largest) if rank is None else rank
        with progress("Jacobian of low rank", 2 * most + probes) as advance, memory_kept():
            found, certificate = joint(
                forth,
                back,
                height,
                widths,
                scales,
                most,
                tolerance=tolerance,
                seed=seed,
                block=min(max(BLOCK, -(-most // 6)) if block is None else block, height),
                probes=probes,
                advance=advance,
            )
        value = each.value.mean(0, dtype=np.float64)
        maps = {}
        for i, (site, factors) in enumerate(zip(each.sources, found)):
            along = np.concatenate(moved[i][1:])[: factors.rank]  # the first rows were the probes'
            maps[site] = factors, value - factors.left @ along
        return PerSite(maps.items()), replace(certificate, products=-(-multiplied[0] // len(each)))

    def svd(
        self, k: int = 16, *, seed: int = 0, tolerance: float = 0.01, products: int = 192, block: int | None = None
    ) -> Triplets:
        """The leading singular triplets, by block Krylov iteration with a certificate (see `krylov`).

        Parameters
        ----------
        k
            Number of triplets.
        seed
            Seed of the random start.
        tolerance
            Certified relative error of each value at which the iteration stops.
        products
            Maximum number of products Jv and uᵀJ, counted per vector.
        block
            Vectors per product; by default 8, or fewer if k or the Jacobian is smaller.

        Raises
        ------
        UserError
            For k beyond the Jacobian's smaller dimension, fewer products than one iteration needs, or several sources.
        """
        self._each._one()
        with progress("Singular triplets", products) as advance:
            return leading(
                self.jvp, self.vjp, self.shape, k, seed=seed, tolerance=tolerance, products=products, block=block, advance=advance
            )


def as_numpy(x: Tensor) -> Float[np.ndarray, "..."]:
    """A tensor as an array, in float32 if numpy lacks its type."""
    return np.asarray(as_float(x.detach()).cpu().numpy())


def _at(inputs: Sequence[int], rows: slice) -> Any:
    return np.ix_(list(inputs), range(rows.start, rows.stop))


def _parts(groups: Sequence[Group], least: float) -> list[list[Group]]:
    """Groups in parts of about so many inputs, each in one part."""
    parts: list[list[Group]] = []
    for group in groups:
        if parts and sum(len(g.inputs) for g in parts[-1]) + len(group.inputs) <= max(1.0, least) + 1e-9:
            parts[-1].append(group)
        else:
            parts.append([group])
    return parts
