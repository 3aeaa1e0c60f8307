"""The page of the `relations` study, and its closing lines: figures and sentences made from the run's tables, and nothing else."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from repscope.report.charts import grids, layers
from repscope.report.claims import evaluate_claims, load_claims
from repscope.report.page import Figure, Page, Section, Table
from repscope.report.text import format_estimate, format_gain
from repscope.results import ESTIMATE, select
from repscope.studies.relations.options import RelationsOptions
from repscope.studies.relations.pooled import CHOSEN
from repscope.studies.run.provenance import page_facts
from repscope.studies.run.study import Answer, Record

_FALLEN = 0.5  #: of its height, below which a curve has collapsed


def page(record: Record[RelationsOptions]) -> Page:
    """The whole page."""
    table = record.table
    items = _items(table)
    sections = [_overview(table)] + [_section(record, table, item) for item in items]
    return Page(
        title="Relations as linear maps",
        question=record.facts["question"],
        answer="\n\n".join([*record.warnings, *(" ".join(_told(table, item)) for item in items), *_without_map(record)]),
        sections=tuple(sections),
        verdicts=evaluate_claims(load_claims(), table),
        notes=record.notes,
        facts=page_facts(record.facts),
    )


def answer(record: Record[RelationsOptions]) -> Answer:
    """The numbers that matter, one line each."""
    table = record.table
    told = (sentence for item in _items(table) for sentence in _told(table, item))
    return Answer([*record.warnings, *told, *_without_map(record)])


def _without_map(record: Record[RelationsOptions]) -> list[str]:
    """A sentence for each relation that was asked for and has no map."""
    return [note for r in record.results.values() for note in r.notes if ": cannot be measured: " in note]


def _items(table: pd.DataFrame) -> list[str]:
    """Relations of which there is a map."""
    return list(dict.fromkeys(table[table["metric"] == "faithfulness"]["item"]))


def _chosen(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows at the place that the other half chose, all splits pooled."""
    return table[(table["metric"] == metric) & (table["site"] == CHOSEN) & (table["split"] == "halves")]


def _overview(table: pd.DataFrame) -> Section:
    items: list[Figure | Table] = []
    known = table[table["metric"] == "known"]
    if len(known):
        names = known["condition"].where(known["condition"] != ESTIMATE, known["definition"].str.partition(" right")[0])
        items.append(
            Table(
                _wide(known.assign(condition=names)),
                "What the model knows",
                "Share of all samples and 95 % interval over subjects. First token: the next token begins the object; full "
                "object: "
                "greedy decoding writes it. The maps below are made from and scored on facts right by the first token in "
                "every trial.",
            )
        )
    gains = table[(table["metric"] == "gain") & (table["definition"] == "faithfulness")]
    gains = gains[gains["condition"] != "over beta 1"]
    if len(gains):
        items.append(
            Figure(
                layers.gains(gains, title="paired gain of faithfulness"),
                "What the map of a relation adds to each simpler reading",
                "Faithfulness of the LRE at the layer and β chosen on the other half, less that of the control, paired over "
                "subjects; "
                "95 % bootstrap intervals over subjects. Ridge on the whole half sees several times as many subjects as the "
                "map does.",
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
                    _wide(rows), f"{title} at the chosen place", "Value and 95 % interval over subjects, each averaged over splits."
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
                "Each relation's map from its chosen layer, on the reported subjects of each relation: how often its "
                "likeliest token "
                "begins the object of the column. Off the diagonal a map that reads its own relation and nothing coarser is "
                "near 0.",
            )
        )
    text = (
        "A map W s + b is made from a few examples by differentiating the model at the subject's last token. It is faithful "
        "where its "
        "likeliest token begins the right object, on subjects that the model answers. Layer, β and rank are chosen on one "
        "half of the "
        "known facts and reported on the other, over several splits."
    )
    return Section("What is linear, beyond its controls", text, tuple(items))


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
                "The map (LRE, β chosen on the other half at each block) and what else could read the object from the same "
                "vector. "
                f"Bands: 95 % bootstrap intervals over {int(lre['n'].max())} subjects.",
            )
        )
    items += _concepts(record, here, item) + _edits(record, here, item)
    lens = _side(record, f"lens-{item}")
    if lens is not None:
        items.append(
            Figure(
                layers.lens(lens),
                "The relation read off a text that does not ask for it",
                "The map of each block applied to every token (attribute lens): its likeliest token, and how likely. The "
                "last rows of "
                "blocks lie beyond the point where the subject still carries its attributes.",
            )
        )
    return Section(item, _collapse(here), tuple(items))


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
            "A subject is given the object along whose concept it points most; the rank is the median of what the splits "
            "chose. Probes are trained on the same subjects. Shuffled objects: concepts of objects dealt out at random, at the "
            "chosen place.",
        ),
        Figure(
            grids.grid(_by_rank(rows[ranked]), x_title="rank of the inverse", y_title="block", value_title="accuracy"),
            "Concept accuracy by block and rank",
            "Reported subjects. The study chooses the place on the other half, not here.",
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
                f"Unit concept vectors in the plane of their two leading components, which holds {100 * share:.0f} % of "
                "their variance.",
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
                "Share of facts whose likeliest next token became the new object, after the step pulled back through the "
                "inverse was added "
                "once at the subject's last token.",
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
                    x_title="dose (1 = the step that the map says)",
                    value_title="edit success",
                ),
                "Edits by dose, at the chosen block and rank",
                "Rules: a step as long in a random direction; and putting the mean vector of other subjects with the new "
                "object in its place.",
                small=True,
            )
        )
    aside = here[here["metric"].isin(["unchanged", "damage"])]
    if len(aside):
        named = aside.assign(item=aside["definition"].where(aside["metric"] == "damage", "unchanged: " + aside["definition"]))
        items.append(
            Table(
                _wide(named),
                "What an edit leaves alone",
                "Unchanged: share of questions whose likeliest token stays (another relation of the same subject, where the "
                "model knows "
                "it; a neighbouring fact after the edited one). A step that changes what it must can change these rightly: a "
                "city moved to "
                "Japan is in Asia.",
            )
        )
    texts = _side(record, f"texts-{item}-0")
    if texts is not None and len(texts):
        items.append(
            Table(texts, "Before and after", "Greedy continuation of the question, the first reported subjects of the first split.")
        )
    return items


def _by_rank(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows "rank r" at blocks as cells of a grid."""
    rank = rows["condition"].str.removeprefix("rank ").astype(int)
    block = rows["layer"].astype("float64").fillna(-1)
    frame = pd.DataFrame({"rank": rank, "block": block, "value": rows["value"], "lo": rows["lo"], "hi": rows["hi"], "n": rows["n"]})
    frame = frame.sort_values(["block", "rank"])
    return frame.assign(x=frame["rank"].astype(str), y=frame["block"].map(lambda b: "emb" if b < 0 else str(int(b))))


def _told(table: pd.DataFrame, item: str) -> list[str]:
    """What a relation shows, in sentences; every number is a cell of the table."""
    here = table[table["item"] == item]
    at = {str(c): r for c, r in zip(*_columns(_chosen(here, "faithfulness")))}
    gains = {str(c): r for c, r in zip(*_columns(select(here, metric="gain", definition="faithfulness")))}
    blocks = sorted({int(b) for b in select(here, metric="faithfulness: block")["value"]})
    where = " and ".join("the embedding" if b < 0 else f"block {b}" for b in blocks)
    said = [
        f"{item.capitalize()}: faithfulness {format_estimate(at[ESTIMATE])} over {at[ESTIMATE]['n']} subjects at {where} (chosen "
        "on the other half), against "
        + ", ".join(f"{format_estimate(at[c])} for {told}" for c, told in _CONTROLS.items() if c in at)
        + "."
    ]
    if (best := gains.get("over ridge map, whole half")) is not None:
        said.append(f"Over ridge regression on the whole half: {format_gain(best)}.")
    lrc = {str(c): r for c, r in zip(*_columns(_chosen(here, "concept accuracy")))}
    if ESTIMATE in lrc:
        over = select(here, metric="gain", definition="concept accuracy", condition="over ridge probe")
        said.append(
            f"Concepts classify {format_estimate(lrc[ESTIMATE])} right, a ridge probe {format_estimate(lrc['ridge probe'])}"
            + (f" (difference {format_gain(over.to_dict('records')[0])})" if len(over) else "")
            + f", shuffled objects {format_estimate(lrc['shuffled objects'])}."
        )
    edit = {str(c): r for c, r in zip(*_columns(_chosen(here, "edit success")))}
    if ESTIMATE in edit:
        said.append(
            f"Edits succeed on {format_estimate(edit[ESTIMATE])} of facts, "
            f"random steps of equal norm on {format_estimate(edit['random direction'])}."
        )
    return said


_CONTROLS = {
    "ridge map, whole half": "ridge on the whole half",
    "ridge map, the same examples": "ridge on the same examples",
    "map on another subject's vector": "the map on another subject's vector",
    "majority object": "the commonest object",
    "map from the embedding": "a map from the embedding",
}


def _collapse(here: pd.DataFrame) -> str:
    """Where the curve by block falls below half of its height for good."""
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
        f"By block it is {format_estimate(blocks[0])} at block {int(blocks[0]['layer'])}, most at block {int(peak['layer'])} "
        f"({format_estimate(peak)}), and falls below half of that at block {int(first['layer'])} "
        f"({format_estimate(first)}): from there on "
        "the subject's place no longer carries what will be said."
    )


def _columns(rows: pd.DataFrame) -> tuple[Sequence[str], Sequence[dict[Any, Any]]]:
    return list(rows["condition"]), rows.to_dict("records")


def _wide(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a condition, a column an item; the last row says how many subjects there are."""
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
