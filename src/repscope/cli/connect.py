"""The command that goes between networks: connect."""

import json as jsonlib

from repscope.cli.shared import RUNS, Decimal, Fresh, Json, Na, Out, Quote, Seed, app, print_notes, print_table

_PRINTED = 24  #: rows that a terminal shows


@app.command
def connect(
    *models: str,
    data: str | None = None,
    text: str = "text",
    pair: str | None = None,
    label: str | None = None,
    split: str | None = None,
    points: int = 10,
    examples: int | None = None,
    length: int = 512,
    controls: int = 3,
    seed: Seed = 0,
    decimal: Decimal = None,
    na: Na = None,
    quote: Quote = None,
    out: Out = RUNS,
    fresh: Fresh = False,
    json: Json = False,
) -> None:
    """Losses along the straight lines between networks: is there a barrier, and is it low beside a random direction?

    Parameters
    ----------
    models
        Two or more language models or classifiers of one architecture, or the folder of a set of checkpoints.
    data
        Texts to judge them on: .txt with one a line, or a table. Small transformers bring their own.
    text
        Column of texts.
    pair
        Column of second texts, for classifiers of pairs.
    label
        Column of labels, for classifiers: names of classes or their numbers; label when not given.
    split
        Column of splits, such as id and ood; each has losses of its own.
    points
        Points of a line, ends included.
    examples
        Most texts of a split, drawn at random; all when not given.
    length
        Most tokens of a text.
    controls
        How many of the lines get a random direction beside them.
    seed
        Of random directions and of texts that are drawn.
    """
    from repscope.disk import need_folder
    from repscope.studies.connect.steps import connected, rows_of
    from repscope.studies.connect.task import Asked

    need_folder(out)
    asked = Asked(models, data, text, pair, label, split, points, examples, length, controls, seed, decimal, na, quote)
    found = connected(asked, out, fresh=fresh)
    page = found.folder / "report.html"
    print_notes(found.result.notes)
    if json:
        said = {"answer": found.answer, "rows": rows_of(found), "notes": list(found.result.notes)}
        print(jsonlib.dumps({"page": str(page), "run": str(found.folder), **said}))
        return
    rows = rows_of(found)
    title = "Heights of losses between networks, with 95 % intervals over examples"
    if len(rows) > _PRINTED:
        title += f"; the first {_PRINTED} of {len(rows)} rows, the page and its run have all"
    print_table(rows[:_PRINTED], title=title)
    for line in [*found.answer, page]:
        print(line)
