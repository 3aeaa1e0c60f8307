"""Recordings in the format of the Sensorium competition of 2022: a folder of arrays per mouse, static images.

    data/images/N.npy           (channel, height, width) of trial N
    data/responses/N.npy        (neuron,)
    data/behavior/N.npy         (variable,), optional
    meta/trials/tiers.npy       train, validation, test, final_test … per trial
    meta/trials/frame_image_id.npy   which image a trial showed: repeats have the same

1. Images are divided by the standard deviation and shifted by the mean over training trials; responses are divided by each neuron's
   standard deviation over training trials, as the competition does, and behaviour is standardised.
2. Trials of tier "test" are grouped by image; images with fewer repeats than `least` are left out, further repeats too.
3. Neurons that never respond in training, or respond equally in all trials, are left out and counted.
Files are read without pickle: nothing in them is run.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from repscope.align.twin.fitting import Recording
from repscope.errors import UserError, no_file

LEAST_REPEATS = 2


@dataclass(frozen=True, eq=False)
class SensoriumRecording:
    """A recording. train, validation: trials. test: repeated images, (image, channel, height, width). repeats: (repeat, image,
    neuron). behaviour: of the test trials, (repeat, image, variable), or None. notes: what was left out."""

    train: Recording
    validation: Recording
    test: Float[np.ndarray, "image channel height width"]
    repeats: Float[np.ndarray, "repeat image neuron"]
    behaviour: Float[np.ndarray, "repeat image variable"] | None
    notes: tuple[str, ...]


def sensorium_recording(folder: str | Path, *, least: int = LEAST_REPEATS, behaviour: bool = False) -> SensoriumRecording:
    """Read a recording of static images.

    Parameters
    ----------
    least
        Fewest repeats of a test image.
    behaviour
        Read behaviour too, for a twin with gains.

    Raises
    ------
    UserError
        For a folder without these files, files that are no arrays of numbers, videos, negative responses, no trials of a tier, or
        no repeated test image.
    """
    home = Path(folder).expanduser()
    if not home.is_dir():
        raise no_file(home, [p.name for p in home.parent.glob("*")] if home.parent.is_dir() else [], "folder of a recording")
    if (home / "data" / "videos").is_dir():
        raise UserError(f"{home} has videos; give a folder with static images (Sensorium 2022).")
    tiers = _array(home / "meta/trials/tiers.npy").astype(str)
    shown = _array(home / "meta/trials/frame_image_id.npy")
    if len(shown) != len(tiers):
        raise UserError(f"{home} has {len(tiers)} tiers and {len(shown)} image numbers; both need one per trial.")
    of_tier = {tier: np.flatnonzero(tiers == tier) for tier in ("train", "validation", "test")}
    for tier, trials in of_tier.items():
        if len(trials) < 2:
            raise UserError(f"{home} has {len(trials)} trials of the tier {tier!r}; it has {', '.join(sorted(set(tiers)))}.")
    groups = _repeated(shown, of_tier["test"], least)
    if len(groups) < 3:
        raise UserError(f"{home} has {len(groups)} test images with {least} repeats or more; a noise ceiling needs at least 3.")
    kinds = ["images", "responses"] + (["behavior"] if behaviour else [])
    held = {kind: {t: _stacked(home / "data" / kind, trials) for t, trials in of_tier.items()} for kind in kinds}
    mean, spread = float(held["images"]["train"].mean()), float(held["images"]["train"].std())
    if not spread > 0:
        raise UserError(f"The images of {home} are constant; a twin needs images that vary.")
    images = {tier: (x - mean) / spread for tier, x in held["images"].items()}
    unit = held["responses"]["train"].std(0, ddof=1)
    kept = (unit > 1e-8) & (np.ptp(held["responses"]["validation"], axis=0) > 0)
    if not kept.any():
        raise UserError(f"No neuron of {home} responds in training and validation trials; check the responses.")
    responses = {tier: x[:, kept] / unit[kept] for tier, x in held["responses"].items()}
    moved = None
    if behaviour:
        centre, scale = held["behavior"]["train"].mean(0), held["behavior"]["train"].std(0)
        moved = {tier: (x - centre) / np.where(scale > 0, scale, 1.0) for tier, x in held["behavior"].items()}
    repeats = min(len(g) for g in groups)
    place = {trial: i for i, trial in enumerate(of_tier["test"].tolist())}
    order = np.array([[place[int(t)] for t in g[:repeats]] for g in groups]).T  # repeat, image
    left = int((~kept).sum())
    notes = (
        f"{len(groups)} test images with {repeats} repeats each; {len(of_tier['test']) - order.size} other test "
        f"trials were left out.",
        *([f"{left} of {len(kept)} neurons respond equally in all trials and were left out."] if left else []),
    )
    parts = [Recording.of(images[t], responses[t], None if moved is None else moved[t]) for t in ("train", "validation")]
    return SensoriumRecording(
        parts[0],
        parts[1],
        images["test"][order[0]],
        responses["test"][order],
        None if moved is None else moved["test"][order],
        notes,
    )


def _repeated(shown: np.ndarray, trials: Int[np.ndarray, "trial"], least: int) -> list[Int[np.ndarray, "repeat"]]:
    """Test trials by image, of images with enough repeats."""
    of = shown[trials]
    groups = [trials[of == image] for image in np.unique(of)]
    return [g for g in groups if len(g) >= least]


def _stacked(folder: Path, trials: Int[np.ndarray, "trial"]) -> np.ndarray:
    arrays = [_array(folder / f"{int(t)}.npy") for t in trials]
    if len({a.shape for a in arrays}) > 1:
        raise UserError(f"Trials in {folder} have arrays of different shapes; a twin needs one shape.")
    found = np.stack(arrays).astype(np.float64)
    if folder.name == "images" and found.ndim == 3:
        found = found[:, None]
    return found.reshape(len(found), -1) if folder.name != "images" else found


def _array(path: Path) -> np.ndarray:
    if not path.is_file():
        raise no_file(path, [p.name for p in path.parent.glob("*.npy")][:20] if path.parent.is_dir() else [], "array")
    try:
        found = np.load(path, allow_pickle=False)
    except Exception as error:  # of numpy's reader, whatever the bytes are
        raise UserError(f"{path} cannot be read as an array without pickle ({error}); write it with numpy.save.") from error
    return np.asarray(found)
