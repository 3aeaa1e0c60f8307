"""The page of the `relations` study and its closing lines, from the tables of the run."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from repscope.report.charts import grids, layers
from repscope.report.page import Figure, Page, Section, Table
from repscope.report.text import format_estimate, format_gain
from repscope.results import CHOSEN, ESTIMATE, select
from repscope.studies.relations.options import RelationsOptions
from repscope.studies.relations.remedi_page import remedi_lines, remedi_section
from repscope.studies.run.study import Answer, Record

_FALLEN = 0.5  #: of its height, below which a curve has collapsed


def page(record: Record[RelationsOptions]) -> Page:
    """The page."""
    table = record.table
    items = _items(table)
    edited = remedi_section(table, _side(record, "remedi-losses"), _side(record, "remedi-texts"), record.options.tiny)
    return Page(
        title="Relations as linear maps",
        context=(", ".join(items) or "no relation could be measured",),
        tested="Tested on facts that the model knows: the first token of the object is its most likely next token in every trial.",
        headline=_gains(table),
        key=_key(table) if items else None,
        sections=(*(_section(record, table, item) for item in items), *([edited] if edited else []), _overview(table)),
    )


def answer(record: Record[RelationsOptions]) -> Answer:
    """The main numbers, one line each."""
    table = record.table
    sentences = (sentence for item in _items(table) for sentence in _sentences(table, item))
    return Answer([*record.warnings, *sentences, *remedi_lines(table), *_without_map(record)])


def _without_map(record: Record[RelationsOptions]) -> list[str]:
    """A sentence for each relation without a map."""
    return [note for r in record.results.values() for note in r.notes if ": cannot be measured: " in note]


def _items(table: pd.DataFrame) -> list[str]:
    """Relations with a map."""
    return list(dict.fromkeys(table[table["metric"] == "faithfulness"]["item"]))


def _chosen(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows at the layer, β and rank chosen on the other half, all splits pooled."""
    return table[(table["metric"] == metric) & (table["site"] == CHOSEN) & (table["split"] == "halves")]


def _gains(table: pd.DataFrame) -> Figure | None:
    gains = table[(table["metric"] == "gain") & (table["definition"] == "faithfulness")]
    gains = gains[gains["condition"] != "over beta 1"]
    if gains.empty:
        return None
    return Figure(
        layers.gains(gains, title="paired gain of faithfulness"),
        "Gain of the relation's map over each baseline and control",
        "Faithfulness of the LRE at the layer and β chosen on the other half, minus that of the control; paired over "
        "subjects, with "
        "95 % bootstrap intervals over them. Ridge regression on the whole half uses several times as many subjects as the map.",
    )


_KEY = {
    "faithfulness": ("faithfulness of the map", "map on another subject's vector", "ridge map, whole half"),
    "concept accuracy": ("accuracy of concepts", "shuffled objects", "ridge probe"),
    "edit success": ("success of edits", "random direction", "mean vector of other subjects"),
}


def _key(table: pd.DataFrame) -> Table:
    """Per relation and number: the estimate, its control, a baseline, and n."""
    rows = []
    for item in _items(table):
        for metric, (name, *others) in _KEY.items():
            chosen = _chosen(table, metric)
            at = {str(c): r for c, r in zip(*_columns(chosen[chosen["item"] == item]))}
            if ESTIMATE in at:
                control, baseline = (f"{format_estimate(at[c])} ({c})" if c in at else "–" for c in others)
                row = {"relation": item, "number": name, "estimate": format_estimate(at[ESTIMATE])}
                rows.append(row | {"control": control, "baseline": baseline, "n": int(at[ESTIMATE]["n"])})
    return Table(
        pd.DataFrame(rows),
        "Key numbers",
        "Shares of the reported subjects with 95 % intervals over them. Layer, β and rank were chosen on the other half.",
    )


def _overview(table: pd.DataFrame) -> Section:
    items: list[Figure | Table] = []
    known = table[table["metric"] == "known"]
    if len(known):
        names = known["condition"].where(known["condition"] != ESTIMATE, known["definition"].str.partition(" right")[0])
        items.append(
            Table(
                _wide(known.assign(condition=names)),
                "What the model knows",
                "Share of all samples and 95 % interval over subjects. First token: the next token begins the object. "
                "Full object: greedy decoding writes it. The maps below are estimated from and evaluated on facts with a "
                "correct first token in every trial.",
            )
        )
    for metric, title in (
        ("faithfulness", "Faithfulness"),
        ("concept accuracy", "Concepts as classifiers"),
        ("edit success", "Edits"),
    ):
        rows = _chosen(table, metric)
        rows = rows[~rows["condition"].str.startswith("dose")]
        if len(rows):
            items.append(
                Table(
                    _wide(rows),
                    f"{title} at the chosen setting",
                    "Value and 95 % interval over subjects, each averaged over splits.",
                )
            )
    cross = table[table["metric"] == "faithfulness across relations"]
    if len(cross):
        maps = cross["condition"].str.removeprefix("map of ").where(cross["condition"] != ESTIMATE, cross["item"])
        frame = pd.DataFrame(
            {"x": cross["item"], "y": maps, "value": cross["value"], "lo": cross["lo"], "hi": cross["hi"], "n": cross["n"]}
        )
        order = list(dict.fromkeys(frame["x"]))
        frame = frame.assign(row=frame["y"].map(order.index), column=frame["x"].map(order.index))
        frame = frame.sort_values(["row", "column"], ascending=[False, True])
        items.append(
            Figure(
                grids.grid(frame, x_title="subjects and objects of", y_title="map of", value_title="faithfulness"),
                "Every map on every relation's subjects",
                "The map of each relation at its chosen layer, applied to the reported subjects of every relation: how "
                "often its most likely token begins the object of the column. Off the diagonal, a map that represents "
                "only its own relation is near 0.",
            )
        )
    text = (
        "Look for baselines that do as well as the map, and for maps that work on other relations too. "
        "A map W s + b is estimated from a few examples by differentiating the model at the subject's last token. "
        "It is faithful for a subject if its most likely token begins the right object; only subjects that the "
        "model answers correctly count. Layer, β and rank are chosen on one half of the known facts and reported "
        "on the other, over several splits."
    )
    return Section("All controls", text, tuple(items))


def _section(record: Record[RelationsOptions], table: pd.DataFrame, item: str) -> Section:
    here = table[table["item"] == item]
    items: list[Figure | Table] = []
    lre = here[
        (here["metric"] == "faithfulness")
        & (here["split"] == "halves")
        & (here["site"] != CHOSEN)
        & (here["condition"] != "beta 1")
    ]
    if len(lre):
        items.append(
            Figure(
                layers.by_layer(lre, metric_title="faithfulness (reported subjects)", token="subject.last"),
                "Faithfulness by block of the subject",
                "The map (LRE, β chosen on the other half at each block) and other ways to predict the object from the "
                f"same vector. Bands: 95 % bootstrap intervals over {int(lre['n'].max())} subjects.",
            )
        )
    items += _concepts(record, here, item) + _edits(record, here, item)
    lens = _side(record, f"lens-{item}")
    if lens is not None:
        items.append(
            Figure(
                layers.lens(lens),
                "The relation read from a text that does not ask for it",
                "The map of each block applied to every token (attribute lens): its most likely token and the "
                "probability. In the last blocks the subject's position no longer contains its attributes.",
            )
        )
    look = "Look for the blocks in which the map is above all other ways to predict the object from the same vector."
    return Section(item, "\n\n".join(filter(None, [look, _collapse(here)])), tuple(items))


def _concepts(record: Record[RelationsOptions], here: pd.DataFrame, item: str) -> list[Figure | Table]:
    rows = here[(here["metric"] == "concept accuracy") & (here["split"] == "halves") & (here["site"] != CHOSEN)]
    if rows.empty:
        return []
    ranks = here[here["metric"] == "concept accuracy: rank"]["value"]
    usual = int(ranks.sort_values().iloc[len(ranks) // 2])
    ranked = rows["condition"].str.startswith("rank ")
    lines = pd.concat([rows[~ranked], rows[rows["condition"] == f"rank {usual}"].assign(condition=ESTIMATE)])
    flat = _chosen(here, "concept accuracy")
    flat = flat[flat["condition"].isin(["majority object", "shuffled objects"])].assign(site="")
    items: list[Figure | Table] = [
        Figure(
            layers.by_layer(pd.concat([lines, flat]), metric_title="accuracy (reported subjects)", token="subject.last"),
            f"Concepts as classifiers, by block (rank {usual})",
            "A subject is classified as the object with the largest projection on its concept; the rank is the median "
            "of the chosen ranks. Probes are trained on the same subjects. Shuffled objects: concepts of permuted "
            "objects, at the chosen setting.",
        ),
        Figure(
            grids.grid(_by_rank(rows[ranked]), x_title="rank of the inverse", y_title="block", value_title="accuracy"),
            "Concept accuracy by block and rank",
            "Reported subjects. The study chooses block and rank on the other half, not here.",
            small=True,
        ),
    ]
    plane = _side(record, f"map-{item}")
    if plane is not None and len(plane) > 2:
        share = float(plane["share"].iloc[0])
        items.append(
            Figure(
                grids.plane(plane, x_title="first component", y_title="second component"),
                "Concepts of the objects",
                f"Unit concept vectors projected on their first two principal components, which explain {100 * share:.0f} "
                "% of the variance.",
                small=True,
            )
        )
    return items


def _edits(record: Record[RelationsOptions], here: pd.DataFrame, item: str) -> list[Figure | Table]:
    rows = here[(here["metric"] == "edit success") & (here["split"] == "halves")]
    if rows.empty:
        return []
    items: list[Figure | Table] = []
    by_rank = rows[rows["condition"].str.startswith("rank ") & (rows["site"] != CHOSEN)]
    if len(by_rank):
        items.append(
            Figure(
                grids.grid(_by_rank(by_rank), x_title="rank of the inverse", y_title="block", value_title="success"),
                "Edits by block and rank",
                "Share of facts whose most likely next token became the new object, after the step (the pseudo-inverse "
                "applied to the difference of objects) was added once at the subject's last token.",
                small=True,
            )
        )
    dosed = rows[rows["condition"].str.startswith("dose ")]
    controls = rows[(rows["site"] == CHOSEN) & rows["condition"].isin(["random direction", "mean vector of other subjects"])]
    if len(dosed):
        frame = pd.concat(
            [
                dosed.assign(dose=dosed["condition"].str.removeprefix("dose ").astype(float), condition=ESTIMATE),
                controls.assign(dose=float("nan")),
            ]
        )
        items.append(
            Figure(
                grids.dose(
                    frame[["dose", "condition", "value", "lo", "hi", "n"]].sort_values("dose"),
                    x_title="dose (1 = the step given by the map)",
                    value_title="edit success",
                ),
                "Edits by dose, at the chosen block and rank",
                "Horizontal lines: a step of equal norm in a random direction, and the subject's vector replaced by the "
                "mean vector of other subjects with the new object.",
                small=True,
            )
        )
    aside = here[here["metric"].isin(["unchanged", "damage"])]
    if len(aside):
        named = aside.assign(item=aside["definition"].where(aside["metric"] == "damage", "unchanged: " + aside["definition"]))
        items.append(
            Table(
                _wide(named),
                "Specificity of edits",
                "Unchanged: share of questions whose most likely token stays the same (another relation of the same "
                "subject, if the model knows it; a neighbouring fact after the edited one). Some of these changes are "
                "correct: a city moved to Japan is in Asia.",
            )
        )
    texts = _side(record, f"texts-{item}-0")
    if texts is not None and len(texts):
        items.append(
            Table(
                texts, "Before and after", "Greedy continuation of the question for the first reported subjects of the first split."
            )
        )
    return items


def _by_rank(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows "rank r" at blocks as cells of a grid."""
    rank = rows["condition"].str.removeprefix("rank ").astype(int)
    block = rows["layer"].astype("float64").fillna(-1)
    frame = pd.DataFrame({"rank": rank, "block": block, "value": rows["value"], "lo": rows["lo"], "hi": rows["hi"], "n": rows["n"]})
    frame = frame.sort_values(["block", "rank"])
    return frame.assign(x=frame["rank"].astype(str), y=frame["block"].map(lambda b: "emb" if b < 0 else str(int(b))))


def _sentences(table: pd.DataFrame, item: str) -> list[str]:
    """The results of a relation in sentences; every number is a cell of the table."""
    here = table[table["item"] == item]
    at = {str(c): r for c, r in zip(*_columns(_chosen(here, "faithfulness")))}
    gains = {str(c): r for c, r in zip(*_columns(select(here, metric="gain", definition="faithfulness")))}
    blocks = sorted({int(b) for b in select(here, metric="faithfulness: block")["value"]})
    where = " and ".join("the embedding" if b < 0 else f"block {b}" for b in blocks)
    lines = [
        f"{item.capitalize()}: faithfulness {format_estimate(at[ESTIMATE])} over {at[ESTIMATE]['n']} subjects at {where} (chosen "
        "on the other half), against "
        + ", ".join(f"{format_estimate(at[c])} for {label}" for c, label in _CONTROLS.items() if c in at)
        + "."
    ]
    if (best := gains.get("over ridge map, whole half")) is not None:
        lines.append(f"Gain over ridge regression on the whole half: {format_gain(best)}.")
    lrc = {str(c): r for c, r in zip(*_columns(_chosen(here, "concept accuracy")))}
    if ESTIMATE in lrc:
        over = select(here, metric="gain", definition="concept accuracy", condition="over ridge probe")
        lines.append(
            f"Concepts classify {format_estimate(lrc[ESTIMATE])} right, a ridge probe {format_estimate(lrc['ridge probe'])}"
            + (f" (difference {format_gain(over.to_dict('records')[0])})" if len(over) else "")
            + f", shuffled objects {format_estimate(lrc['shuffled objects'])}."
        )
    edit = {str(c): r for c, r in zip(*_columns(_chosen(here, "edit success")))}
    if ESTIMATE in edit:
        lines.append(
            f"Edits succeed on {format_estimate(edit[ESTIMATE])} of facts, "
            f"random steps of equal norm on {format_estimate(edit['random direction'])}."
        )
    return lines


_CONTROLS = {
    "ridge map, whole half": "ridge on the whole half",
    "ridge map, the same examples": "ridge on the same examples",
    "map on another subject's vector": "the map on another subject's vector",
    "majority object": "the most common object",
    "map from the embedding": "a map from the embedding",
}


def _collapse(here: pd.DataFrame) -> str:
    """The block from which the curve stays below half of its maximum."""
    curve = here[
        (here["metric"] == "faithfulness") & (here["condition"] == ESTIMATE) & (here["split"] == "halves") & here["layer"].notna()
    ]
    curve = curve.sort_values("layer")
    if curve.empty or curve["value"].max() <= 0:
        return ""
    blocks = curve.to_dict("records")
    peak = max(blocks, key=lambda r: r["value"])
    after = [r for r in blocks if r["layer"] > peak["layer"] and r["value"] < _FALLEN * peak["value"]]
    if not after:
        return ""
    first = after[0]
    return (
        f"By block, it is {format_estimate(blocks[0])} at block {int(blocks[0]['layer'])}, largest at block "
        f"{int(peak['layer'])} ({format_estimate(peak)}), and stays below half of that from block "
        f"{int(first['layer'])} ({format_estimate(first)}) on: from there the subject's position no longer "
        "contains the object."
    )


def _columns(rows: pd.DataFrame) -> tuple[Sequence[str], Sequence[dict[Any, Any]]]:
    return list(rows["condition"]), rows.to_dict("records")


def _wide(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per condition, one column per item; the last row is the number of subjects."""
    cells = rows.assign(cell=[format_estimate(r) for r in rows.to_dict("records")])
    items = list(dict.fromkeys(rows["item"]))
    wide = cells.pivot(index="condition", columns="item", values="cell").fillna("–")
    order = list(dict.fromkeys([*([ESTIMATE] if ESTIMATE in wide.index else []), *rows["condition"]]))
    n = rows.groupby("item")["n"].max().astype(str).rename("n").to_frame().T
    return pd.concat([wide.loc[order, items], n[items]]).rename_axis("").reset_index()


def _side(record: Record[RelationsOptions], name: str) -> pd.DataFrame | None:
    for result in record.results.values():
        if name in result.side:
            return result.side[name]
    return None
