"""The section of the page of `relations` on REMEDI, and its closing lines."""

from typing import Any

import pandas as pd

from repscope.conditions import AFFINE_EDITOR, CONTEXT_PROMPT, LRC_EDIT, RANDOM, RAW_ATTRIBUTE, UNEDITED, over
from repscope.report.charts import layers
from repscope.report.page import Figure, Section, Table
from repscope.report.text import format_estimate, format_gain
from repscope.results import ESTIMATE, select
from repscope.studies.relations.names import ALL_RELATIONS
from repscope.studies.relations.verdict import remedi

_ORDER = (ESTIMATE, AFFINE_EDITOR, LRC_EDIT, RAW_ATTRIBUTE, CONTEXT_PROMPT, RANDOM, UNEDITED)
_NAMES = {ESTIMATE: "linear editor"}
_METRICS = {
    "REMEDI efficacy": "efficacy",
    "REMEDI preference": "new above old",
    "REMEDI generalisation": "paraphrases",
    "REMEDI specificity": "unchanged",
    "REMEDI essence": "essence",
    "REMEDI damage": "KL, neutral text",
}


def whole(table: pd.DataFrame) -> str:
    """The item of the summary: all relations, or the only one."""
    items = list(dict.fromkeys(table[table["metric"] == "REMEDI efficacy"]["item"]))
    return ALL_RELATIONS if ALL_RELATIONS in items else items[0] if items else ""


def remedi_section(table: pd.DataFrame, losses: pd.DataFrame | None, texts: pd.DataFrame | None, tiny: bool) -> Section | None:
    """The section; None where no editor was trained. A tiny run has no verdict."""
    rows = table[table["metric"].str.startswith("REMEDI ")]
    item = whole(rows)
    if not item:
        return None
    here = rows[rows["item"] == item]
    verdict = None if tiny else remedi(table)
    efficacy = rows[rows["metric"] == "REMEDI efficacy"]
    block = int(select(rows, metric="REMEDI block")["value"].iloc[0])
    items: list[Figure | Table] = [
        Figure(
            layers.by_item(efficacy, title="efficacy (reported subjects)"),
            "Share of facts that are edited",
            "The most likely token after the question begins the new object. Editors are trained on other subjects; the change is "
            "added "
            f"at all tokens of the subject after block {block}. 95 % bootstrap intervals over subjects.",
        ),
        _summary(here),
        _by_relation(rows),
    ]
    auc = rows[rows["metric"] == "REMEDI AUC"]
    if len(auc):
        items.append(
            Figure(
                layers.by_item(auc, title="AUC, right against wrong answers"),
                "Does the subject's vector tell which answers are right?",
                "Score of the true object in the subject's vector, minus that of other objects; compared with a random editor, "
                "the logit "
                "lens, a probe trained on other subjects, and the model's own confidence. 0.5 tells nothing.",
                small=True,
            )
        )
    if losses is not None and len(losses):
        last = losses.sort_values("epoch").groupby(["site", "split"], sort=False).tail(1)
        items.append(
            Table(
                last[["site", "split", "epoch", "mediated", "unmediated", "kl", "total", "right"]].round(3),
                "Training of the editors",
                "Losses of the last epoch, in nats; the editor of the best epoch is kept.",
            )
        )
    if texts is not None and len(texts):
        items.append(Table(texts.head(8), "Facts", "Sentences whose words after the subject become the edit, and whether it took."))
    text = (
        "Look for an editor that changes the question and its paraphrases, leaves other facts alone, and does more than the "
        "attribute's "
        "raw vector or a random editor of equal norm. What the sentence does in the prompt is about the most that can be reached."
    )
    lead = [verdict.sentence] if verdict else []
    return Section("Editing facts by REMEDI", "\n\n".join([*lead, text]), tuple(items))


def remedi_lines(table: pd.DataFrame) -> list[str]:
    """The main numbers, in sentences."""
    item = whole(table)
    if not item:
        return []
    at = {str(r["condition"]): r for r in select(table, metric="REMEDI efficacy", item=item).to_dict("records")}
    controls = ", ".join(f"{format_estimate(at[c])} by {c}" for c in _ORDER[1:] if c in at and c != UNEDITED)
    lines = [f"REMEDI edits {format_estimate(at[ESTIMATE])} of {at[ESTIMATE]['n']} facts of held-out subjects, against {controls}."]
    auc = {str(r["condition"]): r for r in select(table, metric="REMEDI AUC", item=item).to_dict("records")}
    if ESTIMATE in auc:
        others = ", ".join(f"{format_estimate(r)} by {c}" for c, r in auc.items() if c != ESTIMATE)
        lines.append(
            f"Inspection tells right from wrong answers with an AUC of {format_estimate(auc[ESTIMATE])}, against {others}."
        )
    return lines


def _summary(here: pd.DataFrame) -> Table:
    """One row per way to edit, one column per number."""
    lines = []
    for condition in _ORDER:
        rows = here[here["condition"] == condition]
        if rows.empty:
            continue
        line: dict[str, Any] = {"edit": _NAMES.get(condition, condition)}
        for metric, name in _METRICS.items():
            for r in rows[rows["metric"] == metric].to_dict("records"):
                line[f"{name}: {r['definition']}" if r["definition"] else name] = format_estimate(r)
        gain = here[(here["metric"] == "REMEDI gain") & (here["condition"] == over(condition))]
        gain = gain[gain["definition"] == "REMEDI efficacy"]
        line["gain of the linear editor"] = format_gain(gain.to_dict("records")[0]) if len(gain) else "–"
        own = rows[rows["metric"] == "REMEDI efficacy"]  # inspection has rows of the same conditions, over other samples
        lines.append(line | {"n": int(own["n"].iloc[0]) if len(own) else "–"})
    return Table(
        pd.DataFrame(lines).fillna("–"),
        "Efficacy, generalisation, specificity, essence",
        "Shares of reported subjects with 95 % intervals; n: facts of the efficacy. "
        "Unchanged: the most likely token of another fact of the subject, and of "
        "another "
        "subject named after it, stays. Essence: TF-IDF cosine of continuations about the subject with and without the edit.",
    )


def _by_relation(rows: pd.DataFrame) -> Table:
    found = rows[rows["metric"].isin(["REMEDI efficacy", "REMEDI generalisation"]) & (rows["condition"] != UNEDITED)]
    lines = []
    for (item, metric), held in found.groupby(["item", "metric"], sort=False):
        at = {str(r["condition"]): r for r in held.to_dict("records")}
        line = {"relation": item, "number": _METRICS[str(metric)]}
        line |= {_NAMES.get(c, c): format_estimate(at[c]) if c in at else "–" for c in _ORDER if c != UNEDITED}
        lines.append(line | {"n": at[ESTIMATE]["n"]})
    return Table(pd.DataFrame(lines), "By relation", "Shares of reported subjects with 95 % intervals.")
