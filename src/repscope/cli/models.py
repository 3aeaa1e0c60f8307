"""Commands that look at one model: models, sites, verify, lens."""

import json as jsonlib

from repscope.cli.shared import RUNS, Count, Dtype, Json, ModelName, Out, app, print_table


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
    """Show the sites of a model: where each is read, what it is, or why there is none."""
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
    print_table(ways, title="What runs faster than one prompt at a time")


@app.command
def verify(
    model: ModelName = "smollm2-135m-instruct-q4",
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: Dtype = "float32",
    out: Out = RUNS,
    json: Json = False,
) -> None:
    """Check the engine on a model: against plain transformers, padded, cached, edited, restored. Exit code 1 when a check fails.

    Parameters
    ----------
    revision
        Branch, tag or commit of a hub id.
    device
        Device to run on; cuda where there is one, else cpu.
    dtype
        Precision of the weights: float32, bfloat16 or float16.
    """
    from repscope.disk import need_folder
    from repscope.models.loading.sources import load
    from repscope.models.verify.checks import verify as checked
    from repscope.studies.verify.kept import write_verification

    need_folder(out)
    found = checked(load(model, revision=revision, device=device, dtype=dtype))
    folder = write_verification(found, out)
    if json:
        said = {"passed": found.passed, "answer": found.sentence, "checks": found.rows}
        print(jsonlib.dumps({"run": str(folder), "page": str(folder / "report.html"), **said}))
    else:
        rows = [{"": "✓" if r["state"] == "passed" else "✗" if r["state"] == "failed" else "–", **r} for r in found.rows]
        print_table([{k: v for k, v in r.items() if k not in ("compared", "rows")} for r in rows], title=repr(found))
        print(folder)
    if not found.passed:
        raise SystemExit(1)


@app.command
def lens(
    model: ModelName,
    prompt: str,
    *,
    last: Count = 64,
    every: Count = 1,
    top: Count = 5,
    revision: str | None = None,
    device: str | None = None,
    dtype: Dtype = "float32",
    out: Out = RUNS,
    json: Json = False,
) -> None:
    """Logit lens: which next token each block would predict at each token of a prompt.

    Parameters
    ----------
    prompt
        The text to read.
    last
        Tokens at the end of the prompt that the lens is put to; the network reads all of it.
    every
        Show every how many blocks in the terminal.
    top
        Tokens kept for each cell of the page.
    revision
        Branch, tag or commit of a hub id.
    device
        Device to run on; cuda where there is one, else cpu.
    dtype
        Precision of the weights: float32, bfloat16 or float16.
    """
    from repscope.disk import need_folder
    from repscope.models.loading.sources import load
    from repscope.read.logit_lens import logit_lens
    from repscope.studies.lens.page import print_lens, write_lens

    need_folder(out)
    lm = load(model, revision=revision, device=device, dtype=dtype)
    result = logit_lens(lm, prompt, top=top, last=last)
    page = write_lens(lm, prompt, result, out)
    if json:
        print(jsonlib.dumps({"page": str(page), "notes": list(result.notes)}))
        return
    print_lens(result, every)
    for line in (*result.notes, page):
        print(line)
