"""Every format that repscope reads: a small valid input, which of its files are mutated, and how a user reads it.

A reader uses what it read as the rest of repscope would: it encodes texts and computes with numbers, so that what is let in too
easily shows here. Each function imports what it needs, so that tables are tried without torch.
"""

import io
import json
import shutil
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

NAMES = [f"Place {i} é" for i in range(24)]
FRAME = pd.DataFrame({"name": NAMES, "kind": ["a", "b"] * 12, "size": [1.5 * i for i in range(24)]})
TEXTS = pd.DataFrame({"text": [f"It was day {i}." for i in range(24)], "label": ["good", "bad"] * 12, "split": ["id", "ood"] * 12})
PAIRS = pd.DataFrame({"subject": NAMES, "object": ["red", "green", "blue"] * 8})


@dataclass(frozen=True)
class Format:
    """A format. make: writes a valid input into an empty folder. files: those of it that are mutated. read: it, as a user would."""

    name: str
    files: tuple[str, ...]
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    torch: bool = True


def encoded(texts: Iterable[object]) -> int:
    """Encode texts as everything does that leaves Python."""
    return sum(len(str(text).encode()) for text in texts)


# ------------------------------------------------------------------------------------------------------------- tables


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """A frame in the format that the ending names."""
    kind = path.suffix
    if kind == ".parquet":
        frame.to_parquet(path, index=False)
    elif kind in (".json", ".jsonl"):
        path.write_text(frame.to_json(orient="records", lines=kind == ".jsonl", force_ascii=False))
    else:
        frame.to_csv(path, index=False, sep="\t" if kind == ".tsv" else ",")


def _entities(path: Path) -> None:
    from repscope.data.entities import entity_set

    found = entity_set(path)
    encoded(found.prompts("About {}"))
    encoded([*found.notes, *(a.name for a in found.attributes)])


def _texts(path: Path) -> None:
    from repscope.data.evaluation import read_texts

    found = read_texts(path, label="label", split="split")
    encoded([*found.texts, *found.labels, *found.names, *found.notes, found.digest])


def _contrast(path: Path) -> None:
    from repscope.data.contrasts import contrast

    found = contrast(path)
    encoded([found.name, repr(found)])


def _relation(path: Path) -> None:
    from repscope.data.relations import relation
    from repscope.names import file_name

    found = relation(path)
    encoded([file_name(found.name), *found.subjects, *found.objects, *found.templates, *found.notes])


def _task(path: Path) -> None:
    from repscope.data.tasks import task

    found = task(path)
    encoded([found.name, *found.inputs, *found.outputs, *found.notes])


def _corpus(path: Path) -> None:
    from repscope.data.corpus import corpus

    found = corpus(path)
    encoded([*found, found.fingerprint, *found.notes])


def _requests(path: Path) -> None:
    from repscope.data.requests import requests

    encoded([repr(requests(path))])


def _published(path: Path) -> None:
    from repscope.data.published import accuracies, clusters

    if path.name.startswith("clusters"):
        encoded([str(clusters(path))])
    else:
        accuracies(path).to_numpy(dtype=float)


def _finetuning_rows(path: Path) -> None:
    from repscope.trace.finetuning.examples import from_file
    from repscope.trace.finetuning.options import FineTuning

    encoded(from_file(path, FineTuning(method="sft"), None).train.to_numpy().ravel())


def _tables(name: str, frame: pd.DataFrame, read: Callable[[Path], None], kinds: str = ".csv .tsv .json .jsonl .parquet"):
    for kind in kinds.split():
        file = name.replace(" ", "-") + kind
        yield Format(
            f"{name}, {kind}",
            (file,),
            lambda folder, file=file: write_frame(frame, folder / file),
            lambda folder, file=file: read(folder / file),
            torch=False,
        )


def _written(name: str, text: str, read: Callable[[Path], None]) -> Format:
    return Format(name, (name,), lambda folder: _put(folder / name, text), lambda folder: read(folder / name), torch=False)


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _arrow(folder: Path) -> None:
    import pyarrow as pa

    (folder / "set").mkdir()
    table = pa.table({"text": TEXTS["text"]})
    with pa.OSFile(str(folder / "set" / "data-00000.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    _put(folder / "set" / "state.json", json.dumps({"_data_files": [{"filename": "data-00000.arrow"}], "_split": "train"}))


_SAMPLES = [{"subject": s, "object": o} for s, o in PAIRS.to_numpy()]
_LRE = json.dumps({"name": "colour", "prompt_templates": ["{} is"], "samples": _SAMPLES}, ensure_ascii=False)
_TASK = json.dumps([{"input": s, "output": o} for s, o in PAIRS.to_numpy()])
_ROWS = pd.DataFrame({"prompt": NAMES * 3, "completion": ["cat"] * 72}).assign(prompt=lambda f: f["prompt"] + f.index.astype(str))
_POLES = pd.DataFrame({"positive": NAMES, "negative": NAMES[::-1]})
_RUNS = pd.DataFrame({"Run": [f"Run {i}" for i in range(24)], "mnli": np.linspace(0.5, 0.9, 24)})
_CLUSTERS = pd.DataFrame({"run": range(24), "cluster": ["small", "large"] * 12})


# ---------------------------------------------------------------------------------------------- vectors and networks


def _directions(folder: Path) -> None:
    from repscope.directions import Direction, DirectionSet

    rng = np.random.default_rng(0)
    made = [Direction.of(rng.normal(size=8), f"resid_post.{b}", f"d{b}", offset=0.5, norm=3.0, does={"x": 1.0}) for b in (1, 3)]
    held = DirectionSet(made, "abc", "probes", "llama", 4)
    held.save(folder / "d.safetensors")
    held.to_gguf(folder / "d.gguf")
    held.to_pt(folder / "d.pt")


def _read_directions(path: Path) -> None:
    from repscope.directions import DirectionSet

    found = DirectionSet.load(path)
    encoded([found.card(), *found.names])


def _hidden(folder: Path) -> None:
    held = {"start": [0.5, 0.5], "transition": [[0.9, 0.1], [0.2, 0.8]], "emission": [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]}
    _put(folder / "h.json", json.dumps([held, held]))
    np.savez(folder / "h.npz", **{name: np.array(values) for name, values in held.items()})


def _read_hidden(path: Path) -> None:
    from repscope.trace.bayes import read_models

    for model in read_models(path):
        model.documents(2, 5, np.random.default_rng(0))


def _autoencoders(folder: Path) -> None:
    import torch

    from repscope.read import sae

    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(*shape, generator=g) for shape in ((6, 12), (12,), (12, 6), (6,))]
    made = sae.SparseAutoencoder(*weights, sae.TopK(3))
    sae.save(made, folder / "saelens")
    sae.save(made, folder / "sparsify", "sparsify")
    jump = sae.SparseAutoencoder(*weights, sae.JumpReLU(weights[1].abs()))
    (folder / "gemma").mkdir()
    np.savez(folder / "gemma" / "params.npz", **{name: t.numpy() for name, t in jump.tensors().items()})
    (folder / "dictionary").mkdir()
    _put(folder / "dictionary" / "config.json", json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))
    state = {"encoder.weight": weights[0].T, "encoder.bias": weights[1], "decoder.weight": weights[2].T, "bias": weights[3]}
    torch.save({name: tensor.contiguous() for name, tensor in state.items()}, folder / "dictionary" / "ae.pt")


def _read_autoencoder(folder: Path) -> None:
    import torch

    from repscope.read import sae

    sae.open(folder, site="resid_post.1").encode(torch.ones(2, 6)).dense()


def _model(folder: Path) -> None:
    from families import build, build_tokenizer

    build("llama").save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")


def _read_model(folder: Path) -> None:
    import repscope as rs

    rs.load(folder / "model").logits(["A map of Paris"])


def _checkpoints(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    base = {"model.up.weight": torch.arange(12.0).reshape(4, 3), "model.norm.weight": torch.ones(3)}
    key = "base_model.model.model.up.lora_{}.weight"
    (folder / "set" / "base").mkdir(parents=True)
    (folder / "set" / "step-3").mkdir()
    save_file(base, folder / "set" / "base" / "model.safetensors")
    _put(folder / "set" / "base" / "config.json", json.dumps({"model_type": "llama"}))
    save_file(
        {key.format("A"): torch.ones(2, 3), key.format("B"): torch.ones(4, 2)}, folder / "set/step-3/adapter_model.safetensors"
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "../base", "bias": "none"}
    _put(folder / "set" / "step-3" / "adapter_config.json", json.dumps(config))
    table = pd.DataFrame({"run": "r", "step": [0, 3], "path": ["base", "step-3"], "group": "g"})
    table.to_csv(folder / "set" / "checkpoints.csv", index=False)


def _small(folder: Path) -> None:
    import torch

    from repscope.models.checkpoints import CheckpointSet
    from repscope.models.loading.stacked_weights import Shape

    shape = Shape(vocabulary=8, tokens=8, width=8, heads=2, blocks=1)
    states = {4: {"a": torch.ones(2, 3), "b": torch.ones(2, 4)}}
    CheckpointSet.written(folder / "set", shape, pd.DataFrame({"run": ["x", "y"]}), states)


def _read_checkpoints(folder: Path) -> None:
    from repscope.models.checkpoints import CheckpointSet

    found = CheckpointSet.open(folder / "set")
    for i in range(len(found)):
        found.state(i)
    encoded([found.fingerprint(), repr(found), *found.runs])


def _pair(folder: Path) -> None:
    from checkpointed import saved

    saved(folder, "llama", [0, 1])


def _read_pair(folder: Path) -> None:
    from repscope.trace.drift.pair import Pair
    from repscope.trace.drift.weights import weight_drift

    encoded([repr(weight_drift(Pair.open(folder / "llama-0", folder / "llama-1")))])


def _store(folder: Path) -> None:
    import torch

    from repscope.store import StoreWriter

    with StoreWriter(folder / "s", {"resid_post.1": 3}, "float32", shard_bytes=24 * 160) as writer:
        numbers = torch.arange(700)
        writer.add({"resid_post.1": torch.randn(700, 3)}, token=numbers % 7, document=numbers // 100, position=numbers % 100)


def _read_store(folder: Path) -> None:
    from repscope.store import ActivationStore

    for batch in ActivationStore(folder / "s").batches("resid_post.1", 256, buffer=900):
        batch.rows["resid_post.1"].sum()


def _gguf(folder: Path) -> None:
    import ggufs

    net = ggufs.net("LlamaForCausalLM", hidden_size=32, num_attention_heads=4, num_hidden_layers=1, intermediate_size=64)
    ggufs.write(folder / "m.gguf", net, "llama")


def _read_gguf(path: Path) -> None:
    from repscope.models.loading import gguf
    from repscope.models.loading.gguf_settings import checked

    checked(gguf.table(path).header, path)


# ------------------------------------------------------------------------------------------------------- runs and series


def command(*words: object) -> tuple[str, str]:
    """Run a command; its output and what it says beside. Raises what a user must not see: another exit code than 0, 1 and 2."""
    from repscope.cli import run
    from repscope.errors import UserError

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run([str(word) for word in words])
    if code not in (0, 1, 2):
        raise RuntimeError(err.getvalue()[-400:])
    if code == 2:
        raise UserError(err.getvalue())
    return out.getvalue(), err.getvalue()


def _run(folder: Path) -> None:
    from repscope.studies.catalogue import study
    from repscope.studies.run.runner import Run

    found = study("lens")
    Run(found, found.options(tiny=True, prompt="A map of Paris"), out=folder / "runs").answer()
    (run,) = (folder / "runs").iterdir()
    run.rename(folder / "runs" / "lens-tiny")
    for name in (".steps", ".lock"):
        target = folder / "runs" / "lens-tiny" / name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


def _read_run(folder: Path) -> None:
    for words in (["runs"], ["query", "select count(*), sum(value) from results"], ["claims"]):
        command(*words, "--out", folder / "runs")
    command("show", "lens", "--out", folder / "runs")


def all_formats() -> list[Format]:
    """All formats, those without torch first."""
    made = [
        *_tables("towns", FRAME, _entities),
        *_tables("texts", TEXTS, _texts),
        *_tables("contrast", _POLES, _contrast, ".csv .json"),
        *_tables("relation", PAIRS, _relation, ".csv .jsonl"),
        *_tables("task", PAIRS.rename(columns={"subject": "input", "object": "output"}), _task, ".csv .jsonl .parquet"),
        *_tables("corpus", TEXTS, _corpus, ".jsonl .parquet"),
        *_tables("requests", TEXTS, _requests, ".csv"),
        *_tables("scores", _RUNS, _published, ".csv .json"),
        *_tables("clusters", _CLUSTERS, _published, ".csv"),
        *_tables("finetuning", _ROWS, _finetuning_rows, ".jsonl .csv"),
        _written("lre.json", _LRE, _relation),
        _written("task-list.json", _TASK, _task),
        _written("corpus.txt", "\n\n".join(TEXTS["text"]), _corpus),
        _written("clusters.txt", "\n".join(f"Run {i}" for i in range(9)), _published),
        Format("corpus, .arrow", ("set/data-00000.arrow", "set/state.json"), _arrow, lambda f: _corpus(f / "set"), torch=False),
    ]
    vectors = [
        Format(f"directions, {kind}", (f"d{kind}",), _directions, lambda f, kind=kind: _read_directions(f / f"d{kind}"))
        for kind in (".safetensors", ".gguf", ".pt")
    ]
    hidden = [
        Format(f"hidden Markov models, {kind}", (f"h{kind}",), _hidden, lambda f, kind=kind: _read_hidden(f / f"h{kind}"))
        for kind in (".json", ".npz")
    ]
    files = {
        "saelens": ("cfg.json", "sae_weights.safetensors"),
        "sparsify": ("cfg.json", "sae.safetensors"),
        "dictionary": ("config.json", "ae.pt"),
        "gemma": ("params.npz",),
    }
    autoencoders = [
        Format(
            f"autoencoder, {kind}", tuple(f"{kind}/{n}" for n in names), _autoencoders, lambda f, k=kind: _read_autoencoder(f / k)
        )
        for kind, names in files.items()
    ]
    adapter = ("set/step-3/adapter_config.json", "set/step-3/adapter_model.safetensors")
    networks = [
        Format("model, config.json", ("model/config.json",), _model, _read_model),
        Format("model, .safetensors", ("model/model.safetensors",), _model, _read_model),
        Format("model, tokenizer", ("model/tokenizer.json", "model/tokenizer_config.json"), _model, _read_model),
        Format("model, .gguf", ("m.gguf",), _gguf, lambda f: _read_gguf(f / "m.gguf")),
        Format("checkpoints, table", ("set/checkpoints.csv",), _checkpoints, _read_checkpoints),
        Format("checkpoints, adapter", adapter, _checkpoints, _read_checkpoints),
        Format("checkpoints, small", ("set/network.json", "set/x/step-000004.safetensors"), _small, _read_checkpoints),
        Format("pair of checkpoints", ("llama-0/config.json", "llama-1/model.safetensors"), _pair, _read_pair),
        Format("store", ("s/manifest.json", "s/shards/00000.safetensors"), _store, _read_store),
        Format("run.json", ("runs/lens-tiny/run.json",), _run, _read_run),
        Format("results of a run", ("runs/lens-tiny/results/lens.parquet",), _run, _read_run),
    ]
    return [*made, *vectors, *hidden, *autoencoders, *networks]
