"""Figures of the `context` page, from the table of the run."""

import pandas as pd

from repscope.conditions import (
    ESTIMATE,
    FEW_SHOT,
    FUNCTION_VECTOR,
    NEUTRAL,
    OTHER_SHOTS,
    OTHER_TASK,
    RANDOM,
    RANDOM_HEADS,
    SHUFFLED_SHOTS,
    TASK_VECTOR,
    TUNED_PERMUTED,
    ZERO_SHOT,
)
from repscope.report.charts import grids, layers
from repscope.report.page import Figure
from repscope.results import records, select
from repscope.studies.context import names

_VECTORS = (ZERO_SHOT, ESTIMATE, TASK_VECTOR, FEW_SHOT, SHUFFLED_SHOTS, RANDOM_HEADS, OTHER_TASK)
_OTHERS, _CEILING = "other tasks", "examples, other queries"
_CONTROLS = (SHUFFLED_SHOTS, OTHER_SHOTS, TUNED_PERMUTED)


def accuracy(table: pd.DataFrame) -> Figure:
    """Accuracy of test queries by task and condition."""
    rows = table[(table["metric"] == names.ACCURACY) & table["step"].str.startswith("vectors") & table["condition"].isin(_VECTORS)]
    rows = rows.assign(condition=rows["condition"].replace(ESTIMATE, FUNCTION_VECTOR))
    return Figure(
        layers.by_item(rows, title="first-token accuracy"),
        "Accuracy without examples, with one vector, and with examples",
        "Share of test queries whose most likely next token begins the answer, with 95 % intervals over queries. Vectors act at "
        "the query's last token, without examples. Controls: examples with permuted outputs, vectors of as many random heads and "
        "function vectors of other tasks, both of equal norm at the same block.",
    )


def match(table: pd.DataFrame, way: str, *, small: bool = False) -> Figure:
    """Centred match by block: same task, other tasks, and the controls."""
    rows = table[(table["item"] == way) & table["site"].str.startswith("resid_post")]
    same = rows[(rows["metric"] == names.SAME) & rows["condition"].isin((ESTIMATE, *_CONTROLS))]
    others = rows[(rows["metric"] == names.OTHERS) & (rows["condition"] == ESTIMATE)].assign(condition=_OTHERS)
    ceiling = table[(table["item"] == FEW_SHOT) & table["site"].str.startswith("resid_post") & (table["metric"] == names.SAME)]
    ceiling = ceiling[ceiling["condition"] == ESTIMATE].assign(condition=_CEILING)
    drawn = pd.concat([same, others, ceiling]).assign(metric="cosine", item=way)
    return Figure(
        layers.by_layer(drawn, metric_title="cosine, centred over tasks", share=False),
        f"Do examples in the prompt and {way} move the same task alike?",
        f"Cosine between the shift that examples make and the shift that {way} on the same examples makes, both minus the mean "
        "over tasks; mean over tasks with 95 % intervals. Estimate: same task. Other tasks: the mean of all other pairs. Controls, "
        f"same task: examples with permuted outputs, another task's examples, and {way} on permuted outputs. Ceiling: examples, "
        "matched with the same examples on other queries.",
        small=small,
    )


def raw(table: pd.DataFrame, way: str) -> Figure:
    """Raw cosine by block, and that of examples with their permuted control."""
    rows = table[(table["metric"] == names.RAW) & table["site"].str.startswith("resid_post")]
    own = rows[(rows["item"] == way) & rows["condition"].isin((ESTIMATE, *_CONTROLS))]
    format_only = rows[(rows["item"] == FEW_SHOT) & (rows["condition"] == SHUFFLED_SHOTS)]
    drawn = pd.concat([own, format_only.assign(condition="few-shot with permuted shots")]).assign(item=way)
    return Figure(
        layers.by_layer(drawn, metric_title="raw cosine"),
        f"Raw cosine of shifts, {way}",
        "Without centring, any two shifts that share format and position look alike: compare the estimate with its controls, and "
        "with the cosine between true examples and the same examples with permuted outputs.",
        small=True,
    )


def attention(table: pd.DataFrame, way: str) -> Figure:
    """SimAOU by block with its controls."""
    rows = table[(table["metric"] == names.PER_QUERY) & table["site"].str.startswith("attn_out")]
    rows = rows[(rows["item"] == names.of(names.ALL, way)) & rows["condition"].isin((ESTIMATE, RANDOM, *_CONTROLS))]
    return Figure(
        layers.by_layer(rows, metric_title="cosine of changes of attention output"),
        f"Attention outputs (SimAOU), {way}",
        "Cosine per query between the changes of a block's attention output that examples make and that fine-tuning makes; mean "
        "over tasks. It is evidence only where it is above its controls.",
        small=True,
    )


def recovered(table: pd.DataFrame, way: str) -> Figure:
    """KL recovered by one vector, by block."""
    rows = select(table, metric=names.RECOVERED, item=names.of(names.ALL, way))
    return Figure(
        layers.by_layer(rows, metric_title="share of KL recovered"),
        f"What one vector recovers of {way}",
        "Mean shift of one half of the queries, added at the queries of the other half; scale chosen on the first half. Controls "
        "of equal norm. Mean over tasks.",
        small=True,
    )


def steps(table: pd.DataFrame) -> Figure | None:
    """Accuracy by step of fine-tuning, beside k examples in the prompt."""
    rows = table[(table["metric"] == names.ACCURACY) & (table["item"] == names.ALL)]
    parts = [(row, *names.step_of(row["condition"])) for row in records(rows) if row["split"].startswith(names.ALONE)]
    curve = [row | {"condition": way, "dose": float(step)} for row, way, step in parts if step is not None]
    if not curve:
        return None
    flat = [row | {"dose": float("nan")} for row in records(rows) if row["condition"] in (FEW_SHOT, ZERO_SHOT)]
    flat = [row for row in flat if "after examples" in row["split"] or row["split"].startswith(names.ALONE)]
    return Figure(
        grids.dose(pd.DataFrame(curve + flat), x_title="steps of fine-tuning", value_title="first-token accuracy", log=True),
        "Accuracy by step of fine-tuning, and with the same examples in the prompt",
        "Queries alone after fine-tuning on k examples, and after the k examples in the prompt (horizontal). Mean over tasks, 95 % "
        "intervals over tasks. Elsewhere on this page fine-tuning is stopped at the step that is best on held-out items, which "
        "are labels that the prompt does not have.",
    )


def prompted(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by condition over tasks, of the queries that shifts are measured on."""
    rows = table[(table["metric"] == names.ACCURACY) & (table["item"] == names.ALL) & (table["split"] != "test items")]
    wanted = (ZERO_SHOT, NEUTRAL, FEW_SHOT, SHUFFLED_SHOTS, OTHER_SHOTS)
    own = [c in wanted or names.step_of(c)[1] is None for c in rows["condition"]]
    return rows[own][~rows[own]["split"].str.startswith("dev")]
