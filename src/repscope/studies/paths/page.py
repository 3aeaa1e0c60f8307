"""The page of the `paths` study, and its closing lines: figures and sentences made from the run's tables, and nothing else."""

from typing import Any

import numpy as np
import pandas as pd

from repscope.conditions import COPY, COPY_MATCHED, ESTIMATE, INDEPENDENT, MATCHED, NO_BIAS, REBASIN, SHUFFLED_GROUPS, shuffled
from repscope.report.charts import grids, runs
from repscope.report.claims import evaluate_claims, load_claims
from repscope.report.page import Figure, Page, Section, Table
from repscope.report.text import format_estimate
from repscope.studies.paths import published_page
from repscope.studies.paths.options import PathsOptions
from repscope.studies.run.provenance import page_facts
from repscope.studies.run.study import Answer, Record
from repscope.trace.barriers import GAP, HEIGHTS
from repscope.trace.interpolation import Curves
from repscope.trace.run_table import EUCLIDEAN

_CONDITIONS = {ESTIMATE: "planted arms", MATCHED: "planted arms, matched on ID loss", NO_BIAS: NO_BIAS}
_PLANTED, _PLAIN = ESTIMATE, NO_BIAS


def page(record: Record[PathsOptions]) -> Page:
    """The whole page: the study, a published table, or both."""
    sections = [_matrices(record), _along(record), _behaviour(record), _phases(record)] if "summary" in record.results else []
    if "apart" in record.results:
        sections.append(_own(record))
    if "published" in record.results:
        sections.append(published_page.section(record.results["published"]))
    return Page(
        title="Runs of one recipe",
        question=record.facts["question"],
        answer="\n\n".join(_told(record)),
        sections=tuple(sections),
        verdicts=evaluate_claims(load_claims(), record.table),
        notes=record.notes,
        facts=page_facts(record.facts),
    )


def answer(record: Record[PathsOptions]) -> Answer:
    """The numbers that matter, one line each, and where the runs are."""
    runs = record.artifacts / "planted-0"
    return Answer([*_told(record), *([f"Runs: {record.artifacts}"] if runs.is_dir() else [])])


def _rows(record: Record[Any]) -> dict[tuple[str, str, str], dict[Any, Any]]:
    """(condition, metric, item) → row of the summary."""
    return {(r["condition"], r["metric"], r["item"]): r for r in record.results["summary"].table.to_dict("records")}


def _inits(record: Record[Any]) -> list[int]:
    return [int(name.removeprefix("planted ")) for name in record.results if name.startswith("planted ")]


def _told(record: Record[Any]) -> list[str]:
    if "summary" not in record.results:
        return _of_the_table(record)
    rows, inits = _rows(record), _inits(record)
    n = len(inits)
    over = f"mean over {n} pretraining{'s' if n != 1 else ''}{', with its interval over them' if n > 1 else ''}"
    said = []
    if (_PLANTED, "share of the rule", "rule") in rows:
        rule, bag = (format_estimate(rows[_PLANTED, "share of the rule", arm]) for arm in ("rule", "lexical overlap"))
        said.append(
            "A nudge at the start, and the same data ever after: runs of the rule arm follow the rule on "
            f"{rule} of the texts that tell, "
            f"those of the bag arm on {bag} ({over})."
        )
    ratio = [
        f"{name} {format_estimate(rows[c, 'ratio', GAP])}"
        for c, name in (*_CONDITIONS.items(), (SHUFFLED_GROUPS, SHUFFLED_GROUPS))
        if (c, "ratio", GAP) in rows
    ]
    if ratio:
        said.append(
            f"Convexity gap across groups over that within: {'; '.join(ratio)}. Of Euclidean distances it is "
            f"{format_estimate(rows[_PLANTED, 'ratio', EUCLIDEAN])} for the planted arms."
        )
    clusters = [
        f"{name} {format_estimate(rows[_PLANTED, 'ARI', key])}"
        for name, key in (
            ("spectral at the median scale", f"spectral, {GAP}, δ median"),
            ("average linkage of what is left without each run's own effect", f"average linkage, {GAP}, double-centred"),
            ("spectral on Euclidean distances", f"spectral, {EUCLIDEAN}"),
        )
        if (_PLANTED, "ARI", key) in rows
    ]
    if clusters:
        said.append(f"Clusters that know no arm agree with the arms (adjusted Rand index): {'; '.join(clusters)}.")
    if (_PLANTED, "AUC", "ID loss") in rows:
        said.append(
            f"What else tells the arms apart: ID loss alone, with an AUC of {format_estimate(rows[_PLANTED, 'AUC', 'ID loss'])}, "
            f"and of "
            f"{format_estimate(rows[MATCHED, 'AUC', 'ID loss'])} at the checkpoints that were matched on it."
            if (MATCHED, "AUC", "ID loss") in rows
            else "What else tells the arms apart: ID loss alone, "
            f"with an AUC of {format_estimate(rows[_PLANTED, 'AUC', 'ID loss'])}."
        )
    said += _tests(rows, n)
    if "apart" in record.results:
        gaps = {r["condition"]: r for r in record.results["apart"].select(item=f"all pairs: {GAP}").to_dict("records")}
        said.append(
            f"The opposite control, runs from pretrainings of their own: a gap of {format_estimate(gaps[INDEPENDENT])} nats "
            "between them, "
            f"{format_estimate(gaps[REBASIN])} after weight matching; between a run and a permuted copy "
            f"{format_estimate(gaps[COPY])}, and "
            f"{format_estimate(gaps[COPY_MATCHED])} after it."
        )
    return [*said, *_weak(record), *_of_the_table(record)]


def _tests(rows: dict[tuple[str, str, str], dict[Any, Any]], n: int) -> list[str]:
    """Mantel tests, planted and plain."""
    parts = []
    for condition, name in ((_PLANTED, "planted"), (_PLAIN, NO_BIAS)):
        for item, words in ((GAP, ""), (f"{GAP}, beyond ID loss", " beyond ID loss")):
            key = (condition, "mantel rho", item)
            if key in rows:
                small = rows[condition, "mantel p ≤ .05", item]
                parts.append(
                    f"{name}{words} {format_estimate(rows[key])} (p ≤ .05 in {round(small['value'] * small['n'])} of {small['n']})"
                )
    return [f"Convexity gap against the difference in behaviour, over pairs of runs (Mantel): {'; '.join(parts)}."] if parts else []


def _of_the_table(record: Record[Any]) -> list[str]:
    """What a published table says: how well the cluster tells the score, and how well it tells in-domain accuracy."""
    notes = record.results["published"].notes if "published" in record.results else ()
    return [f"The published table: {note}" for note in notes if ": AUC " in note]


def _weak(record: Record[Any]) -> list[str]:
    """Pretrainings in which the nudge did not last, said by name."""
    failed = []
    for i in _inits(record):
        table = record.results[f"planted {i}"].select(metric="share of the rule", condition=_PLANTED)
        shares = dict(zip(table["item"], table["value"]))
        if set(shares) != {"rule", "lexical overlap"} or shares["rule"] < 0.5 or shares["lexical overlap"] > 0.5:
            failed.append(f"{i} ({', '.join(f'{k} {v:.2f}' for k, v in shares.items())})")
    if not failed:
        return []
    return [f"In pretraining {' and '.join(failed)} the nudge did not last: one strategy won in both arms, whatever came first."]


def _curves(record: Record[Any], step: str, condition: str, init: int) -> Curves:
    held, prefix = record.results[step].arrays, f"{condition}/{init}/"
    losses = {k.removeprefix(prefix + "losses/"): v for k, v in held.items() if k.startswith(prefix + "losses/")}
    pairs = held[prefix + "pairs"]
    return Curves(int(pairs.max()) + 1, pairs, held[prefix + "alphas"], losses)


def _step(condition: str, init: int) -> str:
    return f"plain {init}" if condition == _PLAIN else f"planted {init}"


def _table(record: Record[Any], condition: str, init: int) -> pd.DataFrame:
    return record.results[_step(condition, init)].side[f"runs-{init}-{condition}"]


def _matrices(record: Record[Any]) -> Section:
    """Gaps between all runs, ordered by group and, inside, by cluster."""
    gaps = {
        (condition, init): _curves(record, _step(condition, init), condition, init).matrix("loss", GAP)
        for init in _inits(record)
        for condition in (_PLANTED, _PLAIN)
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
        groups = "arm" if condition == _PLANTED else "strategy that a run took"
        figures.append(
            Figure(
                runs.distances(frame, value_title="convexity gap (nats)", top=top),
                f"{_CONDITIONS[condition]}, pretraining {init}",
                f"Every pair of runs, ordered by {groups}. The colours of all these figures are one scale.",
                small=True,
            )
        )
    figures += [_ratios(record), _clusters(record), _heights(record)]
    return Section(
        "Which runs are in one basin",
        "Runs of one recipe share a pretrained network; heads and the order of data differ. A path is the "
        "straight line between two runs' "
        "weights; its convexity gap is the largest rise above a chord over any part of it. Groups are the "
        "planted arms, and without a nudge "
        "the strategy that a run took.",
        tuple(figures),
    )


def _ratios(record: Record[Any]) -> Figure:
    lines: list[dict[str, Any]] = []
    for i in _inits(record):
        for condition in (_PLANTED, MATCHED, SHUFFLED_GROUPS, _PLAIN, shuffled(_PLAIN)):
            for step in (f"planted {i}", f"plain {i}"):
                table = record.results[step].select(metric="ratio", item=GAP, condition=condition)
                for r in table.to_dict("records"):
                    name = {_PLANTED: "planted"}.get(condition, condition)
                    row = {"name": f"pretraining {i}, {name}", **{k: r[k] for k in ("value", "lo", "hi", "n")}}
                    if row["name"] not in {line["name"] for line in lines}:
                        lines.append(row)
    frame = pd.DataFrame(lines)
    controls = [name for name in frame["name"] if name.endswith((SHUFFLED_GROUPS, NO_BIAS))]
    return Figure(
        grids.points(frame, value_title="convexity gap across groups / within", controls=controls, label_limit=230),
        "Across groups over within",
        "Bars: 95 % intervals by drawing runs within groups; of shuffled groups the range of 200 shuffles. "
        "Controls are grey. For groups by "
        "strategy a ratio above 1 says that strategies lie apart, not that they form clusters.",
    )


def _clusters(record: Record[Any]) -> Figure:
    table = record.results["summary"].table
    shown = table[(table["metric"] == "ARI") & table["condition"].isin([_PLANTED])]
    frame = shown.rename(columns={"item": "name"})[["name", "value", "lo", "hi", "n"]].fillna(
        {"lo": shown["value"], "hi": shown["value"]}
    )
    return Figure(
        grids.points(frame.sort_values("name"), value_title="adjusted Rand index with the arms", label_limit=330),
        "Do clusters find the arms?",
        "Clusters know the distances and no label; 0 is chance, 1 the arms. Mean over pretrainings, bars: interval over them. The "
        "published scale, δ = 1, suits barriers near 1.",
    )


def _heights(record: Record[Any]) -> Table:
    lines = []
    for condition, name in _CONDITIONS.items():
        for how in (*HEIGHTS, EUCLIDEAN):
            held = {
                part: r
                for r in record.results["summary"].select(condition=condition).to_dict("records")
                for part in ("within", "across")
                if r["metric"] in ("height", "distance") and r["item"] == f"{part}: {how}"
            }
            if len(held) == 2:
                lines.append({"runs": name, "height": how, **{part: format_estimate(r) for part, r in held.items()}})
    return Table(
        pd.DataFrame(lines),
        "Mean height of barriers, by each definition (nats)",
        "Mean over pairs, then over pretrainings: of no nudge across strategies over those in which both occur. Euclidean "
        "distances are of weights.",
    )


def _mean(alphas: np.ndarray, curves: np.ndarray, name: str) -> list[dict[str, Any]]:
    """Mean loss at each place of some paths, and the middle half of them."""
    lo, hi = np.quantile(curves, [0.25, 0.75], axis=0)
    return [
        {"dose": float(a), "condition": name, "value": float(v), "lo": float(x), "hi": float(y), "n": len(curves)}
        for a, v, x, y in zip(alphas, curves.mean(0), lo, hi)
    ]


def _along(record: Record[Any]) -> Section:
    """Mean loss along the paths, by the kind of pair."""
    figures: list[Figure | Table] = []
    for init in _inits(record):
        lines = []
        for condition in (_PLANTED, _PLAIN):
            found, groups = (
                _curves(record, _step(condition, init), condition, init),
                _table(record, condition, init)["group"].to_numpy(),
            )
            ends = groups[found.pairs]
            kinds = np.where(ends[:, 0] == ends[:, 1], ends[:, 0] + " – " + ends[:, 0], "across groups")
            if condition == _PLAIN:
                kinds = np.full(len(found.pairs), NO_BIAS)
            for kind in dict.fromkeys(kinds):
                lines += _mean(found.alphas, found.losses["loss"][kinds == kind], kind)
        figures.append(
            Figure(
                grids.dose(
                    pd.DataFrame(lines),
                    x_title="place on the path (0: one record, 1: the other)",
                    value_title="ID loss (nats)",
                    share=False,
                    height=220,
                ),
                f"Loss along the paths, pretraining {init}",
                "Mean over pairs; bands: the middle half of them.",
                small=True,
            )
        )
    return Section("Along the paths", "Held-out ambiguous texts, on which rule and heuristic agree.", tuple(figures))


def _behaviour(record: Record[Any]) -> Section:
    frames = []
    for init in _inits(record):
        for condition in _CONDITIONS:
            table = _table(record, condition, init)
            group = NO_BIAS if condition == _PLAIN else table["group"] + (" arm, matched" if condition != _PLANTED else " arm")
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
            runs.scattered(frame[frame["init"] == i], x_title="ID loss (nats)", y_title="share of the rule on texts that tell"),
            f"What runs do, beside how well they do, pretraining {i}",
            "Where groups part along the horizontal axis as well, a barrier may speak of quality alone.",
            small=True,
        )
        for i in _inits(record)
    ]
    table = record.results["summary"].table
    shown = table[table["metric"].isin(["mantel rho", "AUC", "modes", "Sarle's coefficient", "triangles broken"])]
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for r in shown.to_dict("records"):
        line = lines.setdefault((r["metric"], r["item"]), {"number": r["metric"], "of": r["item"]})
        line[_CONDITIONS.get(r["condition"], r["condition"])] = format_estimate(r)
    items.append(
        Table(
            pd.DataFrame(list(lines.values())).fillna("–"),
            "Does distance predict behaviour, and what else does?",
            "Means over pretrainings. AUC of ID loss above .5: the rule arm has the lower loss.",
        )
    )
    return Section(
        "Clusters against behaviour",
        "Permuted texts tell the rule (0 or 1, word by word) from the bag of "
        "words; no run of the second part "
        "of training ever saw one.",
        tuple(items),
    )


def _phases(record: Record[Any]) -> Section:
    table = record.results["phases"].table
    items: list[Figure | Table] = []
    for metric, title in (("share of the rule", "share of the rule"), ("spread", "standard deviation over runs")):
        for i in _inits(record):
            some = table[(table["metric"] == metric) & (table["split"] == f"pretraining {i}")]
            frame = pd.DataFrame(
                {"x": some["item"], "y": some["token"], "value": some["value"], "lo": some["lo"], "hi": some["hi"], "n": some["n"]}
            ).sort_values(["y"], key=lambda s: s.astype(int))
            chosen = int(record.results["phases"].arrays["forks"][i])
            items.append(
                Figure(
                    grids.grid(frame, x_title="largest rate", y_title="fork (step)", value_title=title),
                    f"{title.capitalize()}, pretraining {i}",
                    f"Plain runs. The planted arms begin at step {chosen}.",
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
            "The skill that a bag of words takes; in order, words are filled in before.",
        )
    )
    return Section(
        "When is a recipe open?",
        "The step of the pretraining at which fine-tuning begins, and its rate, "
        "decide whether runs agree: the "
        "share of the rule and its spread over plain runs.",
        tuple(items),
    )


def _own(record: Record[Any]) -> Section:
    rows = {(r["condition"], r["item"]): r for r in record.results["apart"].table.to_dict("records")}
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
            x_title="place on the path (0: one record, 1: the other)",
            value_title="ID loss (nats)",
            share=False,
            height=260,
        ),
        "Paths between runs from pretrainings of their own, and to permuted copies",
        f"Means over {pairs} pairs, and over runs and their copies; bands: the middle half.",
    )
    return Section(
        "The opposite control",
        "Runs that share no pretraining are apart whatever they do: barriers "
        "everywhere. A copy whose units, "
        "heads and residual stream are permuted is the same function behind a barrier. Weight matching (Git Re-Basin) permutes the "
        "one to fit the other: it finds the copy again; how much it does for runs of different pretrainings is measured here.",
        (figure, Table(pd.DataFrame(lines), "Mean height of barriers (nats)")),
    )
