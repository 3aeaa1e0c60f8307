"""The page of the `drift` study and its closing lines, from the tables of the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from repscope.conditions import ANOTHER_SEED, ESTIMATE, PERMUTED_GAPS, PERMUTED_METHODS
from repscope.report.page import Page, Section, Table
from repscope.report.tables import cell, wide
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
    start = (_claims(record), _gap(record), _kinds(record), _where(table), _tokens(table), _directions(table))
    sections = (*start, _steering(record), _precision(table), _runs(record))
    return Page(
        title="What fine-tuning, preference optimisation and RL change",
        context=(f"{record.options.seeds} worlds", f"networks of width {record.options.width}"),
        tested=_TESTED + _left_out(record.options),
        headline=figures.gap(table, names.NORM, headline=True),
        key=_key(table),
        sections=tuple(s for s in sections if s),
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
    at = _Cells.of(table)
    for name in METHODS:
        cells = {m: at(m, name) for m in (names.NORM, names.KL, names.CKA)}
        floor = at(names.NORM, name, ANOTHER_SEED)
        if cells[names.NORM] != "–":
            lines.append(
                f"{name} at equal reward: relative norm of the change {cells[names.NORM]} (between two seeds {floor}), "
                f"KL {cells[names.KL]} nats per token, CKA {cells[names.CKA]}."
            )
    for row in records(table, metric=names.CORRELATION, condition=ESTIMATE):
        null = records(table, metric=names.CORRELATION, condition=PERMUTED_METHODS, item=row["item"])[0]
        said = f"{row['item']}: {format_estimate(row)}; permuted methods {format_estimate(null)}"
        lines.append(f"Rank correlation over methods, {said}.")
    for row in records(table, metric=names.SLOPE, condition=ESTIMATE):
        null = records(table, metric=names.SLOPE, condition=PERMUTED_GAPS, item=row["item"])[0]
        lines.append(f"Slope of drift on the gap, {row['item']}: {format_estimate(row)}; permuted gaps {format_estimate(null)}.")
    home = record.artifacts / "networks"
    written = f"Networks of the first world: {home}; for instance `repscope compare {home}/base {home}/dpo`."
    return Answer([*lines, *record.notes, *([written] if home.is_dir() else [])])


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
        return cell(self.rows.get((metric, item, condition, split)))


def _key(table: pd.DataFrame) -> Table:
    """Slopes on the gap and orders of the methods, beside their permuted controls."""
    lines, at = [], _Cells.of(table)
    for metric, control, title in (
        (names.SLOPE, PERMUTED_GAPS, "slope of drift on gap"),
        (names.CORRELATION, PERMUTED_METHODS, "rank correlation over methods"),
    ):
        for row in records(table, metric=metric, condition=ESTIMATE):
            null = at(metric, row["item"], control, row["split"])
            lines.append([f"{title}: {row['item']}", format_estimate(row), null, row["n"]])
    caption = "Means over seeds with 95 % intervals over them; of the control, the range of 400 permutations."
    return Table(pd.DataFrame(lines, columns=["number", "estimate", "permuted", "seeds"]), "Key numbers", caption)


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


def _gap(record: Record[DriftOptions]) -> Section | None:
    table = record.table
    per_flop = _by_updates(
        select(table, metric=names.PER_FLOP),
        "Reward gained per GFLOP",
        "Of imitation: from its first checkpoint to this one. Of the others: from this checkpoint to the target. Samples that a "
        "method draws and scores itself are counted, demonstrations are given.",
    )
    drifted = select(table, metric=f"{names.NORM} from base", condition=ESTIMATE)
    total = _by_updates(
        drifted,
        "Weight drift from the base, imitation included",
        "A smaller gap means less drift of the rest, not of the whole: imitation has changed the weights before.",
    )
    return Section.of(
        "Gap, RL, drift",
        "Look for lines that go up: the further imitation is from the target, the more the rest changes. Imitation of "
        "demonstrations is stopped after several numbers of updates; each checkpoint is brought to the same reward. Drift is "
        "measured from that checkpoint. The grey control permutes the gaps of each seed.",
        *(figures.gap(table, metric) for metric in (names.KL, names.CKA)),
        per_flop,
        total if len(drifted) else None,
    )


def _by_updates(rows: pd.DataFrame, title: str, caption: str) -> Table:
    """One line per number of updates of imitation."""
    found = wide(rows.assign(updates=rows["token"].astype(int)), "updates", "item", sort=True)
    return Table(found.rename(columns={"updates": "updates of imitation"}), title, caption)


def _kinds(record: Record[DriftOptions]) -> Section | None:
    at = _Cells.of(record.table)
    lines = []
    for name in METHODS:
        for condition, said in ((ESTIMATE, name), (ANOTHER_SEED, f"{name}: {ANOTHER_SEED}")):
            cells = {m: at(m, name, condition) for m in _SHOWN}
            if cells[names.NORM] != "–":
                lines.append({"method": said, **cells})
    base = at(names.LOSS, "corpus", names.BEFORE, "")
    at_kl = [{"method": name, **{m: at(m, name, split=names.AT_KL) for m in (names.REWARD, *_SHOWN)}} for name in METHODS]
    return Section.of(
        "Weight drift and functional drift",
        "Look for methods far to the right that are not high: their weights moved, their next tokens did not. All networks have "
        "the same reward.",
        figures.kinds(record) if lines else None,
        Table(
            pd.DataFrame(lines, columns=["method", *_SHOWN]),
            "Drift at equal reward",
            f"Means over seeds with 95 % intervals. Grey rows compare two training seeds. Loss of the base on the corpus: {base}.",
        ),
        Table(
            pd.DataFrame(at_kl),
            "Drift at equal KL from the base",
            "The same methods at one divergence: which of them earns most reward for it?",
        ),
        figures.along(record),
    )


def _where(table: pd.DataFrame) -> Section | None:
    return Section.of(
        "Layers and modules",
        "Look for rows or columns that stand out. Change of the weights by module and layer, relative to the norm of the same "
        "weights; below, representations.",
        *figures.where(table),
    )


def _tokens(table: pd.DataFrame) -> Section | None:
    return Section.of(
        "Which tokens shift",
        "Look for shares that fall with position. Greedy completions of the tuned network: a token is shifted if it is not among "
        "the three most likely of the base, given the same prefix.",
        *figures.tokens(table),
    )


def _directions(table: pd.DataFrame) -> Section | None:
    return Section.of(
        "Survival of a direction",
        "Look for a base's direction that reads and acts as before. The direction of a document's topic is the difference of the "
        "means of two topics: what the base learned in pretraining, and what the reward does not ask for.",
        *figures.directions(table),
    )


def _steering(record: Record[DriftOptions]) -> Section | None:
    return Section.of(
        "Is it only steering?",
        "Look for shares near 1. The base with constant vectors added: how much of the tuned network's KL they recover, on "
        "documents on which neither site, nor scale, nor vector was chosen.",
        figures.steering(record.table),
    )


def _precision(table: pd.DataFrame) -> Section | None:
    return Section.of(
        "Unchanged weights and precision",
        "Look at what remains of the share of unchanged weights in float32. The same updates, with weights in float32, and "
        "rounded to bfloat16 after every update.",
        figures.precision(table),
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
