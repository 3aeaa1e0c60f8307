"""Writer of captured rows, in any order, to memory or files.

Casts are checked: values that a narrower type cannot represent (float16: above 65,504 or below 6e-8) are refused, and the error
names a suitable type. If the network itself gives non-finite values, a warning says so.

Files are written with plain writes at each row's offset, not through a memory map, whose pages would count as process memory. A
file appears only when all its rows are complete.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.disk import need_folder, need_space, whole_folder
from repscope.errors import UserError, unknown
from repscope.models.inputs.notices import warn_once
from repscope.models.inputs.text_spans import described
from repscope.models.sites import PerSite, Site

DTYPES = ("float32", "float16", "float64")
_LOST = 1e-2  #: share of a row's largest entry that a cast may change


class Rows:
    """Preallocated rows of several sites, in memory or in a folder with one `.npy` per site.

    A context manager: if the block fails, no file remains.
    """

    def __init__(self, sites: Sequence[Site], count: int, dtype: str, folder: Path | None) -> None:
        self._sites, self._count, self._folder = list(sites), count, folder
        self._dtype = dtype_of(dtype)
        self._torch_dtype: torch.dtype = getattr(torch, self._dtype.name)
        self._not_finite: set[Site] = set()
        self._memory: dict[Site, np.ndarray] = {}
        self._files: dict[Site, tuple[BinaryIO, int]] = {}
        self._partial: Path | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "Rows":
        if self._folder is not None:
            if self._folder.exists() and (not self._folder.is_dir() or any(self._folder.iterdir())):
                raise UserError(f"{self._folder} is there already and not an empty folder; name a new one.")
            need_folder(self._folder)
            # It can be captured again, and memory maps read it without us
            self._partial = self._stack.enter_context(whole_folder(self._folder, sync=False, digests=False))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        for file, _ in self._files.values():
            file.close()
        return self._stack.__exit__(kind, error, trace)

    def write(self, site: Site, destination: Int[np.ndarray, "row"], rows: Float[Tensor, "row *feature"]) -> None:
        """Write rows to their destination.

        Raises a `UserError` for rows that the stored type cannot represent.
        """
        wider = "float64" if self._dtype == np.float32 else "float32"
        held = cast(rows.detach().cpu(), self._torch_dtype, str(site), f"keep rows with dtype={wider!r}")
        # a sum is finite only where all numbers are, and takes one pass
        if site not in self._not_finite and not bool(held.sum().isfinite()) and not bool(torch.isfinite(held).all()):
            self._not_finite.add(site)
            warn_once(self, f"The network itself gives values at {site} that are not finite (in {_name(rows.dtype)}).")
        if self._partial is None:
            if site not in self._memory:
                self._memory[site] = np.empty((self._count, *rows.shape[1:]), self._dtype)
            torch.from_numpy(self._memory[site]).index_copy_(0, torch.from_numpy(destination), held)
            return
        values = np.ascontiguousarray(held.numpy())
        if site not in self._files:
            self._files[site] = self._open(site, values.shape[1:])
        file, start = self._files[site]
        order = np.argsort(destination, kind="stable")
        sorted_rows = destination[order]
        size = values[0].nbytes
        for run in np.split(order, np.flatnonzero(np.diff(sorted_rows) != 1) + 1):
            file.seek(start + int(destination[run[0]]) * size)
            file.write(values[run].tobytes())

    def _open(self, site: Site, feature: tuple[int, ...]) -> tuple[BinaryIO, int]:
        assert self._partial is not None
        shape = (self._count, *feature)
        need_space(self._partial, int(np.prod(shape)) * self._dtype.itemsize * (len(self._sites) - len(self._files)))
        file = open(self._partial / f"{_file_name(site)}.npy", "wb")  # noqa: SIM115 (closed in __exit__)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        return file, file.tell()

    def finish(self) -> "PerSite[Float[np.ndarray, 'row *feature']]":
        """The rows of each site, once the block has ended; memory-mapped where they are on disk."""
        if self._folder is None:
            return PerSite((site, self._memory[site]) for site in self._sites)
        return PerSite((s, np.load(self._folder / f"{_file_name(s)}.npy", mmap_mode="r")) for s in self._sites)


def dtype_of(name: Any) -> "np.dtype[Any]":
    """The type in which rows are kept.

    Raises a `UserError` for a type in which they are not.
    """
    if not isinstance(name, str) or name not in DTYPES:
        raise unknown("type of rows", name if isinstance(name, str) else str(name), DTYPES)
    return np.dtype(name)


def cast(values: Tensor, dtype: torch.dtype, what: str, hint: str) -> Tensor:
    """Cast numbers (row, *feature) to a floating type, checked for overflow and loss of precision.

    Raises a `UserError` for finite values that would become infinite, rows whose error would exceed 1 % of their largest entry, and
    complex numbers. `what` and `hint` name the values and the remedy in that error.
    """
    if values.is_complex():
        raise UserError(f"{what} holds complex numbers, and real ones are kept; choose another module.")
    made = values.to(dtype)
    fits = values.is_floating_point() and torch.promote_types(values.dtype, dtype) == dtype
    if fits or not values.numel():
        return made
    if not values.is_floating_point():
        lost = int((made.to(torch.float64) != values.to(torch.float64)).sum())
        if lost:
            raise UserError(f"{lost} of {values.numel()} whole numbers at {what} are not held exactly by {_name(dtype)}; {hint}.")
        return made
    finite = torch.isfinite(values)
    over = finite & ~torch.isfinite(made)
    if bool(over.any()):
        raise UserError(
            f"{what}: {int(over.sum())} of {over.numel()} values, up to {float(values[over].abs().max()):.3g}, are beyond "
            f"{_name(dtype)}, which ends at {torch.finfo(dtype).max:.5g}; {hint}."
        )
    wide = torch.where(finite, values, 0).to(torch.promote_types(values.dtype, torch.float32)).reshape(len(values), -1)
    back = torch.where(finite, made, 0).to(wide.dtype).reshape(len(values), -1)
    # By the largest entry, whose square neither overflows nor vanishes.
    size, loss = wide.abs().amax(-1), (wide - back).abs().amax(-1)
    lost_rows = loss > _LOST * size
    if bool(lost_rows.any()):
        raise UserError(
            f"{what}: {int(lost_rows.sum())} of {len(wide)} rows, up to {float(size[lost_rows].max()):.3g}, are too small "
            f"for {_name(dtype)}; {hint}."
        )
    return made


def as_tensor(given: Any, what: str) -> Tensor:
    """An array, a tensor or nested lists of numbers as a tensor on the CPU.

    Raises a `UserError` for anything else.
    """
    if isinstance(given, Tensor):
        return given.detach().cpu()
    try:
        array = np.asarray(given)
    except ValueError:
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "fiu":
        raise UserError(f"{what} are {described(given)}; give numbers (row, feature).")
    return torch.from_numpy(np.array(array))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _file_name(site: Site) -> str:
    return str(site).replace(":", "-").replace("#", "-").replace("/", "-")
