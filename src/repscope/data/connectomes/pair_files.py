"""Numbers of pairs of cells from files: a matrix names × names, or a list of pairs.

- A matrix: .csv or .tsv; the first column and the first line are names, rows presynaptic (stimulated), columns postsynaptic
  (responding). Empty cells, NA and NaN: not measured. The file as pandas' `to_csv` writes a frame.
- A list of pairs: .csv, .tsv, .parquet, .jsonl or .json with columns pre and post and one of numbers; without one, rows are counted
  (one row per synapse). Pairs that are not listed are what `absent` says: 0 of a connectome, NaN of a functional measure.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from repscope.data.connectomes.named_matrices import edges_to_matrix, named_matrix
from repscope.data.separated import separated
from repscope.data.tables import read_table
from repscope.errors import UserError, no_file

PRE, POST = "pre", "post"
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_MISSING = {"", "na", "nan", "n/a"}


def read_pairs(path: str | Path, *, what: str = "connectome", absent: float = 0.0) -> pd.DataFrame:
    """A file of numbers of pairs as a frame [pre, post].

    Parameters
    ----------
    what
        What it is of, for errors.
    absent
        Value of a pair that a list does not have, among the presynaptic cells and all cells that it has.

    Raises
    ------
    UserError
        For a file that is missing or neither, entries that are not numbers, pairs listed twice where absent pairs are not 0, and as
        `named_matrix`.
    """
    given = Path(path).expanduser()
    if given.is_dir():
        raise UserError(f"{given} is a folder; give the file of the {what} in it.")
    if not given.is_file():
        raise no_file(given, [p.name for p in given.parent.glob("*")] if given.parent.is_dir() else [], what)
    separator = _SEPARATORS.get(given.suffix.lower())
    if separator is None:
        return _of_list(given, what, absent)
    held = separated(given, separator, (), None)
    if {PRE, POST} <= set(held.header):
        return _of_list(given, what, absent)
    names, columns = [row[0].strip() for row in held.rows], [name.strip() for name in held.header[1:]]
    if not set(names) & set(columns):
        raise UserError(
            f"{given} is no {what}: its first column and its first line have no name in common, and it has no columns pre and post."
        )
    values = [[_number(cell, given, names[i], columns[j]) for j, cell in enumerate(row[1:])] for i, row in enumerate(held.rows)]
    return named_matrix(np.array(values), names, columns=columns, what=what)


def symmetric(frame: pd.DataFrame) -> pd.DataFrame:
    """A similarity that lists each pair once, completed by the other direction.

    Raises
    ------
    UserError
        If a pair has two different values.
    """
    names = list(dict.fromkeys([*frame.index, *frame.columns]))
    x = frame.reindex(index=names, columns=names).to_numpy(np.float64)
    both = np.isfinite(x) & np.isfinite(x.T)
    if not np.allclose(x[both], x.T[both], rtol=1e-4, atol=1e-6):
        i, j = np.argwhere(both & ~np.isclose(np.nan_to_num(x), np.nan_to_num(x.T), rtol=1e-4, atol=1e-6))[0]
        raise UserError(
            f"The similarity of {names[i]!r} and {names[j]!r} is {x[i, j]:g} and {x[j, i]:g}; similarity is symmetric: give "
            "effects of one cell on another as signals."
        )
    return pd.DataFrame(np.where(np.isfinite(x), x, x.T), index=names, columns=names)


def _of_list(path: Path, what: str, absent: float) -> pd.DataFrame:
    table = read_table(path)
    for column in (PRE, POST):
        if column not in table.frame.columns:
            raise UserError(f"{path} is no {what}; give a matrix names × names as .csv, or a table with columns pre and post.")
    others = [name for name in table.frame.columns if name not in (PRE, POST)]
    if len(others) > 1:
        raise UserError(
            f"{path} has {len(others)} columns besides pre and post ({', '.join(others[:4])}); leave the one of numbers."
        )
    edges = table.frame[[PRE, POST]].copy()
    if others:
        cells = table.frame[others[0]]
        edges["value"] = [
            _number(cell, path, pre, post) for cell, pre, post in zip(cells, table.frame[PRE], table.frame[POST], strict=True)
        ]
    if (edges[[PRE, POST]] == "").to_numpy().any():
        raise UserError(f"{path} has rows without a name in pre or post; remove or complete them.")
    if others and edges.duplicated([PRE, POST]).any():
        twice = edges[edges.duplicated([PRE, POST])].iloc[0]
        raise UserError(
            f"{path} has the pair {twice[PRE]!r}, {twice[POST]!r} more than once; give one number per pair"
            + (", or pairs without numbers, one row per synapse." if absent == 0.0 else ".")
        )
    if absent == 0.0:
        return edges_to_matrix(edges, weight="value" if others else None, what=what)
    if not others:
        raise UserError(f"{path} has pairs and no numbers; add a column of the {what}.")
    return named_matrix(edges.pivot(index=PRE, columns=POST, values="value"), what=what)


def _number(cell: str, path: Path, row: str, column: str) -> float:
    text = cell.strip()
    if text.lower() in _MISSING:
        return float("nan")
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"{path} has {text[:40]!r} from {row!r} to {column!r}; give a number, or nothing if not measured."
        ) from None
