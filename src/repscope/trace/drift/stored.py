"""Tensors of a checkpoint, read a part at a time: from safetensors files, or from tensors in memory.

A file is read with `pread` into a buffer that is used again and again, not mapped: on Linux the page faults of a mapping that is
read once take longer than the copy, and mapped pages count as memory of the process. Only the header of a file is read in advance.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.errors import UserError
from repscope.manifest import need_sound
from repscope.models.engine.fingerprint import safetensors_header
from repscope.models.loading.folders import weight_files
from repscope.models.loading.tensor_check import derived

Values = Float[np.ndarray, "entry"]

#: name in a header → name of torch's type and bytes per entry
FLOATS = {"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}
_WHOLE = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_NUMPY = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": np.int16}


@dataclass(frozen=True)
class Stored:
    """What is known of a tensor before it is read. dtype: float64, float32, float16, bfloat16, or "whole numbers"."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def entries(self) -> int:
        """Number of entries."""
        return prod(self.shape)

    @property
    def floating(self) -> bool:
        """Whether it holds weights: whole numbers and truth values are compared, and not measured."""
        return self.dtype in _NUMPY


class Checkpoint(Protocol):
    """Weights by name, read a part at a time."""

    @property
    def label(self) -> str:
        """For messages: the path, or a description."""

    @property
    def stored(self) -> Mapping[str, Stored]:
        """Name → shape and type."""

    def read(self, name: str, first: int, last: int) -> Values:
        """Entries first … last − 1 in row-major order, in float32, or float64 if stored so; valid until the next read."""


class MemoryCheckpoint:
    """Tensors in memory.

    Parameters
    ----------
    tensors
        Name → tensor.
    label
        For messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], label: str = "a mapping of tensors") -> None:
        self.label = label
        self._tensors = dict(tensors)
        self.stored = {name: Stored(tuple(value.shape), _dtype_of(value, name, label)) for name, value in self._tensors.items()}

    def read(self, name: str, first: int, last: int) -> Values:
        """See `Checkpoint`."""
        flat = self._tensors[name].detach().reshape(-1)[first:last].cpu()
        if not self.stored[name].floating:
            return np.asarray(flat.to(torch.float64).numpy())
        return np.asarray((flat if flat.dtype == torch.float64 else flat.float()).contiguous().numpy())


@dataclass(frozen=True)
class _Place:
    file: Path
    start: int
    code: str


class FileCheckpoint:
    """A safetensors file, or a Hugging Face folder with its weights in one file or in shards.

    Parameters
    ----------
    path
        File or folder.
    computed
        Whether to keep tensors that networks compute and do not train, such as causal masks.

    Raises
    ------
    UserError
        When files are missing, damaged or cut short, a tensor is in two files, or weights are of a type that has no value of its
        own: 8 bits or fewer.
    """

    def __init__(self, path: Path, computed: bool = False) -> None:
        self._handles: dict[Path, int] = {}
        self.path, self.label = path, str(path)
        if path.exists():
            need_sound(path)
        self.files = files_of(path)
        self.stored: dict[str, Stored] = {}
        self._places: dict[str, _Place] = {}
        self._buffers = threading.local()  # each thread reads into its own
        self._lock = threading.Lock()
        for file in self.files:
            header, start = safetensors_header(file)
            for name, entry in header.items():
                shape, code = tuple(int(n) for n in entry["shape"]), str(entry["dtype"])
                if not computed and derived(name, shape):
                    continue
                if name in self.stored:
                    raise UserError(f"Two of the weight files of {path} hold a tensor {name!r}; remove the stale one.")
                size = FLOATS[code][1] if code in FLOATS else _WHOLE.get(code)
                if size is None:
                    raise UserError(
                        f"{path} stores {name} as {code}, whose numbers mean nothing without their scales; compare checkpoints "
                        "that are stored in bfloat16, float16 or float32."
                    )
                first, end = entry["data_offsets"]
                if end - first != size * prod(shape):
                    raise UserError(f"{file} has a damaged safetensors header ({name}); download or copy it again.")
                self.stored[name] = Stored(shape, FLOATS[code][0] if code in FLOATS else "whole numbers")
                self._places[name] = _Place(file, start + first, code)

    def read(self, name: str, first: int, last: int) -> Values:
        """See `Checkpoint`."""
        place, stored = self._places[name], self.stored[name]
        if not stored.floating:
            return self._whole(place, first, last)
        kind: Any = _NUMPY[stored.dtype]
        size, n = np.dtype(kind).itemsize, last - first
        raw = self._buffer("raw", n * size, np.uint8)
        self._fill(place.file, raw, place.start + first * size)
        read = raw.view(kind)
        if stored.dtype in ("float32", "float64"):
            return np.asarray(read)
        values = self._buffer("values", n, np.float32)
        low = torch.from_numpy(read)
        torch.from_numpy(values).copy_(low.view(torch.bfloat16) if stored.dtype == "bfloat16" else low)
        return np.asarray(values)

    def _buffer(self, name: str, n: int, kind: Any) -> Any:
        held = getattr(self._buffers, name, None)
        if held is None or len(held) < n:
            held = np.empty(n, dtype=kind)
            setattr(self._buffers, name, held)
        return held[:n]

    def _whole(self, place: _Place, first: int, last: int) -> Values:
        kinds = {"BOOL": np.uint8} | {c: np.dtype(f"{'u' if c[0] == 'U' else ''}int{c[1:]}") for c in _WHOLE if c != "BOOL"}
        size = _WHOLE[place.code]
        raw = np.empty((last - first) * size, dtype=np.uint8)
        self._fill(place.file, raw, place.start + first * size)
        return np.asarray(raw.view(kinds[place.code]).astype(np.float64))

    def _fill(self, file: Path, raw: Any, offset: int) -> None:
        with self._lock:
            if file not in self._handles:
                try:
                    self._handles[file] = os.open(file, os.O_RDONLY)
                except OSError as error:
                    raise UserError(f"{file} cannot be read ({error.strerror}); was it moved?") from error
        view, done = memoryview(raw), 0
        while done < len(view):
            got = os.preadv(self._handles[file], [view[done:]], offset + done)
            if not got:
                raise UserError(f"{file} is cut short, as by an interrupted download or copy; fetch it again.")
            done += got

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True)
class Renamed:
    """A checkpoint whose tensors are read under other names.

    checkpoint: the original. names: new name → name in it. Two names may be of one tensor.
    """

    checkpoint: Checkpoint
    names: Mapping[str, str]
    stored: Mapping[str, Stored] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stored", {new: self.checkpoint.stored[old] for new, old in self.names.items()})

    @property
    def label(self) -> str:
        """That of the original."""
        return self.checkpoint.label

    def read(self, name: str, first: int, last: int) -> Values:
        """See `Checkpoint`."""
        return self.checkpoint.read(self.names[name], first, last)


def files_of(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint.

    Raises
    ------
    UserError
        When there is none, or the weights are pickled.
    """
    if path.is_dir():
        return weight_files(path, str(path))
    if not path.exists():
        raise UserError(f"There is no checkpoint {path}; check the path.")
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is not a safetensors file; repscope never reads pickled weights (.bin, .pt).")
    return [path]


def in_memory(weights: "Mapping[str, Tensor] | Checkpoint", label: str) -> Checkpoint:
    """A checkpoint of either kind."""
    return MemoryCheckpoint(weights, label) if isinstance(weights, Mapping) else weights


@contextmanager
def closing(*checkpoints: Checkpoint) -> Iterator[None]:
    """Close the files of checkpoints at the end of the block."""
    try:
        yield
    finally:
        for checkpoint in checkpoints:
            while isinstance(checkpoint, Renamed):
                checkpoint = checkpoint.checkpoint
            if callable(close := getattr(checkpoint, "close", None)):
                close()


def _dtype_of(value: Tensor, name: str, label: str) -> str:
    kind = str(value.dtype).removeprefix("torch.")
    if kind in _NUMPY:
        return kind
    if value.is_floating_point() or value.is_complex():
        raise UserError(f"{name} in {label} is {kind}; compare weights in float64, float32, float16 or bfloat16.")
    return "whole numbers"
