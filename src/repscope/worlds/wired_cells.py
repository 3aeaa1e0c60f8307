"""Connectomes whose relation to function is known: like-to-like wiring that is planted or absent, and common input.

`wired_cells`: cells have features. Similarity is the correlation of some of them; synapses follow similarity with a planted slope,
other features that nobody measured, contact, and sizes of cells. Stimulating a cell has an effect on another with a probability
that depends on synapses, on contact, and on how easily both cells are driven.

`common_input`: cells lie on a ring; contact, and with it synapses, falls with distance. They are of a few types, and have more
synapses within a type at equal contact. Some cells are drivers.
1. Activity is linear: x = Wᵀ x + noise, sampled at many times. Correlation of activity is the first functional measure.
2. Stimulating one cell has the effect (I - W)⁻¹ on the others, measured with noise. Effects are the second measure.
3. W is what synapses carry. "synapses": all of them carry. "common input": those of drivers alone, so that two other cells are
   correlated because one driver reaches both, and a synapse between them carries nothing. Neighbours, and cells of one type, share
   drivers and have synapses: a synapse goes along with correlation all the same.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from repscope.data.connectomes.named_matrices import named_matrix
from repscope.errors import UserError

Carried = Literal["synapses", "common input"]
LEAST_CELLS = 12
_REACH, _DRIVERS, _GAIN, _TIMES, _ERROR = 0.12, 0.25, 0.85, 400, 0.05
_TYPES, _WITHIN = 3, 4.0  #: of cells; how many times as many synapses within a type


@dataclass(frozen=True, eq=False)
class WiredCells:
    """One draw; frames [pre, post]. synapses: counts. similarity: symmetric. signals: 0 or 1, NaN where not measured. contact:
    area, or None."""

    synapses: pd.DataFrame
    similarity: pd.DataFrame
    signals: pd.DataFrame
    contact: pd.DataFrame | None


@dataclass(frozen=True, eq=False)
class CommonInput:
    """One draw; frames. synapses: of all cells, [pre, post]. contact: of all cells. correlation, effect: of the cells that are no
    drivers; effect is [stimulated, responding]. drivers: names."""

    synapses: pd.DataFrame
    contact: pd.DataFrame
    correlation: pd.DataFrame
    effect: pd.DataFrame
    drivers: tuple[str, ...]


def wired_cells(
    cells: int = 40,
    *,
    slope: float = 1.0,
    hidden: float = 1.0,
    rate: float = 0.5,
    contact: bool = True,
    missing: float = 0.0,
    carried: float = 3.0,
    seed: int = 0,
) -> WiredCells:
    """Draw cells.

    Parameters
    ----------
    slope
        Log rate of synapses per unit of similarity: 0 is no like-to-like.
    hidden
        The same per unit of similarity in features that nobody measured.
    rate
        Mean rate of synapses, before sizes of cells.
    missing
        Share of pairs whose function was not measured.
    carried
        How many times as often a pair with a synapse has a signal: 1 is never because of the synapse.

    Raises
    ------
    UserError
        For fewer than twelve cells.
    """
    if cells < LEAST_CELLS:
        raise UserError(f"{cells} cells are too few for a simulated connectome; give at least {LEAST_CELLS}.")
    rng = np.random.default_rng(seed)
    known, other = np.corrcoef(rng.standard_normal((cells, 3))), np.corrcoef(rng.standard_normal((cells, 3)))
    area = rng.gamma(1.0, 1.0, (cells, cells)) * (rng.random((cells, cells)) < 0.6) if contact else np.ones((cells, cells))
    sizes = rng.normal(0, 0.7, (cells, 1)) + rng.normal(0, 0.7, cells)
    synapses = rng.poisson(rate * np.exp(sizes + slope * known + hidden * other) * area).astype(np.float64)
    np.fill_diagonal(synapses, 0)
    blank = np.triu(rng.random((cells, cells)) < missing, 1) if missing else np.zeros((cells, cells), dtype=bool)
    known = np.where(blank | blank.T, np.nan, known)
    touching = 1 + 0.5 * (area > 0)
    driven = 0.05 * np.exp(rng.normal(0, 0.5, (cells, 1)) + rng.normal(0, 0.5, cells)) * touching
    signals = (rng.random((cells, cells)) < driven * np.where(synapses > 0, carried, 1.0)).astype(np.float64)
    names = _names(cells)
    frames = [named_matrix(x, names) for x in (synapses, known, np.where(np.isnan(known), np.nan, signals), area)]
    return WiredCells(frames[0], frames[1], frames[2], frames[3] if contact else None)


def common_input(cells: int = 60, carried: Carried = "common input", *, rate: float = 0.8, seed: int = 0) -> CommonInput:
    """Draw cells on a ring, their activity, and effects of stimulation.

    Raises
    ------
    UserError
        For fewer than twice twelve cells.
    """
    if cells < 2 * LEAST_CELLS:
        raise UserError(f"{cells} cells are too few for drivers and the cells that they reach; give at least {2 * LEAST_CELLS}.")
    rng = np.random.default_rng(seed)
    place = rng.permutation(cells) / cells
    distance = np.abs(place[:, None] - place)
    distance = np.minimum(distance, 1 - distance)
    area = np.exp(-(distance**2) / (2 * _REACH**2)) * rng.gamma(2.0, 0.5, (cells, cells))
    kind = rng.integers(_TYPES, size=cells)
    synapses = rng.poisson(rate * area * np.where(kind[:, None] == kind, _WITHIN, 1.0)).astype(np.float64)
    np.fill_diagonal(synapses, 0)
    drivers = rng.permutation(cells) < round(_DRIVERS * cells)
    carries = np.ones(cells, dtype=bool) if carried == "synapses" else drivers
    w = synapses * carries[:, None]
    w[:, drivers] = 0  # drivers are driven by nothing here
    w *= _GAIN / max(float(np.linalg.norm(w, 2)), 1e-9) if carried == "synapses" else 1 / np.sqrt(max((w**2).sum(0).mean(), 1e-9))
    total = np.linalg.inv(np.eye(cells) - w)  # [source, responding]: noise of the source in x of the other
    activity = rng.standard_normal((_TIMES, cells)) @ total
    effect = total - np.eye(cells) + _ERROR * rng.standard_normal((cells, cells))
    others = np.flatnonzero(~drivers)
    names = np.array(_names(cells))
    inner = [named_matrix(x[np.ix_(others, others)], names[others].tolist()) for x in (np.asarray(np.corrcoef(activity.T)), effect)]
    frames = [named_matrix(x, names.tolist()) for x in (synapses, area)]
    return CommonInput(frames[0], frames[1], inner[0], inner[1], tuple(names[drivers].tolist()))


def _names(cells: int) -> list[str]:
    return [f"cell {i}" for i in range(cells)]
