"""The page of the `contrast` study and its closing lines, from the tables of the run."""

from typing import Any

import numpy as np
import pandas as pd

from repscope.conditions import RANDOM, SWAPPED
from repscope.report.charts import grids, layers
from repscope.report.page import Figure, Page, Section, Table
from repscope.report.text import format_estimate, format_gain
from repscope.results import CHOSEN, ESTIMATE, records
from repscope.steer.dose_response import PROMPTED
from repscope.steer.selection import MOST_KL
from repscope.studies.contrast.options import ContrastOptions
from repscope.studies.run.study import Answer, Record

_SHOWN = 6  #: openings whose continuations stand in the page
_DIFFERENCES = ("effect", "damage", "kl")  #: metrics that are 0 without a direction
_X = "strength: norm of the added vector / median norm at the site"


def page(record: Record[ContrastOptions]) -> Page:
    """The page."""
    chosen = record.results["choose"].side["chosen"].iloc[0]["name"]
    return Page(
        title=f"A direction of {_name(record)}",
        context=(_name(record), str(chosen)),
        tested="Method, block and strength were chosen on one half of the choices; the numbers are from the other half.",
        headline=_effect(record),
        key=_key(record),
        sections=(_cost(record), _texts(record), _choice(record), _reading(record)),
        notes=() if _works(record) else (_no_working_range(),),
    )


def answer(record: Record[ContrastOptions]) -> Answer:
    """The main numbers, one line each, and where the direction is."""
    return Answer([*record.warnings, *_sentences(record), *_files(record)])


def _name(record: Record[Any]) -> str:
    chosen = record.results["choose"].side["chosen"].iloc[0]["name"]
    trained = record.results["fit"].side["directions"].set_index("name").loc[chosen, "trained_on"]
    return str(trained).partition(":")[0]


def _files(record: Record[Any]) -> list[str]:
    files = sorted(record.artifacts.glob("*"))
    return [f"The direction: {', '.join(str(p) for p in files)}"] if files else []


def _works(record: Record[Any]) -> tuple[float, float] | None:
    """The working range as strengths; None if it is empty."""
    arrays = record.results["dose"].arrays
    low, high = arrays["works"] / arrays["norm"]
    return None if np.isnan(low) else (float(low), float(high))


def _scale(record: Record[Any]) -> float:
    """The strength chosen on the first half."""
    arrays = record.results["dose"].arrays
    return float(arrays["scale"][0] / arrays["norm"][0])


def _sentences(record: Record[Any]) -> list[str]:
    table = record.table
    chosen = record.results["choose"].side["chosen"].iloc[0]["name"]
    works = _works(record)
    lines = [f"Chosen on the first half of the choices: {chosen}."]
    at = table[(table["site"] == CHOSEN) & (table["split"] == "halves")]
    if works is None:
        return [*lines, _no_working_range()]
    at_scale = {r["condition"]: r for r in records(at[(at["metric"] == "effect") & at["item"].eq(_name(record))])}
    gains = {r["condition"]: r for r in records(at[at["metric"] == "gain"])}
    mine, null_effect = at_scale[ESTIMATE], at_scale[RANDOM]
    comparison = "disjoint intervals" if mine["lo"] > null_effect["hi"] else "overlapping intervals"
    lines.append(
        f"On the second half, at the strength chosen on the first half ({_scale(record):.2g} of the median norm there), it changes "
        f"the log-odds of the choices by {format_estimate(mine)} nats ({mine['n']} groups of choices). {null_effect['n']} random "
        f"directions of equal norm change them by {format_estimate(null_effect)}: {comparison}."
    )
    if PROMPTED in at_scale:
        lines.append(
            f"Prompting changes them by {format_estimate(at_scale[PROMPTED])}; steering minus prompting: "
            f"{format_gain(gains[f'over {PROMPTED}'])}."
        )
    dosed = record.results["dose"].side["dose"]
    inside = dosed[(dosed.condition == ESTIMATE) & dosed.strength.between(*works)]
    null = {r["strength"]: r for r in records(dosed) if r["condition"] == RANDOM and r["metric"] == "effect"}
    effects = records(inside[inside.metric == "effect"])
    above = [r["lo"] > null[r["strength"]]["hi"] for r in effects]
    costs = inside[inside.metric == "damage"]["value"]
    lines.append(
        f"The working range, set on the first half, is a strength of {works[0]:.2g} to {works[1]:.2g}. On the second half, the "
        f"effect is above that of random directions with disjoint intervals at {sum(above)} of {len(above)} strengths in this "
        f"range, and the damage is {costs.min():.2f} to {costs.max():.2f} nats per token."
    )
    return lines


def _no_working_range() -> str:
    return (
        "No strength works on that half: there is none whose effect is above that of random directions with disjoint intervals "
        "while the damage to fluency is within the limit. The curves below show which condition fails."
    )


def _curve(record: Record[Any], metric: str, title: str, height: float = 250) -> Any:
    dosed = record.results["dose"].side["dose"]
    rows = dosed[(dosed.metric == metric) & (dosed.condition != "unsteered")]
    flat = rows.condition == PROMPTED
    frame = rows.assign(dose=rows.strength.mask(flat))
    if metric in _DIFFERENCES:  # without a direction there is none, and a line from a negative strength must pass there
        lines = [c for c in (ESTIMATE, RANDOM) if c in set(frame.condition)]
        none = pd.DataFrame({"condition": lines}).assign(dose=0.0, value=0.0, lo=0.0, hi=0.0, n=0)
        frame = pd.concat([frame, none])
    frame = frame.sort_values("dose")
    return grids.dose(frame, x_title=_X, value_title=title, share=False, span=_works(record), height=height)


def _effect(record: Record[Any]) -> Figure:
    return Figure(
        _curve(record, "effect", "effect (nats)", 320),
        "Effect by strength, second half of the choices",
        "Change of log p(yes) − log p(no) of two continuations; band: 95 % bootstrap interval over groups of choices. Grey: the "
        "range of random directions of equal norm. Horizontal line: the model prompted in words. Shaded: the working range, set on "
        "the first half.",
    )


def _key(record: Record[Any]) -> Table:
    """At the strength chosen on the first half; where none works, what was measured at each strength."""
    table = record.table
    at = table[(table["site"] == CHOSEN) & (table["split"] == "halves") & table["item"].eq(_name(record))]
    rows: list[dict[str, Any]] = []
    for metric, title in (("effect", "effect on the choices (nats)"), ("gain", "gain (nats)")):
        for r in records(at[(at["metric"] == metric) & (at["step"] == "dose")]):
            rows.append({"number": title, "of": r["condition"], "value": format_estimate(r), "n": f"{r['n']} {r['unit']}s"})
    dosed = record.results["dose"].side["dose"]
    mine = dosed[dosed.condition == ESTIMATE]
    strength = mine["strength"].iloc[int((mine["strength"] - _scale(record)).abs().argmin())]
    for metric, title in (("damage", "damage (nats per token)"), ("kl", "KL (nats per token)")):
        for r in records(mine[(mine["strength"] == strength) & (mine["metric"] == metric)]):
            rows.append({"number": title, "of": ESTIMATE, "value": format_estimate(r), "n": f"{r['n']} openings"})
    return Table(
        pd.DataFrame(rows),
        "Key numbers",
        f"At strength {strength:+.2g} (norm of the added vector / median norm at the site), chosen on the first half; 95 % "
        f"intervals.",
    )


def _cost(record: Record[Any]) -> Section:
    items = (
        Figure(
            _curve(record, "damage", "damage (nats per token)"),
            "Damage to fluency",
            "Loss of the unsteered model on the steered text minus its loss on its own text (nats per token), both sampled with "
            "the same random numbers; interval over openings. Below 0: the text is more predictable than usual.",
            small=True,
        ),
        Figure(
            _curve(record, "kl", "KL (nats per token)"),
            "Distance of the next-token distribution",
            "KL(unsteered ‖ steered), mean over the text written by the unsteered model; interval over openings.",
            small=True,
        ),
    )
    return Section(
        "What steering costs",
        "Look for strengths at which the effect is above that of random directions while damage is small. Measured on openings "
        "that were not used to find the direction, its block or its strength.",
        items,
    )


def _texts(record: Record[Any]) -> Section:
    texts, works = record.results["dose"].side["texts"], _works(record)
    strengths = sorted(set(texts["strength"]))
    best = min((s for s in strengths if s > 0), key=lambda s: abs(s - (_scale(record) if works else s)))
    shown = dict.fromkeys([min(strengths), 0.0, best, max(strengths)])
    wide = texts[texts["strength"].isin(shown)].pivot(index="opening", columns="strength", values="text")
    order = list(dict.fromkeys(texts["opening"]))[:_SHOWN]
    frame = wide.loc[order, list(dict.fromkeys(sorted(shown)))].reset_index()
    frame.columns = pd.Index(["opening", *("unsteered" if s == 0 else f"strength {s:+.2g}" for s in sorted(shown))])
    note = f"Sampled at temperature 1 with the same random numbers; the strength chosen on the first half is {best:+.2g}."
    return Section(
        "Generated text",
        "Look for whether the text still makes sense at the chosen strength. The first openings of the second half, without "
        "selection.",
        (Table(frame, "Continuations", note),),
    )


def _choice(record: Record[Any]) -> Section:
    table = record.results["choose"].side["candidates"]
    names = record.results["fit"].side["directions"].set_index("name")["method"]
    condition = table["name"].map(names).fillna(RANDOM)
    labels = table["name"] + " at " + table["strength"].map("{:+.2g}".format)
    frame = table.assign(name=labels, condition=condition, x=table["kl"].clip(1e-4), y=table["effect"])
    middle = sorted(set(table["strength"]))[len(set(table["strength"])) // 2]
    by_block = table[table["strength"] == middle].assign(condition=condition)
    null = by_block[by_block["condition"] == RANDOM].groupby("layer")["effect"].agg(["mean", "min", "max"])
    lines = by_block[by_block["condition"] != RANDOM][["layer", "site", "condition", "effect", "lo", "hi"]]
    lines = lines.rename(columns={"effect": "value"}).assign(n=record.results["choose"].table["n"].max())
    random = null.rename(columns={"mean": "value", "min": "lo", "max": "hi"}).reset_index().assign(site="", condition=RANDOM, n=3)
    drawn = pd.concat([lines, random]).assign(item="", metric="effect", token="", split="choosing half")
    methods = record.results["methods"].table
    forest = methods[methods["metric"] == "gain"]
    items: list[Figure | Table] = [
        Figure(
            grids.trade(frame, x_title="KL (nats per token)", y_title="effect (nats)", most=MOST_KL),
            "Candidates",
            "Every method, block and strength on the first half of the choices. The candidate with the largest effect "
            "to the left of the dashed line was chosen. Random directions: two per block.",
        ),
        Figure(
            layers.by_layer(drawn, metric_title=f"effect at strength {middle:g} (nats)", token="", share=False),
            "Effect by block",
            "First half of the choices; bands: 95 % bootstrap intervals over choices; for random directions, the range of two.",
        ),
    ]
    if len(forest):
        items.append(
            Figure(
                layers.gains(forest, title="difference of means minus the other method (nats)", share=False),
                "Methods compared on the second half",
                "Each method at its own best block and strength of the first half; paired over groups of choices. Above "
                "0, the difference of means steers more.",
            )
        )
    return Section(
        "How it was chosen",
        "Look for candidates near the chosen one: the choice among them is noise. The direction that separates texts best may "
        "not be the one that steers most.",
        tuple(items),
    )


def _reading(record: Record[Any]) -> Section:
    table = record.results["fit"].table
    if table.empty:
        return Section("How well it separates held-out texts", "No texts were held out.")
    mine = table[table["condition"] == ESTIMATE]
    null = table[(table["condition"] == SWAPPED) & (table["item"] == mine["item"].iloc[0])]
    drawn = pd.concat([mine.assign(condition=mine["item"]), null]).assign(item="auc", token="")
    best = max(records(mine), key=lambda r: float(r["value"]))
    figure = Figure(
        layers.by_layer(drawn, metric_title="AUC (texts of other groups)", token=""),
        "Separation of the two kinds of text, by block",
        "P(a positive text has a larger projection on the direction than a negative one); bands: 95 % bootstrap intervals over "
        f"positive texts. Swapped labels: the same fit ({mine['item'].iloc[0]}) with the labels of half of the texts swapped.",
    )
    look = "Look for the block at which the two kinds of text separate best."
    text = f"{look} Best: {best['item']} at block {int(best['layer'])}, {format_estimate(best)}."
    return Section("How well it separates held-out texts", text, (figure,))
