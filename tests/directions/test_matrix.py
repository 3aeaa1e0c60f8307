import io
import os
import pickle
import zipfile
from collections import OrderedDict
from contextlib import suppress

import numpy as np
import pytest
import torch

from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError


def made():
    rng = np.random.default_rng(0)
    return DirectionSet.of(*(Direction.of(rng.normal(size=6), f"resid_post.{b}", f"d{b}") for b in (2, 0)), blocks=4)


def test_the_matrix_is_what_plain_torch_reads_and_comes_back_bit_for_bit(tmp_path):
    held = made()
    path = held.to_pt(tmp_path / "d.pt")
    rows = torch.load(path, weights_only=True)
    assert (rows.shape, rows.dtype, rows.is_contiguous()) == ((4, 6), torch.float32, True)
    assert rows[2].numpy().tobytes() == held["d2"].weights.tobytes()
    assert not rows[[1, 3]].any()
    back = DirectionSet.load(path)
    assert ([d.site for d in back], back.blocks) == (["resid_post.0", "resid_post.2"], 4)
    assert [d.weights.tobytes() for d in back] == [held["d0"].weights.tobytes(), held["d2"].weights.tobytes()]
    assert back.to_pt(tmp_path / "again.pt").read_bytes() == path.read_bytes()
    assert torch.load(held.to_pt(tmp_path / "long.pt", blocks=9), weights_only=True).shape == (9, 6)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_any_layout_torch_writes_is_read_as_torch_reads_it(tmp_path, dtype, protocol):
    whole = torch.randn(7, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    for tensor in (
        whole,
        whole.T,
        whole[2:, 3:],
        whole[::2, ::3],
        whole[1:2].expand(5, 11),
        whole.T[1:].T,
        whole[:1],
        whole.clone().requires_grad_(),
        torch.randn(300, 300).to(dtype),
    ):
        torch.save(tensor, tmp_path / "d.pt", pickle_protocol=protocol)
        rows = DirectionSet.load(tmp_path / "d.pt")
        expected = tensor.detach().float().numpy()
        assert (rows.blocks, len(rows)) == (len(expected), len(expected))
        for d, row in zip(rows, expected):
            assert d.weights.tobytes() == np.ascontiguousarray(row).tobytes()


def test_one_vector_needs_its_block(tmp_path):
    vector = torch.arange(1.0, 5)
    torch.save(vector, tmp_path / "v.pt")
    held = DirectionSet.load(tmp_path / "v.pt", block=7)
    assert (held[0].site, held[0].weights.tolist()) == ("resid_post.7", vector.tolist())
    with pytest.raises(UserError, match="give it as block="):
        DirectionSet.load(tmp_path / "v.pt")
    with pytest.raises(UserError, match="leave block=1 out"):
        DirectionSet.load(made().to_pt(tmp_path / "m.pt"), block=1)


def rezipped(source, target, compression=zipfile.ZIP_STORED, **changed):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            value = changed.get(name.split("/", 1)[1].replace(".", "_").replace("/", "_"), old.read(name))
            new.writestr(name, value)
    return target


def test_numbers_of_a_big_endian_machine(tmp_path):
    path = made().to_pt(tmp_path / "d.pt")
    with zipfile.ZipFile(path) as archive:
        numbers = np.frombuffer(archive.read("archive/data/0"), "<f4")
    big = rezipped(path, tmp_path / "big.pt", byteorder=b"big", data_0=numbers.astype(">f4").tobytes())
    assert [d.weights.tobytes() for d in DirectionSet.load(big)] == [d.weights.tobytes() for d in DirectionSet.load(path)]


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_malicious_pickle_does_not_run(tmp_path):
    mark = tmp_path / "it ran"
    for i, held in enumerate((Malicious(mark), [torch.ones(2, 2), Malicious(mark)], {"v": Malicious(mark)})):
        torch.save(held, tmp_path / f"{i}.pt")
        with pytest.raises(UserError, match="its pickle is not run"):
            DirectionSet.load(tmp_path / f"{i}.pt")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Malicious(mark)))  # noqa: S301 (the control: unpickled, it does run)
    assert mark.exists()


def test_anything_but_one_dense_tensor_is_refused(tmp_path):
    for held in (
        [torch.ones(2, 2)],
        {"a": torch.ones(2)},
        (torch.ones(2), torch.ones(2)),
        "text",
        3,
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, 2, dtype=torch.int64),
        torch.nn.Parameter(torch.ones(2, 2)),
        torch.ones(2, 2).bool(),
        OrderedDict(),
    ):
        torch.save(held, tmp_path / "d.pt")
        with pytest.raises(UserError, match="its pickle is not run"):
            DirectionSet.load(tmp_path / "d.pt")
    for held, words in (
        (torch.ones(2, 2, 2), "shape"),
        (torch.ones(()), "shape"),
        (torch.ones(0, 3), "shape"),
        (torch.zeros(3, 3), "no direction"),
        (torch.tensor([[1.0, float("nan")]]), "finite norm above zero"),
        (torch.ones(1).expand(1 << 20, 1 << 20), "shape"),
    ):
        torch.save(held, tmp_path / "d.pt")
        with pytest.raises(UserError, match=words):
            DirectionSet.load(tmp_path / "d.pt")
    torch.save(torch.ones(2, 2), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="no safetensors, GGUF or zipped"):
        DirectionSet.load(tmp_path / "old.pt")


def test_damaged_and_hostile_archives_end_in_one_sentence(tmp_path):
    path = made().to_pt(tmp_path / "d.pt")
    with zipfile.ZipFile(path) as archive:
        held = archive.read("archive/data.pkl")
    for name, changed in (
        ("bomb", {"compression": zipfile.ZIP_DEFLATED, "data_0": b"\0" * 10**6}),
        ("short", {"data_0": b"\0" * 8}),
        ("long", {"data_0": b"\0" * 1000}),
        ("order", {"byteorder": b"middle"}),
        ("empty", {"data_pkl": b""}),
        ("cut", {"data_pkl": held[:-30]}),
        ("large", {"data_pkl": held + b"\0" * 10**5}),
        ("wide", {"data_pkl": held.replace(b"K\x04K\x06\x86", b"K\x04K\xff\x86")}),
        ("stride", {"data_pkl": held.replace(b"K\x06K\x01\x86", b"K\xffK\x01\x86")}),
        ("numbers", {"data_pkl": pickle.dumps((1, 2))}),
    ):
        with pytest.raises(UserError, match="cannot be read as a matrix"):
            DirectionSet.load(rezipped(path, tmp_path / f"{name}.pt", **changed))
    rng, good = np.random.default_rng(0), path.read_bytes()
    for i in range(300):
        wrong = bytearray(good)
        wrong[rng.integers(2, len(good))] = rng.integers(256)
        path.write_bytes(wrong if i % 2 else wrong[: rng.integers(2, len(good))])
        with suppress(UserError):
            DirectionSet.load(path)
    plain = io.BytesIO()
    zipfile.ZipFile(plain, "w").close()
    path.write_bytes(plain.getvalue())
    with pytest.raises(UserError, match=r"no file of torch\.save"):
        DirectionSet.load(path)


def test_what_a_matrix_cannot_hold_is_not_written(tmp_path):
    held = made()
    for write, words in (
        (lambda: DirectionSet.of(*held).to_pt(tmp_path / "d.pt"), "give it as blocks="),
        (lambda: held.to_pt(tmp_path / "d.pt", blocks=2), "there are 2 blocks"),
        (lambda: DirectionSet.of(held[0], held[0], blocks=4).to_pt(tmp_path / "d.pt"), "choose one"),
        (lambda: DirectionSet.of(Direction.of(np.ones(2), "z.1.0", "a"), blocks=4).to_pt(tmp_path / "d.pt"), "alone"),
    ):
        with pytest.raises(UserError, match=words):
            write()
    assert not list(tmp_path.iterdir())
