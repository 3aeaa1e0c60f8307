"""The page of the `paths` study and its closing lines, from the tables of the run."""

from typing import Any

import numpy as np
import pandas as pd

from repscope.conditions import COPY, COPY_MATCHED, INDEPENDENT, MATCHED, NO_BIAS, REBASIN, SHUFFLED_GROUPS, shuffled
from repscope.report.charts import grids, runs
from repscope.report.page import Figure, Page, Section, Table
from repscope.report.tables import cell
from repscope.report.text import format_estimate
from repscope.results import records
from repscope.studies.paths import order_page, published_page
from repscope.studies.paths.options import PathsOptions
from repscope.studies.paths.summary import CONDITIONS, PLANTED, UNBIASED, inits, sentences
from repscope.studies.run.study import Answer, Record
from repscope.trace.barriers import GAP, HEIGHTS
from repscope.trace.interpolation import Curves
from repscope.trace.run_table import EUCLIDEAN


def page(record: Record[PathsOptions]) -> Page:
    """The page: the study, a published table, or both."""
    trained = "summary" in record.results
    sections = [_matrices(record), _along(record), _behaviour(record), _phases(record)] if trained else []
    if "apart" in record.results:
        sections.append(_independent(record))
    sections += order_page.sections(record)
    if "published" in record.results:
        sections.append(published_page.section(record.results["published"]))
    return Page(
        title="Runs of one recipe",
        tested="Tested on small transformers that are trained in this study; their first steps, or only their seeds, differ."
        if trained
        else "Tested on a published table of runs; nothing was trained.",
        headline=_ratios(record) if trained else None,
        key=_key(record) if trained else None,
        sections=tuple(sections),
    )


_KEY = {
    "share of the rule, biased towards the rule": ("share of the rule", "rule"),
    "share of the rule, biased towards lexical overlap": ("share of the rule", "lexical overlap"),
    "convexity gap, across groups / within": ("ratio", GAP),
    "Euclidean distance, across groups / within": ("ratio", EUCLIDEAN),
    "agreement of clusters with groups (ARI)": ("ARI", f"spectral, {GAP}, δ median"),
    "gap and difference in behaviour (Mantel)": ("mantel rho", GAP),
}


def _key(record: Record[Any]) -> Table:
    """Means over pretrainings, one column per group of runs."""
    rows = {(r["condition"], r["metric"], r["item"]): r for r in records(record.results["summary"].table)}
    names = {PLANTED: "early bias", MATCHED: "matched on ID loss", UNBIASED: UNBIASED, SHUFFLED_GROUPS: SHUFFLED_GROUPS}
    lines = []
    for title, (metric, item) in _KEY.items():
        found = {name: rows[c, metric, item] for c, name in names.items() if (c, metric, item) in rows}
        if found:
            cells = {name: cell(found.get(name)) for name in names.values()}
            lines.append({"number": title, **cells, "pretrainings": max(int(r["n"]) for r in found.values())})
    return Table(pd.DataFrame(lines), "Key numbers", "Mean over pretrainings and its 95 % interval over them.")


def answer(record: Record[PathsOptions]) -> Answer:
    """The main numbers, one line each, and where the runs are."""
    runs = record.artifacts / "planted-0"
    return Answer(
        [*sentences(record), *order_page.order_sentences(record), *([f"Runs: {record.artifacts}"] if runs.is_dir() else [])]
    )


def _curves(record: Record[Any], step: str, condition: str, init: int) -> Curves:
    arrays, prefix = record.results[step].arrays, f"{condition}/{init}/"
    losses = {k.removeprefix(prefix + "losses/"): v for k, v in arrays.items() if k.startswith(prefix + "losses/")}
    pairs = arrays[prefix + "pairs"]
    return Curves(int(pairs.max()) + 1, pairs, arrays[prefix + "alphas"], losses)


def _step(condition: str, init: int) -> str:
    return f"plain {init}" if condition == UNBIASED else f"planted {init}"


def _table(record: Record[Any], condition: str, init: int) -> pd.DataFrame:
    return record.results[_step(condition, init)].side[f"runs-{init}-{condition}"]


def _matrices(record: Record[Any]) -> Section:
    """Gaps between all runs, ordered by group and then by cluster."""
    gaps = {
        (condition, init): _curves(record, _step(condition, init), condition, init).matrix("loss", GAP)
        for init in inits(record)
        for condition in (PLANTED, UNBIASED)
    }
    top = float(np.quantile(np.concatenate([g[np.triu_indices(len(g), 1)] for g in gaps.values()]), 0.98)) or 1.0
    figures: list[Figure | Table] = []
    for (condition, init), gap in gaps.items():
        table = _table(record, condition, init)
        order = np.lexsort((table["cluster"].to_numpy(), table["group"].to_numpy()))
        frame = pd.DataFrame(
            [
                {"a": i, "b": j, "value": gap[a, b], "name_a": f"run {a}", "name_b": f"run {b}", "group_a": table["group"].iloc[a]}
                for i, a in enumerate(order)
                for j, b in enumerate(order)
            ]
        )
        groups = "group" if condition == PLANTED else "the strategy that a run took"
        figures.append(
            Figure(
                runs.distances(frame, value_title="convexity gap (nats)", top=top),
                f"{CONDITIONS[condition]}, pretraining {init}",
                f"All pairs of runs, ordered by {groups}. All these figures share one colour scale.",
                small=True,
            )
        )
    figures += [_clusters(record), _heights(record)]
    return Section(
        "Which runs are in one basin",
        "Look for dark blocks off the diagonal: gaps between runs of different groups. Runs of one recipe share a pretrained "
        "network; their heads and their order of data differ. A path is the straight line between the weights of two runs. Its "
        "convexity gap is the largest loss increase above a chord over any part of the path. Groups are defined by the early "
        "bias; without an early bias, by the strategy that a run took.",
        tuple(figures),
    )


def _ratios(record: Record[Any]) -> Figure:
    lines: list[dict[str, Any]] = []
    for i in inits(record):
        for condition in (PLANTED, MATCHED, SHUFFLED_GROUPS, UNBIASED, shuffled(UNBIASED)):
            for step in (f"planted {i}", f"plain {i}"):
                table = record.results[step].select(metric="ratio", item=GAP, condition=condition)
                for r in records(table):
                    name = {PLANTED: "early bias"}.get(condition, condition)
                    row = {"name": f"pretraining {i}, {name}", **{k: r[k] for k in ("value", "lo", "hi", "n")}}
                    if row["name"] not in {line["name"] for line in lines}:
                        lines.append(row)
    frame = pd.DataFrame(lines)
    controls = [name for name in frame["name"] if name.endswith((SHUFFLED_GROUPS, NO_BIAS))]
    return Figure(
        grids.points(frame, value_title="gap across groups ÷ gap within groups", controls=controls, label_limit=300, rule=1.0),
        "Convexity gap across groups, relative to that within groups (1: no separation)",
        "Bars: 95 % intervals from resampling runs within groups; for shuffled groups, the range of 200 shuffles. Controls are "
        "grey. For groups by strategy, a ratio above 1 shows that the strategies are separated, not that they form clusters.",
    )


def _clusters(record: Record[Any]) -> Figure:
    table = record.results["summary"].table
    shown = table[(table["metric"] == "ARI") & table["condition"].isin([PLANTED])]
    frame = shown.rename(columns={"item": "name"})[["name", "value", "lo", "hi", "n"]].fillna(
        {"lo": shown["value"], "hi": shown["value"]}
    )
    return Figure(
        grids.points(frame.sort_values("name"), value_title="adjusted Rand index with the groups", label_limit=330),
        "Do the clusters recover the groups?",
        "Clustering uses the distances and no labels; 0 is chance, 1 is perfect agreement with the groups. Mean "
        "over pretrainings; bars: interval over pretrainings. The published scale, δ = 1, suits barriers near 1.",
    )


def _heights(record: Record[Any]) -> Table:
    lines = []
    for condition, name in CONDITIONS.items():
        for how in (*HEIGHTS, EUCLIDEAN):
            parts = {
                part: r
                for r in records(record.results["summary"].table, condition=condition)
                for part in ("within", "across")
                if r["metric"] in ("height", "distance") and r["item"] == f"{part}: {how}"
            }
            if len(parts) == 2:
                lines.append({"runs": name, "height": how, **{part: format_estimate(r) for part, r in parts.items()}})
    return Table(
        pd.DataFrame(lines),
        "Mean height of barriers, by each definition (nats)",
        "Mean over pairs, then over pretrainings. Across strategies (no early bias): mean over the pretrainings "
        "in which both strategies occur. Euclidean distances are between weights.",
    )


def _mean(alphas: np.ndarray, curves: np.ndarray, name: str) -> list[dict[str, Any]]:
    """Mean loss at each point of the paths, and its interquartile range."""
    lo, hi = np.quantile(curves, [0.25, 0.75], axis=0)
    return [
        {"dose": float(a), "condition": name, "value": float(v), "lo": float(x), "hi": float(y), "n": len(curves)}
        for a, v, x, y in zip(alphas, curves.mean(0), lo, hi)
    ]


def _along(record: Record[Any]) -> Section:
    """Mean loss along the paths, by kind of pair."""
    figures: list[Figure | Table] = []
    for init in inits(record):
        lines = []
        for condition in (PLANTED, UNBIASED):
            found, groups = (
                _curves(record, _step(condition, init), condition, init),
                _table(record, condition, init)["group"].to_numpy(),
            )
            ends = groups[found.pairs]
            kinds = np.where(ends[:, 0] == ends[:, 1], ends[:, 0] + " – " + ends[:, 0], "across groups")
            if condition == UNBIASED:
                kinds = np.full(len(found.pairs), NO_BIAS)
            for kind in dict.fromkeys(kinds):
                lines += _mean(found.alphas, found.losses["loss"][kinds == kind], kind)
        figures.append(
            Figure(
                grids.dose(
                    pd.DataFrame(lines),
                    x_title="position on the path (0: one run, 1: the other)",
                    value_title="ID loss (nats)",
                    share=False,
                    height=220,
                ),
                f"Loss along the paths, pretraining {init}",
                "Mean over pairs; bands: interquartile range.",
                small=True,
            )
        )
    return Section(
        "Loss along the paths",
        "Look for a bump between runs of different groups only. Held-out ambiguous examples, on which rule and heuristic agree.",
        tuple(figures),
    )


def _behaviour(record: Record[Any]) -> Section:
    frames = []
    for init in inits(record):
        for condition in CONDITIONS:
            table = _table(record, condition, init)
            group = NO_BIAS if condition == UNBIASED else table["group"] + (", matched" if condition != PLANTED else "")
            frames.append(
                pd.DataFrame(
                    {
                        "x": table["loss"],
                        "y": table["rule"],
                        "group": group,
                        "init": init,
                        "name": [f"{r}, pretraining {init}" for r in table["run"]],
                    }
                )
            )
    frame = pd.concat(frames, ignore_index=True)
    items: list[Figure | Table] = [
        Figure(
            runs.scattered(
                frame[frame["init"] == i], x_title="ID loss (nats)", y_title="share of the rule on disambiguating examples"
            ),
            f"Behaviour and ID loss of each run, pretraining {i}",
            "If the groups also differ along the horizontal axis, a barrier may reflect quality only.",
            small=True,
        )
        for i in inits(record)
    ]
    table = record.results["summary"].table
    shown = table[table["metric"].isin(["mantel rho", "AUC", "modes", "Sarle's coefficient", "triangles broken"])]
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for r in records(shown):
        line = lines.setdefault((r["metric"], r["item"]), {"number": r["metric"], "of": r["item"]})
        line[CONDITIONS.get(r["condition"], r["condition"])] = format_estimate(r)
    items.append(
        Table(
            pd.DataFrame(list(lines.values())).fillna("–"),
            "Does distance predict behaviour, and what else does?",
            "Means over pretrainings. AUC of ID loss above .5: the runs with early bias towards the rule have the lower loss.",
        )
    )
    return Section(
        "Clusters against behaviour",
        "Look for groups that differ in behaviour at equal loss. Permuted examples distinguish the rule (labels 0 and 1, word by "
        "word) from lexical overlap. No run sees them in the second part of training.",
        tuple(items),
    )


def _phases(record: Record[Any]) -> Section:
    table = record.results["phases"].table
    items: list[Figure | Table] = []
    for metric, title in (("share of the rule", "share of the rule"), ("spread", "standard deviation over runs")):
        for i in inits(record):
            some = table[(table["metric"] == metric) & (table["split"] == f"pretraining {i}")]
            frame = pd.DataFrame(
                {"x": some["item"], "y": some["token"], "value": some["value"], "lo": some["lo"], "hi": some["hi"], "n": some["n"]}
            ).sort_values(["y"], key=lambda s: s.astype(int))
            chosen = int(record.results["phases"].arrays["forks"][i])
            items.append(
                Figure(
                    grids.grid(frame, x_title="largest rate", y_title="fork (step)", value_title=title),
                    f"{title.capitalize()}, pretraining {i}",
                    f"Unbiased runs. The groups with early bias start from step {chosen}.",
                    small=True,
                )
            )
    skill = record.results["pretraining"].table
    shuffled = skill[skill["item"] == "shuffled"]
    lines = shuffled.assign(fork=shuffled["token"].astype(int)).pivot_table(index="fork", columns="split", values="value")
    items.append(
        Table(
            lines.reset_index(),
            "Words of a shuffled hypothesis that the pretrained network fills in at each fork (accuracy)",
            "Lexical overlap needs this skill. Filling in words in the original order is learned earlier.",
        )
    )
    return Section(
        "When is a recipe open?",
        "Look for the step and rate at which the spread over runs is largest. The pretraining step at which fine-tuning "
        "begins, and its learning rate, decide whether runs agree. "
        "Shown: the share of the rule over unbiased runs, and its standard deviation over them.",
        tuple(items),
    )


def _independent(record: Record[Any]) -> Section:
    rows = {(r["condition"], r["item"]): r for r in records(record.results["apart"].table)}
    conditions = (INDEPENDENT, REBASIN, COPY, COPY_MATCHED)
    lines = [{"height": how, **{c: format_estimate(rows[c, f"all pairs: {how}"]) for c in conditions}} for how in HEIGHTS]
    drawn = []
    for condition in conditions:
        found = _curves(record, "apart", condition, 0)
        drawn += _mean(found.alphas, found.losses["loss"], condition)
    pairs = len(_curves(record, "apart", INDEPENDENT, 0).pairs)
    figure = Figure(
        grids.dose(
            pd.DataFrame(drawn),
            x_title="position on the path (0: one run, 1: the other)",
            value_title="ID loss (nats)",
            share=False,
            height=260,
        ),
        "Paths between runs from independent pretrainings, and to permuted copies",
        f"Means over {pairs} pairs, and over runs and their copies; bands: interquartile range.",
    )
    return Section(
        "Control: independent pretrainings",
        "Look for barriers that weight matching does not remove. Runs from independent pretrainings are separated by barriers, "
        "whatever their behaviour. A copy with permuted units, heads and residual stream computes the same function, and yet "
        "there is a barrier. Weight matching (Git Re-Basin) permutes one network to fit the other. It recovers the copy; how much "
        "it helps for independent pretrainings is measured here.",
        (figure, Table(pd.DataFrame(lines), "Mean height of barriers (nats)")),
    )
