"""The user's table in place of networks trained here: the ladder, the law, and the gain of every enhancement in it.

Columns: compute (any unit), loss above 0 or score between 0 and 1 (its loss is 1 − score), enhancement (empty for the ladder), and
possibly unit (a seed or a task that ladder and enhancements share: then units are resampled together).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repscope.data.tables import read_table
from repscope.errors import UserError
from repscope.results import Result, Row
from repscope.studies.emergence import names
from repscope.studies.emergence.ladder import SCORES, gain_frame
from repscope.studies.emergence.options import EmergenceOptions
from repscope.studies.run.study import Context
from repscope.trace.effective_compute import Gain, Ladder, gain, law_intervals


def climbed(options: EmergenceOptions, context: Context) -> Result:
    """The law of the table's ladder and the gain of each enhancement."""
    frame = read_ladder(Path(str(options.ladder)).expanduser())
    units = sorted(frame["unit"].unique())
    own = frame[frame["enhancement"] == ""]
    ladder, compute = _ladder(own, units), own.groupby("compute")["loss"].mean()
    gains: list[tuple[str, str, float, Gain]] = []
    rows: list[Row] = []
    for (name, amount), some in frame[frame["enhancement"] != ""].groupby(["enhancement", "compute"], sort=False):
        losses = some.set_index("unit")["loss"].reindex(units).to_numpy() if ladder.shared else some["loss"].to_numpy()
        if not np.isfinite(losses).all():
            raise UserError(f"The enhancement {name} lacks units that the ladder has; give all {len(units)}, or leave it out.")
        item = f"{name}, compute {float(str(amount)):.3g}"
        found = gain(ladder, float(str(amount)), losses, draws=options.draws, seed=options.seed)
        gains.append((names.LOSS, item, float("nan"), found))
        where: dict[str, Any] = {"metric": names.GAIN, "item": item, "split": "by loss", "seed": options.seed}
        rows.append(Row.of(found.estimate, **where) if found.estimate is not None else Row(value=float("nan"), **where))
    for name, estimate in law_intervals(ladder, draws=options.draws, seed=options.seed).items():
        metric = names.FLOOR if name == "floor" else names.EXPONENT
        rows.append(Row.of(estimate, metric=metric, item="ladder", seed=options.seed))
    for amount, value in compute.items():
        rows.append(Row(metric=names.LOSS, item=f"ladder, compute {float(str(amount)):.3g}", value=float(value), seed=options.seed))
    grid = np.geomspace(ladder.compute[0] / 2, ladder.compute[-1] * 4, 40)
    law = pd.DataFrame({"score": names.LOSS, "compute": grid, "value": ladder.law.loss(grid)})
    shown = frame.rename(columns={"enhancement": "method", "loss": SCORES[0]}).assign(world=frame["unit"])
    notes = tuple(f"{item}: {found.refusal}" for _, item, _, found in gains if found.refusal)
    return Result.of(rows, side={"ladder": shown.drop(columns="unit"), "gains": gain_frame(gains), "law": law}, notes=notes)


def read_ladder(path: Path) -> pd.DataFrame:
    """The table with the columns compute, loss, enhancement and unit.

    Raises
    ------
    UserError
        For missing columns, scores outside of 0 to 1, numbers that are not numbers, or a table without ladder or enhancement.
    """
    table = read_table(path, optional=("compute", "loss", "score", "enhancement", "unit"))
    frame = table.frame
    if missing := [c for c in ("compute", "enhancement") if c not in frame.columns]:
        raise UserError(
            f"{path} has no column {missing[0]}; it needs compute, loss or score, and enhancement (empty for the ladder)."
        )
    if ("loss" in frame.columns) == ("score" in frame.columns):
        raise UserError(f"{path} needs one of the columns loss and score, and not both.")
    column = "loss" if "loss" in frame.columns else "score"
    numbers = {c: pd.to_numeric(frame[c], errors="coerce").to_numpy(dtype=np.float64) for c in ("compute", column)}
    for name, values in numbers.items():
        if not np.isfinite(values).all():
            where = table.where(int(np.flatnonzero(~np.isfinite(values))[0]))
            raise UserError(f"{path}, {where}, has no number in the column {name}; fill it in, or leave the row out.")
    loss = numbers[column]
    if column == "score":
        if (loss <= 0).any() or (loss >= 1).any():
            raise UserError(f"{path} has scores outside of 0 to 1; give shares, such as accuracies, or losses in a column loss.")
        loss = 1 - loss
    named = frame["enhancement"].fillna("").astype(str).str.strip()
    if (named == "").all() or (named != "").all():
        kind = "enhancement" if (named == "").all() else "ladder (rows with an empty enhancement)"
        raise UserError(f"{path} has no {kind}; the gain of an enhancement needs both.")
    unit = frame["unit"].astype(str) if "unit" in frame.columns else pd.Series("", index=frame.index)
    found = pd.DataFrame({"compute": numbers["compute"], "loss": loss, "enhancement": named, "unit": unit})
    if found.duplicated(["compute", "enhancement", "unit"]).any() and "unit" in frame.columns:
        raise UserError(f"{path} has a compute twice for one unit and enhancement; give each once.")
    return found.reset_index(drop=True)


def _ladder(own: pd.DataFrame, units: list[str]) -> Ladder:
    """One column per unit where every unit is on every rung; otherwise all networks as rungs of their own."""
    if len(units) < 2:
        return Ladder(own["compute"].to_numpy(), own["loss"].to_numpy())
    wide = own.pivot(index="compute", columns="unit", values="loss").reindex(columns=units)
    if wide.isna().any(axis=None):
        raise UserError("Some units lack a rung of the ladder; give every unit at every compute, or leave the column unit out.")
    return Ladder(wide.index.to_numpy(dtype=np.float64), wide.to_numpy())
