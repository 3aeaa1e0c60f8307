"""Figures of the `drift` page, from the table of the run."""

from typing import Any

import pandas as pd

from repscope.conditions import BFLOAT16, ESTIMATE, PERMUTED_GAPS
from repscope.report.charts import grids, runs
from repscope.report.page import Figure, Table
from repscope.report.tables import wide
from repscope.results import records, select
from repscope.studies.drift import gaps, names
from repscope.studies.run.study import Record
from repscope.worlds.rewarded.methods import METHODS

_COLUMNS = ["dose", "condition", "value", "lo", "hi", "n"]
_SAID = {names.NORM: "relative norm of the change", names.KL: "KL from the checkpoint (nats per token)", names.CKA: "1 − CKA"}


def gap(table: pd.DataFrame, metric: str, *, headline: bool = False) -> Figure | None:
    """Drift by gap, one line per method; the control is the line that the permuted gaps of RL give."""
    rows = table[(table["split"] == "gap") & (table["condition"] == ESTIMATE)]
    drawn: list[tuple[Any, ...]] = []
    for name in gaps.METHODS:
        mine = rows[rows["item"] == name]
        x = mine[mine["metric"] == "gap"].set_index("token")["value"]
        y = mine[mine["metric"] == metric].set_index("token")
        for level in y.index:
            r = y.loc[level]
            ends = [r["value"], r["lo"], r["hi"]]
            value, lo, hi = (1 - ends[0], 1 - ends[2], 1 - ends[1]) if metric == names.CKA else ends
            drawn.append((x[level], name, value, lo, hi, r["n"]))
    if not drawn:
        return None
    frame = pd.DataFrame(drawn, columns=_COLUMNS)
    frame = pd.concat([frame, _permuted(table, metric, frame)], ignore_index=True)
    if headline:
        title = "Drift by the reward gap that imitation left"
        caption = (
            "Relative Frobenius norm of the change from the imitation checkpoint to equal reward, by the gap in reward at the "
            "checkpoint. Means and 95 % intervals over seeds. Grey: the line that permuted gaps give for REINFORCE."
        )
    else:
        title, caption = f"{_SAID[metric][0].upper()}{_SAID[metric][1:]}, by gap", "As above."
    chart = grids.dose(frame, x_title="gap in reward at the checkpoint", value_title=_SAID[metric], share=False)
    return Figure(chart, title, caption, small=not headline)


def _permuted(table: pd.DataFrame, metric: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Two points of the line with the slope of permuted gaps through the mean of REINFORCE."""
    item = f"{names.REINFORCE}: {'1 − CKA' if metric == names.CKA else metric}"
    null = records(table, metric=names.SLOPE, condition=PERMUTED_GAPS, item=item)
    mine = frame[frame["condition"] == names.REINFORCE]
    if not null or mine.empty:
        return pd.DataFrame(columns=_COLUMNS).astype(frame.dtypes.to_dict())
    middle, height = mine["dose"].mean(), mine["value"].mean()
    lines = []
    for x in (mine["dose"].min(), mine["dose"].max()):
        ends = sorted(height + null[0][k] * (x - middle) for k in ("lo", "hi"))
        lines.append((x, PERMUTED_GAPS, height + null[0]["value"] * (x - middle), *ends, null[0]["n"]))
    return pd.DataFrame(lines, columns=_COLUMNS)


def kinds(record: Record[Any]) -> Figure:
    """Weight drift against KL, one point per network at equal reward."""
    drift = record.results["drift"].side["drift"]
    some = drift[drift["match"] == names.AT_REWARD]
    frame = pd.DataFrame(
        {
            "x": some[names.NORM],
            "y": some[names.KL],
            "group": some["method"].map(names.SHORT),
            "name": [f"seed {s}, rate {r:g}, run {k}" for s, r, k in zip(some["seed"], some["rate"], some["repeat"])],
        }
    )
    chart = runs.scattered(frame, x_title="relative norm of the change", y_title="KL from the base (nats per token)")
    return Figure(
        chart, "Weight drift and KL of each network at equal reward", "One point per network, all rates and both training seeds."
    )


def along(record: Record[Any]) -> Figure | None:
    """Weight drift along training against reward, main rate, mean over seeds."""
    lines = []
    for name in METHODS:
        curve = record.results[f"train {name}"].side[f"curve-{name}"]
        mine = curve[(curve["rate"] == record.options.rate) & (curve["repeat"] == 0)]
        for updates, some in mine.groupby("updates"):
            if updates and len(some) == record.options.seeds:
                norm = some[names.NORM]
                lines.append((some["reward"].mean(), name, norm.mean(), norm.min(), norm.max(), len(some)))
    if not lines:
        return None
    frame = pd.DataFrame(lines, columns=_COLUMNS)
    chart = grids.dose(frame, x_title="reward", value_title=_SAID[names.NORM], share=False)
    return Figure(chart, "Weight drift along training", "Each line is one method in training; bands: the range over seeds.")


def where(table: pd.DataFrame) -> list[Figure | Table]:
    """Weight drift by module and layer, one grid per method; CKA and mean shift by site."""
    rows = select(table, metric=names.NORM, split=names.AT_REWARD, condition=ESTIMATE)
    rows = rows[rows["site"] != ""]
    items: list[Figure | Table] = []
    for name in dict.fromkeys(rows["item"]):
        some = rows[rows["item"] == name]
        layer = ["–" if pd.isna(v) else str(v) for v in some["layer"]]
        frame = pd.DataFrame(
            {"x": layer, "y": some["site"].to_numpy(), **{k: some[k].to_numpy() for k in ("value", "lo", "hi", "n")}}
        )
        chart = grids.grid(frame, x_title="layer", y_title="module", value_title="relative norm")
        items.append(Figure(chart, name, "Relative norm of the change.", small=True))
    sites = table[(table["metric"].isin([names.CKA, names.SHIFT])) & (table["site"] != "") & (table["condition"] == ESTIMATE)]
    if len(sites):
        found = wide(sites.assign(number=sites["metric"] + ", " + sites["site"]), "item", "number")
        caption = "CKA with the base, and the share of the change that one mean shift explains."
        items.append(Table(found, "Representations by site", caption))
    return items


def tokens(table: pd.DataFrame) -> list[Figure]:
    """Share of shifted and of unshifted tokens, by position."""
    items = []
    for metric, said in ((names.SHIFTED, "share of shifted tokens"), (names.UNSHIFTED, "share of unshifted tokens")):
        rows = table[(table["metric"] == metric) & (table["token"] != "") & (table["condition"] == ESTIMATE)]
        if rows.empty:
            continue
        frame = rows.assign(dose=rows["token"].astype(int).astype(float), condition=rows["item"])
        chart = grids.dose(frame, x_title="position in the completion", value_title=said)
        items.append(Figure(chart, said[0].upper() + said[1:], "Means and 95 % intervals over seeds.", small=True))
    return items


def directions(table: pd.DataFrame) -> list[Figure]:
    """What the base's direction does in the tuned networks, beside its controls, at the last block."""
    titles = {names.READS: "reads: accuracy", names.POINTS: "points: cosine with a refit", names.ACTS: "acts: effect (nats)"}
    rows = table[table["metric"].isin(list(titles))]
    items = []
    for site in list(dict.fromkeys(rows["site"]))[-1:]:
        some = rows[rows["site"] == site]
        frame = some.assign(name=some["item"].map(names.SHORT) + ": " + some["condition"].replace(ESTIMATE, "base's direction"))
        controls = [n for n in dict.fromkeys(frame["name"]) if not n.endswith("base's direction")]
        for metric, title in titles.items():
            chart = grids.points(frame[frame["metric"] == metric], value_title=title, controls=controls, label_limit=300)
            items.append(Figure(chart, f"{title[0].upper()}{title[1:]}, {site}", "Controls are grey.", small=True))
    return items


def steering(table: pd.DataFrame) -> Figure | None:
    """Share of KL recovered by constant vectors."""
    rows = select(table, metric=names.RECOVERED)
    if rows.empty:
        return None
    said = {ESTIMATE: "one vector"}
    frame = rows.assign(name=rows["item"].map(names.SHORT) + ": " + [said.get(c, c) for c in rows["condition"]])
    controls = [n for n in frame["name"] if not n.endswith(("one vector", "fitted vectors"))]
    frame = frame.assign(lo=frame["lo"].clip(lower=-1), value=frame["value"].clip(lower=-1), hi=frame["hi"].clip(lower=-1))
    chart = grids.points(frame, value_title="share of the KL recovered", controls=controls, label_limit=320, rule=1.0)
    return Figure(
        chart,
        "Share of the KL that constant vectors recover",
        "Means and 95 % intervals over seeds; values below −1 are drawn at −1.",
    )


def precision(table: pd.DataFrame) -> Figure | None:
    """Share of unchanged weights after the same updates in two precisions, at the smallest rate."""
    rows = table[table["metric"].isin([names.SAME32, names.SAME16]) & table["split"].str.startswith("rate ")]
    if rows.empty:
        return None
    titles = {}
    frames = []
    for split in dict.fromkeys(rows["split"]):
        for condition, metric, said in (
            (BFLOAT16, names.SAME16, "trained in bfloat16"),
            (ESTIMATE, names.SAME16, "float32, rounded for the comparison"),
            (ESTIMATE, names.SAME32, "float32"),
        ):
            some = rows[(rows["split"] == split) & (rows["condition"] == condition) & (rows["metric"] == metric)]
            key = f"{split}: {said}"
            titles[key] = f"{said}, {split}"
            frames.append(some.assign(metric=key, name=some["item"].map(names.SHORT)))
    chart = grids.multiples(pd.concat(frames, ignore_index=True), titles=titles)
    return Figure(chart, "Share of unchanged weights", "After the same number of updates; means and 95 % intervals over seeds.")
