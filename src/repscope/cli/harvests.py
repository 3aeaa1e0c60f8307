"""Commands of activation stores: harvest, worker."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from repscope.cli.shared import Count, Dtype, Index, Json, ModelName, Seed, app, say

Seconds = Annotated[float, Parameter(validator=Number(gt=0))]
Rows = Annotated[
    Literal["float16", "bfloat16", "float32", "float64"] | None, Parameter(help="Type of the rows; by default the model's.")
]


@app.command
def harvest(
    out: str,
    *,
    at: Annotated[tuple[str, ...], Parameter(help="Sites with one vector per token, such as resid_post.15.")],
    model: ModelName = "smollm2-135m-instruct-q4",
    revision: str | None = None,
    dtype: Dtype = "float32",
    corpus: str = "installed-docs",
    text: str = "text",
    length: Count = 128,
    rows: Count | None = None,
    keep: Rows = None,
    skip: Index = 0,
    seed: Seed = 0,
    batch_tokens: Count | None = None,
    workers: Count = 1,
    engine: Literal["local", "ray"] = "local",
    lease_seconds: Seconds = 120.0,
    json: Json = False,
) -> None:
    """Write the activations of a corpus to a store. The same command continues an interrupted harvest and repairs damaged shards.

    Parameters
    ----------
    out
        A new folder, or an fsspec URL such as s3://bucket/folder.
    dtype
        Type of the weights.
    corpus
        A .txt, .jsonl or .parquet file, a folder of .arrow files, or installed-docs: documentation of installed packages.
    text
        Column of texts.
    length
        Tokens per sequence.
    rows
        At most so many rows; by default all.
    skip
        First tokens of each sequence that are left out.
    batch_tokens
        Tokens per forward pass.
    workers
        Processes on this machine, or actors of Ray. More can help at any time: repscope worker OUT.
    engine
        local, or ray for Ray Core actors (pip install 'repscope[ray]').
    lease_seconds
        Time after which another machine takes over the shard of a worker that has stopped.
    """
    from repscope.data.corpus import corpus as read_corpus
    from repscope.models.loading.sources import load
    from repscope.store import harvest as run

    documents = read_corpus(corpus, text=text)
    lm = load(model, revision=revision, dtype=dtype)
    store = run(
        lm,
        documents,
        list(at),
        out,
        length=length,
        rows=rows,
        dtype=keep,
        skip=skip,
        seed=seed,
        batch_tokens=batch_tokens,
        workers=workers,
        engine=engine,
        lease_seconds=lease_seconds,
    )
    _print(store.files.place, len(store), len(store.manifest.shards), json)


@app.command
def worker(run: str, *, lease_seconds: Seconds = 120.0, json: Json = False) -> None:
    """Help a harvest that was begun: write shards until none is left. Any number of workers can help, and stop, at any time.

    Parameters
    ----------
    run
        The folder or URL of the store.
    lease_seconds
        Time after which another machine takes over the shard of a worker that has stopped.
    """
    from repscope.store.files import files_at
    from repscope.store.plan import read_plan
    from repscope.store.workers import finish, work

    files = files_at(str(Path(run).expanduser()) if "://" not in run else run)
    plan = read_plan(files)
    done = work(files, plan.load_model(), plan, lease_seconds=lease_seconds)
    finish(files, plan, lease_seconds)
    _print(files.place, sum(rows for _, rows in plan.shards), done, json)


def _print(place: str, rows: int, shards: int, json: bool) -> None:
    if json:
        print(jsonlib.dumps({"store": place, "rows": rows, "shards": shards}))
    else:
        say(f"{rows:,} rows, {shards:,} shards written here.\n{place}" if shards else f"{rows:,} rows.\n{place}")
