"""Stores behind an S3-compatible server on the loopback interface."""

import pytest
import torch

from repscope.errors import UserError
from repscope.store import ActivationStore, harvest
from repscope.store.files import files_at
from repscope.worlds.tiny import tiny
from s3_server import s3_server

DOCUMENTS = [f"Document {i} says {'something about a river ' * (i % 3)}{i}." for i in range(30)]
HOW = {"length": 32, "shard_bytes": 70_000, "batch_tokens": 256}


@pytest.fixture
def s3(monkeypatch):
    with s3_server(monkeypatch) as server:
        yield server


def test_files_are_as_local_ones(s3, tmp_path):
    for files in (files_at("s3://bucket/some/store"), files_at(tmp_path)):
        assert files.size("shards/a") is None
        assert files.names("shards") == []
        files.write("shards/a", b"0123456789")
        files.write("shards/b", b"abc")
        files.write("c", b"")
        assert files.names("shards") == ["shards/a", "shards/b"]
        assert (files.size("shards/a"), files.size("c"), files.read("shards/b")) == (10, 0, b"abc")
        held = [bytearray(3), bytearray(2)]
        files.read_into([("shards/a", 4, 3), ("shards/b", 1, 2)], [memoryview(h) for h in held])
        assert [bytes(h) for h in held] == [b"456", b"bc"]
        with pytest.raises(OSError):  # noqa: PT011 (each file system has its own words)
            files.read_into([("shards/b", 1, 9)], [memoryview(bytearray(9))])
        assert files.create("lease", b"1")
        assert not files.create("lease", b"2")
        assert files.read("lease") == b"1"
        files.remove("lease")
        files.remove("lease")
        assert files.size("lease") is None


def test_a_harvest_on_s3_is_that_on_disk(s3, tmp_path):
    lm = tiny()
    local = harvest(lm, DOCUMENTS, "resid_post.1", tmp_path / "s", **HOW)
    remote = harvest(lm, DOCUMENTS, "resid_post.1", "s3://bucket/some/store", **HOW)
    assert len(local.manifest.shards) > 1
    held = {key.removeprefix("some/store/"): data for (_, key), data in s3.objects.items() if not key.endswith("/")}
    assert held == {str(p.relative_to(tmp_path / "s")): p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()}
    both = zip(remote.batches(rows=512, labels=True), local.batches(rows=512, labels=True), strict=True)
    assert all(torch.equal(a.rows["resid_post.1"], b.rows["resid_post.1"]) and a.position == b.position for a, b in both)
    key = ("bucket", "some/store/shards/00001.safetensors")
    s3.objects[key] = s3.objects[key][:-1] + b"\x7f"
    with pytest.raises(UserError, match="corrupt"):
        list(ActivationStore("s3://bucket/some/store").batches(labels=True))
    harvest(lm, DOCUMENTS, "resid_post.1", "s3://bucket/some/store", **HOW).verify()


def test_a_refused_upload_loses_nothing(s3):
    lm = tiny()
    s3.refused = {9, 10, 11, 12}
    with pytest.raises((OSError, UserError), match=r"(?i)denied"):
        harvest(lm, DOCUMENTS, "resid_post.1", "s3://bucket/s", **HOW)
    s3.refused = set()
    harvest(lm, DOCUMENTS, "resid_post.1", "s3://bucket/s", **HOW).verify()
