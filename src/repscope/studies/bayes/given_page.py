"""The page of `bayes` for a language model, or for the user's hidden Markov models."""

import pandas as pd

from repscope.conditions import ESTIMATE
from repscope.report.page import Item, Page, Section, Table
from repscope.studies.bayes import names
from repscope.studies.bayes.figures import curves, figure, headline, key, lengths
from repscope.studies.bayes.options import BayesOptions
from repscope.studies.run.study import Record

_TITLES = (names.ASKED, names.GIVEN)
_CEILINGS = (names.MIXTURE, names.AWARE)
_CONTROLS = (names.UNTRAINED, names.RANDOM, names.COUNTS)


def page(record: Record[BayesOptions]) -> Page:
    """The page."""
    table, o = record.table, record.options
    given = record.results["models"].side["models"] if "models" in record.results else None
    world = f"{o.concepts} concepts of a GINC world" if given is None else f"{len(given)} hidden Markov models of yours"
    tested = (
        "Tested on small networks trained in this study on documents of your models."
        if o.model is None
        else "Tested on a language model that never saw these hidden Markov models: it can only learn from the text at hand. "
        "Not tested: whether it infers as Bayes would from its own pretraining distribution, which nobody knows."
    )
    present = set(table["condition"])
    ceilings = tuple(c for c in _CEILINGS if c in present)
    controls = tuple(c for c in _CONTROLS if c in present)
    sections = [_distances(table)]
    if o.model is not None:
        sections.append(_mass(table))
    if given is not None:
        sections.append(_models(given))
    return Page(
        title="In-context learning and Bayesian inference",
        context=(world,),
        tested=tested,
        headline=headline(table, _TITLES, (ESTIMATE, *ceilings, *controls)),
        key=key(table, (*ceilings, *controls[1:]), controls[0], "networks" if o.model is None else "model"),
        sections=tuple(sections),
    )


def _distances(table: pd.DataFrame) -> Section:
    items: list[Item] = []
    for metric, said in ((names.KL, "KL to pretraining Bayes (nats)"), (names.TV, "total variation to pretraining Bayes")):
        for length in lengths(table, _TITLES):
            rows = curves(table, metric, _TITLES, (ESTIMATE, names.AWARE, *_CONTROLS))
            rows = rows[rows["length"] == length]
            items.append(figure(rows, _titled(said, length), said, "Lower is nearer to Bayes.", share=False))
    for length in lengths(table, _TITLES):
        rows = curves(table, names.TRUTH, _TITLES, _CEILINGS)
        caption = "What an exact observer can know of the model behind the text."
        rows = rows[rows["length"] == length]
        items.append(figure(rows, _titled("Posterior of the true concept", length), "posterior", caption, share=True))
    text = (
        "Look for curves that fall as the text goes on, below those of the controls. Counts of symbol pairs show how near to Bayes "
        "a reader comes that knows nothing but the text."
        if names.COUNTS in set(table["condition"])
        else "Look for curves that fall as the text goes on, below that of untrained networks."
    )
    return Section("Distance from Bayes", text, tuple(items))


def _mass(table: pd.DataFrame) -> Section:
    items: list[Item] = []
    for length in lengths(table, _TITLES):
        rows = curves(table, names.MASS, _TITLES, (ESTIMATE, names.RANDOM))
        rows = rows[rows["length"] == length]
        caption = "Where it is small, the model expects other tokens, and the renormalised distribution says little about it."
        items.append(figure(rows, _titled("Probability of all symbols together", length), "probability", caption, share=True))
    text = "Look for whether the model expects these symbols at all. Its probabilities are renormalised over them everywhere else."
    return Section("Mass on the symbols", text, tuple(items))


def _models(given: pd.DataFrame) -> Section:
    frame = given.rename(columns={"entropy": "nats per symbol", "distance": "nats per symbol from the nearest other"})
    text = (
        "Look for models that are near each other: a text tells two of them apart after about 1 / (nats per symbol from the "
        "nearest other) symbols. Measured on documents of each."
    )
    return Section("Your models", text, (Table(frame, "Hidden Markov models", "In the order of the file."),))


def _titled(said: str, length: int) -> str:
    return f"{said}, examples of {length}" if length else said
