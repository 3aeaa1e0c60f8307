"""What of a pass does not depend on the added vectors: computed once per input and shared by all vectors.

1. A pass with NaN in place of the vector marks what depends on it, as NaN spreads through every operation: module outputs without
   a NaN do not depend on the vector, nor do the input channels of a convolution without one (skip connections of a U-Net).
2. A pass without vectors records these outputs, and of such a convolution the part of its output that these channels give.
3. In passes with vectors the modules give back what was recorded; such a convolution runs on its other channels alone, and so do a
   group norm and an activation that only feed it. Attention to a single key, such as one word, gives its value.

For vectors at the words of a U-Net whose down blocks do not attend to words, this leaves out the time embedding, the down blocks
and half of the convolutions after skip connections. Nothing is assumed about the network; the caller proves the result by whole
passes (`replay_error`), as an operation that swallows NaN would be missed.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_ACTIVATIONS = (nn.SiLU, nn.ReLU, nn.GELU, nn.Mish)  #: of which every channel depends on itself alone


@dataclass(eq=False)
class _Call:
    """One call of a module in a pass.

    parent: index of the call around it, or -1. constant: whether its output has no NaN. varying: of a convolution that reads
    channels with and without NaN, those with. narrow: of a norm whose other channels nothing reads, how it runs. took, gave: first
    input and output, while calls are compared.
    """

    module: nn.Module
    parent: int
    constant: bool = False
    varying: Int[Tensor, "channel"] | None = None
    narrow: "_NarrowNorm | None" = None
    took: Any = None
    gave: Any = None


@dataclass(eq=False)
class SharedParts:
    """What was recorded for some inputs, per module and call of it; None where the module runs. rows: number of inputs."""

    held: dict[nn.Module, list["_Given | None"]]
    rows: int

    @contextmanager
    def replayed(self, count: int) -> Iterator[None]:
        """The pass inside has `count` copies of the inputs, one copy of all after the other, each with a vector of its own."""
        before = [(module, module.__dict__.get("forward")) for module in self.held]
        try:
            for module, held in self.held.items():
                module.forward = _Replay(module.forward, held, count, self.rows)
            with _OneKey():
                yield
        finally:
            for module, own in before:
                if own is None:
                    del module.forward
                else:
                    module.forward = own


class SharedPlan:
    """Which modules of a network do not depend on a vector.

    Parameters
    ----------
    network
        The module.
    marked
        Runs it on some inputs with vectors of NaN.
    """

    def __init__(self, network: nn.Module, marked: Callable[[], Any]) -> None:
        self.network = network
        self._calls: list[_Call] = []

        def after(index: int, args: tuple[Any, ...], output: Any) -> None:
            call = self._calls[index]
            call.constant, call.took, call.gave = _constant(output), args[0] if args else None, output
            if not call.constant and _splits(call.module) and args:
                spoilt = args[0].isnan().any(dim=3).any(dim=2).any(dim=0)
                if not bool(spoilt.all()):
                    call.varying = spoilt.nonzero()[:, 0]

        with torch.no_grad(), _watched(network, lambda module, parent: self._calls.append(_Call(module, parent)), after):
            marked()
        inside = [False] * len(self._calls)  # of a call whose output is given back, so that it does not run
        for i, call in enumerate(self._calls):
            inside[i] = call.parent >= 0 and (inside[call.parent] or self._calls[call.parent].constant)
        self._runs = [not within for within in inside]
        self._narrow_norms()
        for call in self._calls:
            call.took = call.gave = None

    def _narrow_norms(self) -> None:
        """Group norms whose output goes through an activation to a convolution that reads some of its channels, nowhere else."""
        running = [call for call, runs in zip(self._calls, self._runs) if runs and not call.constant]
        makers = {id(call.gave): call for call in running}
        readers = Counter(id(call.took) for call in running)
        for last in running:
            act = makers.get(id(last.took)) if last.varying is not None else None
            norm = makers.get(id(act.took)) if act is not None and isinstance(act.module, _ACTIVATIONS) else None
            if act is None or norm is None or type(norm.module) is not nn.GroupNorm:
                continue
            if readers[id(act.gave)] == readers[id(norm.gave)] == 1:
                norm.narrow = _NarrowNorm.of(norm.module, last.varying)

    @property
    def shares(self) -> bool:
        """Whether anything does not depend on the vector."""
        return any(runs and (call.constant or call.varying is not None) for call, runs in zip(self._calls, self._runs))

    def record(self, plain: Callable[[], Tensor]) -> tuple[Tensor, SharedParts]:
        """The output of a pass without vectors (row, …), and what is shared by passes with vectors on the same inputs."""
        found: dict[int, _Given | None] = {}
        seen: list[nn.Module] = []

        def after(index: int, args: tuple[Any, ...], output: Any) -> None:
            call = self._calls[index] if index < len(self._calls) else None
            if call is None or call.module is not seen[index] or not self._runs[index]:
                return
            if call.constant:
                found[index] = _Held(_mapped(output, lambda x: x.detach().clone()))
            elif call.varying is not None:
                found[index] = _HeldConvolution.of(call.module, args[0].detach(), call.varying)
            else:
                found[index] = call.narrow

        with torch.no_grad(), _watched(self.network, lambda module, parent: seen.append(module), after):
            output = plain()
        if len(seen) != len(self._calls) or any(call.module is not module for call, module in zip(self._calls, seen)):
            return output, SharedParts({}, len(output))  # another path through the network
        held: dict[nn.Module, list[_Given | None]] = {}
        for i, call in enumerate(self._calls):
            if self._runs[i]:
                held.setdefault(call.module, []).append(found.get(i))
        some = {module: given for module, given in held.items() if any(one is not None for one in given)}
        return output, SharedParts(some, len(output))


def replay_error(replayed: Tensor, whole: Tensor) -> float:
    """Largest difference between passes that share parts and whole passes, relative to the largest value of the latter."""
    largest = float(whole.abs().max())
    error = float((replayed - whole).abs().max()) / (largest or 1.0)
    return error if error == error else float("inf")  # not a number is an error too


@dataclass(frozen=True, eq=False)
class _Held:
    """A module's output for all inputs; what has no row per input is given back as it is."""

    output: Any

    def __call__(self, count: int, rows: int, x: Any) -> Any:
        def many(held: Tensor) -> Tensor:
            return held.repeat(count, *(1,) * (held.dim() - 1)) if held.dim() and len(held) % rows == 0 else held.clone()

        return _mapped(self.output, many)


@dataclass(frozen=True, eq=False)
class _HeldConvolution:
    """A convolution: its weight for the channels that vary, and its output for the others, bias included."""

    varying: Int[Tensor, "channel"] | slice
    weight: Tensor
    rest: Tensor
    settings: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(module: nn.Module, x: Tensor, varying: Int[Tensor, "channel"]) -> "_HeldConvolution":
        assert isinstance(module, nn.Conv2d)
        settings: dict[str, Any] = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
        still = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
        still[varying] = False
        weight = module.weight.detach()
        bias = None if module.bias is None else module.bias.detach()
        rest = functional.conv2d(x[:, still], weight[:, still].contiguous(), bias, **settings)
        block = _block(varying)
        return _HeldConvolution(varying if block is None else block, weight[:, varying].contiguous(), rest, settings)

    def __call__(self, count: int, rows: int, x: Any) -> Any:
        x = x if x.shape[1] == self.weight.shape[1] else x[:, self.varying]  # a narrow norm has left the others out
        part = functional.conv2d(x, self.weight, None, **self.settings)
        return (torch.unflatten(part, 0, (count, rows)) + self.rest).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class _NarrowNorm:
    """A group norm of some of its groups alone, whose channels follow each other."""

    channels: slice
    groups: int
    module: nn.GroupNorm

    @staticmethod
    def of(module: nn.Module, varying: Int[Tensor, "channel"] | None) -> "_NarrowNorm | None":
        """None if the channels do not fill whole groups."""
        assert isinstance(module, nn.GroupNorm)
        each = module.num_channels // module.num_groups
        block = None if varying is None else _block(varying)
        if block is None or block.start % each or block.stop % each:
            return None
        return _NarrowNorm(block, (block.stop - block.start) // each, module)

    def __call__(self, count: int, rows: int, x: Any) -> Tensor:
        weight, bias = (None if w is None else w.detach()[self.channels] for w in (self.module.weight, self.module.bias))
        return functional.group_norm(x[:, self.channels], self.groups, weight, bias, self.module.eps)


_Given = _Held | _HeldConvolution | _NarrowNorm


def _block(channels: Int[Tensor, "channel"]) -> slice | None:
    """Channels that follow each other, as a slice, which gives a view."""
    first, last = int(channels[0]), int(channels[-1])
    return slice(first, last + 1) if last + 1 - first == len(channels) else None


class _Replay:
    """A module's forward pass that gives back what was recorded, call by call."""

    def __init__(self, run: Callable[..., Any], held: "list[_Given | None]", count: int, rows: int) -> None:
        self._run, self._held, self._count, self._rows, self._at = run, held, count, rows, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        held = self._held[self._at]
        self._at += 1
        return self._run(*args, **kwargs) if held is None else held(self._count, self._rows, *(args[:1] or (None,)))


class _OneKey(TorchFunctionMode):
    """Attention to one key: its softmax is 1 whatever the query is, so the result is the value."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        more = kwargs or {}
        plain = len(args) == 3 and more.get("attn_mask") is None and not more.get("dropout_p") and not more.get("is_causal")
        if func is functional.scaled_dot_product_attention and plain and args[1].shape[-2] == 1:
            query, _, value = args
            return value.expand(*value.shape[:-2], query.shape[-2], -1)
        return func(*args, **more)


@contextmanager
def _watched(
    network: nn.Module, before: Callable[[nn.Module, int], None], after: Callable[[int, tuple[Any, ...], Any], None]
) -> Iterator[None]:
    """Reports every call of a submodule: before it with the index of the call around it, after it with its own index."""
    stack: list[int] = []
    count = 0

    def began(module: nn.Module, args: Any) -> None:
        nonlocal count
        before(module, stack[-1] if stack else -1)
        stack.append(count)
        count += 1

    def ended(module: nn.Module, args: Any, output: Any) -> None:
        after(stack.pop(), args, output)

    submodules = [module for module in network.modules() if module is not network]
    handles = [hook for m in submodules for hook in (m.register_forward_pre_hook(began), m.register_forward_hook(ended))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _splits(module: nn.Module) -> bool:
    """Whether a module is a convolution whose channels can be summed in two parts."""
    if not isinstance(module, nn.Conv2d) or type(module) is not nn.Conv2d or "forward" in module.__dict__:
        return False
    return module.groups == 1 and module.padding_mode == "zeros"


def _constant(value: Any) -> bool:
    """Whether a module's output is made of tensors without NaN."""
    if isinstance(value, Tensor):
        return not (value.is_floating_point() and bool(value.isnan().any()))
    return isinstance(value, tuple | list) and all(_constant(one) for one in value)


def _mapped(value: Any, f: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return f(value)
    return type(value)(_mapped(one, f) for one in value)
