"""The worm C. elegans: synapses, gap junctions and membrane contact of every pair of neurons, and measured signal propagation.

Sources, all read from files of two Python packages that need not be imported (none is part of repscope):
- `cect` 0.3.5 (MIT): published connectomes, `cache/*.json`. Rows are presynaptic. Nodes are in no order.
- `wormneuroatlas` (GPL-3+) or any copy of its `funatlas.h5`: the atlas of Randi, Sharma, Dvali & Leifer (2023, Nature 623:406).
  Each neuron was stimulated in turn while the others were recorded. Its matrices are [responding, stimulated]; ours are
  [stimulated, responding] like all others. The anatomical matrix in the same package puts every unknown name on its last cell,
  and is not read.

1. Matrices are aligned by name. Names of the atlas for one pair of cells (AWCOF, AWCON) become AWCL, AWCR; which of the two is
   which differs between animals.
2. Pairs that were never measured are NaN: they are not pairs without a signal.
3. The orientation of each connectome is checked on pairs of cells whose direction is known (`KNOWN`), that of the atlas on the copy
   of its significant pairs in `cect`.
4. Synapses, contact and signals are of different animals. `Worm.notes` counts what does not match.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from repscope.data.connectomes.named_matrices import named_matrix
from repscope.errors import UserError, no_file, unknown
from repscope.untrusted import parse_json

Strain = Literal["wt", "unc31"]

#: name of a connectome → its file in `cect`'s cache and its paper
CONNECTOMES: Mapping[str, tuple[str, str]] = {
    "witvliet8": ("WitvlietDataReader8", "Witvliet et al. 2021, adult 8"),
    "witvliet7": ("WitvlietDataReader7", "Witvliet et al. 2021, adult 7"),
    "white": ("White_whole", "White et al. 1986, whole animal"),
    "varshney": ("VarshneyDataReader", "Varshney et al. 2011"),
    "cook": ("Cook2019HermReader", "Cook et al. 2019, hermaphrodite"),
}
#: name of a set of membrane contacts → its file and its paper
CONTACTS: Mapping[str, tuple[str, str]] = {
    "yim": ("Yim2024ContactomeNonNormDataReader", "Yim et al. 2024, contact area"),
    "brittin": ("BrittinDataReader", "Brittin et al. 2021, contact area"),
}
#: presynaptic and postsynaptic cell of pairs with many synapses in this direction and few in the other (White et al. 1986)
KNOWN = (("AFDL", "AIYL"), ("AFDR", "AIYR"), ("ASEL", "AIYL"), ("AWCL", "AIYL"), ("AWAL", "AIZL"), ("AIYL", "RIAL"))
#: names of the atlas → names of the connectomes
RENAMED: Mapping[str, str] = {"AWCOF": "AWCL", "AWCOFF": "AWCL", "AWCON": "AWCR"}
_COPY = "WormNeuroAtlasFuncReader"  #: cect's own copy of the atlas, [stimulated, responding], with q < .05 alone
LEAST_SHARED = 20  #: stimulated cells that two response profiles must share
_HINT = "install the extra repscope[worm], or give the folder of a copy"


@dataclass(frozen=True, eq=False)
class SignalPropagation:
    """Measured effects of stimulating one neuron on another. All frames: [stimulated, responding]; NaN where not measured.

    effect: mean change of fluorescence, ΔF/F, over trials. q: false discovery rate of an effect. trials: pairs' trials that were
    counted. halves: mean effect of the even and of the odd trials, where a pair has four or more.
    """

    effect: pd.DataFrame
    q: pd.DataFrame
    trials: pd.DataFrame
    halves: tuple[pd.DataFrame, pd.DataFrame]
    strain: str

    def functional(self, q: float = 0.05) -> pd.DataFrame:
        """1 where stimulation had an effect at that false discovery rate, 0 where it was measured and had none, NaN elsewhere."""
        return (self.q < q).astype(np.float64).where(self.q.notna())

    def profile_similarity(self, least: int = LEAST_SHARED) -> pd.DataFrame:
        """Similarity of neurons: Spearman's rho of their responses to all cells that both were measured for, themselves left out.

        Symmetric, [neuron, neuron]; NaN where fewer than `least` stimulated cells are shared.
        """
        x = self.effect.to_numpy().T  # responding, stimulated
        names = list(self.effect.columns)
        stimulated = {name: i for i, name in enumerate(self.effect.index)}
        found = _rank_correlations(x, [stimulated.get(name, -1) for name in names], least)
        return pd.DataFrame(found, index=names, columns=names)


@dataclass(frozen=True, eq=False)
class Worm:
    """What is known of the pairs of neurons of C. elegans. All frames: [presynaptic, postsynaptic].

    synapses, gap_junctions: counts. contact: area of the membranes in contact, symmetric. signals: measured effects. notes:
    sources, and names and pairs that do not match.
    """

    synapses: pd.DataFrame
    gap_junctions: pd.DataFrame
    contact: pd.DataFrame
    signals: SignalPropagation
    notes: tuple[str, ...]


def celegans(
    synapses: str = "witvliet8",
    contact: str = "yim",
    strain: Strain = "wt",
    *,
    cect: str | Path | None = None,
    atlas: str | Path | None = None,
) -> Worm:
    """Connectome, membrane contact and signal propagation of C. elegans, aligned by name.

    Parameters
    ----------
    synapses, contact
        Names of data sets, keys of `CONNECTOMES` and `CONTACTS`.
    strain
        Animals of the atlas: `"wt"` (wild type) or `"unc31"` (without dense-core-vesicle release).
    cect
        Folder with the JSON files; by default that of the installed package `cect`.
    atlas
        The file `funatlas.h5`; by default that of the installed package `wormneuroatlas`.

    Raises
    ------
    UserError
        If a package or file is missing or damaged, for an unknown name, or a connectome in another orientation.
    """
    for name, known, what in ((synapses, CONNECTOMES, "connectome"), (contact, CONTACTS, "set of contacts")):
        if name not in known:
            raise unknown(what, name, known)
    folder = Path(cect) if cect is not None else _of_package("cect", "cache")
    file = Path(atlas) if atlas is not None else _of_package("wormneuroatlas", "data") / "funatlas.h5"
    wiring, area = _read_cect(folder / f"{CONNECTOMES[synapses][0]}.json"), _read_cect(folder / f"{CONTACTS[contact][0]}.json")
    chemical, gap = (_kind(wiring, kind, synapses) for kind in ("Generic_CS", "Generic_GJ"))
    check_orientation(chemical, CONNECTOMES[synapses][1])
    touching = _kind(area, "Contact", contact)
    signals = read_atlas(file, strain)
    if strain == "wt" and (folder / f"{_COPY}.json").is_file():
        check_against_copy(signals, _kind(_read_cect(folder / f"{_COPY}.json"), "Functional", _COPY))
    loops = int(sum(np.count_nonzero(np.diag(m.to_numpy())) for m in (chemical, gap)))
    chemical, gap = (named_matrix(m, what="connectome", self_loops="drop", signed=False) for m in (chemical, gap))
    worm = Worm(chemical, gap, touching, signals, ())
    sources = (f"Synapses: {CONNECTOMES[synapses][1]}. Contact: {CONTACTS[contact][1]}. Signals: Randi et al. 2023, {strain}.",)
    return Worm(chemical, gap, touching, signals, sources + mismatches(worm, loops))


def mismatches(worm: Worm, loops: int = 0) -> tuple[str, ...]:
    """Sentences that count names that only one source has, self-loops left out, and synapses between cells not listed in
    contact.
    """
    wired, touching = set(worm.synapses.index), set(worm.contact.index)
    recorded = set(worm.signals.effect.index) | set(worm.signals.effect.columns)
    common = [name for name in worm.synapses.index if name in touching]
    apart = int(np.count_nonzero((worm.synapses.loc[common, common] > 0) & (worm.contact.loc[common, common] == 0)))
    measured = int(worm.signals.q.notna().to_numpy().sum())
    return (
        f"{len(wired & recorded)} cells are in the connectome and in the atlas, {len(wired - recorded)} only in the connectome, "
        f"{len(recorded - wired)} only in the atlas; {len(wired - touching)} of the connectome have no contacts listed.",
        f"The atlas measured {measured:,} of {worm.signals.q.size - len(recorded):,} ordered pairs; others are not measured.",
        f"{apart} connected pairs have no contact listed: the two are of different animals.",
        *([f"{loops} connections of a cell with itself were left out."] if loops else []),
    )


def check_orientation(synapses: pd.DataFrame, what: str) -> None:
    """Refuse a connectome [pre, post] in which the known pairs have more synapses backwards than forwards.

    Raises
    ------
    UserError
        If none of the known pairs is there, or they run backwards.
    """
    here = [(a, b) for a, b in KNOWN if a in synapses.index and b in synapses.index]
    forward, backward = (sum(float(str(synapses.at[p])) for p in pairs) for pairs in (here, [(b, a) for a, b in here]))
    if not here or forward + backward == 0:
        raise UserError(f"{what} has none of the pairs that show which axis is presynaptic ({KNOWN[0][0]} to {KNOWN[0][1]} …).")
    if forward <= backward:
        raise UserError(
            f"In {what}, cells such as {here[0][0]} have {forward:g} synapses onto cells such as {here[0][1]} and receive "
            f"{backward:g}; its axes are swapped: transpose it."
        )


def check_against_copy(signals: SignalPropagation, copy: pd.DataFrame) -> None:
    """Refuse an atlas that equals an independent copy of it, [stimulated, responding], better with its axes swapped.

    Raises
    ------
    UserError
        If it does.
    """
    names = [name for name in copy.index if name in signals.effect.index]
    a, b = copy.loc[names, names].to_numpy(), signals.effect.loc[names, names].to_numpy()
    there = a != 0
    as_is, swapped = (int(np.isclose(a[there], m[there]).sum()) for m in (b, b.T))
    if swapped > as_is:
        raise UserError(
            f"The atlas equals cect's copy of it in {as_is} of {int(there.sum())} pairs, and in {swapped} with its axes swapped; "
            f"transpose its matrices."
        )


def read_atlas(path: str | Path, strain: str = "wt") -> SignalPropagation:
    """The signal propagation atlas from its HDF5 file, turned to [stimulated, responding].

    Raises
    ------
    UserError
        If h5py is not installed, or the file is missing, damaged, or of another layout.
    """
    path = Path(path)
    if find_spec("h5py") is None:
        raise UserError(f"Reading {path.name} needs the package h5py; {_HINT}.")
    if not path.is_file():
        raise no_file(path, [p.name for p in path.parent.glob("*.h5")], "atlas")
    import h5py

    try:
        with h5py.File(path, "r") as held:
            names = [RENAMED.get(text, text) for text in (bytes(name).decode() for name in held["neuron_ids"][:])]
            if strain not in held:
                raise unknown("strain", strain, [key for key in held if isinstance(held[key], h5py.Group)])
            group = held[strain]
            effect, q, trials = (np.asarray(group[key][:], dtype=np.float64) for key in ("dFF", "q", "occ1"))
            listed = [np.asarray(group["dFF_all"][i, :]) for i in range(len(names))]
    except UserError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, UnicodeDecodeError) as error:
        wrong = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path} cannot be read as a signal propagation atlas ({wrong}); take the funatlas.h5 of wormneuroatlas."
        ) from None
    n = len(names)
    if any(m.shape != (n, n) for m in (effect, q, trials)):
        raise UserError(f"{path} has {n} names and matrices of {effect.shape}; take the funatlas.h5 of wormneuroatlas.")
    measured = np.isfinite(q) & np.isfinite(effect) & ~np.eye(n, dtype=bool)
    halves = np.full((2, n, n), np.nan)
    for i, j in np.argwhere(measured):
        values = np.asarray(listed[i][j], dtype=np.float64).ravel()
        values = values[np.isfinite(values)]
        if len(values) >= 4:
            halves[:, i, j] = values[::2].mean(), values[1::2].mean()
    frames = [named_matrix(np.where(measured, m, np.nan).T, names, what="atlas") for m in (effect, q, trials, *halves)]
    return SignalPropagation(frames[0], frames[1], frames[2], (frames[3], frames[4]), strain)


def _of_package(name: str, inner: str) -> Path:
    """A folder of an installed package, which is not imported: importing wormneuroatlas asks servers."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"The package {name}, whose data files are needed, is not installed; {_HINT}.")
    return Path(next(iter(spec.submodule_search_locations))) / inner


def _read_cect(path: Path) -> dict[str, pd.DataFrame]:
    if not path.is_file():
        raise no_file(path, [p.name for p in path.parent.glob("*.json")], "connectome")
    try:
        held = parse_json(path.read_bytes())
        names = [str(name) for name in held["nodes"]]
        return {str(kind): named_matrix(matrix, names, what=path.stem) for kind, matrix in held["connections"].items()}
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no connectome of cect ({type(error).__name__}: {error}); take version 0.3.5.") from None


def _kind(read: dict[str, pd.DataFrame], kind: str, name: str) -> pd.DataFrame:
    if kind not in read:
        raise unknown(f"kind of connection in {name}", kind, read)
    return read[kind]


def _rank_correlations(
    x: Float[np.ndarray, "responding stimulated"], own: list[int], least: int
) -> Float[np.ndarray, "responding responding"]:
    """Spearman's rho of every pair of rows over the columns that both have, without the two rows' own columns."""
    known = np.isfinite(x)
    found = np.full((len(x), len(x)), np.nan)
    for i in np.flatnonzero(known.sum(1) >= least):
        both = known[:i] & known[i]
        if own[i] >= 0:
            both[:, own[i]] = False
        for j in range(i):
            if own[j] >= 0:
                both[j, own[j]] = False
        chosen = np.flatnonzero(both.sum(1) >= least)
        a, b = (_centred_ranks(np.broadcast_to(v, both.shape)[chosen], both[chosen]) for v in (x[i], x[:i]))
        size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
        with np.errstate(divide="ignore", invalid="ignore"):
            found[i, chosen] = found[chosen, i] = np.where(size > 0, (a * b).sum(1) / size, np.nan)
    return found


def _centred_ranks(x: Float[np.ndarray, "pair stimulated"], counted: Bool[np.ndarray, "pair stimulated"]) -> np.ndarray:
    """Ranks of the counted entries of each row minus their mean; 0 elsewhere."""
    from scipy.stats import rankdata

    ranks = rankdata(np.where(counted, x, np.inf), axis=1)  # what does not count comes last, and takes no rank from the others
    return np.asarray(np.where(counted, ranks - (counted.sum(1, keepdims=True) + 1) / 2, 0.0))
