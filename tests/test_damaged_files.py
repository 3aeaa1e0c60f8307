"""Every kind of file that repscope writes outside a run: a changed bit is refused, or what it held is made again; never silent."""

import json

import numpy as np
import pytest
import torch

import repscope as rs
from repscope import manifest
from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError
from repscope.models.checkpoints import TABLE, CheckpointSet
from repscope.models.engine import fingerprint
from repscope.models.loading.checkpoint_files import Weights, save
from repscope.models.loading.stacked_weights import stack
from repscope.read.sae.training import checkpoint
from repscope.report import page
from repscope.trace import streaming
from repscope.worlds.hans import classifier
from repscope.worlds.hans.training import Schedule, TrainingRun
from repscope.worlds.small_lm import Training, train, transformer, write_folder

SHAPE = transformer.Shape(vocab=11, length=9, width=16)


def flipped(path, places=8):
    """The file with one bit changed, at places spread over it; whole again at the end."""
    whole = path.read_bytes()
    for at in np.linspace(0, len(whole) - 1, places).astype(int):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 2]) + whole[at + 1 :])
        yield at
    path.write_bytes(whole)


def test_a_network_that_we_wrote_is_refused_when_a_file_of_it_changes(tmp_path):
    folder = write_folder(SHAPE, transformer.initial(SHAPE, [0]), 0, tmp_path / "network")
    rs.load(str(folder))
    for path in sorted(folder.iterdir()):
        for _ in flipped(path, 3):
            with pytest.raises(UserError, match="is damaged"):
                rs.load(str(folder))
    for _ in flipped(folder / "model.safetensors", 3):
        with pytest.raises(UserError, match="is damaged"):
            Weights(folder)
    rs.load(str(folder))


def test_a_set_of_checkpoints_is_refused_when_a_file_of_it_changes(tmp_path):
    import pandas as pd

    shape = classifier.Shape(9, 6, width=8, heads=2)
    state = stack(classifier.random_weights(shape, run) for run in range(2))
    held = CheckpointSet.written(tmp_path / "set", shape, pd.DataFrame({"run": ["a", "b"]}), {1: state, 2: state})
    for path in (held.folder / TABLE, held.folder / "network.json", held.table["path"][0], held.folder / manifest.NAME):
        for _ in flipped(path, 5):
            try:
                found = CheckpointSet.open(held.folder).fingerprint()
            except UserError:
                continue
            assert (path.name, str(found)) == (manifest.NAME, str(held.fingerprint()))
    alone = tmp_path / "alone.safetensors"
    save(alone, {"x": torch.arange(50.0)})
    for _ in flipped(alone):
        with pytest.raises(UserError, match=r"is damaged|cannot be read"):
            CheckpointSet.of([alone, held.table["path"][0]]).state(0)


def documents(step):
    first = torch.randint(0, 11, (1, 8, 1), generator=torch.Generator().manual_seed(step))
    return (first + torch.arange(9)) % 11


def test_a_damaged_training_state_begins_again_and_ends_the_same(tmp_path):
    def logits(state, tokens):
        return transformer.logits(SHAPE, state, tokens)

    start, saved = transformer.initial(SHAPE, [0]), tmp_path / "training.safetensors"
    whole = train(logits, start, documents, Training(6, keep=3)).state
    done = []

    def killed(step):
        if step == 5:
            raise KeyboardInterrupt
        return documents(step)

    with pytest.raises(KeyboardInterrupt):
        train(logits, start, killed, Training(6, keep=3), saved=saved)
    content = saved.read_bytes()
    for _ in flipped(saved, 6):
        found = train(logits, start, lambda step: done.append(step) or documents(step), Training(6, keep=3), saved=saved)
        assert all(torch.equal(value, whole[name]) for name, value in found.state.items())
    assert done.count(0) >= 5  # one of the flips may hit the seal's own mark
    saved.write_bytes(content)
    done.clear()
    train(logits, start, lambda step: done.append(step) or documents(step), Training(6, keep=3), saved=saved)
    assert done == [3, 4, 5]


def test_a_damaged_descent_is_refused(tmp_path):
    def run():
        return TrainingRun({"w": torch.ones(2, 30)}, lambda state, step: state["w"].square().sum(1), Schedule(4, 0.1))

    descent, path = run(), tmp_path / "descent.safetensors"
    list(descent.until([2]))
    descent.save(path)
    for at in flipped(path, 30):
        again = run()
        try:
            again.load(path)
        except UserError:
            continue
        assert manifest._MARK in path.read_bytes()[at - 20 : at + 20] or manifest.sealed(path) is None
        assert torch.equal(again.state["w"], descent.state["w"])


def test_an_autoencoders_checkpoint_is_refused(tmp_path):
    path = tmp_path / checkpoint.NAME
    tensors = {"w": torch.arange(60.0), "b": torch.zeros(3)}
    checkpoint.write(path, tensors, {"step": 3})
    first = path.read_bytes()
    checkpoint.write(path, tensors, {"step": 3})
    assert path.read_bytes() == first
    for _ in flipped(path, 20):
        try:
            found, state = checkpoint.read(path)
        except UserError:
            continue
        assert manifest.sealed(path) is None
        assert torch.equal(found["w"], tensors["w"])
        assert state["step"] == 3


def test_directions_have_the_same_bytes_each_time_and_are_refused_when_damaged(tmp_path):
    made = DirectionSet.of(Direction.of(np.arange(1.0, 40.0), "resid_post.1", "d", does={"x": 1.0}), model="m", note="é")
    made.save(tmp_path / "a.safetensors")
    made.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    for _ in flipped(tmp_path / "a.safetensors", 40):
        try:
            found = DirectionSet.load(tmp_path / "a.safetensors")
        except UserError:
            continue
        assert manifest.sealed(tmp_path / "a.safetensors") is None
        assert np.array_equal(found.directions[0].vector, made.directions[0].vector)


def test_a_damaged_cache_of_fingerprints_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path / "cache"))
    save(tmp_path / "x.safetensors", {"x": torch.arange(9.0)})
    want = fingerprint.digests_of([tmp_path / "x.safetensors"])
    (kept,) = (tmp_path / "cache" / "fingerprints").iterdir()
    whole = kept.read_bytes()
    for at in range(0, len(whole), 7):
        kept.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert fingerprint.digests_of([tmp_path / "x.safetensors"]) == want
        assert kept.read_bytes() == whole


def test_a_damaged_cache_of_scripts_is_made_again(tmp_path, monkeypatch):
    import vl_convert

    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path))
    made = []
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda *a, **k: made.append(1) or "let script = 1;\nlet more;")
    bundle = page._bundle.__wrapped__
    assert bundle() == bundle() == "let script = 1;\nlet more;"
    assert len(made) == 1
    (kept,) = (tmp_path / "vega").iterdir()
    for n, _ in enumerate(flipped(kept, 9)):
        assert bundle() == "let script = 1;\nlet more;"
        assert len(made) == n + 2


def test_damaged_lines_of_an_interrupted_walk_are_measured_again(tmp_path):
    kept = tmp_path / "cells.jsonl"
    for point in range(3):
        streaming._append(kept, (0, 1, point), {"loss": np.array([0.25 + point])})
    whole = streaming._read(kept)
    assert len(whole) == 3
    for _ in flipped(kept, 150):
        found = streaming._read(kept)
        assert len(found) >= 1
        assert all(np.array_equal(values["loss"], whole[at]["loss"]) for at, values in found.items())
    line = json.dumps({"at": [0, 1, 7], "losses": {"loss": [1.0]}})
    kept.write_text(kept.read_text() + f"\n{line}")  # as an earlier version wrote it
    assert len(streaming._read(kept)) == 4
