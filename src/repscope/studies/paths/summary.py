"""The results of a `paths` run in sentences."""

from typing import Any

from repscope.conditions import COPY, COPY_MATCHED, ESTIMATE, INDEPENDENT, MATCHED, NO_BIAS, REBASIN, SHUFFLED_GROUPS
from repscope.report.text import format_estimate
from repscope.results import records
from repscope.studies.run.study import Record
from repscope.trace.barriers import GAP
from repscope.trace.run_table import EUCLIDEAN

CONDITIONS = {ESTIMATE: "groups with early bias", MATCHED: "groups with early bias, matched on ID loss", NO_BIAS: NO_BIAS}
PLANTED, UNBIASED = ESTIMATE, NO_BIAS


def _rows(record: Record[Any]) -> dict[tuple[str, str, str], dict[Any, Any]]:
    """(condition, metric, item) → row of the summary."""
    return {(r["condition"], r["metric"], r["item"]): r for r in records(record.results["summary"].table)}


def inits(record: Record[Any]) -> list[int]:
    """The pretrainings of a run."""
    return [int(name.removeprefix("planted ")) for name in record.results if name.startswith("planted ")]


def sentences(record: Record[Any]) -> list[str]:
    """The results in sentences; every number is a cell of the table."""
    if "summary" not in record.results:
        return _published_sentences(record)
    rows, n = _rows(record), len(inits(record))
    over = f"mean over {n} pretraining{'s' if n != 1 else ''}{', with its interval over them' if n > 1 else ''}"
    lines = []
    if (PLANTED, "share of the rule", "rule") in rows:
        rule, bag = (format_estimate(rows[PLANTED, "share of the rule", group]) for group in ("rule", "lexical overlap"))
        lines.append(
            "Runs differ in their first steps only, and then train on data from one distribution. Runs with an early "
            f"bias towards the rule follow the rule on {rule} of the disambiguating examples, runs with an early bias "
            f"towards lexical overlap on {bag} ({over})."
        )
    ratio = [
        f"{name} {format_estimate(rows[c, 'ratio', GAP])}"
        for c, name in (*CONDITIONS.items(), (SHUFFLED_GROUPS, SHUFFLED_GROUPS))
        if (c, "ratio", GAP) in rows
    ]
    if ratio:
        lines.append(
            f"Convexity gap, mean across groups / mean within groups: {'; '.join(ratio)}. For Euclidean distances between weights, "
            f"this ratio is {format_estimate(rows[PLANTED, 'ratio', EUCLIDEAN])} for the groups with early bias."
        )
    clusters = [
        f"{name} {format_estimate(rows[PLANTED, 'ARI', key])}"
        for name, key in (
            ("spectral at the median scale", f"spectral, {GAP}, δ median"),
            ("average linkage of double-centred gaps", f"average linkage, {GAP}, double-centred"),
            ("spectral on Euclidean distances", f"spectral, {EUCLIDEAN}"),
        )
        if (PLANTED, "ARI", key) in rows
    ]
    if clusters:
        lines.append(f"Agreement of unsupervised clusters with the groups (adjusted Rand index): {'; '.join(clusters)}.")
    if (PLANTED, "AUC", "ID loss") in rows:
        lines.append(
            (
                "ID loss as a confound: alone it separates the groups with an AUC of "
                f"{format_estimate(rows[PLANTED, 'AUC', 'ID loss'])}, and with "
                f"{format_estimate(rows[MATCHED, 'AUC', 'ID loss'])} at checkpoints that were matched on it."
            )
            if (MATCHED, "AUC", "ID loss") in rows
            else (
                "ID loss as a confound: alone it separates the groups with an AUC of "
                f"{format_estimate(rows[PLANTED, 'AUC', 'ID loss'])}."
            )
        )
    lines += _tests(rows, n)
    if "apart" in record.results:
        gaps = {r["condition"]: r for r in records(record.results["apart"].table, item=f"all pairs: {GAP}")}
        lines.append(
            f"Control, runs from independent pretrainings: the gap between them is {format_estimate(gaps[INDEPENDENT])} nats, and "
            f"{format_estimate(gaps[REBASIN])} after weight matching. Between a run and a permuted copy it is "
            f"{format_estimate(gaps[COPY])}, and {format_estimate(gaps[COPY_MATCHED])} after weight matching."
        )
    return [*lines, *_failed_biases(record), *_published_sentences(record)]


def _tests(rows: dict[tuple[str, str, str], dict[Any, Any]], n: int) -> list[str]:
    """Mantel tests of the groups with early bias and of the runs without."""
    parts = []
    for condition, name in ((PLANTED, "planted"), (UNBIASED, NO_BIAS)):
        for item, words in ((GAP, ""), (f"{GAP}, beyond ID loss", " beyond ID loss")):
            key = (condition, "mantel rho", item)
            if key in rows:
                small = rows[condition, "mantel p ≤ .05", item]
                parts.append(
                    f"{name}{words} {format_estimate(rows[key])} (p ≤ .05 in {round(small['value'] * small['n'])} of {small['n']})"
                )
    return (
        [f"Correlation of the convexity gap with the difference in behaviour, over pairs of runs (Mantel): {'; '.join(parts)}."]
        if parts
        else []
    )


def _published_sentences(record: Record[Any]) -> list[str]:
    """How well the published clusters separate the score and the in-domain accuracy."""
    notes = record.results["published"].notes if "published" in record.results else ()
    return [f"Published table: {note}" for note in notes if ": AUC " in note]


def _failed_biases(record: Record[Any]) -> list[str]:
    """The pretrainings in which the early bias did not last."""
    failed = []
    for i in inits(record):
        table = record.results[f"planted {i}"].select(metric="share of the rule", condition=PLANTED)
        shares = dict(zip(table["item"], table["value"]))
        if set(shares) != {"rule", "lexical overlap"} or shares["rule"] < 0.5 or shares["lexical overlap"] > 0.5:
            failed.append(f"{i} ({', '.join(f'{k} {v:.2f}' for k, v in shares.items())})")
    if not failed:
        return []
    return [f"In pretraining {' and '.join(failed)} the early bias did not last: both groups ended with the same strategy."]
