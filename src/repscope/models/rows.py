"""Rows: where captured vectors go, in memory or in files, in any order. Arrays only; knows no model.

A file is written at the rows' own places with plain writes, not through a memory map, whose touched pages would count as the
process's memory until the end. It becomes visible, whole, when all rows are there.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.disk import need_space, whole_folder
from repscope.errors import UserError, unknown
from repscope.models.sites import Site

DTYPES = ("float32", "float16", "float64")


class Rows:
    """Preallocated rows of several sites; a context manager that leaves nothing half-written.

    Parameters
    ----------
    sites
        The sites that will be written.
    count
        Rows of each.
    dtype
        How they are kept.
    folder
        Where to write one `.npy` a site; None keeps them in memory.
    """

    def __init__(self, sites: Sequence[Site], count: int, dtype: str, folder: Path | None) -> None:
        if dtype not in DTYPES:
            raise unknown("type of rows", dtype, DTYPES)
        self._sites, self._count, self._folder = list(sites), count, folder
        self._dtype = np.dtype(dtype)
        self._memory: dict[Site, np.ndarray] = {}
        self._files: dict[Site, tuple[BinaryIO, int]] = {}
        self._partial: Path | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "Rows":
        if self._folder is not None:
            if self._folder.exists() and (not self._folder.is_dir() or any(self._folder.iterdir())):
                raise UserError(f"{self._folder} is there already and not an empty folder; name a new one.")
            self._partial = self._stack.enter_context(whole_folder(self._folder))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        for file, _ in self._files.values():
            file.close()
        return self._stack.__exit__(kind, error, trace)

    def write(self, site: Site, destination: Int[np.ndarray, "row"], rows: Float[Tensor, "row *feature"]) -> None:
        """Put rows at their places."""
        if self._partial is None:
            if site not in self._memory:
                self._memory[site] = np.empty((self._count, *rows.shape[1:]), self._dtype)
            target = torch.from_numpy(self._memory[site])
            target.index_copy_(0, torch.from_numpy(destination), rows.detach().to("cpu", target.dtype))
            return
        values = np.ascontiguousarray(rows.detach().float().cpu().numpy(), dtype=self._dtype)
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

    def finish(self) -> dict[Site, Float[np.ndarray, "row *feature"]]:
        """The rows of each site, once the block has ended; memory-mapped where they are on disk."""
        if self._folder is None:
            return {site: self._memory[site] for site in self._sites}
        return {s: np.load(self._folder / f"{_file_name(s)}.npy", mmap_mode="r") for s in self._sites}


def _file_name(site: Site) -> str:
    return str(site).replace(":", "-").replace("#", "-").replace("/", "-")
