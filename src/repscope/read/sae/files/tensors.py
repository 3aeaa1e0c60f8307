"""Reading of tensors and settings from files of strangers: nothing is unpickled, and what is declared is checked before it is read.

safetensors, a `.pt` file (a zip of uncompressed entries, through torch's restricted reader, which builds tensors and calls nothing
else), and `.npz` (without pickled objects). Each gives named dense tensors on the CPU. bfloat16 and float16 become float32, which
holds them exactly.
"""

import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repscope.errors import UserError
from repscope.untrusted import parse_json

_LARGEST_JSON = 1 << 24
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises
    ------
    UserError
        If it is missing, too large, or holds something else.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, too many for settings; check the file.")
        given = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as JSON ({type(error).__name__}); check the file.") from error
    if not isinstance(given, dict):
        raise UserError(f"{path} holds a {type(given).__name__}, not an object of settings; check the file.")
    return given


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises
    ------
    UserError
        If it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({str(error)[:80]}); download it again.") from error


def read_pt(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that torch saved; its pickle builds tensors and nothing else.

    Raises
    ------
    UserError
        If it is no such file, or holds anything but a dictionary of dense tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise UserError(f"{path} has compressed entries, which torch.save does not write; it is not read.")
        given = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # zipfile and the restricted reader trust their bytes too
        raise UserError(f"{path} is no state dict that can be read without running code ({type(error).__name__}).") from error
    if not isinstance(given, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in given.items()):
        raise UserError(f"{path} holds something else than named tensors; give the state dict of an autoencoder.")
    for name, tensor in given.items():
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not dense or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{name!r} in {path} is no dense tensor with numbers of its own; the file is not read.")
    return {name: tensor.detach() for name, tensor in given.items()}


def read_npz(path: Path) -> dict[str, Tensor]:
    """The floating-point arrays of an `.npz` file.

    Raises
    ------
    UserError
        If it is damaged, or an entry holds anything else or less than it declares.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    _check_header(entry, file)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # zipfile and numpy trust their bytes too
        raise UserError(f"{path} cannot be read as arrays ({type(error).__name__}); download it again.") from error


def _check_header(entry: zipfile.ZipInfo, file: Any) -> None:
    if entry.file_size > 1000 * max(entry.compress_size, 1 << 16):
        raise UserError(f"its {entry.filename} unpacks to a thousand times its size.")
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UserError(f"its {entry.filename} has the unknown version {version}.")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.kind != "f" or dtype.hasobject:
        raise UserError(f"its {entry.filename} holds {dtype}, not floating-point numbers.")
    if prod(shape) * dtype.itemsize > entry.file_size:
        raise UserError(f"its {entry.filename} declares {shape} and holds fewer numbers.")


class Weights:
    """Named tensors of one file, each taken once: what nobody took is an error, as it would change the result.

    Takes them as `dtype`, finite, and of the expected shape.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.path, self.dtype = path, dtype
        self._left = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor of a name; -1 for any size of an axis.

        Raises
        ------
        UserError
            If it is missing, not finite, or has another shape or kind.
        """
        if name not in self._left:
            raise UserError(f"{self.path} has no tensor {name!r}; it holds {', '.join(map(repr, self._left)) or 'none more'}.")
        tensor = self._left.pop(name)
        fits = tensor.dim() == len(shape) and all(want in (-1, have) for want, have in zip(shape, tensor.shape))
        if not fits or tensor.dtype not in _FLOATS or not tensor.numel():
            wanted = "(" + ", ".join("…" if n == -1 else str(n) for n in shape) + ")"
            raise UserError(f"{name!r} in {self.path} is {tensor.dtype} {tuple(tensor.shape)}, not floating-point {wanted}.")
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{name!r} in {self.path} has numbers that are not finite; download it again.")
        return tensor.to(self.dtype).contiguous()

    def number(self, name: str) -> float:
        """A scalar.

        Raises
        ------
        UserError
            If it is missing, or no scalar.
        """
        if name in self._left and self._left[name].numel() == 1 and not self._left[name].is_complex():
            return float(self._left.pop(name))
        raise UserError(f"{self.path} has no single number {name!r}; check the file.")

    def drop(self, name: str) -> None:
        """Leave out a tensor that does not act."""
        self._left.pop(name, None)

    def finish(self) -> None:
        """Raise a `UserError` if a tensor was not taken."""
        if self._left:
            raise UserError(
                f"{self.path} holds {', '.join(map(repr, sorted(self._left)))}, which this architecture does not have; "
                "leaving it out could change the result, so the file is not read."
            )
