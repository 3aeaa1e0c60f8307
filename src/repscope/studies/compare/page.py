"""The page of `compare`: drift by block and kind of module, unchanged entries, spectra, representations, next tokens."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from repscope.conditions import ANOTHER_SEED, ESTIMATE, RANDOM, ROUNDING
from repscope.report.charts import layers, modules
from repscope.report.page import Figure, Page, Section, Table
from repscope.results import Result, first_row, records, select
from repscope.studies.compare.names import (
    ALL,
    COSINE,
    ENERGY,
    HIDDEN,
    NORM,
    OF_SITES,
    OF_TOKENS,
    OF_WEIGHTS,
    RANK,
    RANK_SHARE,
    SHARED,
    UNCHANGED16,
    UNCHANGED32,
)
from repscope.studies.compare.options import CompareOptions
from repscope.studies.run.study import Answer, Record

_LARGEST = 12  #: tensors in the table of the largest changes
_SHIFTS = ("unshifted", "marginal", "shifted")
_POSITIONS = 24
_INTERVALS = (
    "With 95 % intervals over batches of prompts or prompts. Values over all weights are exact; their brackets are the spread over "
    "tensors."
)
_COSINE = (
    " Two unrelated changes have a cosine of 0, and are √2 times as far from each other as from the base; two equal changes have a "
    "cosine of 1."
)


def page(record: Record[CompareOptions]) -> Page:
    """Weights first, then what the networks do."""
    weights, names = record.results["weights"], record.facts["names"]
    sections = [_weights_section(weights), _unchanged_section(weights)]
    if not select(weights.table, metric=RANK_SHARE, condition=RANDOM).empty:
        sections.append(_spectrum_section(weights))
    if "floor" in record.results:
        sections.append(_floor_section(record, names))
    if "representations" in record.results:
        sections.append(_representations_section(record.results["representations"]))
    if "next tokens" in record.results:
        sections.append(_tokens_section(record.results["next tokens"]))
    return Page(
        title="What tuning changed",
        context=tuple(f"another seed {n}" for n in names[2:]),
        headline=_headline(record),
        key=Table(_key(record), "Key numbers", _INTERVALS + (_COSINE if "floor" in record.results else "")),
        sections=tuple(sections),
    )


def answer(record: Record[CompareOptions]) -> Answer:
    """The numbers over all weights, and per kind of module."""
    table = record.results["weights"].table
    value = {m: select(table, metric=m, condition=ESTIMATE, item=ALL)["value"].iloc[0] for m in (NORM, COSINE, UNCHANGED32, HIDDEN)}
    base, tuned = record.facts["names"][:2]
    if value[UNCHANGED32] == 1:
        line = f"The weights of {base} and {tuned} are identical: all have the same bits, and the relative Frobenius norm is 0."
    else:
        line = (
            f"From {base} to {tuned} the relative Frobenius norm of the change is {value[NORM]:.3g} and the cosine "
            f"{_cosine(value[COSINE])}; {value[UNCHANGED32]:.1%} of the entries are unchanged in float32, and {value[HIDDEN]:.1%} "
            "more in bfloat16."
        )
    more = [f"{_place(row)}: {_interval(row)}." for row in _function_rows(record)]
    shared = [
        f"{SHARED} with another seed's: {_interval(row)}; 0 for unrelated changes, 1 for equal ones."
        for row in records(record.table, metric=SHARED, condition=ESTIMATE, item=ALL)
    ]
    return Answer(
        [line, *shared, *more],
        [{str(k): v for k, v in row.items()} for row in records(_by_kind(table))],
        "Change of the weights by kind of module",
        {"rows": [row for name in ("weights", "floor") if name in record.results for row in _json(record.results[name].table)]},
    )


# ----------------------------------------------------------------------------------------------------------------- weights


def _headline(record: Record[CompareOptions]) -> Figure | None:
    table = record.results["weights"].table
    frame = _blocks(table, NORM)
    if frame.empty or not frame["value"].any():
        return None
    rules = [(c, v) for c in (ROUNDING, ANOTHER_SEED) if (v := _pooled(record.table, NORM, c))]
    chart = modules.by_block(frame, value_title=NORM, rules=rules, log=True)
    caption = (
        "Norm of the change over the norm of the base's weights, per block. The rule is the change that rounding the base to "
        "bfloat16 would make, over all weights: below it, a change is smaller than the precision of most stored checkpoints."
    )
    if len(rules) > 1 or any(c == ANOTHER_SEED for c, _ in rules):
        caption += " The other rule is the distance between two checkpoints that differ in their seed alone."
    return Figure(chart, "How far the weights moved, by block and kind of module", caption)


def _blocks(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Columns kind, block, value; the kinds with the largest values first."""
    rows = select(table, metric=metric, condition=ESTIMATE)
    rows = rows[rows["layer"].notna()]
    frame = pd.DataFrame({"kind": rows["item"].astype(str), "block": rows["layer"].astype(int), "value": rows["value"]})
    frame = frame[np.isfinite(frame["value"])]
    largest = frame.groupby("kind")["value"].mean().sort_values(ascending=False).index
    found: pd.DataFrame = frame.assign(order=frame["kind"].map({k: i for i, k in enumerate(largest)}))
    return found.sort_values(["order", "block"])


def _weights_section(weights: Result) -> Section:
    side = weights.side["tensors"]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.sqrt(side["change_squares"] / side["base_squares"])
    largest = side.assign(relative=relative).nlargest(_LARGEST, "relative")
    columns = {"tensor": largest["tensor"], "shape": largest["shape"], "stored as": largest["stored"], NORM: largest["relative"]}
    items: list[Any] = [
        Table(_by_kind(weights.table), "By kind of module", "Entries are pooled over blocks; ranks are means over matrices.")
    ]
    if relative.max() > 0:
        caption = f"The {len(largest)} tensors with the largest relative norm."
        items.append(Table(pd.DataFrame(columns), "The largest changes", caption))
    return Section(
        "Which weights changed",
        "Look for kinds of modules that moved more than others, and for blocks where the change is concentrated. Nothing here says "
        "what a change does: small changes of weights can change every answer.",
        tuple(items),
    )


def _unchanged_section(weights: Result) -> Section:
    frame = _blocks(weights.table, UNCHANGED16)
    items: list[Any] = []
    if not frame.empty and 0 < frame["value"].mean() < 1:
        equal, hidden = modules.by_block(frame, value_title=UNCHANGED16), _blocks(weights.table, HIDDEN)
        items.append(Figure(equal, "Entries that are equal in bfloat16", "By block and kind of module.", small=True))
        chart = modules.by_block(hidden, value_title=HIDDEN)
        caption = "Equal after rounding both checkpoints to bfloat16, and different in float32."
        items.append(Figure(chart, "Entries whose change bfloat16 does not show", caption, small=True))
    return Section(
        "Is the update sparse, or only small?",
        "Look at entries that are unchanged in bfloat16 and not in float32. bfloat16 keeps eight bits: a change below about 0.2 % "
        "of a weight is rounded away, so that many small changes look like few. Checkpoints that are stored in bfloat16 have lost "
        "that difference already, and both numbers agree.",
        tuple(items),
    )


def _spectrum_section(weights: Result) -> Section:
    control = _pooled(weights.table, RANK_SHARE, RANDOM)
    rules = [(RANDOM, control)] if control is not None else []
    chart = modules.by_block(_blocks(weights.table, RANK_SHARE), value_title=RANK_SHARE, rules=rules)
    return Section(
        "Is the change of low rank?",
        "Look at the effective rank compared with that of a random change of the same shape. LoRA of rank r has at most r.",
        (
            Figure(
                chart,
                "Effective rank of the change",
                "As a share of the smaller side of the matrix, by block and kind of module. The rule is a random matrix.",
                small=True,
            ),
            Table(_ranks(weights.table), "Compared with a random change", "Means over the matrices of each kind that changed."),
        ),
    )


def _floor_section(record: Record[CompareOptions], names: list[str]) -> Section:
    table = record.results["floor"].table
    rows = []
    for kind in dict.fromkeys(table["item"]):
        own = select(record.results["weights"].table, metric=NORM, condition=ESTIMATE, item=kind)
        between, shared = (_interval(records(table, metric=m, item=kind)[0]) for m in (NORM, SHARED))
        change = _interval(own[own["layer"].isna()].iloc[0])
        rows.append({"kind": kind, f"{NORM} of the change": change, "distance between the seeds": between, SHARED: shared})
    return Section(
        "How much of the change is the seed's?",
        f"Look at the cosine of the changes of {names[1]} and {names[2]}. At 1 both seeds moved the weights alike; at 0 their "
        "changes have nothing in common, and their distance is about √2 times the change.",
        (Table(pd.DataFrame(rows), "Two seeds of the same tuning"),),
    )


# ---------------------------------------------------------------------------------------------------------------- function


def _representations_section(result: Result) -> Section:
    figures = []
    for metric in ("CKA", "relative change"):
        rows = result.table[result.table["metric"] == metric]
        if len(rows) and rows["layer"].notna().any():
            chart = layers.by_layer(rows.assign(item=""), metric_title=metric, share=metric == "CKA")
            figures.append(Figure(chart, metric, "By block, with 95 % intervals over batches of prompts.", small=True))
    table = _pivot(result.table, [m for m in OF_SITES if m in set(result.table["metric"])], "site")
    return Section(
        "Do the representations change?",
        "Look for blocks where base and tuned network differ more than the controls: another seed of the same tuning, where one "
        "is given, and other prompts, the value for representations that share nothing but the network.",
        (*figures, Table(table, "By site", "Estimates with 95 % intervals.")),
    )


def _tokens_section(result: Result) -> Section:
    items: list[Any] = []
    if "positions" in result.side:
        side = result.side["positions"].head(_POSITIONS)
        frame = side.melt("position", list(_SHIFTS), var_name="part", value_name="value").rename(columns={"position": "x"})
        chart = modules.stacked_shares(frame, x_title="position in the answer", value_title="share of tokens", parts=_SHIFTS)
        caption = "Rank of the tuned network's token in the base network: 1 (unshifted), 2 or 3 (marginal), above (shifted)."
        items.append(Figure(chart, "Token shift by position", caption))
    table = result.table[result.table["item"] == ""]
    items.append(Table(_pivot(table, [m for m in OF_TOKENS if m in set(table["metric"])], "condition"), "Over all positions"))
    return Section(
        "Do the next tokens change?",
        "Look for tokens that the base network would not have chosen. They tend to be at the beginning of answers.",
        tuple(items),
    )


def _pivot(table: pd.DataFrame, metrics: list[str], by: str) -> pd.DataFrame:
    """One row per site (of the estimate) or condition, one column per metric."""
    rows = table[table["condition"] == ESTIMATE] if by == "site" else table
    found: dict[str, dict[str, str]] = {}
    for row in records(rows):
        if row["metric"] in metrics:
            found.setdefault(str(row[by]), {})[str(row["metric"])] = _interval(row)
    return pd.DataFrame([{by: name, **{m: values.get(m, "–") for m in metrics}} for name, values in found.items()])


# ----------------------------------------------------------------------------------------------------------------- numbers


def _by_kind(table: pd.DataFrame) -> pd.DataFrame:
    """One row per kind of module, all weights last."""
    rows = table[table["layer"].isna() & (table["condition"] == ESTIMATE)]
    found: dict[str, dict[str, str]] = {}
    for row in records(rows):
        if row["metric"] in OF_WEIGHTS and row["metric"] != RANK:
            cell = _cosine(row["value"]) if row["metric"] == COSINE else _interval(row)
            found.setdefault(str(row["item"]), {})[str(row["metric"])] = cell
    order = sorted(found, key=lambda kind: (kind == ALL, kind))
    metrics = [m for m in OF_WEIGHTS if any(m in values for values in found.values())]
    return pd.DataFrame([{"kind": kind, **{m: found[kind].get(m, "–") for m in metrics}} for kind in order])


def _ranks(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[table["layer"].isna() & table["metric"].isin([RANK, RANK_SHARE, ENERGY])]
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in records(rows):
        found.setdefault((str(row["item"]), str(row["condition"])), {})[str(row["metric"])] = _interval(row)
    order = sorted(found, key=lambda key: (key[0] == ALL, key))
    return pd.DataFrame([{"kind": kind, "condition": condition, **found[kind, condition]} for kind, condition in order])


def _key(record: Record[CompareOptions]) -> pd.DataFrame:
    table = record.table
    rows = []
    beside = ((NORM, ROUNDING), (NORM, ANOTHER_SEED), (SHARED, ""), (UNCHANGED32, ""), (UNCHANGED16, ""), (RANK_SHARE, RANDOM))
    for metric, control in beside:
        own, other = (first_row(table, metric=metric, condition=c, item=ALL) for c in (ESTIMATE, control))
        if own and (other or not control):
            cells = {"control": control or "–", "control value": _interval(other) if other else "–"}
            rows.append({"number": metric, "estimate": _interval(own), **cells, "n": int(own["n"])})
    for row in _function_rows(record):
        same = {k: row[k] for k in ("metric", "site", "item")}
        controls = [r for r in records(table, **same) if r["condition"] != ESTIMATE]
        controls.sort(key=lambda r: str(r["condition"]) != ANOTHER_SEED)  # the floor, where there is one
        control, value = (str(controls[0]["condition"]), _interval(controls[0])) if controls else ("–", "–")
        own = {"number": _place(row), "estimate": _interval(row)}
        rows.append({**own, "control": control, "control value": value, "n": int(row["n"])})
    return pd.DataFrame(rows)


def _function_rows(record: Record[CompareOptions]) -> Iterator[dict[Any, Any]]:
    """The site with the lowest CKA, and the main numbers of the next tokens."""
    if "representations" in record.results:
        yield from sorted(
            records(record.results["representations"].table, metric="CKA", condition=ESTIMATE), key=lambda r: float(r["value"])
        )[:1]
    if "next tokens" in record.results:
        for metric in ("unshifted", "KL"):
            yield from records(record.results["next tokens"].table, metric=metric, condition=ESTIMATE, item="")


def _place(row: dict[Any, Any]) -> str:
    return f"{row['metric']}{' at ' + str(row['site']) if row['site'] else ''}"


def _pooled(table: pd.DataFrame, metric: str, condition: str) -> float | None:
    row = first_row(table, metric=metric, condition=condition, item=ALL)
    return float(row["value"]) if row and np.isfinite(row["value"]) else None


def _interval(row: Any) -> str:
    if np.isnan(row["value"]):
        return "–"
    value, lo, hi = (0.0 if abs(row[c]) < 5e-13 else float(row[c]) for c in ("value", "lo", "hi"))
    return f"{value:.3g}" if np.isnan(lo) else f"{value:.3g} [{lo:.3g}, {hi:.3g}]"


def _cosine(value: float) -> str:
    """A cosine, close to 1 by its distance from it."""
    return "–" if np.isnan(value) else "1" if value == 1 else f"1 − {1 - value:.2g}" if value > 0.99 else f"{value:.3g}"


def _json(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows over all weights and per kind, for `--json`."""
    rows = table[table["layer"].isna()]
    columns = ["item", "metric", "condition", "value", "lo", "hi", "n"]
    return [{str(k): (None if isinstance(v, float) and np.isnan(v) else v) for k, v in r.items()} for r in records(rows[columns])]
