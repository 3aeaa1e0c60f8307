"""The section of the page of `entities` on how the vector of a name is built, and its closing lines."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from repscope.conditions import ABLATED_MLPS, BAG, PAIRS, RANDOM_WEIGHTS, ROTATED, SINGLES, over
from repscope.report.charts import layers
from repscope.report.page import Figure, Section, Table
from repscope.report.text import format_estimate, format_gain
from repscope.results import ESTIMATE, select
from repscope.studies.entities.names import attribute_of, of_mechanism
from repscope.studies.entities.verdict import mechanism

_LOST = ("accuracy lost", "R² lost")


def mechanism_section(table: pd.DataFrame, name: str, tiny: bool) -> Section | None:
    """The section of one set; None where its mechanism was not tested. A tiny run has no verdict."""
    rows = of_mechanism(table)
    rows = rows[rows["item"].str.startswith((f"{name}.", f"{name},", f"{name}:", "words:"))]
    lost = rows[rows["metric"].isin(_LOST)]
    if lost.empty:
        return None
    item = str(lost["item"].iloc[0])
    verdict = None if tiny else mechanism(table).get(name)
    items: list[Figure | Table | None] = [
        _ablations(lost[lost["item"] == item]),
        _extra(rows),
        _recombined(rows),
        _parts(rows),
        _bases(rows),
        _features(rows),
    ]
    text = (
        "Look for ranges of blocks in which replacing the MLPs' outputs at the name's tokens costs more than a random change of "
        "equal "
        "energy (grey), and compare them with attention. Then look at what a sum over tokens explains: if the name were only "
        "looked "
        "up, sums would hold little, and real names would differ from new combinations of their tokens."
    )
    lead = [verdict.sentence] if verdict else []
    return Section(f"How the vector of {name} is built", "\n\n".join([*lead, text]), tuple(i for i in items if i is not None))


def mechanism_lines(table: pd.DataFrame, name: str) -> list[str]:
    """The main numbers of one set, one line each."""
    rows = of_mechanism(table)
    rows = rows[rows["item"].str.startswith((f"{name}.", f"{name},"))]
    lost = rows[rows["metric"].isin(_LOST) & rows["definition"].str.startswith(("mean", "read"))]
    if lost.empty:
        return []
    item = str(lost["item"].iloc[0])
    widest = lost[(lost["item"] == item)].to_dict("records")
    site = max((str(r["site"]) for r in widest), key=_width)
    at = {str(r["condition"]): r for r in widest if r["site"] == site}
    said = [f"{format_estimate(r)} with {condition}" for condition, r in at.items()]
    lines = (
        [f"{attribute_of(item)} of {name}, {at[ABLATED_MLPS]['metric']} in {site}: {', '.join(said)}."]
        if ABLATED_MLPS in at
        else []
    )
    for tokens in (2, 3):
        share = select(rows, metric="share of single tokens", item=f"{name}, {tokens} tokens", condition=ESTIMATE)
        if len(share):
            twin = select(rows, metric="share of single tokens", item=f"{name}, {tokens} tokens", condition=RANDOM_WEIGHTS)
            lines.append(
                f"Of the vectors of {tokens} tokens, functions of single tokens are "
                f"{format_estimate(share.to_dict('records')[0])} of "
                f"the variance (random weights {format_estimate(twin.to_dict('records')[0])})."
            )
    return lines


def _ablations(lost: pd.DataFrame) -> Figure:
    shown = lost[lost["definition"].str.startswith(("mean", "read"))].assign(item=lambda t: t["site"])
    metric = str(shown["metric"].iloc[0])
    n = int(shown["n"].max())
    return Figure(
        layers.by_item(shown, title=metric),
        f"{attribute_of(str(lost['item'].iloc[0]))}: what is lost by range of blocks",
        f"Score of the probe on the intact vectors minus that of a new probe after the change, over {n} held-out names; 95 % "
        "bootstrap "
        "intervals over names. Outputs are replaced by their mean over names. Random changes have the same energy at every token "
        "and "
        "block. In the last row, all blocks below the block that is read.",
    )


def _extra(rows: pd.DataFrame) -> Table:
    """Losses of all blocks minus their controls, and resampling beside means."""
    lines = [
        {
            "attribute": attribute_of(str(r["item"])),
            "ablation": str(r["definition"]).partition(";")[0],
            "minus": str(r["condition"]).removeprefix("over "),
            "extra loss": format_gain(r),
            "n": r["n"],
        }
        for r in select(rows, metric="extra loss").to_dict("records")
    ]
    resampled = rows[rows["metric"].isin(_LOST) & rows["definition"].str.startswith("those of another name")]
    if len(resampled):
        site = max(resampled["site"], key=_width)
        lines += [
            {
                "attribute": attribute_of(str(r["item"])),
                "ablation": f"{r['condition']} by those of another name",
                "minus": "–",
                "extra loss": format_gain(r),
                "n": r["n"],
            }
            for r in resampled[resampled["site"] == site].to_dict("records")
        ]
    return Table(
        pd.DataFrame(lines),
        "Loss of all blocks, minus controls",
        "Paired over names with 95 % intervals. Above 0, the ablation costs more than its control. Rows without a control are the "
        "loss "
        "itself.",
    )


def _recombined(rows: pd.DataFrame) -> Table | None:
    shares = rows[rows["metric"].str.startswith("share of ") | (rows["metric"] == "interaction at real names")]
    if shares.empty:
        return None
    lines = []
    for (item, condition), held in shares.groupby(["item", "condition"], sort=False):
        at = {str(r["metric"]): r for r in held.to_dict("records")}
        line = {"names": str(item).partition(", ")[2], "network": "this one" if condition == ESTIMATE else condition}
        for metric in ("share of single tokens", "share of pairs", "share of triples", "interaction at real names"):
            line[metric] = format_estimate(at[metric]) if metric in at else "–"
        lines.append(line | {"grids": next(iter(at.values()))["n"]})
    return Table(
        pd.DataFrame(lines),
        "How much of the vector is a sum over tokens",
        "Tokens of real names in all combinations. Variance of the vector that is a function of single tokens, of pairs and of "
        "triples; "
        "energy of the interaction at real names over that at other combinations. Intervals over grids of names.",
    )


def _parts(rows: pd.DataFrame) -> Table | None:
    found = rows[rows["metric"].isin(["accuracy from parts", "conflict accuracy", "taken for the other name"])]
    if found.empty:
        return None
    lines = []
    for (item, metric, definition), held in found.groupby(["item", "metric", "definition"], sort=False):
        at = {str(r["condition"]): r for r in held.to_dict("records")}
        tokens = next((w for w in str(definition).split(";")[0].split(" of ") if "tokens" in w), "names in conflict")
        lines.append(
            {
                "attribute": attribute_of(str(item)),
                "number": metric,
                "names": tokens if metric == "accuracy from parts" else "names in conflict",
                "whole vector": _cell(at, ESTIMATE),
                **{c: _cell(at, c) for c in (SINGLES, PAIRS, BAG)},
                "n": at[ESTIMATE]["n"],
            }
        )
    return Table(
        pd.DataFrame(lines),
        "Looked up, or summed over tokens?",
        "Accuracy from parts: probes of whole names read real names as a sum over tokens, fitted to other combinations. Names in "
        "conflict share a token with a name of another class: the share that is right, and the share taken for the other.",
    )


def _bases(rows: pd.DataFrame) -> Table | None:
    found = rows[rows["metric"].isin(["sparse accuracy", "sparse gain", "kurtosis"])]
    if found.empty:
        return None
    lines = []
    for (site, definition), held in found.groupby(["site", "definition"], sort=False):
        at = {(str(r["metric"]), str(r["condition"])): r for r in held.to_dict("records")}
        metric = "kurtosis" if "kurtosis" in {m for m, _ in at} else "sparse accuracy"
        ours = next(c for m, c in at if m == metric and c != ROTATED)
        gain = at.get(("sparse gain", over(ROTATED)))
        lines.append(
            {
                "site": site,
                "number": "kurtosis" if metric == "kurtosis" else str(definition).partition(",")[0],
                "features": format_estimate(at[metric, ours]),
                "random rotations": format_estimate(at[metric, ROTATED]) if (metric, ROTATED) in at else "–",
                "difference": format_gain(gain) if gain is not None else "–",
                "n": at[metric, ours]["n"],
            }
        )
    return Table(
        pd.DataFrame(lines),
        "Neurons compared with random rotations",
        "Accuracy of probes that read only a few features, and excess kurtosis over names. If single neurons say no more than "
        "random "
        "directions, there is no more structure in the neurons than a look-up needs.",
    )


def _features(rows: pd.DataFrame) -> Table | None:
    found = rows[rows["metric"] == "text feature accuracy"]
    if found.empty:
        return None
    last = found["layer"].max()
    lines = []
    for item, held in found.groupby("item", sort=False):
        ours = held[held["condition"] == ESTIMATE]
        at = {str(r["site"]): r for r in ours.to_dict("records")}
        common = held[held["condition"] == "majority class"].to_dict("records")[0]
        lines.append(
            {
                "feature": item,
                "embedding": _cell(at, "embed"),
                f"block {int(last) // 2}": _cell(at, f"resid_post.{int(last) // 2}"),
                f"block {int(last)}": _cell(at, f"resid_post.{int(last)}"),
                "most common class": format_estimate(common),
                "n": ours["n"].iloc[0],
            }
        )
    return Table(
        pd.DataFrame(lines),
        "Plain features of the text, by block",
        "Held-out accuracy at the last token. Token embeddings have these features; look whether they stay while attributes are "
        "added.",
    )


def _cell(at: Mapping[str, Mapping[Any, Any]], key: str) -> str:
    return format_estimate(at[key]) if key in at else "–"


def _width(site: str) -> int:
    first, _, last = site.removeprefix("blocks ").partition("–")
    return int(last) - int(first)
