"""The part of the `paths` page about a published table of runs."""

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from repscope.data.published import FEATHER_OOD
from repscope.report.charts import grids, runs
from repscope.report.page import Figure, Section, Table
from repscope.report.text import format_estimate
from repscope.results import ESTIMATE, Result, records
from repscope.studies.paths.published import IN_DOMAIN, LEFT

_DRAWN = 8  #: scores with a row in the figure: the first of the table, whose columns go from the whole to the parts


def section(found: Result) -> Section:
    """Separation of each score by the clusters compared with that of in-domain accuracy, and the scores."""
    auc = found.table[found.table["metric"] == "auc"]
    control = auc[auc["condition"] == IN_DOMAIN]
    scores = list(dict.fromkeys(auc[auc["condition"] == ESTIMATE]["item"]))
    first = FEATHER_OOD if FEATHER_OOD in scores else scores[0] if scores else ""
    lines: list[dict[str, Any]] = [{"name": f"{r['item']} (in-domain)", **_ends(r)} for r in records(control)]
    short = {ESTIMATE: "", **{name: f", {'slope within' if within else 'one slope'}" for name, within in LEFT.items()}}
    for name in scores[:_DRAWN]:
        for r in records(auc[auc["item"] == name]):
            if r["condition"] in short:
                lines.append({"name": f"{name}{short[r['condition']]}", **_ends(r)})
    side = found.side["scores"]
    drawn = side[side["score"] == first]
    frame = pd.DataFrame({"x": drawn["id"], "y": drawn["ood"], "group": drawn["cluster"], "name": drawn["run"].astype(str)})
    table: dict[str, dict[str, str]] = {}
    for r in records(auc):
        line = table.setdefault(r["item"], {"score": r["item"]})
        line["AUC" if r["condition"] in (ESTIMATE, IN_DOMAIN) else r["condition"].replace(IN_DOMAIN, "in-domain")] = (
            format_estimate(r)
        )
    return Section(
        "A published table",
        "\n\n".join(found.notes),
        (
            Figure(
                grids.points(
                    pd.DataFrame(lines),
                    value_title="AUC: P(a run of the larger cluster scores above one of the smaller)",
                    controls=[line["name"] for line in lines if line["name"].endswith(("slope", "within", "(in-domain)"))],
                    label_limit=260,
                ),
                "Do the clusters separate the score?",
                "Bars: 95 % intervals over runs. Grey: in-domain accuracy, and the score after in-domain accuracy was "
                "regressed out.",
            ),
            Figure(
                runs.scattered(frame, x_title="in-domain accuracy", y_title=first),
                f"{first} and in-domain accuracy",
                "One point per run.",
            ),
            Table(pd.DataFrame(list(table.values())).fillna("–"), "Separation of every score"),
        ),
    )


def _ends(row: Mapping[Hashable, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("value", "lo", "hi", "n")}
