"""A recording from trials: one row per presentation, sorted into repeats of conditions. What is left out is counted.

1. Trials without a condition are left out.
2. Conditions that a subject never saw are left out of all subjects.
3. Every condition gets as many repeats as the one with the fewest trials has; later trials are left out.
4. Channels with missing values, and those whose response never varies, are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from repscope.data.recordings.recording import Recording
from repscope.errors import UserError

Trials = Float[np.ndarray, "trial channel"]


def from_trials(
    labels: Sequence[str] | Mapping[str, Sequence[str]], trials: Mapping[tuple[str, str], Trials], **parts: Any
) -> Recording:
    """A recording from responses in trials.

    Parameters
    ----------
    labels
        The condition of each trial; "" where it has none. By subject, where subjects differ.
    trials : Mapping[tuple[str, str], Float[np.ndarray, "trial channel"]]
        (subject, region) → responses.
    parts
        `table`, a frame with a column condition, `images` by condition, `texts` by condition, `notes`.

    Raises
    ------
    UserError
        For other numbers of trials than labels, a region without a usable channel, and as `Recording`.
    """
    if not trials:
        raise UserError("There are no responses; give at least one array (trial, channel).")
    notes = list(parts.pop("notes", ()))
    subjects = list(dict.fromkeys(subject for subject, _ in trials))
    of = {s: list(map(str, labels[s] if isinstance(labels, Mapping) else labels)) for s in subjects}
    seen: dict[str, dict[str, list[int]]] = {}
    for subject, own in of.items():
        places: dict[str, list[int]] = {}
        for i, name in enumerate(own):
            places.setdefault(name.strip(), []).append(i)
        if empty := len(places.pop("", [])):
            notes.append(f"{empty} of {len(own)} trials of {subject} have no condition and were left out.")
        seen[subject] = places
    conditions = [c for c in dict.fromkeys(c for places in seen.values() for c in places) if all(c in p for p in seen.values())]
    lost = len({c for places in seen.values() for c in places}) - len(conditions)
    if lost:
        notes.append(f"{lost} conditions that some subject never saw were left out; {len(conditions)} remain.")
    if not conditions:
        raise UserError("No condition was seen by all subjects; check the names of conditions in their tables.")
    responses: dict[str, dict[str, np.ndarray]] = {}
    for subject, places in seen.items():
        repeats = min(len(places[c]) for c in conditions)
        beyond = sum(len(places[c]) - repeats for c in conditions)
        if beyond:
            notes.append(f"{beyond} trials of {subject} beyond {repeats} per condition were left out.")
        at = np.array([places[c][:repeats] for c in conditions]).T  # (repeat, condition)
        for (who, region), x in trials.items():
            if who != subject:
                continue
            if len(x) != len(of[subject]):
                raise UserError(f"{subject}, {region} has {len(x)} trials, and its table of conditions {len(of[subject])}.")
            held, told = _usable(x[at], f"{subject}, {region}")
            responses.setdefault(region, {})[subject] = held
            notes += told
    return _with_parts(conditions, responses, notes, **parts)


def _usable(x: Float[np.ndarray, "repeat condition channel"], what: str) -> tuple[np.ndarray, list[str]]:
    """Without channels that are missing values or never vary."""
    finite = np.isfinite(x).all((0, 1))
    varies = np.zeros(x.shape[2], dtype=bool)
    varies[finite] = np.ptp(x[..., finite], axis=(0, 1)) > 0
    notes = []
    for count, why in ((int((~finite).sum()), "have missing values"), (int((finite & ~varies).sum()), "never vary")):
        if count:
            notes.append(f"{count} of {x.shape[2]} channels of {what} {why} and were left out.")
    if not varies.any():
        raise UserError(f"No channel of {what} can be used: {' '.join(notes) or 'there is none.'}")
    return x[..., varies].astype(np.float64), notes


def _with_parts(
    conditions: Sequence[str],
    responses: Mapping[str, Mapping[str, np.ndarray]],
    notes: Sequence[str],
    table: pd.DataFrame | None = None,
    images: Mapping[str, np.ndarray] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Recording:
    known = pd.DataFrame()
    if table is not None:
        known = table.drop_duplicates("condition").set_index("condition").reindex(list(conditions)).reset_index()
    told = list(notes)
    shown: np.ndarray | None = None
    if images:
        without = [c for c in conditions if c not in images]
        sizes = {np.shape(image) for image in images.values()}
        if without or len(sizes) > 1:
            why = f"{len(without)} conditions have none" if without else f"they have {len(sizes)} different sizes"
            told.append(f"Images are not used, as {why}.")
        else:
            shown = np.stack([np.asarray(images[c], dtype=np.float64) for c in conditions])
            shown = shown[..., None] if shown.ndim == 3 else shown
    words = tuple(texts[c] for c in conditions) if texts and all(texts.get(c) for c in conditions) else None
    if texts and words is None:
        told.append(f"Texts are not used, as {sum(not texts.get(c) for c in conditions)} conditions have none.")
    return Recording(tuple(conditions), responses, images=shown, texts=words, table=known, notes=tuple(told))
