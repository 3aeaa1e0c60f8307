"""JSON of strangers is refused in one way, and no name leaves its folder."""

import pytest

from repscope.errors import UserError
from repscope.untrusted import inside, need_text, parse_json


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, '"\\ud800"', '{"\\udfff": 1}', b"\xff", ""])
def test_hostile_json_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011 (of any kind: what reads adds the sentence)
        parse_json(text)


def test_other_json_is_read():
    assert parse_json('{"a": ["\\ud83d\\ude00", 1e400]}') == {"a": ["😀", float("inf")]}
    assert parse_json('{"a": 1, "a": 2}', list) == [("a", 1), ("a", 2)]


def test_paths_stay_in_their_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    assert inside(tmp_path / "in", "a/b") == tmp_path / "in" / "a" / "b"
    for name in ("..", "../out", "/etc/passwd", "link", "link/x", ".", "", "a\0b", "n" * 300, "a/../../x"):
        assert inside(tmp_path / "in", name) is None, name


def test_half_a_surrogate_pair_is_no_text():
    need_text("The name", "😀", "é")
    with pytest.raises(UserError, match="half of a surrogate pair"):
        need_text("The name", "a\ud800")
