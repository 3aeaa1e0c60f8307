"""Results of analyses: one tidy table in one schema for all studies, arrays, and side tables.

Estimate and controls are rows of the same table: `condition` is one of `repscope.conditions`. What does not fit
the schema goes into a side table. No network is known here; a model is a fingerprint in a column.

On disk a result is a folder: `table.parquet`, `arrays.safetensors`, one Parquet file per side table; complete or absent.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from repscope import manifest, notebook
from repscope.conditions import ESTIMATE as ESTIMATE
from repscope.conditions import condition as known_condition
from repscope.disk import whole_folder
from repscope.errors import UserError, unknown
from repscope.names import escaped, unescaped
from repscope.stats import Estimate, mean

if TYPE_CHECKING:
    import altair as alt
    import xarray as xr


CHOSEN = "chosen on the other half"  #: site of a number whose setting was chosen on the half that it is not reported on


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of one analysis, in the schema of all studies."""

    study: str = ""  #: the study's command-line name
    step: str = ""  #: the step of that study
    metric: str = ""  #: what was measured: accuracy, r2, cka …
    definition: str = ""  #: which definition of the metric
    model: str = ""  #: the model's fingerprint
    site: str = ""  #: where in the network; "" if the number has no site
    layer: int | None = None  #: block of that site
    token: str = ""  #: which token positions: last, first, mean, -2 …
    item: str = ""  #: subject of the number: an attribute, a relation, a direction
    condition: str = ESTIMATE  #: one of `repscope.conditions`
    split: str = ""  #: how train and test data are separated
    value: float
    lo: float = float("nan")
    hi: float = float("nan")
    level: float = float("nan")  #: nominal coverage of [lo, hi]
    interval_method: str = ""
    unit: str = ""  #: what was resampled for the interval; n is their number
    n: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        known_condition(self.condition)

    @classmethod
    def of(cls, estimate: Estimate, **where: Any) -> "Row":
        """A row from an estimate with its interval."""
        return cls(
            value=estimate.value,
            lo=estimate.lo,
            hi=estimate.hi,
            level=estimate.level,
            interval_method=estimate.method,
            unit=estimate.unit,
            n=estimate.n,
            **where,
        )

    @classmethod
    def over(cls, values: Float[np.ndarray, "unit"], unit: str, *, seed: int = 0, **where: Any) -> "Row":
        """The mean over units with its interval; a single unit has none."""
        if len(values) == 1:
            return cls(value=float(values[0]), n=1, unit=unit, seed=seed, **where)
        return cls.of(mean(values, unit=unit, seed=seed), seed=seed, **where)


def at(site: Any) -> dict[str, Any]:
    """The columns of a `models.sites.Site`."""
    return {"site": str(site), "layer": site.layer}


_MEASURED = ("value", "lo", "hi", "level", "interval_method", "unit", "n")
_KINDS = {"layer": "Int64", "n": "int64", "seed": "int64"} | dict.fromkeys(("value", "lo", "hi", "level"), "float64")
COLUMNS: dict[str, str] = {f.name: _KINDS.get(f.name, "string") for f in fields(Row)} | {"row_id": "string"}


def table_of(rows: Iterable[Row]) -> pd.DataFrame:
    """The rows as a tidy table. `row_id` is a hash of the identifying columns, so the same number has the same id in every run."""
    return identified(pd.DataFrame([asdict(row) for row in rows], columns=[c for c in COLUMNS if c != "row_id"]))


def identified(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with new `row_id`s, for instance after study and step were filled in."""
    frame = frame.drop(columns="row_id", errors="ignore").astype({k: v for k, v in COLUMNS.items() if k != "row_id"})
    keys = frame[[c for c in frame.columns if c not in _MEASURED]].astype("object")
    frame["row_id"] = [
        hashlib.sha256("\x1f".join("" if pd.isna(v) else str(v) for v in row).encode()).hexdigest()[:12]
        for row in keys.itertuples(index=False)
    ]
    return frame.astype(COLUMNS)


@dataclass(frozen=True)
class Result:
    """The result of one step of a study.

    table: rows in the shared schema (`COLUMNS`). arrays: named arrays, stored as safetensors. side: tables in other
    schemas. notes: sentences that the page must print (dropped rows, refusals).
    """

    table: pd.DataFrame
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    side: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[Row], **parts: Any) -> "Result":
        """A result from rows."""
        return cls(table_of(rows), **parts)

    def __post_init__(self) -> None:
        if list(self.table.columns) != list(COLUMNS):
            raise ValueError(f"The table of a result needs the columns {list(COLUMNS)}, not {list(self.table.columns)}.")

    def select(self, **equal: object) -> pd.DataFrame:
        """The rows in which each named column equals the value given.

        Raises
        ------
        UserError
            For a column that is not in the schema.
        """
        return select(self.table, **equal)

    def save(self, folder: Path, *, sync: bool = True) -> Path:
        """Write the result as a folder, completely or not at all; `sync` as for `whole_folder`."""
        from safetensors.numpy import save_file

        with whole_folder(folder, sync=sync) as partial:
            self.table.to_parquet(partial / "table.parquet", index=False)
            save_file({k: np.ascontiguousarray(v) for k, v in self.arrays.items()}, partial / "arrays.safetensors")
            for name, frame in self.side.items():
                frame.to_parquet(partial / f"side-{escaped(name)}.parquet", index=False)
            pd.DataFrame({"note": pd.Series(self.notes, dtype="string")}).to_parquet(partial / "notes.parquet")
        return folder

    @classmethod
    def load(cls, folder: Path) -> "Result":
        """Read a folder that `save` wrote.

        Raises
        ------
        UserError
            If the folder contains no result, or one with other bytes than were written.
        """
        if not (folder / "table.parquet").is_file() and not (folder / manifest.NAME).is_file():
            raise UserError(f"{folder} contains no result (no table.parquet); `repscope runs` lists all runs.")
        wrong = manifest.damage(folder)
        if wrong is None:
            try:
                return cls._read(folder)
            except Exception as error:  # of Parquet, of safetensors, of their contents
                wrong = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} is damaged ({wrong}); compute it again.")

    @classmethod
    def _read(cls, folder: Path) -> "Result":
        from safetensors.numpy import load_file

        return cls(
            table=pd.read_parquet(folder / "table.parquet").astype(COLUMNS),
            arrays=load_file(folder / "arrays.safetensors"),
            side={unescaped(p.stem.removeprefix("side-")): pd.read_parquet(p) for p in sorted(folder.glob("side-*.parquet"))},
            notes=tuple(pd.read_parquet(folder / "notes.parquet")["note"]),
        )

    def to_xarray(self, *dims: str, **equal: object) -> "xr.Dataset":
        """The selected rows as an xarray dataset with the variables value, lo, hi and n over the given columns.

        Parameters
        ----------
        dims
            Columns of the schema that become dimensions, such as `"item", "condition", "layer"`. Cells without a row are NaN.
        equal
            Selects rows, as `select`.

        Raises
        ------
        UserError
            For an unknown column, no row, or rows that the dimensions do not distinguish; names a column that does.

        >>> rows = [Row(metric="r2", item=i, layer=l, value=0.1 * l) for i in "ab" for l in (0, 1)]
        >>> Result.of(rows).to_xarray("item", "layer")["value"].sel(item="a").values.tolist()
        [0.0, 0.1]
        """
        rows = self.select(**equal).dropna(subset=[d for d in dims if d in self.table.columns])
        for name in dims:
            if name not in rows.columns:
                raise unknown("column", name, rows.columns)
        if rows.empty:
            raise UserError("No row has these values and a value in each dimension; see the column's values in result.table.")
        if rows.duplicated(list(dims)).any() if dims else len(rows) > 1:
            columns = [c for c in COLUMNS if c not in (*dims, *_MEASURED, "row_id") and rows[c].nunique(dropna=False) > 1]
            raise UserError(
                f"Several rows share {' and '.join(dims) or 'no dimension'}; add a dimension or select one value of: "
                f"{', '.join(columns) or 'row_id'}."
            )
        plain = {"layer": "int64"} | {c: "object" for c in dims if COLUMNS[c] == "string"}
        table = rows[[*dims, "value", "lo", "hi", "n"]].astype({c: plain[c] for c in dims if c in plain})
        found = table.set_index(list(dims)) if dims else table.reset_index(drop=True)
        dataset = found.to_xarray() if dims else found.to_xarray().isel(index=0, drop=True)
        return dataset.assign_attrs({c: str(rows[c].iloc[0]) for c in ("study", "model", "metric") if rows[c].nunique() == 1})

    def figure(self) -> "alt.TopLevelMixin":
        """Values with their intervals, one panel per item and metric (at most 12): by block, or by condition without blocks.

        Raises
        ------
        UserError
            If no row has a value.
        """
        return notebook.figure(self)

    def _repr_html_(self) -> str:
        return notebook.html(self)


def select(table: pd.DataFrame, **equal: object) -> pd.DataFrame:
    """The rows of a table in which each named column equals the value given."""
    keep = np.ones(len(table), dtype=bool)
    for column, value in equal.items():
        if column not in table.columns:
            raise unknown("column", column, table.columns)
        keep &= (table[column] == value).fillna(False).to_numpy(dtype=bool)
    return table[keep]


def records(table: pd.DataFrame, **equal: object) -> list[dict[Any, Any]]:
    """Those rows as dictionaries."""
    return list(select(table, **equal).to_dict("records"))


def first_row(table: pd.DataFrame, **equal: object) -> dict[Any, Any] | None:
    """The first of those rows as a dictionary; None where there is none."""
    found = records(table, **equal)
    return found[0] if found else None


def concat(results: Iterable[Result]) -> Result:
    """Concatenate results: rows, arrays, side tables and notes."""
    parts = list(results)
    return Result(
        table=pd.concat([r.table for r in parts], ignore_index=True).astype(COLUMNS) if parts else table_of([]),
        arrays={k: v for r in parts for k, v in r.arrays.items()},
        side={k: v for r in parts for k, v in r.side.items()},
        notes=tuple(note for r in parts for note in r.notes),
    )
