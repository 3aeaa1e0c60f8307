import json
import os

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from repscope.errors import UserError
from repscope.models.engine import fingerprint
from repscope.models.engine.fingerprint import digests_of, of_digests, of_module, sha256_of


def of_files(paths):
    return of_digests(digests_of(paths))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=(5, 7)).astype(np.float32),
        "b": rng.normal(size=3).astype(np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(2.5, np.float32),
    }


def test_how_tensors_are_spread_over_files_does_not_matter(tmp_path, weights):
    save_file(weights, tmp_path / "all.safetensors", metadata={"format": "pt"})
    save_file({"b": weights["b"], "scalar": weights["scalar"]}, tmp_path / "1.safetensors")
    save_file({"a": weights["a"], "empty": weights["empty"]}, tmp_path / "2.safetensors")
    whole = of_files([tmp_path / "all.safetensors"])
    assert whole == of_files([tmp_path / "2.safetensors", tmp_path / "1.safetensors"])
    assert len(whole.digest) == 64
    assert str(whole) == whole.digest[:16]


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {**w, "a": np.where(np.arange(35).reshape(5, 7) == 34, np.nextafter(w["a"], 9), w["a"])},
        lambda w: {**w, "a": w["a"].reshape(7, 5)},
        lambda w: {**w, "b": w["b"].view(np.int16)},
        lambda w: {"a": w["scalar"], "b": w["b"], "empty": w["empty"], "scalar": w["a"]},
        lambda w: {k: v for k, v in w.items() if k != "empty"},
    ],
    ids=["one bit", "shape", "dtype", "names swapped", "one less"],
)
def test_every_change_shows(tmp_path, weights, change):
    save_file(weights, tmp_path / "x.safetensors")
    save_file(change(weights), tmp_path / "y.safetensors")
    assert of_files([tmp_path / "x.safetensors"]) != of_files([tmp_path / "y.safetensors"])


def test_tensors_longer_than_one_read(tmp_path, weights, monkeypatch):
    save_file(weights, tmp_path / "x.safetensors")
    os.link(tmp_path / "x.safetensors", tmp_path / "y.safetensors")  # another path, so not from the cache
    at_once = of_files([tmp_path / "x.safetensors"])
    monkeypatch.setattr(fingerprint, "_CHUNK", 8)
    assert of_files([tmp_path / "y.safetensors"]) == at_once


def test_a_file_is_read_again_only_when_it_changed(tmp_path, weights, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_file(weights, path)
    first = of_files([path])
    read = []
    real = fingerprint._tensors
    monkeypatch.setattr(fingerprint, "_tensors", lambda *a: read.append(a) or real(*a))
    assert of_files([path]) == first
    assert not read
    stat = path.stat()
    save_file({**weights, "scalar": np.array(9.0, np.float32)}, path)  # the same size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert path.stat().st_size == stat.st_size
    assert of_files([path]) != first
    assert len(read) == 1


def test_a_damaged_or_unwritable_cache_only_costs_time(tmp_path, weights, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_file(weights, path)
    first = of_files([path])
    (kept,) = (tmp_path / "cache" / "fingerprints").iterdir()
    for damage in ("", "{", "[]", '{"made_for": 1}', json.dumps({"digests": {"a": "lie"}})):
        kept.write_text(damage)
        assert of_files([path]) == first
    (tmp_path / "a file").touch()
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path / "a file"))  # no folder can be made below it
    assert of_files([path]) == first


def test_files_that_are_not_whole(tmp_path, weights):
    path = tmp_path / "x.safetensors"
    save_file(weights, path)
    whole = path.read_bytes()
    for kept in (len(whole) - 1, 40):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match="is cut short"):
            of_files([path])
    for junk in (b"", b"\x80\x04K", b"<html>404</html>" * 9):
        path.write_bytes(junk)
        with pytest.raises(UserError, match="is not a safetensors file"):
            of_files([path])
    for offsets in ("[4, 0]", "[0, 4, 8]"):
        header = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": %s}}' % offsets.encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
        with pytest.raises(UserError, match="damaged safetensors header"):
            of_files([path])
    with pytest.raises(UserError, match="There is no file"):
        of_files([tmp_path / "gone.safetensors"])


def test_one_tensor_in_two_files(tmp_path, weights):
    save_file(weights, tmp_path / "x.safetensors")
    save_file(weights, tmp_path / "y.safetensors")
    with pytest.raises(UserError, match="hold a tensor"):
        of_files([tmp_path / "x.safetensors", tmp_path / "y.safetensors"])


def test_the_hash_of_a_whole_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "x") == known == sha256_of(tmp_path / "x")


def test_a_module_is_sampled_and_says_so():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 30), nn.BatchNorm1d(30), nn.Linear(30, 1, bias=False).to(torch.bfloat16))
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    first = of_module(module)
    assert first.sampled
    assert str(first) == f"sampled:{first.digest[:16]}"
    assert first == of_module(module)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with torch.no_grad():
        module[0].weight[-1, -1] += 1  # the last entry is always one of those sampled
    changed = of_module(module)
    assert changed != first
    module[1].running_mean[0] = 3.0  # buffers count too
    assert of_module(module) != changed


def test_of_a_small_tensor_every_entry_is_sampled():
    layer = nn.Linear(8, 8, bias=False)
    seen = {str(of_module(layer))}
    for entry in range(64):
        with torch.no_grad():
            layer.weight.view(-1)[entry] += 1
        seen.add(str(of_module(layer)))
    assert len(seen) == 65


def test_a_sampled_fingerprint_does_not_depend_on_the_layout_in_memory():
    weight = torch.randn(20, 30)
    a, b = nn.Linear(30, 20, bias=False), nn.Linear(30, 20, bias=False)
    a.weight = nn.Parameter(weight)
    b.weight = nn.Parameter(weight.t().contiguous().t())
    assert not b.weight.is_contiguous()
    assert of_module(a) == of_module(b)
