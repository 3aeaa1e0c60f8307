"""Restoring of buffers and attributes that a network changes itself during forward passes.

Some networks modify their own buffers and attributes in a forward pass: rotary embeddings whose frequencies depend on the input
length (longrope, dynamic scaling) keep those of the last input. A pass would then depend on earlier passes.

1. Buffers, tensors and numbers of every module are recorded when the network is loaded.
2. They are restored before each pass and after the last one, so that all passes start from the same state.
3. Changes between two operations are the user's (`model.to(…)`, another buffer) and are recorded as the new state.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_MOST = 1 << 16  #: numbers of a tensor that is copied; of larger ones, which are constants (masks, tables), the object is noted


@dataclass
class _Noted:
    """One entry of a module. held: the object. version: of a tensor in place. copied: its values, None for a large one."""

    module: nn.Module
    name: str
    buffer: bool
    held: Any
    version: int = 0
    copied: Tensor | None = None

    @property
    def now(self) -> Any:
        return self.module._buffers.get(self.name) if self.buffer else self.module.__dict__.get(self.name)

    def changed(self) -> bool:
        """Whether the entry differs from the recorded object or tensor values."""
        now = self.now
        if isinstance(self.held, Tensor):
            return now is not self.held or _version(now) != self.version
        if isinstance(now, Tensor) or type(now) is not type(self.held):
            return True
        return bool(now != self.held)

    def moved(self) -> bool:
        """Whether a tensor's device or precision differs from the recorded one: the user has moved the module."""
        now, held = self.now, self.held
        return isinstance(now, Tensor) and isinstance(held, Tensor) and (now.device, now.dtype) != (held.device, held.dtype)

    def put_back(self) -> None:
        if isinstance(self.held, Tensor) and _version(self.held) != self.version and self.copied is not None:
            with torch.no_grad():
                self.held.copy_(self.copied)
        if isinstance(self.held, Tensor):
            self.version = _version(self.held)
        if self.buffer:
            self.module._buffers[self.name] = self.held
        else:
            self.module.__dict__[self.name] = self.held


class Rewritten:
    """The state that a network rewrites by itself.

    names: paths of the entries that passes have changed so far.
    """

    def __init__(self, module: nn.Module) -> None:
        self._root = module
        self.names: set[str] = set()
        self._noted: list[_Noted] = []
        self.note()

    def note(self) -> None:
        """Record the present state as the initial state of every pass."""
        self._noted = [entry for m in self._root.modules() for entry in _entries(m)]

    def begin(self) -> None:
        """Before an operation: keep the user's changes since the last one."""
        if any(entry.changed() for entry in self._noted):
            self.note()

    def rewind(self) -> None:
        """Before each pass of an operation and after its last: restore what passes changed."""
        if any(entry.moved() for entry in self._noted):
            self.note()
        for entry in self._noted:
            if entry.changed():
                self.names.add(entry.name)
                entry.put_back()


def _entries(module: nn.Module) -> list[_Noted]:
    plain = {k: v for k, v in module.__dict__.items() if isinstance(v, Tensor)}
    if not plain and not module._buffers:
        return []
    numbers = {
        k: v
        for k, v in module.__dict__.items()
        if not k.startswith("_") and k != "training" and (v is None or isinstance(v, (bool, int, float)))
    }
    noted = [_of(module, k, v, True) for k, v in module._buffers.items() if v is not None]
    return noted + [_of(module, k, v, False) for k, v in (plain | numbers).items()]


def _of(module: nn.Module, name: str, value: Any, buffer: bool) -> _Noted:
    if not isinstance(value, Tensor):
        return _Noted(module, name, buffer, value)
    small = not value.is_meta and value.numel() <= _MOST
    return _Noted(module, name, buffer, value, _version(value), value.detach().clone() if small else None)


def _version(value: Any) -> int:
    return -1 if not isinstance(value, Tensor) or value.is_inference() else value._version
