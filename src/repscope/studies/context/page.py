"""The page of the `context` study and its closing lines, from the table of the run."""

from typing import Any

import pandas as pd

from repscope.conditions import (
    ESTIMATE,
    FEW_SHOT,
    OTHER_SHOTS,
    OTHER_TASK,
    PERMUTED_TASKS,
    RANDOM,
    RANDOM_HEADS,
    SHUFFLED_SHOTS,
    TASK_VECTOR,
)
from repscope.report.page import Item, Page, Section, Table
from repscope.report.tables import cell, wide
from repscope.report.text import format_estimate, format_gain
from repscope.results import first_row, records, select
from repscope.studies.context import figures, names
from repscope.studies.context.options import ContextOptions
from repscope.studies.run.study import Answer, Record

_SHIFTED = ("unshifted", "marginal", "shifted", "KL from the base", "KL from few-shot", names.AGREEMENT)
Rows = dict[Any, Any]


def page(record: Record[ContextOptions]) -> Page:
    """The page."""
    o, table = record.options, record.table
    ways = _ways(table)
    sections = [_vectors(record, table), _movement(table, ways), _one_vector(table), _accuracy(table), *_constant(table)]
    return Page(
        title="In-context learning and fine-tuning",
        context=(f"{_count(table)} tasks, {o.k} examples",),
        tested=_tested(o),
        headline=figures.match(table, ways[0]) if ways else figures.accuracy(table),
        key=_key(table, ways),
        sections=tuple(sections),
    )


def answer(record: Record[ContextOptions]) -> Answer:
    """The main numbers, one line each."""
    table, lines = record.table, list(record.warnings)
    for condition, said in (
        (ESTIMATE, "a function vector"),
        (TASK_VECTOR, "a task vector"),
        (RANDOM_HEADS, "vectors of random heads"),
    ):
        for row in records(table, metric=names.SHARE, item=names.ALL, condition=condition):
            lines.append(f"Share of the few-shot gain in accuracy of {said}: {format_estimate(row)}.")
    for way in _ways(table):
        at = {"site": names.CHOSEN, "item": way, "condition": ESTIMATE}
        row, p = (records(table, metric=m, **at)[0] for m in (names.MATCH, names.P))
        said = f"{format_estimate(row)}, p = {p['value']:.3g}"
        lines.append(f"Match of examples and {way}, centred over tasks, mostly at block {row['layer']}: {said}.")
    return Answer(lines)


def _tested(o: ContextOptions) -> str:
    said = f"Tested with one draw of {o.k} examples per task, words and short answers."
    if o.upper_blocks:
        said += f" Full fine-tuning changes the upper {o.upper_blocks} blocks only."
    if o.short:
        less = "" if "full" in o.methods else ", and LoRA alone"
        said += f" The short form has few tasks and queries, some blocks only{less}."
    return said


def _ways(table: pd.DataFrame) -> list[str]:
    return [w for w in names.WAYS if len(select(table, metric=names.MATCH, site=names.CHOSEN, item=w, condition=ESTIMATE))]


def _count(table: pd.DataFrame) -> int:
    return int(select(table, metric=names.ACCURACY, item=names.ALL, condition=FEW_SHOT)["n"].max())


def _key(table: pd.DataFrame, ways: list[str]) -> Table:
    rows: list[Rows] = []
    for condition, said in ((ESTIMATE, "function vector"), (TASK_VECTOR, "task vector")):
        at = {"metric": names.SHARE, "item": names.ALL}
        controls = {"chance": RANDOM_HEADS, "other task": OTHER_TASK, "permuted outputs": SHUFFLED_SHOTS}
        line = {"": f"share of few-shot gain, {said}", "estimate": cell(first_row(table, condition=condition, **at))}
        rows.append(line | {name: cell(first_row(table, condition=c, **at)) for name, c in controls.items()} | {"p": "–"})
    for way in ways:
        here = {"item": way, "site": names.CHOSEN}
        own = records(table, metric=names.MATCH, condition=ESTIMATE, **here)[0]
        p = records(table, metric=names.P, condition=ESTIMATE, **here)[0]
        controls = {"chance": PERMUTED_TASKS, "other task": OTHER_SHOTS, "permuted outputs": SHUFFLED_SHOTS}
        line = {"": f"match of examples and {way}", "estimate": format_estimate(own)}
        line |= {name: cell(first_row(table, metric=names.MATCH, condition=c, **here)) for name, c in controls.items()}
        rows.append(line | {"p": f"{p['value']:.2g}"})
    return Table(
        pd.DataFrame(rows),
        "Key numbers",
        f"With 95 % intervals over {_count(table)} tasks. The match of each task is at the block where the other tasks match best. "
        "Chance: random heads; permuted tasks with their range, the choice of the block repeated.",
    )


def _vectors(record: Record[ContextOptions], table: pd.DataFrame) -> Section:
    shares = select(table, metric=names.SHARE)
    cells = wide(shares.assign(condition=shares["condition"].replace(ESTIMATE, "function vector")), "item", "condition")
    made = pd.concat([r.side["vectors"] for name, r in record.results.items() if name.startswith("vectors")], ignore_index=True)
    items: list[Item] = [figures.accuracy(table)]
    if len(cells):
        caption = f"{names.SHARE_DEFINITION}; 95 % intervals over queries, in the last line over tasks."
        items.append(Table(cells, "Share of the few-shot gain", caption))
    items.append(Table(made, "The vectors", "Blocks and heads are chosen on dev items; numbers elsewhere are of test items."))
    return Section(
        "How much of k examples does one vector give?",
        "Look for vectors (blue, vermillion) near few-shot, while random heads and other tasks' vectors stay at zero-shot.",
        tuple(items),
    )


def _movement(table: pd.DataFrame, ways: list[str]) -> Section:
    items: list[Item] = [figures.match(table, way, small=True) for way in ways[1:]]
    for way in ways:
        items += [figures.raw(table, way), figures.attention(table, way)]
    lines: dict[str, dict[str, str]] = {}
    for way in ways:
        here = records(table, item=way, site=names.CHOSEN)
        at = {r["metric"]: r for r in here if r["condition"] == ESTIMATE}
        held = {m: format_estimate(at[m]) for m in (names.RAW, names.SAME, names.MATCH)} | {"p": f"{at[names.P]['value']:.2g}"}
        held |= {f"match, {r['condition']}": format_gain(r) for r in here if r["metric"] == names.GAIN}
        for name, said in (held | {"most common block": str(at[names.MATCH]["layer"])}).items():
            lines.setdefault(name, {})[way] = said
    rows = [{"": name, **cells} for name, cells in lines.items()]
    text = (
        "Look for a same-task cosine above that of other tasks. The raw cosine says little: k examples with permuted outputs move "
        "the network nearly as k true examples do, as format and position are the same. So shifts are centred over tasks, and the "
        "match of the same task is compared with other tasks and with permuted tasks."
    )
    items.append(
        Table(pd.DataFrame(rows), "At the chosen block", "Each task at the block of the others; 95 % intervals over tasks.")
    )
    return Section("Do examples move the network where fine-tuning does?", text, tuple(items))


def _one_vector(table: pd.DataFrame) -> Section:
    ways = [w for w in (FEW_SHOT, *names.WAYS) if len(select(table, metric=names.RECOVERED, item=names.of(names.ALL, w)))]
    rows = []
    for way in ways:
        at = select(table, metric=names.RECOVERED, item=names.of(names.ALL, way))
        for block, here in at.groupby("layer"):
            by = {r["condition"]: format_estimate(r) for r in records(here)}
            rank = first_row(table, metric="share of rank 1", item=names.ALL, condition=way, site=f"resid_post.{block}")
            line = {"": way, "block": block, "recovered KL": by.get(ESTIMATE, "–"), "random direction": by.get(RANDOM, "–")}
            rows.append(line | {"another task's vector": by.get(OTHER_TASK, "–"), "share of rank 1": cell(rank)})
    items: list[Item] = [figures.recovered(table, way) for way in ways]
    items.append(Table(pd.DataFrame(rows), "One vector per adaptation", "Mean over tasks with 95 % intervals over tasks."))
    return Section(
        "Is an adaptation one vector?",
        "Look at recovered KL near 1: there one constant vector does to next tokens what the adaptation does.",
        tuple(items),
    )


def _accuracy(table: pd.DataFrame) -> Section:
    rows = figures.prompted(table)
    columns = ["condition", "queries", "accuracy", "tasks"]
    scores = pd.DataFrame([[r["condition"], r["split"], format_estimate(r), r["n"]] for r in records(rows)], columns=columns)
    moved = table[table["metric"].isin(_SHIFTED) & (table["item"] == names.ALL)]
    curve = figures.steps(table)
    items: list[Item] = [] if curve is None else [curve]
    items += [
        Table(scores, "Accuracy at equal k", "Mean over tasks with 95 % intervals over tasks."),
        Table(
            wide(moved, "condition", "metric"),
            "Next tokens",
            "How each adaptation changes the next token after the query; mean over tasks.",
        ),
    ]
    said = "; ".join(f"{r['condition']}: {format_estimate(r)}" for r in records(table, metric=names.STEPS, item=names.ALL))
    return Section(
        "Accuracy at equal k, and next tokens",
        "Look at whether the curve passes the horizontal line of the same examples in the prompt, and at which step it is best."
        + (f" Steps chosen on held-out items: {said}." if said else ""),
        tuple(items),
    )


def _constant(table: pd.DataFrame) -> tuple[Section, ...]:
    """A constant prompt compared with tuning, where the run has it."""
    rows = table[table["step"] == "constant prompt"]
    if rows.empty:
        return ()
    shown = rows[rows["metric"].isin(("KL", names.PROMPT, "unshifted", "marginal", "shifted"))]
    cells = wide(shown.assign(item=shown["item"].replace("", "all positions")), ["item", "condition"], "metric")
    caption = "95 % intervals over requests. Estimate: the base after the prompt; base network: without a prompt."
    return (
        Section(
            "Does a constant prompt do what tuning does?",
            "Look for KL recovered by the prompt well above that of a prompt about something else: any text before a request "
            "changes predictions.",
            (Table(cells, "Next tokens of the tuned network's answers", caption),),
        ),
    )
