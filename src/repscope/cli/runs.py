"""Commands that read finished runs: runs, show, query, claims."""

import json as jsonlib

from repscope.cli.shared import RUNS, Json, Out, app, print_notes, print_table, say


@app.command
def runs(*, out: Out = RUNS, json: Json = False) -> None:
    """List the runs: study, model, state, seconds."""
    from repscope.studies.run.history import run_rows

    rows = run_rows(out)
    if json:
        print(jsonlib.dumps(rows))
    elif rows:
        print_table(rows, title=f"Runs in {out}")
    else:
        say(f"There is no run in {out} yet; `repscope tour` starts the first ones.")


@app.command
def show(run: str, *, out: Out = RUNS, json: Json = False) -> None:
    """Show the numbers of one run, estimate and controls, and the path of its page.

    Parameters
    ----------
    run
        A run's name, the beginning of it, or its folder.
    """
    from repscope.studies.run.folder import find_run
    from repscope.studies.run.history import run_summary

    folder = find_run(run, out)
    rows = run_summary(folder)
    if json:
        print(jsonlib.dumps({"run": str(folder.path), "page": str(folder.page), "rows": rows}))
        return
    print_table(rows, title=folder.path.name)
    say(folder.page)


@app.command
def query(sql: str, *, out: Out = RUNS, json: Json = False) -> None:
    """Query all runs at once with SQL (DuckDB): the table is called `results`, one row per number.

    Parameters
    ----------
    sql
        Such as "select item, condition, value from results where site = 'resid_post.8'".
    """
    from repscope.studies.run.history import query as run_query

    notes: list[str] = []
    frame = run_query(sql, out, notes)
    print_notes(notes)
    if json:
        print(frame.to_json(orient="records"))
    else:
        say(frame.to_string(index=False, float_format=lambda v: f"{v:.4g}"))


@app.command
def claims(*, out: Out = RUNS, json: Json = False) -> None:
    """Claims of the literature, and the verdict of these runs on each."""
    from repscope.studies.run.history import claim_rows

    notes: list[str] = []
    rows = claim_rows(out, notes)
    print_notes(notes)
    if json:
        print(jsonlib.dumps(rows))
        return
    for row in rows:  # lines, not cells: an address that a table breaks is no link
        say(f"{row['verdict'].upper()}{' in ' + row['run'] if row['run'] else ''}: {row['claim']}")
        say(f"    {row['source']}")
        say(f"    {row['numbers']}\n")
