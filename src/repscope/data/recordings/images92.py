"""The 92-image set of Kriegeskorte and colleagues (2008): stimuli and RDMs of human and monkey IT cortex, from a local folder.

    Kriegeskorte_Neuron2008_supplementalData.mat    stimuli_92objs: 92 images of 175 × 175 pixels with their categories;
                                                    RDMs_mIT_hIT_fig1: monkey IT (674 neurons) and human IT (316 voxels), as pairs
    92_brainRDMs.mat                                RDMs of human IT of 4 subjects in 2 sessions, as squares (optional)

rsatoolbox has them in demos/92imageData. There are RDMs and no responses, so they are for RSA alone. Published RDMs are 1 - r.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repscope.data.recordings.recording import Recording
from repscope.errors import UserError

STIMULI, BRAINS = "Kriegeskorte_Neuron2008_supplementalData.mat", "92_brainRDMs.mat"
_COUNT = 92
_KINDS = ("human", "face", "animal", "natural")


def images92(folder: str | Path) -> Recording:
    """Stimuli and RDMs of the 92-image set.

    human IT: one RDM per subject, the mean over sessions; without that file the published mean of subjects. monkey IT: one RDM.

    Raises
    ------
    UserError
        For a folder without the file of stimuli, or files with other contents.
    """
    home = Path(folder).expanduser()
    if not (home / STIMULI).is_file():
        raise UserError(f"{home} has no {STIMULI}; give the folder of the 92-image set, such as demos/92imageData of rsatoolbox.")
    held = _read(home / STIMULI)
    try:
        stimuli = held["stimuli_92objs"].ravel()
        images = np.stack([np.asarray(s["image"], dtype=np.float64) / 255 for s in stimuli])
        table = pd.DataFrame(
            [{"category": str(s["category"].ravel()[0])} | {k: int(s[k].ravel()[0]) for k in _KINDS} for s in stimuli]
        )
        published = {_name(r): _square(np.asarray(r["RDM"], dtype=np.float64).ravel()) for r in held["RDMs_mIT_hIT_fig1"].ravel()}
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{home / STIMULI} is not that of the 92-image set ({error}); fetch it again.") from error
    if len(images) != _COUNT:
        raise UserError(f"{home / STIMULI} has {len(images)} images in place of {_COUNT}; fetch it again.")
    monkey = next(rdm for name, rdm in published.items() if name.startswith("mIT"))
    human = next(rdm for name, rdm in published.items() if name.startswith("hIT"))[None]
    notes = ["RDMs were published without responses: encoding models and ceilings of single channels need responses."]
    if (home / BRAINS).is_file():
        squares = _read(home / BRAINS)["RDMs"]
        try:
            human = np.stack(
                [np.mean([np.asarray(one["RDM"], dtype=np.float64) for one in sessions], 0) for sessions in squares[0]]
            )
        except (ValueError, IndexError, TypeError) as error:
            raise UserError(f"{home / BRAINS} is not that of the 92-image set ({error}); fetch it again.") from error
        notes.append(f"Human RDMs of {len(human)} subjects are means over {squares.shape[2]} sessions.")
    else:
        notes.append(f"{BRAINS} is not there: human IT is one RDM, the mean of subjects, without a noise ceiling.")
    conditions = [f"{i:02d} {category}" for i, category in enumerate(table["category"], 1)]
    rdms = {"human IT": human, "monkey IT": monkey[None]}
    return Recording(tuple(conditions), rdms=rdms, images=images, table=table, notes=tuple(notes))


def _name(record: Any) -> str:
    return str(record["name"].ravel()[0])


def _square(pairs: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import squareform

    return np.asarray(squareform(pairs))


def _read(path: Path) -> Any:
    from scipy.io import loadmat

    try:
        return loadmat(path)
    except Exception as error:  # of scipy's reader, whatever the bytes are
        raise UserError(f"{path} cannot be read as a MATLAB file ({error}); fetch it again.") from error
