"""The page of `bayes` and its closing lines, from the tables of the run."""

from typing import Any

import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.report.charts import grids
from repscope.report.page import Figure, Item, Page, Section, Table
from repscope.report.text import format_estimate
from repscope.results import select
from repscope.studies.bayes import names, regression_page
from repscope.studies.bayes.options import BayesOptions
from repscope.studies.run.study import Answer, Record

_BESIDE = (ESTIMATE, names.RECURRENT, names.MIXTURE, names.AWARE, names.UNTRAINED)
_SHARES = (names.ACCURACY, names.CLEAR, names.TRUTH)


def page(record: Record[BayesOptions]) -> Page:
    """The page."""
    table = record.table
    world = record.results["world"].side["world"].iloc[0]
    return Page(
        title="In-context learning and Bayesian inference",
        context=(f"world {world['seed']}, {world['hidden states']} hidden states, {record.options.concepts} concepts",),
        tested="Tested on small networks trained in this study, in worlds whose exact Bayes predictor is known. "
        "Not tested: language models, whose pretraining distribution nobody knows.",
        headline=_headline(table),
        key=_key(table),
        sections=(_distances(table), _contrast(table), _floors(table), regression_page.section(table), _elsewhere(record)),
    )


def answer(record: Record[BayesOptions]) -> Answer:
    """The main numbers, one line each."""
    table, lines = record.table, list(record.warnings)
    for row in select(table, metric=names.TOKEN_KL, condition=ESTIMATE).to_dict("records"):
        lines.append(f"{row['item']}: {format_estimate(row)} nats per token from exact Bayes on held-out documents.")
    for row in select(table, metric=names.RISE, condition=ESTIMATE).to_dict("records"):
        ceiling = select(table, metric=names.RISE, condition=names.MIXTURE, item=row["item"]).to_dict("records")
        beside = f", exact Bayes by {format_estimate(ceiling[0])}" if ceiling else ""
        lines.append(f"{row['item']}: accuracy on clear labels rises by {format_estimate(row)}{beside} ({row['split']}).")
    return Answer(lines + regression_page.lines(table))


def _curves(table: pd.DataFrame, metric: str, titles: tuple[str, ...], conditions: tuple[str, ...] = _BESIDE) -> pd.DataFrame:
    rows = table[(table["metric"] == metric) & table["condition"].isin(conditions)]
    known = [names.parts(item) for item in rows["item"]]
    rows = rows.assign(title=[k[0] for k in known], length=[k[1] for k in known], dose=[k[2] for k in known])
    rows = rows[rows["title"].isin(titles)]
    return rows.assign(item=[names.series(t, n) for t, n in zip(rows["title"], rows["length"])])


def _lengths(table: pd.DataFrame) -> list[int]:
    return sorted(set(_curves(table, names.KL, (names.UNIFORM,))["length"]))


def _figure(rows: pd.DataFrame, title: str, said: str, caption: str, *, share: bool, small: bool = True) -> Figure:
    chart = grids.dose(rows, x_title="examples before the query", value_title=said, share=share)
    return Figure(chart, title, caption, small=small)


def _headline(table: pd.DataFrame) -> Figure:
    length = _lengths(table)[0]
    metric = names.CLEAR if not _curves(table, names.CLEAR, (names.UNIFORM,)).empty else names.ACCURACY
    rows = _curves(table, metric, (names.UNIFORM,))
    return _figure(
        rows[rows["length"] == length],
        f"Accuracy on clear labels by number of examples, {length} symbols each",
        "accuracy",
        f"Share of prompts whose most probable answer is the oracle's, where the oracle's margin is at least {names.CLEAR_MARGIN}. "
        "Pretraining Bayes is what next-token training converges to, the ceiling of a network that reads the prompt as a document; "
        "format-aware Bayes also knows the format. Bands: 95 % over prompts.",
        share=True,
        small=False,
    )


def _key(table: pd.DataFrame) -> Table:
    lines = []
    for row in select(table, metric=names.TOKEN_KL, condition=ESTIMATE).to_dict("records"):
        untrained = select(table, metric=names.TOKEN_KL, condition=names.UNTRAINED, item=row["item"]).to_dict("records")
        lines.append(_line(f"nats per token from Bayes, {row['item']}", row, {names.UNTRAINED: untrained[0]} if untrained else {}))
    for metric, said in ((names.RISE, "rise of accuracy"), (names.CHANGE, "change of KL to Bayes")):
        rows = table[table["metric"] == metric]
        for item, split in dict.fromkeys(zip(rows["item"], rows["split"])):
            here = rows[(rows["item"] == item) & (rows["split"] == split)]
            at = {r["condition"]: r for r in here.to_dict("records")}
            own = at.get(ESTIMATE) or at.get(names.ONE)
            if own is not None:
                lines.append(_line(f"{said}, {item}, {split}", own, at))
    return Table(
        pd.DataFrame(lines),
        "Key numbers",
        "With 95 % intervals over prompts, for numbers per token over documents; means over networks.",
    )


def _line(what: str, own: dict[Any, Any], at: dict[str, Any]) -> dict[str, Any]:
    cells = {c: format_estimate(at[c]) if c in at else "–" for c in (names.MIXTURE, names.AWARE, names.UNTRAINED)}
    return {"number": what, "networks": format_estimate(own), **cells, "n": own["n"]}


def _distances(table: pd.DataFrame) -> Section:
    items: list[Item] = []
    for metric, said in ((names.KL, "KL to pretraining Bayes (nats)"), (names.TV, "total variation to pretraining Bayes")):
        for length in _lengths(table):
            rows = _curves(table, metric, (names.UNIFORM,), (ESTIMATE, names.RECURRENT, names.AWARE, names.UNTRAINED))
            rows = rows[rows["length"] == length]
            items.append(_figure(rows, f"{said}, examples of {length}", said, "Lower is nearer to Bayes.", share=False))
    for length in _lengths(table):
        rows = _curves(table, names.TRUTH, (names.UNIFORM,), (names.MIXTURE, names.AWARE))
        rows = rows[rows["length"] == length]
        caption = "What an exact observer can know of the concept after these examples."
        items.append(_figure(rows, f"Posterior of the true concept, examples of {length}", "posterior", caption, share=True))
    text = (
        "Look for curves that fall with the number of examples. The first delimiters are unlike pretraining documents, so the "
        "distance "
        "often rises at one or two examples before it falls. Format-aware Bayes shows how far an observer who knows the "
        "format is from "
        "the mixture itself."
    )
    return Section("Distance from Bayes", text, tuple(items))


def _contrast(table: pd.DataFrame) -> Section:
    items: list[Item] = []
    for title in (names.PUBLISHED, names.UNSEEN, names.OWN, names.ALL):
        rows = _curves(table, names.ACCURACY, (title,), (*_BESIDE, names.ONE))
        for length in sorted(set(rows["length"])):
            caption = {
                names.PUBLISHED: "The delimiter as published: what follows it speaks for some concepts, so that examples "
                "count less.",
                names.UNSEEN: "Prompts of concepts outside the pretraining distribution; the predictors keep their prior.",
                names.OWN: "Networks that saw one concept, on that concept; the exact predictors know that concept alone.",
                names.ALL: "The same networks on prompts of all concepts.",
            }[title]
            part = rows[rows["length"] == length]
            items.append(_figure(part, f"Accuracy, {title}, examples of {length}", "accuracy", caption, share=True))
    text = "Look for curves that stay flat: there the exact predictor does not learn either, and a network is not at fault."
    return Section("Where examples do not help", text, tuple(items))


def _floors(table: pd.DataFrame) -> Section:
    rows = table[[", floor " in item for item in table["item"]]]
    wide = rows.assign(cell=[format_estimate(r) for r in rows.to_dict("records")])
    wide = wide.pivot_table(index="item", columns=["metric"], values="cell", aggfunc="first").reset_index()
    order = select(table, metric=names.ORDER)
    said = "; ".join(f"{r['item']}, {r['condition']}: {format_estimate(r)}" for r in order.to_dict("records"))
    text = (
        "A third of the transitions between slots are impossible, and prompts need some of them. A Bayes predictor therefore "
        "has a floor "
        "under its transitions, a choice that moves its curve; look at how much. "
        + (f"Total variation between answers after the same examples in two orders: {said}." if said else "")
    )
    return Section(
        "The floor, and the order of examples", text, (Table(wide, "By floor", "Accuracy of exact Bayes; KL to networks."),)
    )


def _elsewhere(record: Record[BayesOptions]) -> Section:
    scan = record.results["world"].side["scan"]
    text = "The margin rule looks at the oracle alone: at most a fifth of the labels may be nearly a coin's."
    return Section("The world that was chosen", text, (Table(scan, "Worlds that were looked at", "In the order of their seeds."),))
