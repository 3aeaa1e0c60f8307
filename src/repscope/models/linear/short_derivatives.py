"""Parts of networks that are written as several elementwise steps, with a derivative that takes fewer.

Back through a network with many vectors at once, elementwise steps are bound by memory. These patterns are recognised while a pass
runs, by the steps themselves, whatever module holds them:

1. root mean square norm: w x · rsqrt(mean(x²) + ε). With r = rsqrt(…), a vector c becomes r w c - x r³ (w x·c)/d.
2. rotary embedding: x cos + (-x₂, x₁) sin of x = (x₁, x₂). A vector c becomes c cos + (c₂ sin₂, -c₁ sin₁); that of the turned
   halves alone, (c₂, -c₁).
3. MLPs, gated or not: linear maps, activation, product of both, linear map (see `merged_mlp`).

Values are computed as they stand. Derivatives take x and r as constants, so that only the first derivative is right.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from repscope.models.linear.merged_mlp import Hidden, mlp

_MANY = 64  #: vectors from which rows of a norm are taken one by one
_CAME = "_repscope_came_from"  #: attribute of intermediate tensors: the step that made them, and from what


def recognised(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
    """The result of a call that ends one of the patterns; None for any other, which is noted if it may belong to one."""
    step = _STEPS.get(getattr(func, "__name__", ""))
    if step is None or not args:
        return None
    return step(func, args, options)


def activated(value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """Note that a value is an activation of x, with this slope there."""
    came = _came(x, "linear")
    return value if came is None else _note(value, "activation", (*came, slope))


def _note(made: Tensor, kind: str, origin: Any) -> Tensor:
    setattr(made, _CAME, (kind, origin, made._version))
    return made


def _noted(func: Any, args: Sequence[Any], options: Mapping[str, Any], kind: str, origin: Any) -> Tensor:
    return _note(func(*args, **options), kind, origin)


def _came(value: Any, kind: str) -> Any:
    """What a tensor came from by a step of this kind; None if it did not, or was changed in place since."""
    found = getattr(value, _CAME, None) if isinstance(value, Tensor) else None
    return found[1] if found is not None and found[0] == kind and found[2] == value._version else None


def _origin(value: Any, kind: str) -> Tensor | None:
    origin: Tensor | None = _came(value, kind)
    return origin


def _graphed(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _power(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
    if _graphed(args[0]) and len(args) == 2 and args[1] == 2 and not options:
        return _noted(func, args, options, "square", args[0])
    return None


def _mean(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
    x = _origin(args[0], "square")
    where = options.get("dim", args[1] if len(args) > 1 else None)
    if x is not None and where in (-1, [-1], (-1,)) and options.get("keepdim") is True and set(options) <= {"dim", "keepdim"}:
        return _noted(func, args, options, "mean square", x)
    return None


def _sum(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
    x = _origin(args[0], "mean square")
    if x is not None and len(args) == 2 and isinstance(args[1], float) and not options:
        return _noted(func, args, options, "mean square and ε", x)
    if len(args) == 2 and not options and (plain := _came(args[0], "times")) and (turned := _came(args[1], "turned times")):
        (x, cos), (same, sin) = plain, turned
        if x is same and cos.shape == sin.shape:
            rotated: Tensor = _Rotated.apply(x, cos, sin)  # type: ignore[no-untyped-call]
            return rotated
    return None


def _root(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
    x = _origin(args[0], "mean square and ε")
    return None if x is None or options else _noted(func, args, options, "root", x)


def _product(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
    if len(args) != 2 or options:
        return None
    for x, r in (tuple(args), tuple(args)[::-1]):
        if isinstance(x, Tensor) and _origin(r, "root") is x:
            return _note(_Normed.apply(x, r.detach(), None), "normed", (x, r.detach()))  # type: ignore[no-untyped-call]
        if (gate := _came(x, "activation")) is not None and (up := _came(r, "linear")) is not None and gate[0] is up[0]:
            parts = ((up[1], x.detach()), (gate[1], gate[2] * r.detach()))
            return _noted(func, args, options, "hidden", Hidden(up[0], parts))
        if (normed := _came(x, "normed")) is not None and isinstance(r, torch.nn.Parameter) and r.shape == x.shape[-1:]:
            weighed: Tensor = _Normed.apply(*normed, r)  # type: ignore[no-untyped-call]
            return weighed
    x, factor = args
    if _graphed(x) and isinstance(factor, Tensor) and not factor.requires_grad and factor.dim() == x.dim():
        turned = _origin(x, "turned")
        return _noted(func, args, options, *(("times", (x, factor)) if turned is None else ("turned times", (turned, factor))))
    return None


def _linear(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
    if len(args) < 2 or not _graphed(args[0]) or args[1].dim() != 2:
        return None
    x, weight, *bias = args
    hidden = _came(x, "hidden")
    if hidden is None and (gate := _came(x, "activation")) is not None:
        hidden = Hidden(gate[0], ((gate[1], gate[2]),))
    if hidden is None:
        return _noted(func, args, options, "linear", (x, weight.detach()))
    return mlp(hidden, func(x.detach(), weight, *bias, **options).detach(), weight)


def _half(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
    x, index = args
    if not (_graphed(x) and isinstance(index, tuple) and len(index) == 2 and index[0] is Ellipsis and isinstance(index[1], slice)):
        return None
    d = x.shape[-1]
    for number, part in enumerate((slice(None, d // 2), slice(d // 2, None))):
        if d % 2 == 0 and index[1] == part:
            return _noted(func, args, options, f"half {number}", x)
    return None


def _minus(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
    x = _origin(args[0], "half 1")
    return None if x is None else _noted(func, args, options, "minus half 1", x)


def _joined(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
    parts = args[0]
    where = options.get("dim", args[1] if len(args) > 1 else 0)
    if not isinstance(parts, (tuple, list)) or len(parts) != 2 or where != -1:
        return None
    x = _origin(parts[0], "minus half 1")
    if x is None or _origin(parts[1], "half 0") is not x:
        return None
    return _note(_Turned.apply(x), "turned", x)  # type: ignore[no-untyped-call]


_STEPS: dict[str, Callable[[Any, Sequence[Any], Mapping[str, Any]], Tensor | None]] = {
    "pow": _power,
    "__pow__": _power,
    "mean": _mean,
    "add": _sum,
    "__add__": _sum,
    "rsqrt": _root,
    "mul": _product,
    "__mul__": _product,
    "__getitem__": _half,
    "neg": _minus,
    "__neg__": _minus,
    "cat": _joined,
    "linear": _linear,
}


class _Normed(torch.autograd.Function):
    """w x r, with r the inverse root mean square of x; w may be None."""

    @staticmethod
    def forward(x: Float[Tensor, "*row d"], r: Float[Tensor, "*row 1"], w: Float[Tensor, "d"] | None) -> Float[Tensor, "*row d"]:
        return x * r if w is None else w * (x * r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, r = (value.detach() for value in inputs[:2])
        w = torch.ones_like(x[..., :1]) if inputs[2] is None else inputs[2].detach()
        ctx.save_for_backward(w * r, x * (r**3 / x.shape[-1]), w * x)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        return _Diagonal.apply(cotangents[0], *ctx.saved_tensors), None, None  # type: ignore[no-untyped-call]


class _Diagonal(torch.autograd.Function):
    """c ∘ g - a (b·c) at each row: a diagonal matrix and one of rank one."""

    @staticmethod
    def forward(c: Tensor, g: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.addcmul(c * g, a, (c * b).sum(-1, keepdim=True), value=-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None, None]:
        g, a, b = ctx.saved_tensors
        return _Diagonal.apply(cotangents[0], g, b, a), None, None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], c: Tensor, g: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, int]:
        assert dims[0] is not None
        c = c.movedim(dims[0], 0)
        if len(c) < _MANY:
            return torch.addcmul(c * g, a, (c * b).sum(-1, keepdim=True), value=-1), 0
        wide = c.reshape(len(c), -1, c.shape[-1])  # row by row, each in the cache
        diagonal, left, right = (x.expand_as(a).reshape(wide.shape[1:]) for x in (g, a, b))
        out = torch.empty_like(wide)
        for row in range(wide.shape[1]):
            torch.mul(wide[:, row], diagonal[row], out=out[:, row])
            out[:, row].addr_(torch.mv(wide[:, row], right[row]), left[row], alpha=-1)
        return out.reshape(c.shape), 0


class _Turned(torch.autograd.Function):
    """(-x₂, x₁) of x = (x₁, x₂)."""

    @staticmethod
    def forward(x: Float[Tensor, "*row d"]) -> Float[Tensor, "*row d"]:
        first, second = x.chunk(2, -1)
        return torch.cat([-second, first], -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        first, second = cotangents[0].chunk(2, -1)
        return torch.cat([second, -first], -1)


class _Rotated(torch.autograd.Function):
    """x cos + (-x₂, x₁) sin of x = (x₁, x₂); the adjoint is the same with sin' = (-sin₂, -sin₁)."""

    @staticmethod
    def forward(x: Float[Tensor, "*row d"], cos: Tensor, sin: Tensor) -> Float[Tensor, "*row d"]:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        _, cos, sin = inputs
        ctx.save_for_backward(cos, sin)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, -1)
        return _Rotated.apply(cotangents[0], cos, -torch.cat([second, first], -1)), None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, int]:
        assert dims[0] is not None
        x = x.movedim(dims[0], 0)
        out = x * cos
        half = x.shape[-1] // 2
        out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        out[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return out, 0
