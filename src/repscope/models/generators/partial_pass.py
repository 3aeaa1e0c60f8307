"""Output of a submodule without the rest of the pass: what comes after it does not run."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from repscope.errors import UserError, unknown
from repscope.models.engine.hooks import first_tensor


class _ReachedError(Exception):
    """The submodule has run."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


def submodule(module: nn.Module, path: str) -> nn.Module:
    """The submodule of a path.

    Raises
    ------
    UserError
        If there is none.
    """
    named = dict(module.named_modules())
    if path not in named:
        raise unknown("module", path, [name for name in named if name])
    found: nn.Module = named[path]
    return found


def output_of(module: nn.Module, path: str, run: Callable[[], Any]) -> Tensor:
    """The first tensor that a submodule gives while `run` calls the module. Differentiable.

    Raises
    ------
    UserError
        If the submodule is unknown, does not run, or gives no tensor.
    """

    def reached(_: nn.Module, args: Any, output: Any) -> None:
        value = first_tensor(output)
        if value is None:
            raise UserError(f"The output of module {path!r} is no tensor; choose another module.")
        raise _ReachedError(value)

    handle = submodule(module, path).register_forward_hook(reached)
    try:
        run()
    except _ReachedError as found:
        return found.value
    finally:
        handle.remove()
    raise UserError(f"The module {path!r} does not run in a pass of the generator; choose another one.")
