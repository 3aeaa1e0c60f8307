import errno
import os
from pathlib import Path

import pytest

from repscope import disk
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
