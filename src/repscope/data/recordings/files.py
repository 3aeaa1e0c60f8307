"""Recordings from files: NWB, arrays with a table of conditions, folders with a TSV of trials, the 92-image set.

    FILE.nwb                    units and trials (`nwb`)
    FILE.npz, .safetensors      one array per subject and region, named SUBJECT/REGION (or REGION, of one subject): (condition,
                                channel) or (repeat, condition, channel); `images` (condition, height, width[, colour]) may be
                                among them. Beside it FILE.tsv or .csv: a column condition, rows in the order of the arrays
    folder                      conditions.tsv, or sub-LABEL_conditions.tsv where subjects differ: a column condition or, as BIDS
                                has it, trial_type, one row per trial; sub-LABEL_roi-REGION.npy or .tsv: (trial, channel)
    folder of the 92 images     `images92`

In the tables a column text holds what language models read, a column stim_file the path of an image as .npy, below the folder.
Nothing is unpickled.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repscope.data.recordings.images92 import STIMULI, images92
from repscope.data.recordings.nwb import read_nwb
from repscope.data.recordings.recording import Recording
from repscope.data.recordings.trials import from_trials
from repscope.data.tables import read_table
from repscope.errors import UserError, no_file

_ARRAYS = (".npz", ".safetensors")
_RESPONSES = re.compile(r"sub-(?P<subject>[^_/]+)_roi-(?P<region>[^_/]+?)(_responses)?\.(npy|tsv)")


def recording(path: str | Path, *, condition: str | None = None) -> Recording:
    """Read a recording.

    Parameters
    ----------
    path
        A file or folder of one of these formats.
    condition
        The column of conditions, where it has another name.

    Raises
    ------
    UserError
        For a path that is none of these, contents that do not fit each other, and as `Recording`.
    """
    given = Path(path).expanduser()
    if given.is_dir():
        return images92(given) if (given / STIMULI).is_file() else _folder(given, condition)
    if not given.is_file():
        raise no_file(given, [p.name for p in given.parent.glob("*")] if given.parent.is_dir() else [], "recording")
    if given.suffix == ".nwb":
        return read_nwb(given, condition)
    if given.suffix in _ARRAYS:
        return _arrays(given, condition)
    raise UserError(f"{given} is no recording; give a .nwb, .npz or .safetensors file, or a folder with conditions.tsv.")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz or .safetensors file; nothing is unpickled.

    Raises
    ------
    UserError
        For a file that cannot be read, or without numbers.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as held:
                found = {name: held[name] for name in held.files}
        else:
            from safetensors.numpy import load_file

            found = dict(load_file(path))
    except Exception as error:  # of numpy's and safetensors' readers, whatever the bytes are
        raise UserError(f"{path} cannot be read as arrays ({error}); write it with numpy.savez or safetensors.") from error
    for name, array in found.items():
        if array.dtype.kind not in "fiu":
            raise UserError(f"The array {name!r} of {path} holds {array.dtype}; give numbers.")
    return found


def _arrays(path: Path, condition: str | None) -> Recording:
    table = next((t for s in (".tsv", ".csv") if (t := path.with_suffix(s)).is_file()), None)
    if table is None:
        raise UserError(
            f"{path} has no table of conditions beside it; write {path.with_suffix('.tsv').name} with a column condition."
        )
    frame, notes = _table(table, condition)
    held = read_arrays(path)
    images = held.pop("images", None)
    labels: dict[str, list[str]] = {}
    trials: dict[tuple[str, str], np.ndarray] = {}
    for name, array in held.items():
        subject, _, region = name.rpartition("/")
        x = array[None] if array.ndim == 2 else array
        if x.ndim != 3 or x.shape[1] != len(frame):
            raise UserError(f"The array {name!r} of {path} has shape {array.shape} for {len(frame)} conditions in {table.name}.")
        who = subject or "one subject"
        labels[who] = list(frame["condition"]) * len(x)
        if (who, region) in trials or any(s == who and len(t) != x.shape[0] * x.shape[1] for (s, _), t in trials.items()):
            raise UserError(f"Regions of {who} in {path} have different numbers of repeats; give the same trials of each region.")
        trials[who, region] = x.reshape(-1, x.shape[2]).astype(np.float64)
    shown = None
    if images is not None:
        if len(images) != len(frame) or images.ndim not in (3, 4):
            raise UserError(f"The images of {path} have shape {images.shape}; give (condition, height, width) or with colours.")
        shown = dict(zip(frame["condition"], images))
    if frame["condition"].duplicated().any():
        twice = frame.loc[frame["condition"].duplicated(), "condition"].iloc[0]
        raise UserError(f"Condition {twice!r} occurs twice in {table}; give one row per condition, and repeats as an axis.")
    return from_trials(labels, trials, table=frame, images=shown, texts=_texts(frame), notes=notes)


def _folder(home: Path, condition: str | None) -> Recording:
    files = {(m["subject"], m["region"]): p for p in sorted(home.rglob("*")) if (m := _RESPONSES.fullmatch(p.name))}
    if not files:
        raise UserError(
            f"{home} has no responses; name them sub-LABEL_roi-REGION.npy or .tsv, (trial, channel), beside conditions.tsv."
        )
    labels: dict[str, list[str]] = {}
    frames, notes = [], list[str]()
    for subject in dict.fromkeys(s for s, _ in files):
        own = [p for p in (*sorted(home.rglob(f"sub-{subject}_conditions.tsv")), home / "conditions.tsv") if p.is_file()]
        if not own:
            raise UserError(f"{home} has no conditions.tsv and no sub-{subject}_conditions.tsv; write one row per trial.")
        frame, told = _table(own[0], condition)
        labels[subject] = list(frame["condition"])
        frames.append(frame)
        notes += [note for note in told if note not in notes]
    both = pd.concat(frames, ignore_index=True)
    images = _images(home, both)
    trials = {key: _responses(path) for key, path in files.items()}
    return from_trials(labels, trials, table=both, images=images, texts=_texts(both), notes=notes)


def _responses(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        try:
            found = np.load(path, allow_pickle=False)
        except Exception as error:  # of numpy's reader, whatever the bytes are
            raise UserError(f"{path} cannot be read as an array ({error}); write it with numpy.save.") from error
    else:
        table = read_table(path)
        found = np.stack([table.typed(name).values.to_numpy() for name in table.frame.columns], 1)
    if found.ndim != 2 or found.dtype.kind not in "fiu":
        raise UserError(f"{path} has shape {found.shape} of {found.dtype}; give numbers (trial, channel).")
    return np.asarray(found.astype(np.float64))


def _table(path: Path, condition: str | None) -> tuple[pd.DataFrame, list[str]]:
    """The table with a column `condition`."""
    table = read_table(path)
    asked = [condition] if condition else ["condition", "trial_type"]
    column = next((name for name in asked if name in table.frame.columns), None)
    if column is None:
        raise UserError(f"{path} has no column {' or '.join(asked)}; it has {', '.join(table.frame.columns)}.")
    return table.frame.rename(columns={column: "condition"}), list(table.notes)


def _texts(frame: pd.DataFrame) -> dict[str, str] | None:
    return dict(zip(frame["condition"], frame["text"])) if "text" in frame.columns else None


def _images(home: Path, frame: pd.DataFrame) -> dict[str, Any] | None:
    """Arrays of the column stim_file, which stay below the folder."""
    if "stim_file" not in frame.columns:
        return None
    found = {}
    for name, file in dict(zip(frame["condition"], frame["stim_file"])).items():
        path = (home / file).resolve()
        if not file or not path.is_file():
            continue
        if not path.is_relative_to(home.resolve()):
            raise UserError(f"stim_file {file!r} of condition {name!r} is not below {home}; copy the stimuli into that folder.")
        if path.suffix != ".npy":
            raise UserError(f"stim_file {file!r} of condition {name!r} is no array; save images as .npy, (height, width, colour).")
        found[name] = np.load(path, allow_pickle=False)
    return found
