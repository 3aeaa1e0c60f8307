"""Matrices of pairs with names: rows are presynaptic (or stimulated) cells, columns postsynaptic (or responding) ones.

1. A matrix is a `pandas.DataFrame`: index and columns are names. It need not be square: a row that is missing was not examined.
2. NaN says that a pair was not measured, 0 that it was and nothing was there. The two are never confused.
3. Names are aligned by name, never by position. Repeated names are refused.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from repscope.errors import UserError, unknown

SelfLoops = Literal["refuse", "drop"]


def named_matrix(
    values: Any,
    names: Sequence[str] | None = None,
    *,
    what: str = "matrix",
    columns: Sequence[str] | None = None,
    self_loops: SelfLoops | None = None,
    signed: bool = True,
) -> pd.DataFrame:
    """A matrix with names as float64, checked.

    Parameters
    ----------
    values
        A frame (index: presynaptic names, columns: postsynaptic names), or an array [pre, post] with `names`.
    names, columns
        Names of an array's rows, and of its columns if they differ.
    what
        What the matrix is of, for errors.
    self_loops
        What to do with entries that are not 0 between a cell and itself: `"refuse"` or `"drop"`; None leaves the diagonal as it is.
    signed
        False refuses negative entries.

    Raises
    ------
    UserError
        For an array without names or of another shape, repeated names, infinite or negative entries, self-loops.
    """
    if not isinstance(values, pd.DataFrame):
        array = np.asarray(values)
        rows = list(names or ())
        cols = list(columns) if columns is not None else rows
        if array.ndim != 2 or array.shape != (len(rows), len(cols)):
            raise UserError(
                f"The {what} has the shape {array.shape} and {len(rows)} names; give an array [pre, post] and its names."
            )
        values = pd.DataFrame(array, index=rows, columns=cols)
    frame = values.rename(index=str, columns=str)
    for side, found in (("row", frame.index), ("column", frame.columns)):
        if not found.is_unique:
            raise UserError(f"The {what} has more than one {side} named {found[found.duplicated()][0]!r}; merge or rename them.")
    try:
        frame = frame.astype(np.float64)
    except (TypeError, ValueError):
        raise UserError(
            f"The {what} contains entries that are not numbers; give numbers, and NaN where nothing was measured."
        ) from None
    x = frame.to_numpy()
    if np.isinf(x).any():
        raise UserError(f"The {what} contains infinite entries; give NaN where nothing was measured.")
    if not signed and (x < 0).any():
        i, j = np.argwhere(x < 0)[0]
        raise UserError(
            f"The {what} is negative from {frame.index[i]!r} to {frame.columns[j]!r}; give counts or sizes of at least 0."
        )
    return frame if self_loops is None else _without_loops(frame, what, self_loops)


def edges_to_matrix(
    edges: pd.DataFrame,
    *,
    pre: str = "pre",
    post: str = "post",
    weight: str | None = None,
    examined: Iterable[str] | None = None,
    names: Iterable[str] | None = None,
    self_loops: SelfLoops = "refuse",
    what: str = "table of edges",
) -> pd.DataFrame:
    """A matrix [pre, post] from a table with one row per connection or per synapse; several rows of one pair are summed.

    Parameters
    ----------
    edges
        The table. pre, post: its columns of names. weight: its column of counts; None counts rows.
    examined
        Presynaptic cells whose outputs were all traced: their missing pairs are 0. By default every cell that has an output.
    names
        Postsynaptic cells. By default all that are named in the table.
    self_loops
        `"refuse"` or `"drop"` connections of a cell with itself.

    Raises
    ------
    UserError
        For an empty table, missing columns or cells, negative weights, self-loops, or outputs of cells that were not examined.

    >>> frame = pd.DataFrame({"pre": ["a", "a", "b"], "post": ["b", "b", "c"]})
    >>> edges_to_matrix(frame).loc["a", "b"]
    np.float64(2.0)
    """
    for column in (pre, post, *([weight] if weight else [])):
        if column not in edges.columns:
            raise unknown(f"column of the {what}", column, edges.columns)
    if edges.empty:
        raise UserError(f"The {what} is empty; give at least one connection.")
    table = pd.DataFrame({"pre": edges[pre], "post": edges[post], "n": edges[weight] if weight else 1.0})
    if bool(table.isna().to_numpy().any()):
        raise UserError(f"The {what} has {int(table.isna().any(axis=1).sum())} rows with an empty cell; remove or complete them.")
    for column in ("pre", "post"):
        table[column] = as_names(table[column])
    if weight and not pd.api.types.is_numeric_dtype(table["n"]):
        raise UserError(f"Column {weight!r} of the {what} contains text; give numbers.")
    rows = sorted(set(table["pre"])) if examined is None else [str(name) for name in examined]
    cols = sorted({*table["pre"], *table["post"]}) if names is None else [str(name) for name in names]
    for column, known in (("pre", set(rows)), ("post", set(cols))):
        if other := sorted(set(table[column]) - known):
            raise UserError(
                f"The {what} has connections of {len(other)} cells that are not among those given as {column}synaptic "
                f"({other[0]!r}); add them, or leave those rows out."
            )
    table["n"] = table["n"].astype(np.float64)
    summed = table.groupby(["pre", "post"])["n"].sum().unstack().fillna(0.0)
    frame = summed.reindex(index=rows, columns=cols, fill_value=0.0).fillna(0.0)
    return named_matrix(frame, what=what, self_loops=self_loops, signed=False)


def as_names(values: pd.Series) -> pd.Series:
    """Names as text; whole numbers that pandas holds as floats, as it does beside empty cells, get no ".0"."""
    if pd.api.types.is_float_dtype(values) and bool((values == values.round()).all()):
        values = values.astype(np.int64)
    return values.astype(str)


def _without_loops(frame: pd.DataFrame, what: str, self_loops: SelfLoops) -> pd.DataFrame:
    shared = [name for name in frame.index if name in frame.columns]
    loops = [name for name in shared if np.nan_to_num(float(str(frame.at[name, name]))) != 0]
    if loops and self_loops == "refuse":
        raise UserError(
            f"The {what} has {len(loops)} connections of a cell with itself ({loops[0]!r}); remove them; in Python, "
            f"self_loops='drop' does."
        )
    if loops:
        frame = frame.copy()
        for name in loops:
            frame.at[name, name] = 0.0
    return frame
