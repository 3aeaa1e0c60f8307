"""Finished runs: list them, show one, ask SQL of all. Reads the runs' own files and runs nothing."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from repscope.errors import UserError, unknown
from repscope.report.claims import judge, load
from repscope.results import COLUMNS


def folders(out: Path) -> list[Path]:
    """The folders of runs, by name."""
    return sorted(p for p in out.iterdir() if p.is_dir() and (p / ".lock").exists()) if out.is_dir() else []


def listed(out: Path) -> list[dict[str, Any]]:
    """A row a run: name, study, model, state, seconds of its last session, page."""
    rows = []
    for folder in folders(out):
        facts = _facts(folder)
        rows.append(
            {
                "run": folder.name,
                "study": facts.get("study", folder.name.partition("-")[0]),
                "model": facts.get("model", ""),
                "state": "done" if (folder / "report.html").is_file() else "not finished: the same command goes on",
                "seconds": float(facts.get("seconds", 0.0)),
                "page": str(folder / "report.html") if (folder / "report.html").is_file() else "",
            }
        )
    return rows


def found(run: str, out: Path) -> Path:
    """The folder of a run, named by its name, the beginning of that, or its path.

    Raises
    ------
    UserError
        When there is none, or several begin so.
    """
    held = folders(out)
    if (Path(run) / "study.json").is_file():
        return Path(run)
    matching = [p for p in held if p.name == run] or [p for p in held if p.name.startswith(run)]
    if not matching:
        raise unknown("run", run, [p.name for p in held], "`repscope runs` lists them.")
    if len(matching) > 1:
        raise UserError(
            f"{len(matching)} runs begin with {run!r}: {', '.join(p.name for p in matching)}; write more of the name."
        )
    return matching[0]


def summary(folder: Path) -> list[dict[str, Any]]:
    """The numbers of a run that have no layer: scores at chosen blocks, gains, controls; of a verification all its errors.

    Raises
    ------
    UserError
        When the run is not finished.
    """
    table = _table(folder)
    if table.empty:
        raise UserError(f"{folder.name} is not finished; the same command that began it goes on with it.")
    if (table["study"] == "verify").all():
        return [
            {"check": r["item"], "condition": r["condition"], "error": _told(r["value"]), "compared": r["definition"]}
            for r in table.to_dict("records")
        ]
    short = table[table["layer"].isna() & (table["site"] != "embed") & table["lo"].notna()]
    return [
        {
            "item": r["item"], "metric": r["metric"], "condition": r["condition"], "split": r["split"],
            "value": round(r["value"], 3), "lo": round(r["lo"], 3), "hi": round(r["hi"], 3), "n": int(r["n"]), "unit": r["unit"],
        }
        for r in short.to_dict("records")
    ]  # fmt: skip


def asked(sql: str, out: Path) -> pd.DataFrame:
    """The answer to SQL over the table `results` of all finished runs, with the run's name in the column `run`.

    DuckDB sees that table only: access to files and network is switched off before the query runs.

    Raises
    ------
    UserError
        When there is no finished run, or DuckDB refuses the query; says why.
    """
    import duckdb

    tables = [_table(f).assign(run=f.name) for f in folders(out)]
    tables = [t for t in tables if len(t)]
    if not tables:
        raise UserError(f"There is no finished run in {out}; `repscope tour` makes one.")
    with duckdb.connect() as connection:
        connection.register("held", pd.concat(tables, ignore_index=True))
        connection.execute("create table results as select * from held")
        connection.unregister("held")
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        try:
            return connection.execute(sql).df()
        except duckdb.Error as error:
            raise UserError(f"DuckDB refuses the query: {str(error).splitlines()[0]}") from error


def verdicts(out: Path) -> list[dict[str, Any]]:
    """Each claim with what each finished run says of it."""
    rows = []
    for folder in folders(out):
        table = _table(folder)
        if table.empty:
            continue
        rows += [
            {
                "run": folder.name,
                "claim": v.claim.claim,
                "source": v.claim.source,
                "verdict": v.verdict,
                "numbers": v.sentence,
            }
            for v in judge(load(), table)
        ]
    if not rows:
        rows = [
            {
                "run": "",
                "claim": c.claim,
                "source": c.source,
                "verdict": "not tested",
                "numbers": f"refuted by: {c.refutation}",
            }
            for c in load()
        ]
    return rows


def _told(error: float) -> float | None:
    """A relative error to two digits, None where nothing was measured: JSON has no such number."""
    return None if pd.isna(error) else float(f"{error:.2g}")


def _facts(folder: Path) -> dict[str, Any]:
    try:
        held: dict[str, Any] = json.loads((folder / "study.json").read_text())
    except (OSError, ValueError):
        return {}
    return held


def _table(folder: Path) -> pd.DataFrame:
    parts = [pd.read_parquet(p) for p in sorted((folder / "results").glob("*.parquet"))]
    whole = [p for p in parts if list(p.columns) == list(COLUMNS)]
    return pd.concat(whole, ignore_index=True).astype(COLUMNS) if whole else pd.DataFrame(columns=list(COLUMNS))
