"""Hook points: reading and replacing tensors during a forward pass.

A hook point is a module input or output, or a part of it: heads, an attention operand, the state between attention and MLP.
`hooked` attaches a function to each; it receives (row, token, feature) or (row, token, head, feature), its return value replaces
that tensor in the pass. Reading, editing, gradients and prompt variants are such functions. Hooks exist only inside the context
manager; the module is not modified.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repscope.errors import UserError
from repscope.models.engine.attention_probe import PARTS, AttentionCall, AttentionProducts
from repscope.models.engine.rewritten_state import Rewritten

Handler = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True)
class HookPoint:
    """Where a tensor is read and replaced.

    path, side: a module, and its input or output. part: "" for the whole tensor; "heads" for features as (head, d_head);
    "head_out" for each head's contribution through the output projection; "mid" for the sum of `base`'s input and this output;
    q, k, v, pattern for an operand of the attention inside. base: a module called earlier, whose input has the shape
    (row, token, …). flat: whether rows and tokens are one axis. heads, kv_heads: their numbers. head: one of them.
    """

    path: str
    side: Literal["in", "out"]
    part: Literal["", "heads", "head_out", "mid", "q", "k", "v", "pattern"] = ""
    base: str = ""
    flat: bool = False
    heads: int = 0
    kv_heads: int = 0
    head: int | None = None


@contextmanager
def unhooked(module: nn.Module, *, differentiable: bool = False) -> Iterator[None]:
    """Evaluation mode with no gradients, or with gradients of activations only; restores every flag afterwards."""
    training = _training(module)
    trained = [p for p in module.parameters() if p.requires_grad] if differentiable else []
    try:
        for m in training:
            m.training = False
        for p in trained:
            p.requires_grad = False
        with torch.set_grad_enabled(differentiable):
            yield
    finally:
        for m in training:
            m.training = True
        for p in trained:
            p.requires_grad = True


def _training(module: nn.Module) -> list[nn.Module]:
    """The submodules in training mode; a plain walk, as this is done for every call."""
    found: list[nn.Module] = []
    level = [module]
    while level:
        found += [here for here in level if here.training]
        level = [child for here in level for child in here._modules.values() if child is not None]
    return found


def first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple, list or mapping: blocks return either, depending on family and version."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return next((v for v in value if isinstance(v, Tensor)), None)
    return None


def hidden_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The hidden states among a module's positional or keyword arguments."""
    if args and (found := first_tensor(args[0])) is not None:
        return found
    named = kwargs.get("hidden_states", kwargs.get("x"))
    return named if isinstance(named, Tensor) else None


def parameter(module: nn.Module, name: str) -> Tensor | None:
    """A module's own tensor by name; if accelerate has offloaded it, the value it restores for a forward pass."""
    value = getattr(module, name, None)
    if not isinstance(value, Tensor):
        return None
    if value.is_meta:
        hook: Any = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            if getattr(one, "weights_map", None) is not None:
                held: Tensor = one.weights_map[name]
                return held
    return value


def linear_map(module: nn.Module) -> Tensor | None:
    """The (in, out) matrix of a linear module, None for any other; transformers' Conv1D stores it transposed."""
    weight = parameter(module, "weight")
    if weight is None or weight.dim() != 2:
        return None
    return weight if type(module).__name__ == "Conv1D" else weight.T


class Hooks:
    """Attaches functions to the hook points of one network, and probes its attention if any of them needs it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.state = Rewritten(module)
        self._open = 0
        self._products = AttentionProducts()
        self._operand_handlers: dict[str, list[tuple[HookPoint, Handler]]] = {}
        self.placed: list[Any] = []  #: hooks whose functions find prompts in a pack by themselves: those of edits

    def rest(self) -> None:
        """Reset the state of the attention probe, which an interrupt may have left open."""
        self._products.call = None

    @contextmanager
    def hooked(self, handlers: Iterable[tuple[HookPoint, Handler]], *, placed: bool = False) -> Iterator[None]:
        """Attach a function to each hook point, in order: later functions receive the output of earlier ones.

        placed: whether the functions know which tokens of a pack are which prompt's.
        """
        self.rest()
        with ExitStack() as stack, self.settled():
            for tap, handler in handlers:
                for hook in self._hang(tap, handler, stack):
                    if placed:
                        self.placed.append(hook)
                        stack.callback(self.placed.remove, hook)
            yield

    @contextmanager
    def settled(self) -> Iterator[Rewritten]:
        """Restore the state that the network rewrites itself, at the end and at each `rewind()` before a pass."""
        if not self._open:
            self.state.begin()
        self._open += 1
        try:
            yield self.state
        finally:
            self._open -= 1
            if not self._open:
                self.state.rewind()

    def _hang(self, tap: HookPoint, handler: Handler, stack: ExitStack) -> list[Any]:
        """The hooks that are attached, those of operands excepted."""
        module = self.module.get_submodule(tap.path)
        if tap.part in PARTS:
            self._hook_operand(tap, handler, module, stack)
            return []
        handle = _one_head(handler, tap.head) if tap.head is not None else handler
        before: list[Tensor] = []
        hung: list[Any] = []
        if tap.base:

            def remember(_: nn.Module, args: Any, kwargs: Any) -> None:
                found = hidden_argument(args, kwargs)
                before[:] = [found] if found is not None else []

            base = self.module.get_submodule(tap.base)
            stack.callback(base.register_forward_pre_hook(remember, with_kwargs=True).remove)
            hung.append(remember)

        def missing() -> UserError:
            return UserError(f"The {tap.side}put of module {tap.path!r} is no tensor; choose another module.")

        def on_input(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
            value = hidden_argument(args, kwargs)
            if value is None:
                raise missing()
            new = _passed(tap, value, handle, before)
            return None if new is None else with_argument(args, kwargs, value, new)

        def on_output(owner: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            value = first_tensor(output)
            if value is None:
                raise missing()
            if tap.part == "head_out":
                taken = hidden_argument(args, kwargs)
                assert taken is not None
                handle(head_outputs(taken, owner, tap.heads))
                return None
            new = _passed(tap, value, handle, before)
            return None if new is None else _with_output(output, value, new)

        if tap.side == "in":
            stack.callback(module.register_forward_pre_hook(on_input, with_kwargs=True).remove)
        else:
            stack.callback(module.register_forward_hook(on_output, with_kwargs=True).remove)
        return [*hung, on_input if tap.side == "in" else on_output]

    def _hook_operand(self, tap: HookPoint, handler: Handler, module: nn.Module, stack: ExitStack) -> None:
        """Attach a function to an operand of attention."""
        handle = _one_head(handler, tap.head) if tap.head is not None else handler
        if not any(self._operand_handlers.values()):
            stack.enter_context(self._products)
        entry = (tap, handle)
        handlers = self._operand_handlers.setdefault(tap.path, [])
        handlers.append(entry)
        stack.callback(handlers.remove, entry)

        def operand(part: str, value: Tensor) -> Tensor | None:
            new = None
            for point, one in handlers:
                if point.part == part and (edited := one(value if new is None else new)) is not None:
                    new = edited.to(value.dtype)
            return new

        def begin(_: nn.Module, args: Any, kwargs: Any) -> None:
            hidden = hidden_argument(args, kwargs)
            assert hidden is not None
            parts = frozenset(point.part for point, _ in handlers)
            self._products.call = AttentionCall(operand, parts, len(hidden), tap.heads, tap.kv_heads)

        def end(_: nn.Module, args: Any, output: Any) -> None:
            self._products.call = None

        stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(end, always_call=True).remove)


def head_outputs(z: Tensor, projection: nn.Module, heads: int) -> Tensor:
    """Contribution of each head, (row, token, head, d_model), through its rows of the output projection."""
    weight = linear_map(projection)
    assert weight is not None
    return torch.einsum("...hf,hfd->...hd", torch.unflatten(z, -1, (heads, -1)), torch.unflatten(weight, 0, (heads, -1)))


def _passed(tap: HookPoint, raw: Tensor, handle: Handler, before: list[Tensor]) -> Tensor | None:
    """Apply a function to a tensor in the hook point's layout; return the result in the original shape and type."""
    value = raw
    if tap.flat and before:
        value = torch.unflatten(value, 0, before[0].shape[:2])
    if tap.part == "heads":
        value = torch.unflatten(value, -1, (tap.heads, -1))
    if tap.part == "mid":
        value = before[0] + value
    new = handle(value)
    if new is None:
        return None
    if tap.part == "mid":  # attention output that produces the new state
        return raw + (new.to(raw.dtype) - value)
    new = new.flatten(-2) if tap.part == "heads" else new
    return (new.flatten(0, 1) if tap.flat else new).to(raw.dtype)


def _one_head(handler: Handler, head: int) -> Handler:
    def handle(value: Tensor) -> Tensor | None:
        new = handler(value[:, :, head])
        if new is None:
            return None
        whole = value.clone()
        whole[:, :, head] = new.to(value.dtype)
        return whole

    return handle


def with_argument(args: Any, kwargs: Any, old: Tensor, new: Tensor) -> tuple[Any, Any]:
    """A call's arguments with one tensor among them replaced."""
    if args and first_tensor(args[0]) is old:
        return (_with_output(args[0], old, new), *args[1:]), kwargs
    return args, {name: new if value is old else value for name, value in kwargs.items()}


def _with_output(output: Any, old: Tensor, new: Tensor) -> Any:
    """The output with its first tensor replaced, in a container of the same kind."""
    if isinstance(output, Tensor):
        return new
    if isinstance(output, Mapping):
        changed = {key: new if value is old else value for key, value in output.items()}
        remade: Any = type(output)
        return remade(**changed) if hasattr(output, "to_tuple") else remade(changed)
    values = [new if value is old else value for value in output]
    return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
