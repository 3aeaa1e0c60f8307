"""repscope's file format of directions: safetensors with a JSON header.

One float64 array (direction, feature) per site. Reading runs no code from the file and refuses any invalid field.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from repscope import manifest
from repscope.directions import header
from repscope.directions.direction import Direction
from repscope.directions.header import Contents
from repscope.disk import whole_file
from repscope.errors import UserError

FORMAT = "repscope-directions-1"
LARGEST = 1 << 31  #: bytes of a file


def write(
    path: Path, directions: Sequence[Direction], *, model: str = "", note: str = "", architecture: str = "", blocks: int = 0
) -> None:
    """Write a set of directions.

    Raises
    ------
    UserError
        If a field or the folder cannot be written.
    """
    from safetensors.numpy import save_file

    arrays: dict[str, list[np.ndarray]] = {}
    for direction in directions:
        arrays.setdefault(direction.site, []).append(direction.vector)
    for site, vectors in arrays.items():
        if len(widths := sorted({len(v) for v in vectors})) > 1:
            raise UserError(f"The directions at {site} have {widths[0]} and {widths[-1]} features; one site has one width.")
    metadata = {
        "format": FORMAT,
        "model": model,
        "note": note,
        "architecture": architecture,
        "blocks": str(blocks),
        "directions": header.written(directions),
        "seal": manifest.UNSEALED,
    }
    with whole_file(path) as partial:
        save_file({site: np.stack(vectors) for site, vectors in arrays.items()}, partial, metadata=metadata)
        manifest.seal(partial)


def read(path: Path) -> Contents:
    """Read a file of `write`.

    Raises
    ------
    UserError
        If it is not such a file, or has other bytes than were written.
    """
    from safetensors import SafetensorError, safe_open

    if (size := path.stat().st_size) > LARGEST:
        raise UserError(f"{str(path)!r} has {size / 1e9:.1f} GB; a set of directions has at most {LARGEST / 1e9:.1f}.")
    manifest.need_seal(path, "copy it again")
    try:
        with safe_open(path, "np") as file:
            held = file.metadata() or {}
            if held.get("format") != FORMAT:
                raise _NotOursError(
                    f"{str(path)!r} is no set of directions: its header says {held.get('format')!r}, not {FORMAT!r}."
                )
            rows = header.rows(held["directions"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        taken = dict.fromkeys(arrays, 0)
        directions = []
        for row in rows:
            site = row["site"]
            if arrays[site].ndim != 2 or arrays[site].dtype.kind != "f":
                raise UserError(f"its array of {site} is not (direction, feature) in floating point")
            directions.append(Direction(vector=arrays[site][taken[site]], **row))
            taken[site] += 1
        if any(len(arrays[site]) != n for site, n in taken.items()):
            raise UserError("it holds more vectors than its header tells of")
        return Contents(
            directions=directions,
            model=held.get("model", ""),
            note=held.get("note", ""),
            architecture=held.get("architecture", ""),
            blocks=header.block_count(held.get("blocks")),
        )
    except _NotOursError:
        raise
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{str(path)!r} cannot be read as a set of directions ({str(error).rstrip('.')}).") from error


class _NotOursError(UserError):
    """The file is of another format."""
