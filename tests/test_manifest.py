"""Manifests, seals, stamped lines and locks: every changed byte is seen, and what was not written by repscope passes."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from repscope import disk, manifest
from repscope.errors import UserError
from repscope.locks import only_process
from repscope.manifest import Manifest
from repscope.results import Result, Row


def flipped(path, bit):
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def every(path, most=300):
    """Bits of a file, evenly spread."""
    size = 8 * path.stat().st_size
    return range(0, size, max(1, size // most))


@pytest.fixture
def folder(tmp_path):
    with disk.whole_folder(tmp_path / "kept") as partial:
        (partial / "deep").mkdir()
        (partial / "a.bin").write_bytes(bytes(range(200)))
        (partial / "deep" / "ü b.txt").write_text("numbers")
        (partial / "empty").touch()
    return tmp_path / "kept"


def test_a_folder_has_the_digests_of_its_files(folder):
    held = Manifest.read(folder / manifest.NAME)
    assert set(held.files) == {"a.bin", "deep/ü b.txt", "empty"}
    assert held.files["a.bin"][0] == 200
    assert Manifest.of(folder) == held
    assert manifest.damage(folder) is None
    manifest.need_sound(folder)
    manifest.need_sound(folder / "deep" / "ü b.txt")
    moved = folder.rename(folder.with_name("moved"))
    manifest.need_sound(moved)


@pytest.mark.parametrize("name", ["a.bin", "deep/ü b.txt", manifest.NAME])
def test_no_changed_bit_is_silent(folder, name):
    path = folder / name
    whole = path.read_bytes()
    for bit in every(path):
        flipped(path, bit)
        wrong = manifest.damage(folder)
        if wrong is None:  # a flip in the manifest may be in white space, or turn a digit into one that reads the same
            assert name == manifest.NAME
            assert Manifest.read(path) == Manifest.of(folder)
        path.write_bytes(whole)
    assert manifest.damage(folder) is None


def test_what_is_cut_emptied_deleted_or_grown_is_named(folder):
    path = folder / "a.bin"
    whole = path.read_bytes()
    for content, says in ((whole[:-1], "199 bytes instead of 200"), (b"", "0 bytes"), (whole + b"x", "201 bytes")):
        path.write_bytes(content)
        assert says in manifest.damage(folder)
        with pytest.raises(UserError, match=r"kept is damaged: a\.bin has .* remove .*digests\.json"):
            manifest.need_sound(path)
    path.unlink()
    assert manifest.damage(folder) == "a.bin is missing"
    shutil.rmtree(folder / "deep")
    path.write_bytes(whole)
    assert "missing" in manifest.damage(folder)


def test_a_size_alone_is_enough_where_nothing_reads_the_file(folder):
    flipped(folder / "a.bin", 3)
    assert manifest.damage(folder, sizes_only=("a.bin",)) is None
    (folder / "a.bin").write_bytes(b"")
    assert manifest.damage(folder, sizes_only=("a.bin",)) is not None


def test_folders_of_others_and_files_beside_pass(folder):
    (folder / "mine.txt").write_text("x")
    manifest.need_sound(folder / "mine.txt")
    assert manifest.damage(folder) is None
    (folder / manifest.NAME).unlink()
    flipped(folder / "a.bin", 3)
    manifest.need_sound(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"format": 2, "files": {}}', b'{"format": 1, "files": 3}', b"\xff", b'{"format":1,"files":' * 5000]
    + [json.dumps({"format": 1, "files": {name: [1, "x"]}}).encode() for name in ("../x", "/etc/passwd", "a\0b")]
    + [b'{"format": 1, "files": {"a": [' + b"9" * 5000 + b', "x"]}}'],
)
def test_hostile_manifests_are_one_sentence(folder, content):
    (folder / manifest.NAME).write_bytes(content)
    assert manifest.damage(folder) is not None
    with pytest.raises(UserError):
        manifest.need_sound(folder)
    with pytest.raises(UserError):
        manifest.need_sound(folder / "a.bin")


def test_large_files_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "_LARGE", 100)
    path = tmp_path / "large"
    path.write_bytes(bytes(1000))
    first = manifest.digest_of(path)
    read = []
    rest = manifest._rest
    monkeypatch.setattr(manifest, "_rest", lambda *given: read.append(1) or rest(*given))
    assert manifest.digest_of(path) == first
    assert not read
    stat = path.stat()
    path.write_bytes(b"\1" + bytes(999))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # its time of change says so nevertheless
    assert manifest.digest_of(path) != first


def sealed_file(path):
    save_file({"x": np.arange(50.0)}, path, {"what": "a test", "seal": manifest.UNSEALED, "more": "é"})
    manifest.seal(path)
    return path


def test_a_sealed_file_is_read_by_its_library_and_has_the_same_bytes_each_time(tmp_path):
    first, second = (sealed_file(tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert load_file(first)["x"].tolist() == np.arange(50.0).tolist()
    assert manifest.sealed(first) is True
    manifest.need_seal(first, "copy it")


def test_no_changed_bit_of_a_sealed_file_is_silent(tmp_path):
    path = sealed_file(tmp_path / "a.safetensors")
    whole = path.read_bytes()
    mark = range(8 * whole.find(manifest._MARK), 8 * (whole.find(manifest._MARK) + len(manifest._MARK)))
    for bit in {*every(path), *mark}:
        flipped(path, bit)
        assert manifest.sealed(path) is (None if bit in mark else False)  # without its mark it is as a file of an earlier version
        path.write_bytes(whole)
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="copy it again"):
        manifest.need_seal(path, "copy it again")


def test_files_without_a_seal_pass(tmp_path):
    for content in (b"", b"x", json.dumps({"a": 1}).encode()):
        (tmp_path / "f").write_bytes(content)
        assert manifest.sealed(tmp_path / "f") is None
        manifest.need_seal(tmp_path / "f", "")
    assert manifest.sealed(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match="no place for a seal"):
        manifest.seal(tmp_path / "f")


@given(st.text(alphabet=st.characters(blacklist_characters="\n\r", blacklist_categories=("Cs",)), min_size=1))
def test_stamped_lines_come_back(line):
    assert manifest.unstamped(manifest.stamped(line)) == line


def test_no_changed_bit_of_a_stamped_line_is_silent():
    line = '{"losses": [0.123, 4.5]}'
    stamped = manifest.stamped(line).encode()
    for bit in range(8 * len(stamped)):
        changed = bytearray(stamped)
        changed[bit // 8] ^= 1 << bit % 8
        assert manifest.unstamped(changed.decode(errors="replace")) in (None, line)
    assert manifest.unstamped(line) == line
    assert manifest.unstamped(stamped[:30].decode()) is None


def test_no_changed_bit_of_a_result_is_silent(tmp_path):
    side = {"more": Result.of([Row(metric="m", value=0.5)]).table}
    result = Result.of([Row(metric="m", value=0.25)], arrays={"a": np.arange(9.0)}, side=side, notes=("a note",))
    folder = result.save(tmp_path / "step")
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for bit in every(path, 40):
            flipped(path, bit)
            if path.name == manifest.NAME and manifest.damage(folder) is None:  # a flip in white space
                assert Result.load(folder).table.equals(result.table)
            else:
                with pytest.raises(UserError, match="is damaged"):
                    Result.load(folder)
            path.write_bytes(whole)
        path.unlink()
        if path.name != manifest.NAME:
            with pytest.raises(UserError, match="is damaged"):
                Result.load(folder)
        path.write_bytes(whole)
    (folder / manifest.NAME).unlink()  # as of an earlier version: what cannot be read is still one sentence
    for name in ("table.parquet", "arrays.safetensors", "notes.parquet", "side-more.parquet"):
        whole = (folder / name).read_bytes()
        for content in (b"", whole[:20], b"PAR1"):
            (folder / name).write_bytes(content)
            with pytest.raises(UserError, match="is damaged"):
                Result.load(folder)
        (folder / name).write_bytes(whole)
    assert Result.load(folder).table.equals(result.table)


def _held(folder, released):
    with only_process(folder):
        print("held", flush=True)
        released.wait()


def test_one_process_at_a_time(tmp_path, processes):
    released = processes.context.Event()
    other = processes.start(_held, tmp_path / "out", released)
    assert other.output.readline() == "held\n"
    with pytest.raises(UserError, match="Another process is working on"), only_process(tmp_path / "out"):
        pass
    with only_process(tmp_path / "another"):
        pass
    other.kill()  # a lock ends with its process
    with only_process(tmp_path / "out"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="part of that path is a file"), only_process(tmp_path / "file" / "out"):
        pass
