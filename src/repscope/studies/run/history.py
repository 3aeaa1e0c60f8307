"""Finished runs: list them, show one, query all. Reads their files and runs nothing."""

from pathlib import Path
from typing import Any

import pandas as pd

from repscope.errors import UserError
from repscope.report.claims import Citation, evaluate_claims, load_claims
from repscope.results import records
from repscope.studies.run.folder import RunFolder, list_runs


def run_rows(out: Path) -> list[dict[str, Any]]:
    """One row per run: name, study, model, state, seconds of its last session, page."""
    rows = []
    for run in list_runs(out):
        facts, wrong = run.facts(), run.damage()
        seconds = facts.get("seconds", 0.0)
        rows.append(
            {
                "run": run.path.name,
                "study": str(facts.get("study", run.path.name.partition("-")[0])),
                "model": str(facts.get("model", "")),
                "state": _state(run, wrong),
                "seconds": float(seconds) if isinstance(seconds, int | float) else 0.0,
                "page": str(run.page) if run.finished else "",
            }
        )
    return rows


def _state(run: RunFolder, wrong: str | None) -> str:
    if not run.finished:
        return "not finished: the same command continues it"
    return "done" if wrong is None else f"damaged ({wrong}): the same command mends it"


def _tables(out: Path, notes: list[str]) -> list[tuple[RunFolder, pd.DataFrame]]:
    """The finished runs with their tables; those that are damaged are left out, with a note."""
    found = []
    for run in list_runs(out):
        try:
            table = run.table()
        except UserError as error:
            notes.append(f"Left out: {error}")
            continue
        if len(table):
            found.append((run, table))
    return found


def run_summary(run: RunFolder) -> list[dict[str, Any]]:
    """The numbers of a run without a layer: scores at chosen blocks, gains, controls; for `verify`, all errors.

    Raises
    ------
    UserError
        If the run is not finished.
    """
    table = run.table()
    if table.empty:
        raise UserError(f"{run.path.name} is not finished; run its command again to continue it.")
    if (table["study"] == "verify").all():
        return [
            {"check": r["item"], "condition": r["condition"], "error": _told(r["value"]), "compared": r["definition"]}
            for r in records(table)
        ]
    short = table[table["layer"].isna() & (table["site"] != "embed") & table["lo"].notna()]
    if short.empty:  # a run whose numbers all have a block, or none an interval: a lens, a bench
        short = table
    columns = _apart(short)
    return [
        {
            **{c: _plain(r[c]) for c in columns},
            "value": _rounded(r["value"]),
            "lo": _rounded(r["lo"]),
            "hi": _rounded(r["hi"]),
            "n": int(r["n"]),
            "unit": r["unit"],
        }
        for r in records(short)
    ]


def _apart(rows: pd.DataFrame) -> list[str]:
    """Columns that distinguish the rows: item, metric, condition and split, and more if needed."""
    shown = ["item", "metric", "condition", "split"]
    alike = int(rows.duplicated(shown, keep=False).sum())
    for column in ("site", "token", "layer", "definition", "step", "model", "seed"):
        left = int(rows.duplicated([*shown, column], keep=False).sum())
        if left < alike:
            shown, alike = [*shown, column], left
    return shown


def _rounded(value: float) -> float | None:
    """Rounded to three decimals; None for NaN, which JSON cannot represent."""
    return None if pd.isna(value) else round(float(value), 3) + 0.0


def _plain(value: Any) -> Any:
    return "" if pd.isna(value) else int(value) if isinstance(value, float) else value


def query(sql: str, out: Path, notes: list[str] | None = None) -> pd.DataFrame:
    """The answer to SQL over the table `results` of all finished runs, with the run's name in the column `run`.

    Damaged runs are left out; `notes` gets a sentence on each.

    DuckDB sees that table only: access to files and network is switched off before the query runs, and what is no query (COPY,
    ATTACH, CREATE, PRAGMA, SET …) is refused by DuckDB's own parser's word for it.

    Raises
    ------
    UserError
        When there is no finished run, when it is not one query, or DuckDB refuses it; says why.
    """
    import duckdb

    notes = [] if notes is None else notes
    tables = [table.assign(run=run.path.name) for run, table in _tables(out, notes)]
    if not tables:
        raise UserError(notes[0] if notes else f"There is no finished run in {out}; `repscope tour` starts the first ones.")
    with duckdb.connect() as connection:
        connection.register("held", pd.concat(tables, ignore_index=True))
        connection.execute("create table results as select * from held")
        connection.unregister("held")
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1:
                raise UserError(f"query takes one SELECT, but this contains {len(statements) or 'none'}; give one.")
            if statements[0].type != duckdb.StatementType.SELECT:
                kind = statements[0].type.name.replace("_", " ")
                raise UserError(f"query takes a SELECT, but this is a statement of the kind {kind}; give a SELECT.")
            return connection.execute(statements[0]).df()
        except duckdb.Error as error:
            raise UserError(f"DuckDB refuses the query: {str(error).splitlines()[0]}") from error


def claim_rows(out: Path, notes: list[str] | None = None) -> list[dict[str, Any]]:
    """Each claim with the verdict of each finished run. Damaged runs are left out; `notes` gets a sentence on each."""
    rows = []
    for run, table in _tables(out, [] if notes is None else notes):
        if run.facts().get("options", {}).get("tiny"):  # a tiny run decides nothing
            continue
        rows += [
            {
                "run": run.path.name,
                "claim": v.claim.claim,
                "source": _cited(v.claim.source),
                "verdict": v.verdict,
                "numbers": v.sentence,
            }
            for v in evaluate_claims(load_claims(), table)
        ]
    if not rows:
        rows = [
            {
                "run": "",
                "claim": c.claim,
                "source": _cited(c.source),
                "verdict": "not tested",
                "numbers": f"refuted by: {c.refutation}",
            }
            for c in load_claims()
        ]
    return rows


def _cited(source: Citation) -> str:
    """Who says it, and where: text that a terminal makes a link of."""
    return f"{source.authors}, {source.year}, {source.url}"


def _told(error: float) -> float | None:
    """A relative error to two digits; None for NaN, which JSON cannot represent."""
    return None if pd.isna(error) else float(f"{error:.2g}")
