"""A recording from an NWB file (Neurodata Without Borders): spike rates of sorted units in trials.

The response of a unit to a trial is its number of spikes from start_time to stop_time over that duration, in spikes per second. The
condition is a column of the table of trials. The region is a column of the table of units (location, brain_area, region), or the
location of the unit's electrodes. Units without a region are counted and left out.
"""

from pathlib import Path
from typing import Any

import numpy as np

from repscope.data.recordings.recording import Recording
from repscope.data.recordings.trials import from_trials
from repscope.errors import UserError, unknown

_CONDITIONS = ("condition", "stimulus_name", "stimulus", "trial_type", "image_name", "stim_name")
_REGIONS = ("location", "brain_area", "brain_region", "region", "area")


def read_nwb(path: Path, condition: str | None = None) -> Recording:
    """Read units and trials.

    Raises
    ------
    UserError
        Without pynwb, for a file that cannot be read or has no units or trials, and without a column of conditions.
    """
    try:
        from pynwb import NWBHDF5IO
    except ImportError as error:
        raise UserError("NWB files need pynwb; install it with pip install 'repscope[brain]'.") from error
    try:
        with NWBHDF5IO(str(path), "r", load_namespaces=True) as io:
            held = io.read()
            return _read(held, path, condition)
    except UserError:
        raise
    except Exception as error:  # of pynwb and HDF5, whatever the bytes are
        raise UserError(f"{path} cannot be read as NWB ({type(error).__name__}: {error}); check it with pynwb.validate.") from error


def _read(held: Any, path: Path, condition: str | None) -> Recording:
    if held.units is None or held.trials is None or not len(held.units) or not len(held.trials):
        raise UserError(f"{path} has no table of units or none of trials; only sorted units in trials are read.")
    trials = held.trials.to_dataframe()
    known = [condition] if condition else [c for c in _CONDITIONS if c in trials.columns]
    if not known or known[0] not in trials.columns:
        named = [c for c in trials.columns if c not in ("start_time", "stop_time")]
        raise unknown("column of conditions", condition or "condition", named, "Name it with condition=.")
    start, stop = trials["start_time"].to_numpy(float), trials["stop_time"].to_numpy(float)
    notes = []
    valid = np.isfinite(start) & np.isfinite(stop) & (stop > start)
    if not valid.all():
        notes.append(f"{int((~valid).sum())} of {len(valid)} trials have no duration and were left out.")
    labels = trials[known[0]].astype(str).to_numpy()[valid]
    start, stop = start[valid], stop[valid]
    regions = _regions(held.units)
    without = sum(not region for region in regions)
    if without == len(regions):
        regions, without = ["all units"] * len(regions), 0
        notes.append(f"Units of {path.name} have no region; all are one.")
    elif without:
        notes.append(f"{without} of {len(regions)} units have no region and were left out.")
    subject = str(held.subject.subject_id) if held.subject is not None and held.subject.subject_id else path.stem
    responses: dict[tuple[str, str], list[np.ndarray]] = {}
    for i, region in enumerate(regions):
        if region:
            spikes = np.sort(np.asarray(held.units["spike_times"][i], dtype=float))
            counts = np.searchsorted(spikes, stop) - np.searchsorted(spikes, start)
            responses.setdefault((subject, region), []).append(counts / (stop - start))
    return from_trials(list(labels), {key: np.stack(each, 1) for key, each in responses.items()}, notes=notes)


def _regions(units: Any) -> list[str]:
    """Region of each unit; "" where it is not known."""
    column = next((c for c in _REGIONS if c in units.colnames), None)
    if column is not None:
        return [_named(value) for value in units[column][:]]
    if "electrodes" not in units.colnames:
        return [""] * len(units)
    return [_named(next(iter(units["electrodes"][i]["location"]), "")) for i in range(len(units))]


def _named(value: Any) -> str:
    text = str(value.decode() if isinstance(value, bytes) else value).strip()
    return "" if text.lower() in ("", "nan", "none", "unknown", "n/a") else text
