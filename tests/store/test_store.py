"""Writing and reading of stores: every row once, in an order that the seed fixes, and nothing that differs from its checksum."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from repscope.errors import UserError
from repscope.store import ActivationStore, Position, StoreWriter

ROWS, SITE = 5000, "resid_post.1"


def _numbered(rows=ROWS, width=3, first=0):
    """Rows whose first feature is their number."""
    held = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    held[:, 0] = torch.arange(first, first + rows)
    return held


def _write(place, dtype="float32", rows=ROWS, step=700, shard_bytes=24 * 640, **how):
    held = _numbered(rows)
    with StoreWriter(place, {SITE: 3}, dtype, shard_bytes=shard_bytes, **how) as writer:
        for at in range(0, rows, step):
            numbers = torch.arange(at, min(at + step, rows))
            writer.add({SITE: held[at : at + step]}, token=numbers % 7, document=numbers // 100, position=numbers % 100)
    return held


@pytest.fixture
def store(tmp_path):
    _write(tmp_path / "s")
    return ActivationStore(tmp_path / "s")


def _numbers(batches):
    return [b.rows[SITE][:, 0].long().tolist() for b in batches]


def test_every_row_comes_once_per_epoch_with_its_labels(store):
    held = _numbered()
    seen = []
    for batch in store.batches(SITE, 256, buffer=900, labels=True):
        rows, labels = batch.rows[SITE], batch.labels
        numbers = rows[:, 0].long()
        assert torch.equal(rows, held[numbers])
        assert torch.equal(labels.token.long(), numbers % 7)
        assert torch.equal(labels.document.long() * 100 + labels.position.long(), numbers)
        seen += numbers.tolist()
    assert sorted(seen) == list(range(ROWS))
    assert seen != sorted(seen)
    assert len(store.manifest.shards) > 5


def test_the_order_is_that_of_the_seed(store):
    first, again, other = (_numbers(store.batches(SITE, 256, seed=s, buffer=900)) for s in (0, 0, 1))
    assert first == again != other


def test_a_position_continues_exactly(store):
    whole = list(store.batches(SITE, 300, epochs=3, buffer=900, seed=4))
    assert sum(map(len, whole)) == 3 * ROWS
    assert sorted(n for numbers in _numbers(whole) for n in numbers) == sorted(list(range(ROWS)) * 3)
    for stop in (0, 7, 17, 30, len(whole) - 2, len(whole) - 1):
        rest = _numbers(store.batches(SITE, 300, epochs=3, buffer=900, seed=4, start=whole[stop].position))
        assert rest == _numbers(whole[stop + 1 :])
    endless = store.batches(SITE, 300, epochs=None, buffer=900, seed=4)
    assert [next(endless).rows[SITE][0, 0] for _ in whole[:-1]] == [b.rows[SITE][0, 0] for b in whole[:-1]]


@pytest.mark.parametrize("start", [Position(0, 1, 0), Position(-1, 0, 0), Position(0, 10**6, 0), Position(0, 0, 10**6)])
def test_a_position_of_another_reading_is_refused(store, start):
    with pytest.raises(UserError, match="no position of this store"):
        list(store.batches(SITE, 256, buffer=900, start=start))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rows_keep_their_type_and_safetensors_reads_the_shards(tmp_path, dtype):
    held = _write(tmp_path / "s", dtype, rows=256)
    store = ActivationStore(tmp_path / "s")
    (batch,) = store.batches(SITE, 256)
    assert batch.rows[SITE].dtype == store.dtype(SITE) == getattr(torch, dtype)
    order = batch.rows[SITE][:, 0].argsort()
    assert torch.equal(batch.rows[SITE][order], held.to(getattr(torch, dtype)))
    with safe_open(tmp_path / "s/shards/00000.safetensors", "pt") as file:
        assert set(file.keys()) == {SITE, "token", "document", "position"}
        rows = file.get_tensor(SITE)
        assert (
            torch.equal(rows[rows[:, 0].argsort()], held.to(getattr(torch, dtype))[: len(rows)].to(rows.dtype)) or len(rows) < 256
        )
        assert file.get_tensor("token").dtype == torch.int32


def test_moments_are_those_of_the_stored_rows(tmp_path):
    big = torch.randn(3000, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e-3, 1.0, 2.0]) + torch.tensor(
        [5.0, -300.0, 4e4]
    )
    with StoreWriter(tmp_path / "s", {SITE: 3}, "float32", shard_bytes=24 * 500) as writer:
        writer.add({SITE: big})
    store = ActivationStore(tmp_path / "s")
    exact = big.double()
    assert torch.allclose(store.mean(SITE), exact.mean(0), rtol=1e-9)
    assert torch.allclose(store.variance(SITE), exact.var(0, correction=0), rtol=1e-4)


def test_a_batch_has_rows_of_many_sequences(tmp_path):
    """As uniform draws: 4,096 of 1,000 × 64 rows have 983 distinct sequences on average; stretches of a file have 64."""
    rows, each = 64_000, 64
    with StoreWriter(tmp_path / "s", {SITE: 4}, "float16", shard_bytes=20 * 8_000) as writer:
        for at in range(0, rows, 3200):
            writer.add({SITE: torch.zeros(3200, 4)}, document=torch.arange(at, at + 3200) // each)
    store = ActivationStore(tmp_path / "s")
    counts = [len(b.labels.document.unique()) for b in store.batches(SITE, 4096, buffer=16_384, labels=True) if len(b) == 4096]
    expected = 1000 * (1 - (1 - 1 / 1000) ** 4096)
    assert np.mean(counts) > 0.98 * expected


def _damage(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_one_changed_bit_is_refused_wherever_it_is(store, tmp_path):
    path = tmp_path / "s/shards/00002.safetensors"
    whole = path.read_bytes()
    for at in (0, 20, 700, len(whole) // 2, len(whole) - 1):
        _damage(path, at)
        fresh = ActivationStore(tmp_path / "s")
        with pytest.raises(UserError, match=r"00002\.safetensors is (corrupt|not the shard)"):
            fresh.verify()
        with pytest.raises(UserError, match="run the same harvest again"):
            list(fresh.batches(SITE, labels=True))
        path.write_bytes(whole)
    ActivationStore(tmp_path / "s").verify()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="its size or header differs"):
        list(ActivationStore(tmp_path / "s").batches(SITE))
    path.unlink()
    with pytest.raises(UserError, match="lacks shards/00002"):
        list(ActivationStore(tmp_path / "s").batches(SITE))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m | {"rows": m["rows"] + 1}, "counts disagree"),
        (lambda m: m | {"extra": 1}, "extra"),
        (lambda m: m | {"format": "another"}, "format"),
        (lambda m: m | {"block": 0}, "block"),
        (lambda m: m | {"sites": [m["sites"][0] | {"name": "token"}]}, "one name"),
        (lambda m: m | {"mean": {}}, "counts disagree"),
        (lambda m: m | {"shards": [m["shards"][0] | {"crc": {}}, *m["shards"][1:]]}, "counts disagree"),
    ],
)
def test_a_changed_manifest_is_refused(store, tmp_path, change, said):
    path = tmp_path / "s/manifest.json"
    held = json.loads(path.read_text())
    del held["digest"]  # a stranger's
    path.write_text(json.dumps(change(held)))
    with pytest.raises(UserError, match=said):
        ActivationStore(tmp_path / "s")


def test_every_flipped_bit_of_a_manifest_is_seen(store, tmp_path):
    path = tmp_path / "s/manifest.json"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for at in rng.integers(len(whole) - 1, size=60):
        data = bytearray(whole)
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with pytest.raises(UserError, match="is damaged"):
            ActivationStore(tmp_path / "s")


def test_what_is_no_store_is_refused(tmp_path, store):
    with pytest.raises(UserError, match="no activation store"):
        ActivationStore(tmp_path)
    with pytest.raises(UserError, match=r"no site in this store 'resid_post\.2'; did you mean 'resid_post.1'"):
        store.batches("resid_post.2")
    with pytest.raises(UserError, match="rows is 0"):
        store.batches(SITE, 0)
    with pytest.raises(UserError, match="is not empty"):
        StoreWriter(tmp_path / "s", {SITE: 3})


def test_the_writer_refuses_what_it_cannot_keep(tmp_path):
    with pytest.raises(UserError, match="beyond float16"), StoreWriter(tmp_path / "a", {SITE: 1}, "float16") as writer:
        writer.add({SITE: torch.tensor([[1e6]])})
    with pytest.raises(UserError, match="not finite"), StoreWriter(tmp_path / "b", {SITE: 1}) as writer:
        writer.add({SITE: torch.tensor([[float("nan")]])})
    with pytest.raises(UserError, match="No row"), StoreWriter(tmp_path / "c", {SITE: 1}) as writer:
        pass
    with pytest.raises(UserError, match=r"must be \(2, 1\)"), StoreWriter(tmp_path / "d", {SITE: 1}) as writer:
        writer.add({SITE: torch.zeros(2, 2)})
    for name in "abcd":
        assert not (tmp_path / name / "manifest.json").exists()


def test_equal_rows_give_equal_bytes(tmp_path):
    _write(tmp_path / "a", step=700)
    _write(tmp_path / "b", step=64)
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_memory_urls(tmp_path):
    import fsspec

    _write("memory://stores/s")
    _write(tmp_path / "s")
    remote, local = ActivationStore("memory://stores/s"), ActivationStore(tmp_path / "s")
    assert remote.manifest == local.manifest
    assert _numbers(remote.batches(SITE, 256, buffer=900)) == _numbers(local.batches(SITE, 256, buffer=900))
    remote.verify()
    fs = fsspec.filesystem("memory")
    with fs.open("/stores/s/shards/00001.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(UserError, match="corrupt"):
        list(remote.batches(SITE, labels=True))
    with pytest.raises(UserError, match="cannot be opened"):
        ActivationStore("nothing://a/b")


def test_a_batch_and_a_position_are_immutable(store):
    batch = next(store.batches(SITE, 10))
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.position.block = 3
    assert len(batch) == 10


def test_blocks_are_compared_once(store, monkeypatch):
    from repscope.store import reading

    compared = []
    real = reading.zlib.crc32
    monkeypatch.setattr(reading.zlib, "crc32", lambda data: compared.append(len(data)) or real(data))
    first = _numbers(store.batches(SITE, 256, buffer=900))
    assert sum(compared) == ROWS * 3 * 4
    assert _numbers(store.batches(SITE, 256, buffer=900)) == first
    assert sum(compared) == ROWS * 3 * 4
    list(store.batches(SITE, 256, labels=True))
    assert sum(compared) == ROWS * (3 * 4 + 3 * 4)
