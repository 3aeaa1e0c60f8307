"""Functional connectomics of mouse visual cortex (MICrONS): edges and functional neurons from tables in a local folder.

The tables of Ding et al. (2025) are not on any package index; users export them. Two tables, CSV or Parquet:
- edges, one row per ordered pair: `pre`, `post`, `n_synapses`, and `dend_len`, the length in µm over which the presynaptic axon
  runs within reach of the postsynaptic dendrite (co-travel). Pairs with co-travel and no synapse are rows too: they are the
  control.
- nodes, one row per functional neuron: `nucleus_id`, and columns of functional properties, for instance readout weights.

Any other column names are given as arguments. Matrices are [pre, post]; a presynaptic cell whose axon was not traced has no row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from repscope.data.connectomes.named_matrices import as_names, edges_to_matrix
from repscope.data.table_files import SUFFIXES
from repscope.data.tables import read_table
from repscope.errors import UserError, no_file, unknown

EDGES: Mapping[str, str] = {"pre": "pre", "post": "post", "synapses": "n_synapses", "exposure": "dend_len"}


@dataclass(frozen=True, eq=False)
class Functional:
    """Synapses and their exposure, [pre, post], and functional properties of the neurons.

    synapses: counts; 0 where a pair was examined and has none. exposure: length of co-travel in µm, 0 where an axon never comes
    near. properties: one row per functional neuron. notes: rows and cells that do not match.
    """

    synapses: pd.DataFrame
    exposure: pd.DataFrame
    properties: pd.DataFrame
    notes: tuple[str, ...]

    def signal_correlation(self, columns: Sequence[str]) -> pd.DataFrame:
        """Correlation of neurons over these columns of properties, for instance responses to one stimulus each; [neuron, neuron].

        Raises
        ------
        UserError
            For an unknown column, or fewer than three.
        """
        for column in columns:
            if column not in self.properties.columns:
                raise unknown("property", column, self.properties.columns)
        if len(columns) < 3:
            raise UserError(f"A correlation of neurons over {len(columns)} columns says nothing; give at least three.")
        x = self.properties[list(columns)].to_numpy(np.float64)
        x = x - x.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(x, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = x @ x.T / np.outer(norm, norm)
        found[~np.isfinite(found)] = np.nan
        return pd.DataFrame(np.clip(found, -1, 1), index=self.properties.index, columns=self.properties.index)


def microns(
    edges: str | Path | pd.DataFrame,
    nodes: str | Path | pd.DataFrame,
    *,
    columns: Mapping[str, str] | None = None,
    node_name: str = "nucleus_id",
) -> Functional:
    """Synapses, co-travel and functional properties from local tables.

    Parameters
    ----------
    edges, nodes
        Tables, or paths to CSV, TSV or Parquet files.
    columns
        Names of the columns of edges: a mapping from `pre`, `post`, `synapses`, `exposure` to the table's own.
    node_name
        The column of nodes with the names that edges use.

    Raises
    ------
    UserError
        For a missing file or column, an empty table, negative numbers, or neurons listed twice.
    """
    named = {**EDGES, **(columns or {})}
    table, properties = _table(edges, (named["pre"], named["post"])), _table(nodes, (node_name,))
    if named["exposure"] in table.columns:
        table = table.assign(**{named["exposure"]: table[named["exposure"]].fillna(0.0)})  # an axon that never comes near
    synapses, exposure = (
        edges_to_matrix(table, pre=named["pre"], post=named["post"], weight=named[kind], self_loops="drop", what="table of edges")
        for kind in ("synapses", "exposure")
    )
    if node_name not in properties.columns:
        raise unknown("column of the table of nodes", node_name, properties.columns)
    properties = properties.set_index(as_names(properties[node_name])).drop(columns=node_name)
    if not properties.index.is_unique:
        twice = properties.index[properties.index.duplicated()][0]
        raise UserError(f"The table of nodes has neuron {twice!r} more than once; keep one row per neuron.")
    wired, known = {*synapses.index, *synapses.columns}, set(properties.index)
    apart = int(((synapses > 0) & (exposure == 0)).to_numpy().sum())
    notes = (
        f"{len(wired & known):,} cells are in both tables, {len(wired - known):,} only among the edges, {len(known - wired):,} "
        f"only among the nodes; {len(synapses.index):,} presynaptic cells were traced.",
        f"{apart} connected pairs have an exposure of 0.",
    )
    return Functional(synapses, exposure, properties, notes)


def microns_folder(folder: str | Path) -> Functional:
    """The tables of a folder: one file with "edge" and one with "node" in its name.

    Raises
    ------
    UserError
        For a folder without them, or with several, and as `microns`.
    """
    home = Path(folder).expanduser()
    if not home.is_dir():
        raise no_file(home, [p.name for p in home.parent.glob("*")] if home.parent.is_dir() else [], "folder of MICrONS tables")
    found = []
    for kind in ("edge", "node"):
        files = [p for p in sorted(home.iterdir()) if kind in p.stem.lower() and p.suffix.lower() in SUFFIXES]
        if len(files) != 1:
            listed = f" ({', '.join(p.name for p in files)})" if files else ""
            raise UserError(
                f"{home} has {len(files)} tables of {kind}s{listed}; give one file each, named like edges.csv and nodes.csv."
            )
        found.append(files[0])
    return microns(*found)


def _table(given: str | Path | pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """A table whose columns of names are text and whose other columns are numbers where all their cells are."""
    if isinstance(given, pd.DataFrame):
        return given
    frame = read_table(given).frame
    found: dict[str, pd.Series] = {}
    for column in frame.columns:
        numbers = pd.to_numeric(frame[column].replace("", np.nan), errors="coerce")
        numeric = column not in names and bool((numbers.notna() | (frame[column] == "")).all())
        found[column] = numbers if numeric else frame[column]  # names of 18 digits are no float64
    return pd.DataFrame(found)
