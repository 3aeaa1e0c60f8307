"""Names from data: file names that are safe and differ, text that cannot control a terminal."""

from hypothesis import given
from hypothesis import strategies as st

from repscope.names import escaped, file_name, printable, readable, unescaped

_SPACED = ["x y", "x-y", "x+y", "x  y", "x y ", "x_y", "x.y"]
HOSTILE = ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", *_SPACED, "é", "e\u0301", "\ud800", "a" * 300]


@given(st.lists(st.text(max_size=100) | st.sampled_from(HOSTILE), unique=True, max_size=12))
def test_file_names_are_plain_and_differ(names):
    made = [file_name(name) for name in names]
    assert len(set(made)) == len(names)
    for name in made:
        assert name.isascii()
        assert not name.startswith(".")
        assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-+")
        assert 0 < len(name) <= 91


def test_a_name_that_looks_like_anothers_file_name_gets_one_of_its_own():
    assert file_name(file_name("x/y")) != file_name("x/y")
    assert len({file_name(name) for name in HOSTILE}) == len(HOSTILE)
    assert (file_name("summary"), file_name("next tokens")) == ("summary", "next+tokens")
    assert readable("country-capital split 0") == "country-capital-split-0", "the names of steps of earlier runs"


@given(st.text(max_size=60))
def test_escaped_names_come_back(name):
    assert unescaped(escaped(name)) == name
    assert not set("/\\\0\x1b") & set(escaped(name))


def test_no_text_controls_the_terminal():
    said = printable("clear \x1b[2J\x1b]0;title\x07 \r back \x9b2J \u202eturned\nnext\tline")
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c == "\u202e" for c in said)
    assert "\\x1b[2J" in said
    assert said.endswith("turned\nnext\tline")
