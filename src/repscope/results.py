"""Result: what an analysis returns. One tidy table in one schema for all studies, arrays, and side tables.

Estimate and controls are rows of the same table: `condition` is "estimate" or the name of a control. What does not fit
the schema goes into a side table. Nothing here knows a network; a model is a fingerprint in a column.

On disk a result is a folder: `table.parquet`, `arrays.safetensors`, one Parquet a side table. It is written whole or not at all.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from repscope.conditions import ESTIMATE as ESTIMATE
from repscope.conditions import condition as known_condition
from repscope.disk import whole_folder
from repscope.errors import UserError, unknown
from repscope.stats import Estimate

if TYPE_CHECKING:
    import altair as alt


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of one analysis, in the schema that all studies share."""

    study: str = ""  #: the study's command-line name
    step: str = ""  #: the step of that study
    metric: str = ""  #: what was measured: accuracy, r2, cka …
    definition: str = ""  #: which of the definitions in use that is
    model: str = ""  #: the model's fingerprint
    site: str = ""  #: where in the network, "" where the number has no place there
    layer: int | None = None  #: block of that site
    token: str = ""  #: which token positions: last, first, mean, -2 …
    item: str = ""  #: what was asked: an attribute, a relation, a direction
    condition: str = ESTIMATE  #: one of `repscope.conditions`
    split: str = ""  #: how train and test were kept apart
    value: float
    lo: float = float("nan")
    hi: float = float("nan")
    level: float = float("nan")  #: nominal coverage of [lo, hi]
    interval_method: str = ""
    unit: str = ""  #: what was resampled for the interval, and what n counts
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


_MEASURED = ("value", "lo", "hi", "level", "interval_method", "unit", "n")
_KINDS: dict[str, str] = {
    "layer": "Int64",
    "n": "int64",
    "seed": "int64",
    "value": "float64",
    "lo": "float64",
    "hi": "float64",
    "level": "float64",
}
COLUMNS: dict[str, str] = {f.name: _KINDS.get(f.name, "string") for f in fields(Row)} | {"row_id": "string"}


def table_of(rows: Iterable[Row]) -> pd.DataFrame:
    """The rows as a tidy table. `row_id` comes from the identifying columns: one question has one id in every run."""
    return identified(pd.DataFrame([asdict(row) for row in rows], columns=[c for c in COLUMNS if c != "row_id"]))


def identified(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with its `row_id` made anew, for instance after its rows were told their study and step."""
    frame = frame.drop(columns="row_id", errors="ignore").astype({k: v for k, v in COLUMNS.items() if k != "row_id"})
    keys = frame[[c for c in frame.columns if c not in _MEASURED]].astype("object")
    frame["row_id"] = [
        hashlib.sha256("\x1f".join("" if pd.isna(v) else str(v) for v in row).encode()).hexdigest()[:12]
        for row in keys.itertuples(index=False)
    ]
    return frame.astype(COLUMNS)


@dataclass(frozen=True)
class Result:
    """What one step of a study found.

    table: rows in the shared schema (`COLUMNS`). arrays: named arrays, kept as safetensors. side: tables of any other
    shape. notes: sentences that the page must print (dropped rows, refusals).
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
            raise ValueError(f"a result's table has the columns {list(COLUMNS)}, not {list(self.table.columns)}")

    def select(self, **equal: object) -> pd.DataFrame:
        """The rows in which each named column equals the value given.

        Raises
        ------
        UserError
            For a column that the schema does not have.
        """
        return select(self.table, **equal)

    def save(self, folder: Path) -> Path:
        """Write the result as a folder, whole or not at all."""
        from safetensors.numpy import save_file

        with whole_folder(folder) as partial:
            self.table.to_parquet(partial / "table.parquet", index=False)
            save_file({k: np.ascontiguousarray(v) for k, v in self.arrays.items()}, partial / "arrays.safetensors")
            for name, frame in self.side.items():
                frame.to_parquet(partial / f"side-{name}.parquet", index=False)
            pd.DataFrame({"note": pd.Series(self.notes, dtype="string")}).to_parquet(partial / "notes.parquet")
        return folder

    @classmethod
    def load(cls, folder: Path) -> "Result":
        """Read back what `save` wrote.

        Raises
        ------
        UserError
            When there is no result in that folder.
        """
        from safetensors.numpy import load_file

        if not (folder / "table.parquet").is_file():
            raise UserError(f"{folder} holds no result (no table.parquet); `repscope runs` lists the runs there are.")
        return cls(
            table=pd.read_parquet(folder / "table.parquet").astype(COLUMNS),
            arrays=load_file(folder / "arrays.safetensors"),
            side={p.stem.removeprefix("side-"): pd.read_parquet(p) for p in sorted(folder.glob("side-*.parquet"))},
            notes=tuple(pd.read_parquet(folder / "notes.parquet")["note"]),
        )

    def figure(self) -> "alt.LayerChart | alt.FacetChart":
        """Value by layer with its interval, one line a condition, one panel an item and metric."""
        import altair as alt

        shown = self.table.dropna(subset=["layer"]).assign(panel=lambda t: t["item"] + " · " + t["metric"])
        if shown.empty:
            raise UserError("This result has no rows with a layer to draw; look at its table instead.")
        base = alt.Chart(shown.astype({"layer": "int64"})).encode(x=alt.X("layer:Q", title="block"), color=alt.Color("condition:N"))
        lines = base.mark_line().encode(y=alt.Y("value:Q", title="value"))
        bands = base.mark_area(opacity=0.2).encode(y="lo:Q", y2="hi:Q")
        return alt.layer(bands, lines).facet("panel:N", columns=2)

    def _repr_html_(self) -> str:
        shown = self.table[["metric", "item", "site", "token", "condition", "value", "lo", "hi", "n", "unit"]]
        return str(shown.to_html(index=False, max_rows=40, float_format=lambda v: f"{v:.3g}"))


def select(table: pd.DataFrame, **equal: object) -> pd.DataFrame:
    """The rows of a table in which each named column equals the value given."""
    keep = np.ones(len(table), dtype=bool)
    for column, value in equal.items():
        if column not in table.columns:
            raise unknown("column", column, table.columns)
        keep &= (table[column] == value).fillna(False).to_numpy(dtype=bool)
    return table[keep]


def concat(results: Iterable[Result]) -> Result:
    """Several results as one: rows one after the other; arrays, side tables and notes joined."""
    held = list(results)
    return Result(
        table=pd.concat([r.table for r in held], ignore_index=True).astype(COLUMNS) if held else table_of([]),
        arrays={k: v for r in held for k, v in r.arrays.items()},
        side={k: v for r in held for k, v in r.side.items()},
        notes=tuple(note for r in held for note in r.notes),
    )
