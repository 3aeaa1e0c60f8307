"""The parts of the `paths` page about the order of learning and the attribution of variance."""

from typing import Any

import pandas as pd

from repscope.conditions import (
    ESTIMATE,
    MATCHED_GRAMMAR,
    NO_BIAS,
    ORTHOGONAL,
    OWN_LABELS,
    REGRESSED_OUT,
    SHARED_LABELS,
    WITHIN_TERMS,
)
from repscope.report.charts import grids
from repscope.report.page import Figure, Section, Table
from repscope.report.text import format_estimate
from repscope.results import records, select
from repscope.studies.paths import order_names as names
from repscope.studies.run.study import Record


def sections(record: Record[Any]) -> list[Section]:
    """Those of the steps that this run has."""
    found = []
    if "digits" in record.results:
        found.append(_digits(record))
    if "grammar order" in record.results:
        found.append(_grammar(record))
    if "attribution" in record.results:
        found.append(_attribution(record))
    return found + [_summary(record, name) for name in record.results if name.startswith(names.BLIMP)]


def order_sentences(record: Record[Any]) -> list[str]:
    """The results in sentences; every number is a cell of the table."""
    lines = []
    if "digits" in record.results:
        held = select(record.table, metric=names.ORDER, split=names.DIGITS)
        across = held[held["definition"] == names.ARCHITECTURES]
        controls = {c: _one(held[held["condition"] == c]) for c in (ORTHOGONAL, OWN_LABELS, SHARED_LABELS)}
        lines.append(
            f"Order of learning digits: between architectures rho is {across['value'].min():.2f} to {across['value'].max():.2f}; "
            f"orthogonal inputs {controls[ORTHOGONAL]}, labels drawn for each network {controls[OWN_LABELS]}; random labels that "
            f"networks share {controls[SHARED_LABELS]}, so these are no control."
        )
    if "grammar order" in record.results:
        held = select(record.table, metric=names.ORDER, item=names.OVER_LOSSES, definition=f"{names.LOSS}, {names.ALL_RUNS}")
        said = [f"{_LABELS[c]} {_one(held[held['condition'] == c])}" for c in _LABELS if (held["condition"] == c).any()]
        if said:
            lines.append(f"Order of learning grammar at matched loss, rho between runs: {'; '.join(said)}.")
    if "attribution" in record.results:
        shared = records(record.table, metric=names.SHARE, condition=ESTIMATE)
        if shared:
            shares = "; ".join(f"{r['item']} {format_estimate(r)}" for r in shared)
            lines.append(f"Share of the variance of behaviour over runs: {shares}.")
    for name in record.results:
        if name.startswith(names.BLIMP):
            rows = records(record.results[name].table, metric=names.ORDER, condition=ESTIMATE)
            lines.append("BLiMP summary, rho between models: " + "; ".join(f"{r['item']} {format_estimate(r)}" for r in rows) + ".")
    return lines


_LABELS = {ESTIMATE: "English", REGRESSED_OUT: REGRESSED_OUT, MATCHED_GRAMMAR: MATCHED_GRAMMAR}


def _one(rows: pd.DataFrame) -> str:
    return format_estimate(records(rows)[0]) if len(rows) else "not known"


def _digits(record: Record[Any]) -> Section:
    held = record.results["digits"].select(metric=names.ORDER)
    lines = []
    for row in records(held):
        label = row["item"] + (", within classes" if row["definition"] == names.CLASSES else "")
        if row["condition"] != ESTIMATE:
            label = row["condition"] + (" (not a valid control)" if row["condition"] == SHARED_LABELS else "")
        lines.append({"name": label, "control": row["condition"] != ESTIMATE, **{k: row[k] for k in ("value", "lo", "hi", "n")}})
    frame = pd.DataFrame(lines)
    controls = frame.loc[frame["control"], "name"].tolist()
    own = records(record.results["digits"].table, metric=names.BIMODALITY)
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in own:
        line = cells.setdefault((row["item"], row["definition"]), {"networks": row["item"], "labels and inputs": row["definition"]})
        null = row["condition"] not in (ESTIMATE, row["definition"])
        line["null" if null else names.BIMODALITY] = format_estimate(row)
    return Section(
        "Do networks learn digits in one order?",
        "Look for correlations within and between architectures that the valid controls do not have. Accessibility of an image: "
        "the share of steps at which a network classifies it correctly. Random labels that all networks share give an order too: "
        "what networks share there is the labels.",
        (
            Figure(
                grids.points(
                    frame.drop(columns="control"), value_title="Spearman's rho", controls=controls, label_limit=290, rule=0.0
                ),
                "Order correlation of accessibility",
                "Pairs of networks of one kind (bars: 95 % intervals over networks), and means of two kinds (over images). "
                "Grey: controls.",
            ),
            Table(
                pd.DataFrame(list(cells.values())),
                "Bimodality of TP-agreement",
                "Kurtosis − skew² at the step of 60 % of the largest accuracy; lower is more bimodal. Null: permuted correctness.",
            ),
        ),
    )


def _grammar(record: Record[Any]) -> Section:
    held = records(record.results["grammar order"].table, metric=names.ORDER)
    lines = [
        {
            "runs": r["definition"],
            "at": r["item"],
            "condition": _LABELS.get(r["condition"], r["condition"]),
            "rho": format_estimate(r),
        }
        for r in held
    ]
    frame = pd.DataFrame(
        [
            {
                "name": f"{_LABELS[r['condition']]}, {r['definition'].partition(', ')[2]}",
                **{k: r[k] for k in ("value", "lo", "hi", "n")},
            }
            for r in held
            if r["item"] == names.OVER_LOSSES
        ]
    )
    items: list[Figure | Table] = []
    if len(frame):
        grey = [str(n) for n in frame["name"] if str(n).startswith(MATCHED_GRAMMAR)]
        items.append(
            Figure(
                grids.points(frame, value_title="Spearman's rho", controls=grey, label_limit=330, rule=0.0),
                "Order correlation of phenomena at matched loss",
                "Mean over losses that all runs pass. Bars: 95 % intervals over runs. Grey: the grammar without differences in "
                "frequency and distance.",
            )
        )
    for name in names.GRAMMARS:
        curves = record.results["grammar order"].side[f"curves {name}"]
        last = curves[curves["step"] == curves.groupby("learner")["step"].transform("max")]
        wide = last.pivot_table(index="phenomenon", columns="learner", values="value", sort=False).reset_index()
        items.append(
            Table(wide, f"Accuracy at the last checkpoint, {name}", "Mean over runs; summed log-probability; chance is .5.")
        )
    rest = record.results["grammar order"].table
    rest = rest[rest["metric"].isin([names.CONCORDANCE, names.COMPONENT, names.FLEISS, names.COHEN])]
    more = [
        {"number": r["metric"], "of": r["item"], "grammar": r["split"], "condition": r["condition"], "value": format_estimate(r)}
        for r in records(rest)
    ]
    items += [Table(pd.DataFrame(lines), "All order correlations"), Table(pd.DataFrame(more), "Agreement on order and on pairs")]
    return Section(
        "Do networks learn grammar in one order?",
        "Look for correlations at matched loss that remain when frequency, distance and length are regressed out, and that the "
        "matched grammar does not have.",
        tuple(items),
    )


def _attribution(record: Record[Any]) -> Section:
    items: list[Figure | Table] = []
    for condition, title in ((ESTIMATE, "with early data"), (NO_BIAS, "without early data")):
        held = record.results["attribution"].select(metric=names.SHARE, condition=condition)
        if len(held):
            frame = held.rename(columns={"item": "name"})[["name", "value", "lo", "hi", "n"]]
            items.append(
                Figure(
                    grids.points(frame, value_title="share of variance", label_limit=220),
                    f"Share of the variance of behaviour, {title}",
                    "Behaviour: share of the rule on disambiguating examples. Bars: 95 % generalised intervals; few levels "
                    "make them wide.",
                    small=True,
                )
            )
    held = record.results["attribution"].select(metric=names.DEPENDENCE)
    for split in dict.fromkeys(held["split"]):
        some = held[held["split"] == split]
        frame = pd.DataFrame({"x": some["item"], "y": some["token"], "value": some["value"], "lo": some["lo"], "hi": some["hi"]})
        frame = frame.assign(n=some["n"]).sort_values("y", key=lambda s: s.astype(int), kind="stable")
        chart = grids.grid(frame, x_title="largest rate", y_title="fork (step)", value_title=names.DEPENDENCE)
        caption = "Part of the variance over unbiased runs that is not noise of the evaluation; 0: seeds make no difference."
        items.append(Figure(chart, f"Path dependence, {split}", caption, small=True))
    return Section(
        "Which part of the recipe decides?",
        "Look for factors whose interval excludes 0. Every combination of pretrained network, head, order of data and early "
        "data is one "
        "run. " + " ".join(record.results["attribution"].notes),
        tuple(items),
    )


def _summary(record: Record[Any], name: str) -> Section:
    found = record.results[name]
    lines: dict[str, dict[str, str]] = {}
    for row in records(found.table, metric=names.ORDER):
        lines.setdefault(row["item"], {"models": row["item"]})["rho" if row["condition"] == ESTIMATE else WITHIN_TERMS] = (
            format_estimate(row)
        )
    frame = found.select(metric=names.ORDER, condition=ESTIMATE).rename(columns={"item": "name"})[
        ["name", "value", "lo", "hi", "n"]
    ]
    return Section(
        "Published models: do they find the same paradigms hard?",
        "Look for pairs of neural models compared with the n-gram model. " + " ".join(found.notes),
        (
            Figure(
                grids.points(frame, value_title="Spearman's rho", label_limit=220, rule=0.0),
                "Order correlation of accuracies over paradigms",
                "Bars: 95 % intervals over paradigms.",
            ),
            Table(pd.DataFrame(list(lines.values())), "Order correlation of every pair of models"),
        ),
    )
