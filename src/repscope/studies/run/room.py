"""Runs that no machine like this one can finish are refused before they start: by forecast memory, disk and time."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import psutil

from repscope.errors import UserError
from repscope.studies.run.forecast import forecast_seconds
from repscope.studies.run.study import Cost

_BEYOND = 4  #: times the machine's memory; forecasts are rough, and weights may stay on the disk
_MOST_SECONDS = 1000 * 365 * 24 * 3600.0  #: at the nominal rate, a thousandth of an accelerator's


def need_room(study: str, costs: Mapping[str, Cost], out: Path) -> None:
    """Refuse steps that are left to do.

    Parameters
    ----------
    study
        Its name.
    costs
        Forecasts by step.
    out
        Folder of all runs.

    Raises
    ------
    UserError
        If one needs far more memory than the machine has, or all of them more disk than is free, or a thousand years.
    """
    if not costs:
        return
    largest = max(costs, key=lambda name: costs[name].memory_bytes)
    needed, there = costs[largest].memory_bytes, psutil.virtual_memory().total
    if needed > _BEYOND * there:
        raise UserError(
            f"The step {largest!r} needs about {_gigabytes(needed)} of memory and this machine has {_gigabytes(there)}; "
            "give smaller numbers."
        )
    kept, free = sum(cost.disk_bytes for cost in costs.values()), shutil.disk_usage(_existing(out)).free
    if kept > free:
        raise UserError(
            f"The run keeps about {_gigabytes(kept)} and the disk of {out} has {_gigabytes(free)} free; give another --out."
        )
    seconds = sum(forecast_seconds(study, name, cost) for name, cost in costs.items())
    if not seconds < _MOST_SECONDS:
        raise UserError(f"The run takes about {seconds / _MOST_SECONDS * 1000:.3g} years; give smaller numbers.")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.expanduser().absolute()
    return next(one for one in (folder, *folder.parents) if one.exists())


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.3g} GB"
