"""The page of the `drift` study and its closing lines, from the tables of the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from repscope.conditions import ANOTHER_SEED, ESTIMATE, PERMUTED_GAPS, PERMUTED_METHODS
from repscope.report.page import Page, Section, Table
from repscope.report.text import format_estimate
from repscope.results import records, select
from repscope.studies.drift import figures, names
from repscope.studies.drift.options import DriftOptions
from repscope.studies.drift.verdict import verdict
from repscope.studies.run.study import Answer, Record
from repscope.worlds.rewarded.methods import METHODS

_SHOWN = (names.NORM, names.RANK, names.SAME32, names.SAME16, names.CKA, names.KL, names.SHIFTED, names.LOSS)
_TESTED = (
    "Tested on small language models that are trained in this study, on one computable reward, all weights trained. Not tested "
    "here: large models and LoRA; the command “repscope compare” measures the same on any two checkpoints."
)
#: what the short form has fewer of
_FEWER = {
    "seeds": "worlds",
    "pretraining": "pretraining steps",
    "rates": "learning rates",
    "documents": "documents per evaluation",
    "levels": "levels of imitation",
    "small_rates": "rates of the bfloat16 twins",
    "small_updates": "updates of the twins",
    "fitting": "steps of fitted vectors",
}


def page(record: Record[DriftOptions]) -> Page:
    """The page."""
    table = record.table
    return Page(
        title="What fine-tuning, preference optimisation and RL change",
        context=(f"{record.options.seeds} worlds", f"networks of width {record.options.width}"),
        tested=_TESTED + _left_out(record.options),
        headline=figures.gap(table, names.NORM, headline=True),
        key=_key(table),
        sections=tuple(
            s
            for s in (
                _claims(record),
                _gap(record),
                _kinds(record),
                _where(table),
                _tokens(table),
                _directions(table),
                _steering(record),
                _precision(table),
                _runs(record),
            )
            if s
        ),
    )


def _left_out(options: DriftOptions) -> str:
    """What the short form has fewer of than the default one."""
    if not options.short:
        return ""
    own, full = options.model_dump(), DriftOptions.model_validate({}).model_dump()
    counts = {name: [len(v) if isinstance(v, list | tuple) else v for v in (own[name], full[name])] for name in _FEWER}
    fewer = [f"{_FEWER[name]} ({a} of {b})" for name, (a, b) in counts.items() if a < b]
    if not fewer:
        return ""
    return f" This is the short form, with fewer {', '.join(fewer)}, so that intervals are wider."


def answer(record: Record[DriftOptions]) -> Answer:
    """The main numbers, one line each."""
    table, lines = record.table, []
    cell = _Cells.of(table)
    for name in METHODS:
        cells = {m: cell(m, name) for m in (names.NORM, names.KL, names.CKA)}
        floor = cell(names.NORM, name, ANOTHER_SEED)
        if cells[names.NORM] != "–":
            lines.append(
                f"{name} at equal reward: relative norm of the change {cells[names.NORM]} (between two seeds {floor}), "
                f"KL {cells[names.KL]} nats per token, CKA {cells[names.CKA]}."
            )
    for row in records(table, metric=names.CORRELATION, condition=ESTIMATE):
        null = records(table, metric=names.CORRELATION, condition=PERMUTED_METHODS, item=row["item"])[0]
        lines.append(
            f"Rank correlation over methods, {row['item']}: {format_estimate(row)}; permuted methods {format_estimate(null)}."
        )
    for row in records(table, metric=names.SLOPE, condition=ESTIMATE):
        null = records(table, metric=names.SLOPE, condition=PERMUTED_GAPS, item=row["item"])[0]
        lines.append(f"Slope of drift on the gap, {row['item']}: {format_estimate(row)}; permuted gaps {format_estimate(null)}.")
    home = record.artifacts / "networks"
    written = (
        [f"Networks of the first world: {home}; for instance `repscope compare {home}/base {home}/dpo`."] if home.is_dir() else []
    )
    return Answer([*lines, *record.notes, *written])


@dataclass(frozen=True)
class _Cells:
    """Rows of a table by what identifies them, as text; a selection of the table for each cell would take seconds."""

    rows: Mapping[tuple[str, str, str, str], Mapping[Any, Any]]

    @classmethod
    def of(cls, table: pd.DataFrame) -> "_Cells":
        """The rows of whole networks."""
        whole = table[(table["site"] == "") & (table["token"] == "")]
        return cls({(r["metric"], r["item"], r["condition"], r["split"]): r for r in records(whole)})

    def __call__(self, metric: str, item: str, condition: str = ESTIMATE, split: str = names.AT_REWARD) -> str:
        """The cell, or a dash."""
        row = self.rows.get((metric, item, condition, split))
        return "–" if row is None else format_estimate(row)


def _key(table: pd.DataFrame) -> Table:
    """Slopes on the gap and orders of the methods, beside their permuted controls."""
    lines, cell = [], _Cells.of(table)
    for metric, control, title in (
        (names.SLOPE, PERMUTED_GAPS, "slope of drift on gap"),
        (names.CORRELATION, PERMUTED_METHODS, "rank correlation over methods"),
    ):
        for row in records(table, metric=metric, condition=ESTIMATE):
            null = cell(metric, row["item"], control, row["split"])
            lines.append(
                {"number": f"{title}: {row['item']}", "estimate": format_estimate(row), "permuted": null, "seeds": row["n"]}
            )
    columns = ["number", "estimate", "permuted", "seeds"]
    return Table(
        pd.DataFrame(lines, columns=columns),
        "Key numbers",
        "Means over seeds with 95 % intervals over them; of the control, the range of 400 permutations.",
    )


def _claims(record: Record[DriftOptions]) -> Section | None:
    """The verdict on each claim; none of a tiny run."""
    if record.options.tiny:
        return None
    parts = verdict(record.table).parts
    frame = pd.DataFrame([{"claim": name, "verdict": part.reply, "why": part.why} for name, part in parts.items()])
    text = (
        "Look at the rows that are not a plain yes. Each claim has a rule on intervals over seeds; the rules' thresholds are in "
        "verdicts.toml."
    )
    return Section("Claims", text, (Table(frame, "Verdict per claim"),))


def _gap(record: Record[DriftOptions]) -> Section:
    table = record.table
    items: list[Any] = [figures.gap(table, metric) for metric in (names.KL, names.CKA)]
    rows = select(table, metric=names.PER_FLOP)
    wide = rows.assign(cell=[format_estimate(r) for r in records(rows)], updates=rows["token"].astype(int))
    wide = wide.pivot_table(index="updates", columns="item", values="cell", aggfunc="first").fillna("–").reset_index()
    items.append(
        Table(
            wide.rename(columns={"updates": "updates of imitation"}),
            "Reward gained per GFLOP",
            "Of imitation: from its first checkpoint to this one. Of the others: from this checkpoint to the target. Samples that "
            "a method draws and scores itself are counted, demonstrations are given.",
        )
    )
    items.append(_total(table))
    return Section(
        "Gap, RL, drift",
        "Look for lines that go up: the further imitation is from the target, the more the rest changes. Imitation of "
        "demonstrations is stopped after several numbers of updates; each checkpoint is brought to the same reward. Drift is "
        "measured from that checkpoint. The grey control permutes the gaps of each seed.",
        tuple(i for i in items if i is not None),
    )


def _total(table: pd.DataFrame) -> Table | None:
    """Weight drift from the base, imitation included."""
    rows = select(table, metric=f"{names.NORM} from base", condition=ESTIMATE)
    if rows.empty:
        return None
    wide = rows.assign(cell=[format_estimate(r) for r in records(rows)], updates=rows["token"].astype(int))
    wide = wide.pivot_table(index="updates", columns="item", values="cell", aggfunc="first").fillna("–").reset_index()
    return Table(
        wide.rename(columns={"updates": "updates of imitation"}),
        "Weight drift from the base, imitation included",
        "A smaller gap means less drift of the rest, not of the whole: imitation has changed the weights before.",
    )


def _kinds(record: Record[DriftOptions]) -> Section:
    cell = _Cells.of(record.table)
    lines = []
    for name in METHODS:
        for condition, said in ((ESTIMATE, name), (ANOTHER_SEED, f"{name}: {ANOTHER_SEED}")):
            cells = {m: cell(m, name, condition) for m in _SHOWN}
            if cells[names.NORM] != "–":
                lines.append({"method": said, **cells})
    base = cell(names.LOSS, "corpus", names.BEFORE, "")
    items: list[Any] = [figures.kinds(record)] if lines else []
    items.append(
        Table(
            pd.DataFrame(lines, columns=["method", *_SHOWN]),
            "Drift at equal reward",
            f"Means over seeds with 95 % intervals. Grey rows compare two training seeds. Loss of the base on the corpus: {base}.",
        )
    )
    at_kl = [{"method": name, **{m: cell(m, name, split=names.AT_KL) for m in (names.REWARD, *_SHOWN)}} for name in METHODS]
    items.append(
        Table(
            pd.DataFrame(at_kl),
            "Drift at equal KL from the base",
            "The same methods at one divergence: which of them earns most reward for it?",
        )
    )
    curve = figures.along(record)
    return Section(
        "Weight drift and functional drift",
        "Look for methods far to the right that are not high: their weights moved, their next tokens did not. All networks have "
        "the same reward.",
        (*items, *([curve] if curve else [])),
    )


def _where(table: pd.DataFrame) -> Section | None:
    items = figures.where(table)
    text = (
        "Look for rows or columns that stand out. Change of the weights by module and layer, relative to the norm of the same "
        "weights; below, representations."
    )
    return Section("Layers and modules", text, tuple(items)) if items else None


def _tokens(table: pd.DataFrame) -> Section | None:
    items = figures.tokens(table)
    return (
        Section(
            "Which tokens shift",
            "Look for shares that fall with position. Greedy completions of the tuned network: a token is shifted if it is not "
            "among the three most likely of the base, given the same prefix.",
            tuple(items),
        )
        if items
        else None
    )


def _directions(table: pd.DataFrame) -> Section | None:
    items = figures.directions(table)
    return (
        Section(
            "Survival of a direction",
            "Look for a base's direction that reads and acts as before. The direction of a document's topic is the difference of "
            "the means of two topics: what the base learned in pretraining, and what the reward does not ask for.",
            tuple(items),
        )
        if items
        else None
    )


def _steering(record: Record[DriftOptions]) -> Section | None:
    item = figures.steering(record.table)
    return (
        Section(
            "Is it only steering?",
            "Look for shares near 1. The base with constant vectors added: how much of the tuned network's KL they recover, on "
            "documents on which neither site, nor scale, nor vector was chosen.",
            (item,),
        )
        if item
        else None
    )


def _precision(table: pd.DataFrame) -> Section | None:
    item = figures.precision(table)
    return (
        Section(
            "Unchanged weights and precision",
            "Look at what remains of the share of unchanged weights in float32. The same updates, with weights in float32, and "
            "rounded to bfloat16 after every update.",
            (item,),
        )
        if item
        else None
    )


def _runs(record: Record[DriftOptions]) -> Section:
    frames = [r.side[f"runs-{name.removeprefix('train ')}"] for name, r in record.results.items() if name.startswith("train ")]
    table = pd.concat(frames, ignore_index=True)
    grouped = table.groupby(["method", "rate", "match"], sort=False)
    frame = grouped.agg(
        runs=("matched", "size"),
        matched=("matched", "sum"),
        reward=("reward", "mean"),
        KL=("KL", "mean"),
        miss=("miss", "max"),
        updates=("updates", "mean"),
        GFLOP=("gflop", "mean"),
    ).reset_index()
    text = (
        "Look for methods with fewer matched runs than runs. A run is matched if it reaches its target, and is at most 0.01 "
        "in reward (a "
        "tenth of the KL) away from it on other samples; runs that miss are named in the notes and left out of the comparison."
    )
    return Section("Runs", text, (Table(frame, "Reward and KL of all runs", "Largest miss: on samples that did not choose."),))
