"""The page of `bayes` and its closing lines, from the tables of the run."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.report.page import Item, Page, Section, Table
from repscope.report.text import format_estimate
from repscope.results import records, select
from repscope.studies.bayes import given_page, names, regression_page
from repscope.studies.bayes.figures import curves, figure, headline, key, lengths
from repscope.studies.bayes.options import BayesOptions
from repscope.studies.run.study import Answer, Record

_BESIDE = (ESTIMATE, names.RECURRENT, names.MIXTURE, names.AWARE, names.UNTRAINED)


def page(record: Record[BayesOptions]) -> Page:
    """The page."""
    if record.options.hmm is not None or record.options.model is not None:
        return given_page.page(record)
    table, o = record.table, record.options
    world = record.results["world"].side["world"].iloc[0]
    sizes = (
        "The short form has no LSTMs, no networks of one concept, and examples of 3 and 5 symbols alone. "
        "Its training is short too, so that networks may be far from Bayes for that reason; the full form decides."
        if o.short
        else ""
    )
    return Page(
        title="In-context learning and Bayesian inference",
        context=(f"world {world['seed']}, {world['hidden states']} hidden states, {o.concepts} concepts",),
        tested="Tested on small networks trained in this study, in worlds whose exact Bayes predictor is known. "
        "Not tested: language models, whose pretraining distribution nobody knows.",
        headline=headline(table, (names.UNIFORM,), _BESIDE),
        key=key(table, (names.MIXTURE, names.AWARE), names.UNTRAINED),
        sections=(_distances(table), _contrast(table), _floors(table), regression_page.section(table), _elsewhere(record)),
        notes=(f"All networks had {o.steps:,} updates of {o.batch} documents of {o.length} symbols.", *((sizes,) if sizes else ())),
    )


def answer(record: Record[BayesOptions]) -> Answer:
    """The main numbers, one line each."""
    table, lines = record.table, list(record.warnings)
    for row in records(table, metric=names.TOKEN_KL, condition=ESTIMATE):
        lines.append(f"{row['item']}: {format_estimate(row)} nats per token from exact Bayes on held-out documents.")
    for row in records(table, metric=names.RISE, condition=ESTIMATE):
        ceiling = records(table, metric=names.RISE, condition=names.MIXTURE, item=row["item"])
        beside = f", that of exact Bayes {risen(ceiling[0])}" if ceiling else ""
        lines.append(f"{row['item']}: accuracy on clear labels {risen(row)}{beside} ({row['split']}).")
    return Answer(lines + regression_page.lines(table))


def risen(row: Mapping[Any, Any]) -> str:
    """A change in words: "rises by" or "falls by" its size, with the interval of that size."""
    if row["value"] >= 0:
        return f"rises by {format_estimate(row)}"
    return f"falls by {format_estimate({'value': -row['value'], 'lo': -row['hi'], 'hi': -row['lo']})}"


def _distances(table: pd.DataFrame) -> Section:
    items: list[Item] = []
    for metric, said in ((names.KL, "KL to pretraining Bayes (nats)"), (names.TV, "total variation to pretraining Bayes")):
        for length in lengths(table, (names.UNIFORM,)):
            rows = curves(table, metric, (names.UNIFORM,), (ESTIMATE, names.RECURRENT, names.AWARE, names.UNTRAINED))
            rows = rows[rows["length"] == length]
            items.append(figure(rows, f"{said}, examples of {length}", said, "Lower is nearer to Bayes.", share=False))
    for length in lengths(table, (names.UNIFORM,)):
        rows = curves(table, names.TRUTH, (names.UNIFORM,), (names.MIXTURE, names.AWARE))
        rows = rows[rows["length"] == length]
        caption = "What an exact observer can know of the concept after these examples."
        items.append(figure(rows, f"Posterior of the true concept, examples of {length}", "posterior", caption, share=True))
    text = (
        "Look for curves that fall with the number of examples. The first delimiters are unlike pretraining documents, so the "
        "distance often rises at one or two examples before it falls. Format-aware Bayes shows how far an observer who knows the "
        "format is from the mixture itself."
    )
    return Section("Distance from Bayes", text, tuple(items))


def _contrast(table: pd.DataFrame) -> Section:
    items: list[Item] = []
    for title in (names.PUBLISHED, names.UNSEEN, names.OWN, names.ALL):
        rows = curves(table, names.ACCURACY, (title,), (*_BESIDE, names.ONE))
        for length in sorted(set(rows["length"])):
            caption = {
                names.PUBLISHED: "The delimiter as published: what follows it speaks for some concepts, so that examples "
                "count less.",
                names.UNSEEN: "Prompts of concepts outside the pretraining distribution; the predictors keep their prior.",
                names.OWN: "Networks that saw one concept, on that concept; the exact predictors know that concept alone.",
                names.ALL: "The same networks on prompts of all concepts.",
            }[title]
            part = rows[rows["length"] == length]
            items.append(figure(part, f"Accuracy, {title}, examples of {length}", "accuracy", caption, share=True))
    text = "Look for curves that stay flat: there the exact predictor does not learn either, and a network is not at fault."
    return Section("Where examples do not help", text, tuple(items))


def _floors(table: pd.DataFrame) -> Section:
    wide = floor_table(table)
    order = select(table, metric=names.ORDER)
    said = "; ".join(f"{r['item']}, {r['condition']}: {format_estimate(r)}" for r in records(order))
    text = (
        "A third of the transitions between slots are impossible, and prompts need some of them. A Bayes predictor therefore has a "
        "floor under its transitions, a choice that moves its curve; look at how much. "
        + (f"Total variation between answers after the same examples in two orders: {said}." if said else "")
    )
    return Section(
        "The floor, and the order of examples", text, (Table(wide, "By floor", "Accuracy of exact Bayes; KL to networks."),)
    )


def floor_table(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of exact Bayes and KL to networks, in the order of lengths, floors and numbers of examples."""
    rows = table[[", floor " in item for item in table["item"]]]
    known = [names.parts(item) for item in rows["item"]]
    rows = rows.assign(cell=[format_estimate(r) for r in records(rows)])
    rows = rows.assign(length=[n for _, n, _ in known], floor=[names.floor_of(t) for t, _, _ in known], dose=[k for *_, k in known])
    index = ["length", "floor", "dose", "item"]
    wide = rows.pivot_table(index=index, columns=["metric"], values="cell", aggfunc="first").sort_index()
    return wide.reset_index().drop(columns=index[:-1])


def _elsewhere(record: Record[BayesOptions]) -> Section:
    scan = record.results["world"].side["scan"]
    text = "The margin rule looks at the oracle alone: at most a fifth of the labels may be nearly a coin's."
    return Section("The world that was chosen", text, (Table(scan, "Worlds that were looked at", "In the order of their seeds."),))
