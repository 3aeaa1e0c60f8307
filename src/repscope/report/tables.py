"""Rows of results as tables of text: every number with its interval, a dash where there is none."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from repscope.report.text import format_estimate


def cell(row: Mapping[Any, Any] | None) -> str:
    """A number with its interval; a dash without a row."""
    return "–" if row is None else format_estimate(row)


def wide(rows: pd.DataFrame, index: str | list[str], columns: str, *, sort: bool = False) -> pd.DataFrame:
    """One line per value of `index` and one column of cells per value of `columns`, in their order in the rows or sorted."""
    cells = rows.assign(cell=[format_estimate(row) for row in rows.to_dict("records")])
    return cells.pivot_table(index=index, columns=columns, values="cell", aggfunc="first", sort=sort).fillna("–").reset_index()
