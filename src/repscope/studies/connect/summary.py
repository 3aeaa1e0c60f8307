"""The numbers of a `connect` run as rows and sentences, for its page and the command line."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from repscope.conditions import ESTIMATE, RANDOM
from repscope.results import Result, records
from repscope.studies.connect import basins
from repscope.studies.connect.names import OWN, RISE, metric_of
from repscope.studies.connect.options import ConnectOptions
from repscope.studies.run.study import Record
from repscope.trace.barriers import HEIGHTS
from repscope.trace.interpolation import all_pairs


def sentences(record: Record[ConnectOptions]) -> list[str]:
    """The main loss first, then the losses of other splits, then what the distances between runs predict."""
    table, result = record.table, record.results["connect"]
    losses = [str(m) for m in table[table["definition"] == OWN]["metric"].unique() if m.endswith("loss")]
    lines = [_sentence(record, loss) for loss in losses]
    return [*lines, *filter(None, [basins.sentence(result)])] if "clusters" in result.side else lines


def height_rows(record: Record[ConnectOptions]) -> list[dict[str, Any]]:
    """One row per pair and loss: losses of the ends, the four heights with intervals, the loss increase of the control."""
    names, table = record.facts["names"], record.table
    by = {(str(r["item"]), str(r["metric"]), str(r["condition"])): r for r in records(table)}
    rows = []
    for a, b in all_pairs(len(names)):
        ends = [names[i] for i in (a, b)]
        item = " – ".join(ends)
        for loss in table[table["definition"] == OWN]["metric"].unique():
            row = {"pair": item, "loss": str(loss)}
            row |= {f"at {w} end": f"{by[e, loss, ESTIMATE]['value']:.4g}" for w, e in zip(("one", "the other"), ends)}
            heights = {how: interval(by[item, metric_of(loss, how), ESTIMATE]) for how in HEIGHTS}
            risen = {c: by.get((item, metric_of(loss, RISE), c)) for c in (ESTIMATE, RANDOM)}
            row |= {"chord": heights["chord"]}
            row |= {RISE if c == ESTIMATE else f"{RISE}, {c}": interval(r) if r else "–" for c, r in risen.items()}
            row |= heights
            rows.append(row)
    return rows


def interval(row: Mapping[Any, Any]) -> str:
    """A number and its interval to three digits; zero where it is within rounding."""
    value, lo, hi = (0.0 if abs(row[c]) < 5e-7 else float(row[c]) for c in ("value", "lo", "hi"))
    return f"{value:.3g}" if np.isnan(lo) else f"{value:.3g} [{lo:.3g}, {hi:.3g}]"


def _sentence(record: Record[ConnectOptions], loss: str) -> str:
    names, result = record.facts["names"], record.results["connect"]
    unit, several = record.facts["loss unit"], len(names) > 2
    chord, _ = _pooled(result, metric_of(loss, "chord"), f" {unit}", matched=False)
    risen, control = _pooled(result, metric_of(loss, RISE))
    if several:
        lines = len(all_pairs(len(names)))
        text = f"Over {lines} lines between {len(names)} runs the chord barrier of the {loss} is {chord}"
    else:
        text = f"From {' to '.join(names)} the chord barrier of the {loss} is {chord}"
    if not control:
        return f"{text}."
    which = "; on those with a control it increases" if several else "; it increases"
    count = len(result.select(metric=metric_of(loss, RISE), condition=RANDOM))
    values = result.arrays[f"line {loss}"][:count]
    own = float(np.median(np.maximum(0.0, values[:, -1] - values[:, 0])))
    ends = f" ({own:.3g} of it the second network's own loss)" if own > 5e-7 else ""
    return f"{text}{which} by {risen} above the first network's{ends}, and by {control} at an equal distance in a random direction."


def _pooled(result: Result, metric: str, unit: str = "", *, matched: bool = True) -> tuple[str, str]:
    """A metric on the lines (`matched`: those with controls) and on the controls: of one its interval, of several the range."""
    text = []
    controls = result.select(metric=metric, condition=RANDOM)["item"]
    for condition in (ESTIMATE, RANDOM):
        rows = result.select(metric=metric, condition=condition)
        if matched and len(controls):
            rows = rows[rows["item"].isin(controls)]
        values = rows["value"]
        if len(rows) < 2:
            text.append(interval(rows.iloc[0].to_dict()) + unit if len(rows) else "")
        else:
            text.append(f"{values.median():.3g}{unit} (median; range {values.min():.3g} to {values.max():.3g})")
    return text[0], text[1]
