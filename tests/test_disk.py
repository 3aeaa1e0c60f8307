import errno
import os
from pathlib import Path

import pytest

from repscope import disk, manifest
from repscope.errors import UserError, unknown


def test_a_file_is_whole_or_not_there(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    with disk.whole_file(target) as partial:
        partial.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"

    def half_done():
        with disk.whole_file(target) as partial:
            partial.write_text("two")
            raise RuntimeError("bang")

    with pytest.raises(RuntimeError, match="bang"):
        half_done()
    assert target.read_text() == "one"
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_a_folder_is_whole_or_not_there(tmp_path):
    target = tmp_path / "folder"
    for text in ("one", "two"):
        with disk.whole_folder(target) as partial:
            (partial / "a").write_text(text)
    assert (target / "a").read_text() == "two"
    with pytest.raises(KeyboardInterrupt), disk.whole_folder(target) as partial:
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(("number", "says"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot be written")])
def test_what_the_disk_says_is_one_sentence(tmp_path, number, says):
    with pytest.raises(UserError, match=says), disk.whole_file(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert not list(tmp_path.iterdir())


def test_a_folder_is_asked_for_before_work_is_done(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    disk.need_folder(tmp_path)
    disk.need_folder(tmp_path / "new" / "deep")
    for path, says in {"file": "is a file", "file/deep/x": "is a file", "link": "a broken link", "link/x": "a broken link"}.items():
        with pytest.raises(UserError, match=says):
            disk.need_folder(tmp_path / path)
    with pytest.raises(UserError, match="cannot be written"):
        disk.need_folder(Path("/proc/x"))
    with pytest.raises(UserError, match="cannot be written"):
        disk.need_folder(tmp_path / ("x" * 300))
    assert {p.name for p in tmp_path.iterdir()} == {"file", "link"}


def test_a_file_below_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="a part of that path is a file"), disk.whole_file(tmp_path / "file" / "x"):
        pass


def test_other_errors_are_not_the_disks():
    assert disk.disk_error(ValueError("x")) is None
    assert disk.disk_error(FileNotFoundError(2, "No such file", "x")) is None
    with pytest.raises(KeyError), disk.explained(Path("x")):
        raise KeyError("x")


def test_space_is_asked_for_before_it_is_used(tmp_path):
    disk.need_space(tmp_path / "not" / "there", 1)
    with pytest.raises(UserError, match=r"needs 1000000000\.0 GB"):
        disk.need_space(tmp_path, 10**18)


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path))
    assert disk.cache_home() == tmp_path
    monkeypatch.delenv("REPSCOPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(disk.cache_home()) == "/x/repscope"


def test_unknown_names_offer_what_there_is():
    assert "there are a, b" in str(unknown("thing", "zzzz", ["a", "b"]))
    assert "none at all" in str(unknown("thing", "x", []))
    assert "among the 40" in str(unknown("thing", "zzzz", [f"name{i}" for i in range(40)]))


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_files_are_written_through_before_they_are_renamed(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(os, "fsync", lambda handle: told.append(os.readlink(f"/proc/self/fd/{handle}")))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (told.append("renamed"), replace(a, b)))
    with disk.whole_file(tmp_path / "x") as partial:
        partial.write_text("x")
    assert told == [str(partial), "renamed", str(tmp_path)]
    told.clear()
    with disk.whole_folder(tmp_path / "folder") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "a").write_text("a")
    assert set(told[:-2]) == {str(partial), str(partial / "inner"), str(partial / "inner" / "a"), str(partial / manifest.NAME)}
    assert told[-2:] == ["renamed", str(tmp_path)]
    told.clear()
    with disk.whole_file(tmp_path / "y", sync=False), disk.whole_folder(tmp_path / "z", sync=False):
        pass
    assert told == ["renamed"] * 2


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    replace, calls = os.replace, []

    def failing(a, b):
        calls.append(b)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        replace(a, b)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(UserError, match="disk is full"), disk.whole_folder(tmp_path / "folder") as partial:
        (partial / "new").write_text("new")
    assert (tmp_path / "folder" / "old").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_linked_folder_is_replaced_where_it_is(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with disk.whole_folder(tmp_path / "link") as partial:
        (partial / "a").write_text("a")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "a"


def test_the_longest_names_are_written(tmp_path):
    for name in ("n" * 255, "é" * 127):
        with disk.whole_file(tmp_path / name) as partial:
            partial.write_text("x")
        assert (tmp_path / name).read_text() == "x"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (OSError("65536 requested and 0 written"), "disk is full"),
        (RuntimeError("Error while serializing: I/O error: Read-only file system (os error 30)"), "cannot be written"),
        (RuntimeError("I/O error: File too large (os error 27)"), "ulimit -f"),
        (OSError("[Errno 122] Error writing bytes to file"), "disk is full"),
    ],
)
def test_errors_of_disks_are_known_by_number_or_by_text(error, says):
    assert says in str(disk.disk_error(error, Path("x")))
