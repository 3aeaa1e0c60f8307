"""Harvests: the rows of `capture`, the same bytes from any number of workers however often they die, and refusals."""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import repscope as rs
from harvest_worker import help_harvest
from repscope.errors import UserError
from repscope.store import ActivationStore, cut, harvest
from repscope.store import workers as workers_of
from repscope.store.files import files_at
from repscope.store.leases import acquire
from repscope.store.plan import read_plan
from repscope.worlds.tiny import byte_tokenizer, tiny

SITES = ["resid_post.0", "mlp_out.2"]
DOCUMENTS = [f"Document {i} says {'something about a river and a bridge ' * (i % 4)}{i * i}." for i in range(90)]
HOW = {"length": 32, "shard_bytes": 90_000, "batch_tokens": 256}


@pytest.fixture(scope="module")
def lm():
    return tiny()


@pytest.fixture(scope="module")
def whole(lm, tmp_path_factory):
    """An uninterrupted harvest by one worker."""
    place = tmp_path_factory.mktemp("whole") / "s"
    harvest(lm, DOCUMENTS, SITES, place, **HOW)
    return place


def contents(place):
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def test_rows_are_those_of_capture_and_none_is_lost(lm, whole):
    store = ActivationStore(whole)
    assert store.sites == ("resid_post.0", "mlp_out.2")
    assert len(store.manifest.shards) > 4
    sequences = cut(lm, DOCUMENTS, 32)
    acts = lm.capture(list(sequences.ragged), SITES, "all")
    start = dict(zip(zip(sequences.document.tolist(), sequences.start.tolist()), acts.offsets[:-1].tolist()))
    seen = set()
    for batch in store.batches(rows=512, labels=True):
        where = list(zip(batch.labels.document.tolist(), batch.labels.position.tolist()))
        seen |= set(where)
        index = [start[document, position - position % 32] + position % 32 for document, position in where]
        for site in SITES:
            assert torch.allclose(batch.rows[site], torch.from_numpy(acts[site][index]), atol=1e-5)
        tokens = np.concatenate(list(sequences.ragged))[index]
        assert batch.labels.token.tolist() == tokens.tolist()
    assert len(seen) == len(store) == sum(len(text.encode()) for text in DOCUMENTS)


def test_moments_and_origin(lm, whole):
    store = ActivationStore(whole)
    rows = torch.cat([b.rows[SITES[0]] for b in store.batches(SITES[0])]).double()
    assert torch.allclose(store.mean(SITES[0]), rows.mean(0), atol=1e-9)
    assert torch.allclose(store.variance(SITES[0]), rows.var(0, correction=0), rtol=1e-4)
    origin = store.manifest.origin
    assert (origin.model.name, origin.model.fingerprint) == ("tiny", lm.fingerprint)
    assert (origin.corpus.documents, origin.length) == (90, 32)


def test_skip_rows_and_dtype(lm, tmp_path):
    store = harvest(lm, DOCUMENTS, SITES[0], tmp_path / "s", length=32, skip=3, rows=500, dtype="bfloat16")
    assert 460 < len(store) <= 500
    (batch,) = store.batches(labels=True)
    assert batch.rows[SITES[0]].dtype == torch.bfloat16
    assert int((batch.labels.position % 32).min()) == 3


def test_special_tokens_are_context_and_no_rows(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="! $A", special_tokens=[("!", 0)])
    lm = rs.load(tiny().model, tokenizer=tokenizer)
    held = cut(lm, ["abcdefghij"], 4)
    assert [row.tolist()[0] for row in held.ragged] == [0] * 4
    assert held.start.tolist() == [0, 3, 6, 9]
    store = harvest(lm, ["abcdefghij"], SITES[0], tmp_path / "s", length=4)
    (batch,) = store.batches(labels=True)
    assert sorted(batch.labels.position.tolist()) == list(range(10))
    order = batch.labels.position.argsort()
    expected = torch.from_numpy(lm.capture(list(held.ragged), SITES[0], "all")[SITES[0]])
    keep = [i for i, position in enumerate(np.concatenate([np.arange(n) for n in held.lengths])) if position]
    assert torch.allclose(batch.rows[SITES[0]][order], expected[keep], atol=1e-5)


def test_two_workers_give_the_same_bytes(lm, whole, tmp_path, monkeypatch, processes):
    place = tmp_path / "s"
    _begin(lm, place, monkeypatch)
    both = [processes.start(help_harvest, place) for _ in range(2)]
    for process in both:
        process.communicate()
        assert process.returncode == 0
    assert contents(place) == contents(whole)


def _begin(lm, place, monkeypatch):
    """Write the plan alone."""

    class Stop(Exception):
        pass

    def stop(*args, **how):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("repscope.store.harvesting.work", stop)
        with pytest.raises(Stop):
            harvest(lm, DOCUMENTS, SITES, place, **HOW)


def test_killed_again_and_again_nothing_is_lost_or_doubled(lm, whole, tmp_path, monkeypatch, processes):
    """REPSCOPE_KILLS and REPSCOPE_KILL_SEED ask for more or other kills."""
    place, rng, kills = tmp_path / "s", random.Random(int(os.environ.get("REPSCOPE_KILL_SEED", "0"))), 0
    wanted = int(os.environ.get("REPSCOPE_KILLS", "8"))
    _begin(lm, place, monkeypatch)
    while not (place / "manifest.json").exists() or kills < wanted:
        if (place / "manifest.json").exists():  # begin again until it was killed often enough
            harvest(lm, DOCUMENTS, SITES, place, **HOW)  # removes the leases of one that was killed just before its end
            assert contents(place) == contents(whole)
            shutil.rmtree(place)
            _begin(lm, place, monkeypatch)
        process = processes.start(help_harvest, place)
        assert process.output.readline() == "begins\n"
        process.wait(rng.uniform(0.0, 0.3))
        if process.running:
            process.kill()
            kills += 1
    harvest(lm, DOCUMENTS, SITES, place, **HOW)
    assert contents(place) == contents(whole)


def test_the_same_harvest_repairs_damaged_shards(lm, whole, tmp_path):
    place = tmp_path / "s"
    shutil.copytree(whole, place)
    data = bytearray((place / "shards/00001.safetensors").read_bytes())
    data[-5] ^= 4
    (place / "shards/00001.safetensors").write_bytes(data)
    (place / "shards/00002.safetensors").unlink()
    (place / "shards/00003.json").write_text("{}")
    with pytest.raises(UserError, match="run the same harvest again"):
        list(ActivationStore(place).batches(labels=True))
    before = (place / "shards/00000.safetensors").stat().st_mtime_ns
    harvest(lm, DOCUMENTS, SITES, place, **HOW)
    assert contents(place) == contents(whole)
    assert (place / "shards/00000.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"length": 16}, "sequences of 32 tokens"),
        ({"seed": 1}, "another seed"),
        ({"rows": 100}, "another number of rows"),
        ({"dtype": "float16"}, "another type of rows"),
        ({"batch_tokens": 128}, "another number of tokens per pass"),
        ({"corpus": DOCUMENTS[:-1]}, "another corpus"),
        ({"at": SITES[:1]}, "other sites"),
    ],
)
def test_another_harvest_into_the_folder_is_refused(lm, whole, change, said):
    held = contents(whole)
    asked = {"corpus": DOCUMENTS, "at": SITES, **HOW, **change}
    with pytest.raises(UserError, match=said):
        harvest(lm, asked.pop("corpus"), asked.pop("at"), whole, **asked)
    assert contents(whole) == held


def test_a_changed_model_is_refused(whole):
    other = tiny(1)
    with pytest.raises(UserError, match="'tiny' as it was before it changed"):
        harvest(other, DOCUMENTS, SITES, whole, **HOW)
    files = files_at(whole)
    with pytest.raises(UserError, match="was begun with"):
        workers_of.work(files, other, read_plan(files))


def test_what_cannot_be_harvested_is_refused(lm, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not empty \(it has notes\.txt\)"):
        harvest(lm, DOCUMENTS, SITES, tmp_path / "taken")
    with pytest.raises(UserError, match="vectors"):
        harvest(lm, DOCUMENTS, "pattern.0", tmp_path / "a")
    with pytest.raises(UserError, match="edited network"), lm.edit(rs.Edit.add("resid_post.0", np.ones(32))):
        harvest(lm, DOCUMENTS, SITES, tmp_path / "b")
    assert lm.installed == []
    with pytest.raises(UserError, match="takes 1024 tokens"):
        harvest(lm, DOCUMENTS, SITES, tmp_path / "c", length=2048)
    with pytest.raises(UserError, match="no text"):
        harvest(lm, ["", ""], SITES, tmp_path / "d")
    with pytest.raises(UserError, match="made in memory"):
        harvest(lm, DOCUMENTS, SITES, tmp_path / "e", workers=2)
    with pytest.raises(UserError, match="no harvest"):
        read_plan(files_at(tmp_path))


def test_a_full_disk_loses_nothing(lm, whole, tmp_path, monkeypatch):
    place, real, writes = tmp_path / "s", os.fsync, []

    def full(handle):
        writes.append(handle)
        if len(writes) == 14:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        harvest(lm, DOCUMENTS, SITES, place, **HOW)
    assert not [name for name in contents(place) if name.endswith(".part")]
    harvest(lm, DOCUMENTS, SITES, place, **HOW)
    assert contents(place) == contents(whole)


def test_leases(tmp_path):
    files = files_at(tmp_path)
    first = acquire(files, "x", 60)
    assert acquire(files, "x", 60) is None
    first.release()
    second = acquire(files, "x", 0.05)
    time.sleep(0.1)
    third = acquire(files, "x", 60)
    assert third is not None, "a lease that has ended is taken over"
    second.release()
    assert acquire(files, "x", 60) is None, "the former owner's release leaves it"
    path = tmp_path / "leases/x.json"
    told = json.loads(path.read_text())
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    path.write_text(json.dumps(told | {"pid": process.pid, "started": 1.0}))
    assert acquire(files, "x", 60) is not None, "its owner no longer runs"
    path.write_text(json.dumps(told | {"pid": process.pid, "host": "elsewhere"}))
    assert acquire(files, "x", 60) is None, "nobody can tell about another machine"
    path.write_text("{")
    assert acquire(files, "x", 60) is not None


def test_a_memory_url(lm, whole):
    store = harvest(lm, DOCUMENTS, SITES, "memory://harvests/s", **HOW)
    assert store.manifest == ActivationStore(whole).manifest
    store.verify()


def test_the_command_and_its_workers(lm, tmp_path, capsys):
    """Processes that load the model by its folder; one of them helps by `repscope worker`."""
    from repscope.cli import run

    folder, place = tmp_path / "model", tmp_path / "s"
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    words = ["harvest", str(place), "--at", *SITES, "--model", str(folder), "--corpus", str(tmp_path / "texts.jsonl")]
    assert run([*words, "--length", "32", "--workers", "2", "--batch-tokens", "256", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == sum(len(text.encode()) for text in DOCUMENTS)
    held = contents(place)
    (place / "manifest.json").unlink()
    (place / "shards/00000.json").unlink()
    assert run(["worker", str(place)]) == 0
    assert "1 shards written here" in capsys.readouterr().out
    assert contents(place) == held
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert run(["worker", str(place)]) == 2
    assert "was begun with" in capsys.readouterr().err


def test_a_model_whose_padding_token_is_0_is_harvested(whole, tmp_path):
    """As Gemma's is: the two tokens that tell the widths are not a user's prompt."""
    lm = tiny()
    lm.tokenizer.pad_token = lm.tokenizer.convert_ids_to_tokens(0)
    assert lm.tokenizer.pad_token_id == 0
    harvest(lm, DOCUMENTS, SITES, tmp_path / "s", **HOW)
    assert ActivationStore(tmp_path / "s").sites == ActivationStore(whole).sites
