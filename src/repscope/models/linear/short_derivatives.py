"""Parts of networks that are written as several elementwise steps, with a derivative that takes fewer.

Back through a network with many vectors at once, elementwise steps are bound by memory. Two patterns of them are recognised while a
pass runs, by the steps themselves, whatever module holds them:

1. root mean square norm: x · rsqrt(mean(x²) + ε). With r = rsqrt(…), a vector c becomes r c - x r³ (x·c)/d.
2. the rotation of a half: (-x₂, x₁) of x = (x₁, x₂). A vector (c₁, c₂) becomes (c₂, -c₁).

Values are computed as they stand. Derivatives take x and r as constants, so that only the first derivative is right.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_CAME = "_repscope_came_from"  #: attribute of intermediate tensors: the step that made them, and from what


def recognised(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
    """The result of a call that ends one of the patterns; None for any other, which is noted if it may belong to one."""
    step = _STEPS.get(getattr(func, "__name__", ""))
    if step is None or not args:
        return None
    return step(func, args, options)


def _noted(func: Any, args: Sequence[Any], options: Mapping[str, Any], kind: str, origin: Tensor) -> Tensor:
    made: Tensor = func(*args, **options)
    setattr(made, _CAME, (kind, origin))
    return made


def _origin(value: Any, kind: str) -> Tensor | None:
    found = getattr(value, _CAME, None) if isinstance(value, Tensor) else None
    return found[1] if found is not None and found[0] == kind else None


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
    return None


def _root(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
    x = _origin(args[0], "mean square and ε")
    return None if x is None or options else _noted(func, args, options, "root", x)


def _product(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
    if len(args) != 2 or options:
        return None
    for x, r in (tuple(args), tuple(args)[::-1]):
        if isinstance(x, Tensor) and _origin(r, "root") is x:
            normed: Tensor = _Normed.apply(x, r.detach())  # type: ignore[no-untyped-call]
            return normed
    return None


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
    turned: Tensor = _Turned.apply(x)  # type: ignore[no-untyped-call]
    return turned


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
}


class _Normed(torch.autograd.Function):
    """x r, with r the inverse root mean square of x."""

    @staticmethod
    def forward(x: Float[Tensor, "*row d"], r: Float[Tensor, "*row 1"]) -> Float[Tensor, "*row d"]:
        return x * r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        x, r = (value.detach() for value in inputs)
        ctx.save_for_backward(x, r, x * (r**3 / x.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        x, r, along = ctx.saved_tensors
        (c,) = cotangents
        return torch.addcmul(c * r, along, (c * x).sum(-1, keepdim=True), value=-1), None


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
