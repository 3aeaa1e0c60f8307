"""Commands that read finished runs: runs, show, query, claims."""

import json as jsonlib

from repscope.cli.shared import RUNS, Json, Out, app, print_table


@app.command
def runs(*, out: Out = RUNS, json: Json = False) -> None:
    """List the runs: study, model, whether it is done, when."""
    from repscope.studies.run.folder import listed

    rows = listed(out)
    if json:
        print(jsonlib.dumps(rows))
    elif rows:
        print_table(rows, title=f"Runs in {out}")
    else:
        print(f"There is no run in {out} yet; `repscope tour` makes one.")


@app.command
def show(run: str, *, out: Out = RUNS, json: Json = False) -> None:
    """Show the numbers of one run, estimate and controls, and the path of its page.

    Parameters
    ----------
    run
        A run's name, the beginning of it, or its folder.
    """
    from repscope.studies.run.folder import found, summary

    folder = found(run, out)
    rows = summary(folder)
    if json:
        print(jsonlib.dumps({"run": str(folder), "page": str(folder / "report.html"), "rows": rows}))
        return
    print_table(rows, title=folder.name)
    print(folder / "report.html")


@app.command
def query(sql: str, *, out: Out = RUNS, json: Json = False) -> None:
    """Ask SQL (DuckDB) of all runs at once: the table is called `results`, one row a number.

    Parameters
    ----------
    sql
        Such as "select item, condition, value from results where site = 'resid_post.8'".
    """
    from repscope.studies.run.folder import asked

    frame = asked(sql, out)
    if json:
        print(frame.to_json(orient="records"))
    else:
        print(frame.to_string(index=False, float_format=lambda v: f"{v:.4g}"))


@app.command
def claims(*, out: Out = RUNS, json: Json = False) -> None:
    """What the literature claims, and what the runs at hand say of each."""
    from repscope.studies.run.folder import verdicts

    rows = verdicts(out)
    if json:
        print(jsonlib.dumps(rows))
        return
    for row in rows:  # lines, not cells: an address that a table breaks is no link
        print(f"{row['verdict'].upper()}{' in ' + row['run'] if row['run'] else ''}: {row['claim']}")
        print(f"    {row['source']}")
        print(f"    {row['numbers']}\n")
