"""One tensor out of a `.pt` file without unpickling: the pickle's instructions are read, never run.

A file of torch 1.6 or newer is a zip: `data.pkl` describes the tensor, `data/<key>` holds its numbers, `byteorder` their order.

1. Walk the instructions of `data.pkl` over a stack of our own that can hold strings, whole numbers, truth values, tuples, and the
   few names in `_NAMES`. "Call" makes two things only: the empty dictionary of hooks, and the description of one dense tensor.
   Any other instruction, name or call ends the reading.
2. Check that sizes, strides and offset stay inside the numbers that are there; read them, uncompressed as torch writes them.
3. Lay them out. Half precision becomes float32, which holds it exactly.

Does not know what the tensor means.
"""

import pickletools
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from repscope.errors import UserError

LARGEST = 1 << 30  #: bytes of a file
MOST = 1 << 26  #: numbers in a tensor
_LONGEST_PICKLE = 1 << 14  # that of one tensor has about 150 bytes
_ELSE = "it holds something else than one dense tensor of floating-point numbers, and its pickle is not run"

_STORAGES = {"FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "BFloat16Storage": "u2"}
#: names a pickle may mention
_NAMES = {("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict"), *(("torch", name) for name in _STORAGES)}


@dataclass(frozen=True)
class _Name:
    module: str
    name: str


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Mark:
    """Where a tuple begins on the stack."""


class _Hooks:
    """The empty dictionary of hooks."""


def read_tensor(path: Path) -> np.ndarray:
    """The one tensor in a `.pt` file, (feature) or (block, feature), float32 or float64.

    Raises
    ------
    UserError
        When it holds anything else; nothing in it is run.
    """
    if path.stat().st_size > LARGEST:
        raise UserError(f"{str(path)!r} is larger than {LARGEST / 1e9:.1f} GB; a matrix of directions is not.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(pickles) != 1 or len(set(names)) != len(names):
                raise UserError("it is no file of torch.save")
            folder = pickles[0].removesuffix("data.pkl")
            tensor = _described(_entry(archive, pickles[0], _LONGEST_PICKLE))
            order = _entry(archive, f"{folder}byteorder", 16) if f"{folder}byteorder" in names else b"little"
            if order not in (b"little", b"big"):
                raise UserError("its byte order is neither little nor big")
            raw = _entry(archive, f"{folder}data/{tensor.storage.key}", LARGEST)
        return _laid_out(tensor, raw, "<" if order == b"little" else ">")
    except Exception as error:  # zipfile and pickletools trust their bytes too
        reason = str(error) if isinstance(error, UserError) else f"it is damaged: {type(error).__name__}"
        raise UserError(f"{str(path)!r} cannot be read as a matrix of directions ({reason}).") from error


def _entry(archive: zipfile.ZipFile, name: str, largest: int) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > largest:
        raise UserError(_ELSE if name.endswith("data.pkl") else f"its {name} has {info.file_size} bytes")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise UserError("it is compressed, which torch.save does not do")
    return archive.read(info)


def _described(pickle: bytes) -> _Tensor:
    """The tensor that a pickle describes, found without running it."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for op, arg, _ in pickletools.genops(pickle):
        match op.name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_Mark())
            case "GLOBAL":
                stack.append(_named(*str(arg).split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_named(module, name))
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(arg)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(op.name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(op.name[-1])
                stack[-n:] = [_tuple(stack[-n:], n)]
            case "TUPLE":
                start = max(i for i, item in enumerate(stack) if isinstance(item, _Mark))
                stack[start:] = [tuple(stack[start + 1 :])]
            case "BINPUT" | "LONG_BINPUT":
                memo[int(arg or 0)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[int(arg or 0)])
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                args, function = stack.pop(), stack.pop()
                stack.append(_called(function, args))
            case "STOP":
                break
            case _:
                raise UserError(_ELSE)
    if len(stack) != 1 or not isinstance(stack[0], _Tensor):
        raise UserError(_ELSE)
    return stack[0]


def _tuple(items: list[Any], n: int) -> tuple[Any, ...]:
    if len(items) != n or any(isinstance(item, _Mark) for item in items):
        raise UserError(_ELSE)
    return tuple(items)


def _named(*parts: Any) -> _Name:
    if parts not in _NAMES:
        raise UserError(_ELSE)
    return _Name(*parts)


def _storage(args: Any) -> _Storage:
    match args:
        case ("storage", _Name("torch", kind), str(key), str(), int(count)) if _count(count) and key.isdigit():
            return _Storage(kind, key, count)
    raise UserError(_ELSE)


def _called(function: Any, args: Any) -> _Tensor | _Hooks:
    match function, args:
        case _Name(name="OrderedDict"), ():
            return _Hooks()
        case _Name(name="_rebuild_tensor_v2"), (_Storage() as s, int(at), tuple(size), tuple(stride), bool(), _Hooks()):
            if len(size) == len(stride) and all(map(_count, (at, *size, *stride))):
                return _Tensor(s, at, size, stride)
    raise UserError(_ELSE)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _laid_out(tensor: _Tensor, raw: bytes, order: str) -> np.ndarray:
    if len(tensor.size) not in (1, 2) or not 0 < prod(tensor.size) <= MOST:
        raise UserError(f"its tensor has shape {tensor.size}, not (feature) or (block, feature)")
    dtype = np.dtype(order + _STORAGES[tensor.storage.kind])
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride))
    if last >= tensor.storage.count or len(raw) != tensor.storage.count * dtype.itemsize:
        raise UserError("its tensor reaches beyond its numbers")
    flat = np.frombuffer(raw, dtype)[tensor.offset :]
    steps = tuple(step * dtype.itemsize for step in tensor.stride)
    view = np.lib.stride_tricks.as_strided(flat, tensor.size, steps, writeable=False)
    if dtype.kind == "u":  # bfloat16: the upper half of a float32
        return (view.astype(np.uint32) << 16).view(np.float32)
    return view.astype(np.float64 if dtype.itemsize == 8 else np.float32)
