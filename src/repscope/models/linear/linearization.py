"""Cached derivative of one forward pass, multiplied with many vectors.

1. The pass runs once with its graph: zero leaves are added at the sources, the target is read, and the graph is cached.
2. uᵀJ for many u is one backward pass over the graph, batched over u (`vmap` over the backward pass).
3. Jv for many v: uᵀJ is linear in u, so the backward pass of its own graph, built once, gives Jv (the double-backward trick).
4. Fused attention has no second or batched derivative on CPUs; this pass computes attention by plain products. Keys and values of
   earlier positions are constants, shared by all vectors.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from repscope.models.engine.attention_probe import grouped
from repscope.models.linear.short_attention import Attended, attended
from repscope.models.linear.short_derivatives import activated, recognised

Pair = tuple[Tensor, Tensor]

_POINTWISE = (functional.silu, functional.gelu)  #: whose derivative torch computes again for each of many vectors


class Explicit(TorchFunctionMode):
    """A mode for passes with fast batched and double backward passes; only their first derivative is correct.

    `scaled_dot_product_attention` becomes plain products; activations become multiplications by their slope, computed once.

    before: keys and values of earlier positions for the next call of attention; must be set before each call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before: Pair | None = None

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            before, self.before = self.before, None
            return explicit(*args, **{**(kwargs or {}), "before": before})
        options = kwargs or {}
        if func in _POINTWISE and args and args[0].requires_grad and not options.get("inplace") and args[-1] is not True:
            return _sloped(func, args[0], args[1:], options)
        made = recognised(func, args, options)
        return func(*args, **options) if made is None else made


def _sloped(func: Any, x: Tensor, more: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """func(x), with its slope at x as a constant in the graph."""
    point = x.detach().requires_grad_()
    value = func(point, *more, **options)
    (slope,) = torch.autograd.grad(value.sum(), point)
    return activated(torch.addcmul(value.detach(), x - x.detach(), slope), x, slope)


class _Product(torch.autograd.Function):
    """a @ b. A batch of vectors in one of the two becomes further rows or columns; torch would copy the other for each vector."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: Pair, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        to_a, to_b = ctx.needs_input_grad
        return (
            product(cotangents[0], b.transpose(-1, -2)) if to_a else None,
            product(a.transpose(-1, -2), cotangents[0]) if to_b else None,
        )

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, int | None], a: Tensor, b: Tensor) -> tuple[Tensor, int]:
        if dims[0] is None and dims[1] is not None:
            columns = b.movedim(dims[1], -2)  # (…, d, vector, column)
            return torch.unflatten(product(a, columns.flatten(-2)), -1, columns.shape[-2:]), b.dim() - 2
        if dims[0] is not None and dims[1] is None:
            rows = a.movedim(dims[0], -3)  # (…, vector, row, d)
            return torch.unflatten(product(rows.flatten(-3, -2), b), -2, rows.shape[-3:-1]), a.dim() - 3
        assert dims[0] is not None
        assert dims[1] is not None
        return product(a.movedim(dims[0], 0), b.movedim(dims[1], 0)), 0


def product(a: Float[Tensor, "*rows query d"], b: Float[Tensor, "*rows d key"]) -> Float[Tensor, "*rows query key"]:
    """a @ b, quick where one of the two is the same for all vectors of a batch."""
    made: Tensor = _Product.apply(a, b)  # type: ignore[no-untyped-call]
    return made


def explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    before: Pair | None = None,
) -> Float[Tensor, "row head query d_value"]:
    """Attention by plain products; the softmax in float32 or wider, zeros where all keys are masked.

    Keys and values `before` the others are constants: nothing is pulled back to them.
    """
    rows, heads, queries, _ = query.shape
    groups = key.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    one_step = query.dtype == wide and not (attn_mask is not None and attn_mask.requires_grad)
    ends, factor = (query, key, value), scale if scale is not None else query.shape[-1] ** -0.5
    if one_step:
        query, key, value = (x.detach() for x in ends)
    # Heads that share keys are further queries, so that no key is repeated.
    folded = (query * factor).reshape(rows, groups, -1, query.shape[-1])
    scores = product(folded, key.transpose(-1, -2))
    if before is not None:
        earlier = [grouped(x, groups) for x in before]
        scores = torch.cat([product(folded, earlier[0].transpose(-1, -2)), scores], -1)
    scores = scores.to(wide).reshape(rows, heads, queries, -1)
    if is_causal:
        allowed = torch.ones(queries, key.shape[2], dtype=torch.bool, device=query.device).tril()
        scores = scores + _added(allowed, wide)
    if attn_mask is not None:
        scores = scores + (_added(attn_mask, wide) if attn_mask.dtype == torch.bool else attn_mask)
    nothing = torch.isneginf(scores.detach()).all(-1, keepdim=True)
    if bool(nothing.any()):
        weights = scores.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
    else:
        weights = scores.softmax(-1)
    shares = weights.to(value.dtype).reshape(rows, groups, -1, weights.shape[-1])
    if before is None:
        mixed = product(shares, value)
    else:
        of_old, of_new = torch.split(shares, [earlier[1].shape[2], value.shape[2]], -1)
        mixed = product(of_new, value) + product(of_old, earlier[1])
    out = mixed.reshape(rows, heads, queries, -1)
    if not one_step or not any(x.requires_grad for x in ends):
        return out
    new, keys, values = key.shape[2], key, value
    if before is not None:
        keys, values = (torch.cat(pair, 2) for pair in zip(earlier, (key, value)))
    return attended(*ends, out, Attended(folded, keys, values, shares, mixed, new, factor))


def _added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask of scores: 0 for allowed pairs, -inf for others."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)


class Linearized:
    """Derivative of one pass with respect to some sources. Every row of the pass is an input of its own.

    leaves: (row, *feature) per source, the zeros that were added. points: the source's values there. target: the values read, with
    their graph. product_rows: vectors per backward pass, and that number where all rows of the Jacobian are made. places: positions
    of source and target; None for inputs without positions. watched: further tensors of the graph, each with the zeros added to it.
    """

    def __init__(
        self,
        leaves: Sequence[Tensor],
        points: Sequence[Tensor],
        target: Float[Tensor, "row d_target"],
        product_rows: tuple[int, int],
        places: tuple[slice, slice] | None = None,
        watched: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        self.leaves, self.points, self.target, self.places = list(leaves), list(points), target, places
        self.product_rows, self.whole_rows = (max(1, rows) for rows in product_rows)
        self.watched = list(watched)
        self.unbatched = ""  #: why vectors go through one by one, empty where they go together
        self._adjoints: dict[tuple[int, ...], tuple[Tensor, list[Tensor]]] = {}

    def vjp(
        self, u: Float[Tensor, "vector d_target"], sources: Sequence[int], at_once: int = 0
    ) -> list[Float[Tensor, "vector row d_source"]]:
        """uᵀJ for some of the sources, all from the same backward passes, of `at_once` vectors if it is given."""
        leaves = [self.leaves[i] for i in sources]
        cotangents = u.to(self.target)[:, None].expand(-1, len(self.target), -1)
        parts = [self._pulled([self.target], leaves, [part]) for part in self._chunks(cotangents, at_once)]
        return [torch.cat([part[i] for part in parts]).flatten(2) for i in range(len(leaves))]

    def jvp(self, v: Sequence[Float[Tensor, "vector d_source"]], sources: Sequence[int]) -> Float[Tensor, "vector row d_target"]:
        """Σ Jv over some of the sources, with vectors for each of them, all from the same backward passes."""
        u, pulled = self._linear(sources)
        tangents = [self._tangents(part, self.leaves[i]) for part, i in zip(v, sources)]
        parts = zip(*(self._chunks(each) for each in tangents))
        return torch.cat([self._pulled(pulled, [u], part)[0] for part in parts])

    def along(self, v: Float[Tensor, "row d_source"], source: int) -> Float[Tensor, "row d_target"]:
        """Jv for one source, with a vector of its own for each row."""
        u, (pulled,) = self._linear([source])
        return self._pulled([pulled], [u], [v.to(pulled).reshape(1, *pulled.shape)])[0][0]

    def through(
        self, u: Float[Tensor, "vector d_target"], v: Float[Tensor, "vector d_source"], source: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """At each tensor watched, uᵀ∂target/∂it and its own ∂/∂source v: (vector, row, token, *feature) each."""
        held, leaves = [x for x, _ in self.watched], [leaf for _, leaf in self.watched]
        cotangents = u.to(self.target)[:, None].expand(-1, len(self.target), -1)
        back = [self._pulled([self.target], leaves, [part]) for part in self._chunks(cotangents)]
        leaf = self.leaves[source]
        dummies, pulled = _adjoint(held, [leaf])
        forth = [self._pulled(pulled, dummies, [part]) for part in self._chunks(self._tangents(v, leaf))]
        cotangent, tangent = ([torch.cat([part[i] for part in parts]) for i in range(len(held))] for parts in (back, forth))
        return cotangent, tangent

    def _linear(self, sources: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        key = tuple(sources)
        if key not in self._adjoints:
            (u,), pulled = _adjoint([self.target], [self.leaves[i] for i in sources])
            self._adjoints[key] = (u, pulled)
        return self._adjoints[key]

    @staticmethod
    def _tangents(v: Float[Tensor, "vector d_source"], leaf: Tensor) -> Tensor:
        """The same vectors for every row of a leaf."""
        return v.to(leaf).reshape(len(v), 1, *leaf.shape[1:]).expand(-1, len(leaf), *leaf.shape[1:])

    def _chunks(self, vectors: Tensor, at_once: int = 0) -> Sequence[Tensor]:
        return vectors.tensor_split(-(-len(vectors) // (at_once or self.product_rows))) if len(vectors) else [vectors]

    def _pulled(self, of: Sequence[Tensor], to: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
        """Cotangents, (vector, *like it) for each of `of`, pulled back to each of `to`: together, or else one by one."""
        count = len(cotangents[0])
        reached = [(x, c) for x, c in zip(of, cotangents) if x.requires_grad]
        if not count or not reached:
            return [x.new_zeros(count, *x.shape) for x in to]
        ends, given = [x for x, _ in reached], [c for _, c in reached]

        def pulled(*one: Tensor) -> tuple[Tensor, ...]:
            found = torch.autograd.grad(ends, to, one, retain_graph=True, allow_unused=True)
            return tuple(torch.zeros_like(x) if f is None else f for x, f in zip(to, found))

        if not self.unbatched and count > 1:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch tells of slow batching rules
                    return list(torch.func.vmap(pulled)(*given))
            except RuntimeError as error:
                self.unbatched = " ".join(str(error).split())[:160]
        return [torch.stack(parts) for parts in zip(*(pulled(*one) for one in zip(*given)))]


def _adjoint(of: Sequence[Tensor], leaves: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Dummies u for tensors of a graph, and Σ uᵀ∂/∂leaf as a function of them for each leaf."""
    dummies = [torch.zeros_like(x, requires_grad=True) for x in of]
    reached = [(x, u) for x, u in zip(of, dummies) if x.requires_grad]
    if not reached:
        return dummies, [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad([x for x, _ in reached], leaves, [u for _, u in reached], create_graph=True, allow_unused=True)
    return dummies, [torch.zeros_like(leaf) if f is None else f for leaf, f in zip(leaves, found)]
