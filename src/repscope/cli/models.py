"""Commands that look at models: models, sites."""

import json as jsonlib

from repscope.cli.shared import Json, ModelName, app, print_table


@app.command
def models(*, json: Json = False) -> None:
    """List the models that are cached here, with their size, and those that can be fetched by an alias."""
    from repscope.models.loading.sources import cached

    rows = [
        {"name": c.name, "kind": c.kind, "state": c.state, "MB": round(c.size_bytes / 1e6), "precision": c.precision}
        for c in cached()
    ]
    if json:
        print(jsonlib.dumps(rows))
    else:
        print_table(rows, title="Models")


@app.command
def sites(model: ModelName = "smollm2-135m-instruct-q4", *, revision: str | None = None, json: Json = False) -> None:
    """Show the sites of a model: where each is read, its definition, or why it is not available."""
    from repscope.models.loading.sources import load

    lm = load(model, revision=revision)
    rows = [dict(zip(("site", "read at", "definition", "identity"), row)) for row in lm.sites()]
    if json:
        paths = {path: why or "proved" for path, why in lm.fast_paths().items()}
        print(jsonlib.dumps({"model": lm.name, "fingerprint": lm.fingerprint, "sites": rows, "fast paths": paths}))
        return
    a = lm.anatomy
    form = f"{a.blocks} {a.form} blocks of width {a.width}; identities hold to {a.error:.1e}" if a else "no blocks found"
    print_table(rows, title=f"{lm.name}: {form}")
    ways = [{"fast path": path, "on this model": why or "proved"} for path, why in lm.fast_paths().items()]
    print_table(ways, title="Operations that run faster than one prompt at a time")
