"""The page of the `features` study and its closing lines, from the table of the run."""

from typing import Any

import pandas as pd

from repscope.conditions import over
from repscope.report.charts import grids, layers
from repscope.report.page import Card, Cards, Figure, Item, Page, Section, Table
from repscope.report.tables import cell, wide
from repscope.report.text import format_estimate, format_gain
from repscope.results import ESTIMATE, records, select
from repscope.studies.features import names
from repscope.studies.features.names import CLAIMED, SPARSE, attribute, probed, title
from repscope.studies.features.options import FeaturesOptions
from repscope.studies.run.study import Answer, Record

_HEADLINE = (names.DENSE, names.DICTIONARY, names.NEURONS)
_QUALITY = (names.L0, names.EXPLAINED, names.RECOVERED, names.KL, names.DEAD)
_NAMED = "Held-out names. The features are chosen among the names of each training fold. Horizontal: probes on all features."
_CARD = "Shade: activation relative to the feature's largest. Each passage is centred on its largest activation."
_MEANT = {
    names.RECOVERED: "0: the site is replaced by its mean over the corpus. 1: the model as it is.",
    names.EXPLAINED: "1 minus the squared error over the squared distance to the mean of the site.",
}
_TESTED = (
    "Tested: how much of the model's loss the features keep when they replace the layer, and what a few of them tell of a name. "
    "Not tested: whether people find their descriptions right."
)


def page(record: Record[FeaturesOptions]) -> Page:
    """The page."""
    table = record.table
    return Page(
        title="What sparse features make up a layer, and a name",
        context=(str(_sae(table)["site"].iloc[0]), str(record.results["harvest"].side["corpus"]["corpus"].iloc[0])),
        tested=_TESTED,
        headline=_headline(table),
        key=_key(table),
        sections=(_layer(record, table), _names(table), _cards(record), *_stability(table)),
        facts={"Autoencoder": str(record.results["quality"].side["autoencoders"]["what"].iloc[0])},
    )


def answer(record: Record[FeaturesOptions]) -> Answer:
    """The main numbers, one line each."""
    table, lines = record.table, list(record.warnings)
    for item in dict.fromkeys(_sae(table)["item"]):
        at: dict[Any, Any] = {(r["metric"], r["condition"]): r for r in records(_sae(table)) if r["item"] == item}
        said = (
            f"{item}: L0 {at[names.L0, ESTIMATE]['value']:.0f}, explained variance {format_estimate(at[names.EXPLAINED, ESTIMATE])}"
        )
        if (names.RECOVERED, ESTIMATE) in at:
            recovered = {c: format_estimate(at[names.RECOVERED, c]) for c in (ESTIMATE, names.COMPONENTS, names.DICTIONARY)}
            said += (
                f", CE recovered {recovered[ESTIMATE]}, against {recovered[names.COMPONENTS]} for as many principal components "
                f"and {recovered[names.DICTIONARY]} for a random dictionary"
            )
        lines.append(f"{said}.")
    for name in _attributes(table):
        at = {r["condition"]: r for r in records(_scores(table, CLAIMED)) if attribute(r["item"]) == name}
        dense = _dense(table, name)
        lines.append(
            f"{title(name)}, {CLAIMED} features: {_metric(at[ESTIMATE])} {format_estimate(at[ESTIMATE])} over {at[ESTIMATE]['n']} "
            f"names, against {format_estimate(dense)} for a dense probe, {format_estimate(at[names.DICTIONARY])} for a random "
            f"dictionary and {format_estimate(at[names.NEURONS])} for {CLAIMED} neurons."
        )
    matched = {r["condition"]: format_estimate(r) for r in records(table, metric=names.MATCHED)}
    if matched:
        said = f"cosine {matched[ESTIMATE]}, with a random dictionary {matched[names.DICTIONARY]}"
        lines.append(f"A feature's match in the second seed: {said}.")
    return Answer(lines)


def _sae(table: pd.DataFrame) -> pd.DataFrame:
    """Rows on the quality of autoencoders."""
    return table[table["metric"].isin(_QUALITY)]


def _scores(table: pd.DataFrame, features: int) -> pd.DataFrame:
    """Scores of probes on that many features."""
    rows = table[table["metric"].isin(["accuracy", "r2"])]
    return rows[[": " in i and i == probed(attribute(i), features) for i in rows["item"]]]


def _attributes(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(attribute(i) for i in _scores(table, CLAIMED)["item"]))


def _dense(table: pd.DataFrame, name: str) -> dict[Any, Any]:
    rows = table[(table["condition"] == names.DENSE) & (table["item"] == name) & table["metric"].isin(["accuracy", "r2"])]
    return records(rows)[0]


def _metric(row: dict[Any, Any]) -> str:
    return "accuracy" if row["metric"] == "accuracy" else "R²"


def _headline(table: pd.DataFrame) -> Figure:
    gains = select(table, metric="gain")
    gains = gains[[": " in i and i == probed(attribute(i), CLAIMED) for i in gains["item"]]]
    gains = gains[gains["condition"].isin([over(c) for c in _HEADLINE])]
    gains = gains.assign(item=[attribute(i) for i in gains["item"]])
    return Figure(
        layers.gains(gains),
        f"What {CLAIMED} features tell of a name, compared with other probes",
        f"Score of a probe on {CLAIMED} latents of the autoencoder, chosen among the training names, minus the score of each "
        f"control: a probe on all features of the site, on {CLAIMED} latents of a random dictionary, and on {CLAIMED} neurons. "
        "Paired over held-out names, with 95 % bootstrap intervals. Near 0 against the dense probe, a few features tell all that "
        "it tells.",
    )


def _key(table: pd.DataFrame) -> Table:
    rows = []
    recovered = select(table, metric=names.RECOVERED)
    for item in dict.fromkeys(recovered["item"]):
        at = {r["condition"]: r for r in records(recovered[recovered["item"] == item])}
        rows.append(_line(f"CE recovered, {item}", at, "–", names.COMPONENTS))
    for name in _attributes(table):
        at = {r["condition"]: r for r in records(_scores(table, CLAIMED)) if attribute(r["item"]) == name}
        rows.append(_line(f"{title(name)} ({_metric(at[ESTIMATE])})", at, format_estimate(_dense(table, name)), names.NEURONS))
    return Table(
        pd.DataFrame(rows),
        "Key numbers",
        f"Held-out value with its 95 % interval. Names: a probe on {CLAIMED} features. The baseline is as many principal "
        f"components for the loss, and {CLAIMED} neurons of the same block for names.",
    )


def _line(what: str, at: dict[Any, Any], dense: str, baseline: str) -> dict[str, Any]:
    named = {"random dictionary": names.DICTIONARY, "random weights": names.WEIGHTS, "baseline": baseline}
    cells = {title: cell(at.get(c)) for title, c in named.items()}
    return {"": what, "estimate": cell(at[ESTIMATE]), "dense probe": dense, **cells, "n": at[ESTIMATE]["n"]}


def _layer(record: Record[FeaturesOptions], table: pd.DataFrame) -> Section:
    quality = _sae(table)
    active = {(r["item"], r["condition"]): r["value"] for r in records(quality, metric=names.L0)}
    items: list[Item] = []
    for metric, said in ((names.RECOVERED, "share of the loss recovered"), (names.EXPLAINED, "share of the variance explained")):
        if (rows := select(quality, metric=metric)).empty:
            continue
        rows = rows.assign(dose=[active[i, c] for i, c in zip(rows["item"], rows["condition"])])
        chart = grids.dose(rows, x_title="active latents per token (L0)", value_title=said, log=True, share=False)
        caption = f"{_MEANT[metric]} Bands: 95 % over texts."
        items.append(Figure(chart, f"{metric[0].upper()}{metric[1:]} by sparsity", caption, small=True))
    cells = wide(quality, ["item", "condition"], "metric", sort=True)
    items.append(Table(cells, "Quality of each autoencoder on held-out texts", "With 95 % intervals over texts."))
    items.append(Table(record.results["quality"].side["density"], "How often latents are active", "Share of latents by density."))
    gain = records(table, metric="gain", item=names.RECOVERED)
    against = "; ".join(f"{r['split']}: {format_gain(r)} {r['condition']}" for r in gain)
    paired = f" Paired differences in CE recovered: {against}." if gain else ""
    return Section(
        "The layer",
        "Look for a curve well above that of principal components: there a few features per token stand for what the layer "
        f"computes. A random dictionary of equal size and sparsity shows what size alone gives.{paired}",
        tuple(items),
    )


def _names(table: pd.DataFrame) -> Section:
    items: list[Item] = []
    for name in _attributes(table):
        parts = []
        for k in SPARSE:
            rows = _scores(table, k)
            parts.append(rows[[attribute(i) == name for i in rows["item"]]].assign(dose=float(k)))
        dense = table[(table["item"] == name) & table["metric"].isin(["accuracy", "r2"])].assign(dose=float("nan"))
        drawn = pd.concat([*parts, dense])
        metric = str(drawn["metric"].iloc[0])
        said = {"accuracy": "accuracy", "r2": "R²"}[metric]
        chart = grids.dose(drawn, x_title="features of the probe", value_title=said, share=metric == "accuracy", log=True)
        items.append(Figure(chart, title(name), _NAMED, small=True))
    return Section(
        "Names",
        "Look at how few features reach the dense probe, and whether latents of a random dictionary or neurons reach it as soon: "
        "then the autoencoder adds nothing that a random basis or the network's own neurons do not have.",
        tuple(items),
    )


def _cards(record: Record[FeaturesOptions]) -> Section:
    cards, passages = (record.results["cards"].side[name] for name in ("cards", "passages"))
    items: list[Item] = []
    for condition, said in (
        (ESTIMATE, "Features of the network"),
        (names.WEIGHTS, "Control: features of the same network with random weights"),
    ):
        if made := tuple(_card(row, passages) for row in records(cards, condition=condition)):
            items.append(Cards(made, said, _CARD))
    text = "Look for features that are active on one meaning in different words."
    if shares := "; ".join(f"{r['condition']}: {format_estimate(r)}" for r in records(record.table, metric=names.TOKEN_SHARE)):
        text += (
            " Those of a network with random weights can only follow the tokens: the share of a feature's variance that the "
            f"current token explains is {shares}."
        )
    return Section("Features", text, tuple(items))


def _card(row: dict[Any, Any], passages: pd.DataFrame) -> Card:
    own = passages[(passages["condition"] == row["condition"]) & (passages["feature"] == row["feature"])]
    shown = tuple(tuple(zip(part["token"], part["shade"])) for _, part in own.groupby("passage"))
    facts = f"active on {100 * row['density']:.2g} % of tokens"
    facts += f"; raises {row['promoted']}; lowers {row['suppressed']}" if row["promoted"] else ""
    facts += f"; nearest labelled direction: {row['nearest']} (cosine {row['cosine']:.2f})" if row["nearest"] else ""
    return Card(f"Feature {row['feature']}", facts, shown)


def _stability(table: pd.DataFrame) -> tuple[Section, ...]:
    rows = records(table, metric=names.MATCHED)
    if not rows:
        return ()
    again = {r["condition"]: format_estimate(r) for r in records(table, metric=names.FOUND)}
    shown = pd.DataFrame(
        [[r["condition"], format_estimate(r), again[r["condition"]], r["n"]] for r in rows],
        columns=["", "matched cosine", f"cosine above {names.AGAIN}", "features"],
    )
    return (
        Section(
            "A second seed",
            "Look for a matched cosine near 1: then the features are the layer's, not those of one training. Each feature that is "
            "active on stored rows is matched with one of a second autoencoder, trained on the same activations from another seed.",
            (Table(shown, "Are the features of one seed found by the other?", "With 95 % intervals over features."),),
        ),
    )
