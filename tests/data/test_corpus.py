"""Corpora: each format gives its documents in order, and what is no text is refused or noted."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repscope.data import installed_docs as docs
from repscope.data.corpus import Corpus, corpus
from repscope.errors import UserError

TEXTS = ["A map of Paris.", "Zwei Zeilen\nin einem Text — ü.", "Third."]


def test_a_text_file_has_a_document_per_paragraph(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\nA map of Paris.\n \t\nZwei Zeilen\nin einem Text — ü.\r\n\r\nThird.\n", encoding="utf-8")
    assert list(corpus(path)) == TEXTS


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "stream", "file", "saved"])
def test_rows_of_tables_are_documents(tmp_path, kind):
    rows = [{"text": text, "n": i, "by": None if i else "me"} for i, text in enumerate([TEXTS[0], None, *TEXTS[1:], "  "])]
    table = pa.Table.from_pylist(rows)
    path = tmp_path / "set"
    if kind == "jsonl":
        path = tmp_path / "a.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif kind == "parquet":
        path = tmp_path / "a.parquet"
        pq.write_table(table, path)
    else:
        path.mkdir()
        names = ["z.arrow", "b.arrow"] if kind == "saved" else ["b.arrow", "z.arrow"]
        for name, part in zip(names, (table.slice(0, 2), table.slice(2))):
            new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
            with pa.OSFile(str(path / name), "wb") as sink, new(sink, table.schema) as writer:
                writer.write_table(part)
        if kind == "saved":
            (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    held = corpus(path, labels=["n", "by"])
    assert list(held) == TEXTS
    assert [held[i] for i in range(3)] == TEXTS
    assert held.label(0) == {"n": "0", "by": "me"}
    assert held.label(2) == {"n": "3", "by": ""}
    assert held.notes == ("2 documents without text were left out.",)
    assert held.fingerprint == Corpus("x", tuple(TEXTS), held.labels).fingerprint


def test_the_fingerprint_is_that_of_texts_and_labels():
    one = Corpus("a", ("ab", "c"), {"l": ("x", "y")})
    assert one.fingerprint == Corpus("b", ["ab", "c"], {"l": ["x", "y"]}).fingerprint
    others = [Corpus("a", ("a", "bc"), one.labels), Corpus("a", one.texts), Corpus("a", one.texts, {"l": ("x", "z")})]
    assert len({one.fingerprint, *(c.fingerprint for c in others)}) == 4


def test_a_sample_keeps_labels_and_order():
    whole = Corpus("a", tuple(map(str, range(50))), {"n": tuple(map(str, range(50)))})
    part = whole.sample(10, seed=3)
    assert list(part) == list(part.labels["n"]) == sorted(part, key=int) != [str(i) for i in range(10)]
    assert whole.sample(50) is whole


@pytest.mark.parametrize(
    ("name", "content", "how", "said"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"texts": "b"}\n', {}, "line 2, has no 'text'"),
        ("a.jsonl", b'{"text": 3}\n', {}, "line 1: 'text' is no text"),
        ("a.jsonl", b"{text}\n", {}, "line 1, is no JSON object"),
        ("a.jsonl", b'{"text": ""}\n', {}, "has no text"),
        ("a.jsonl", b'{"text": "\xff"}\n', {}, "not UTF-8"),
        ("a.txt", b"\xff\xfeab", {}, "not UTF-8"),
        ("a.txt", b" \n\n ", {}, "has no text"),
        ("a.txt", b"a", {"labels": ["n"]}, "has no columns"),
        ("a.parquet", b"PAR1 nothing", {}, "damaged or of another kind"),
        ("a.csv", b"text\na", {}, "kind of corpus"),
    ],
)
def test_what_is_no_corpus_is_refused(tmp_path, name, content, how, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        corpus(tmp_path / name, **how)


def test_arrow_folders_that_are_refused(tmp_path):
    with pytest.raises(UserError, match="no corpus"):
        corpus(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no \.arrow file"):
        corpus(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../a.arrow"}]}))
    with pytest.raises(UserError, match="outside of its folder"):
        corpus(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(UserError, match="flatten_indices"):
        corpus(tmp_path)
    (tmp_path / "dataset_dict.json").write_text("{}")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="has the splits train"):
        corpus(tmp_path)
    pq.write_table(pa.table({"text": [[1, 2]]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="holds list"):
        corpus(tmp_path / "b.parquet")
    with pytest.raises(UserError, match="did you mean 'text'"):
        corpus(tmp_path / "b.parquet", text="texts")


SOURCE = '''"""Tools for reading of maps and of the plans of cities.

    >>> read("Paris")
"""
raise SystemExit("never imported")


class Map:
    """A map.

    Return the distance between two places on the map in metres.

    Parameters
    ----------
    place : str
        Name of the place at which the measured route begins.
    """

    def again(self):
        """Return the distance between two places on the map in metres."""
'''


def test_prose_of_docstrings_comes_once_and_nothing_is_imported(tmp_path, monkeypatch):
    package = tmp_path / "mapped"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "maps.py").write_text(SOURCE)
    (package / "broken.py").write_text("def (")
    (package / "tests/test_maps.py").write_text('"""Tests of all the tools for reading of maps."""')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(docs.metadata, "version", lambda name: "1.0")
    for _ in range(2):  # the second time from the cache
        held = docs.installed_docs(("mapped", "absent_package"))
        assert held.labels["object"] == ("mapped.maps", "mapped.maps.Map")
        assert held.texts == (
            "Tools for reading of maps and of the plans of cities.",
            "Return the distance between two places on the map in metres.\n\nName of the place at which the measured route begins.",
        )
        assert held.versions == {"mapped": "1.0"}
        assert "absent_package is not installed" in held.notes[0]
    (cached,) = (tmp_path / "cache/corpora").iterdir()
    cached.write_text("[[1]]")
    assert docs.installed_docs(("mapped",)).texts == held.texts
    with pytest.raises(UserError, match="None of absent_package"):
        docs.installed_docs(("absent_package",))


def test_code_and_tables_are_no_prose():
    for text in (
        "x = f(a, b) where each of the terms is computed once; a==b.",
        "a | b | c | d | e | f | g | h.",
        "Args: the first of them is the name of the place.",
        "Too short to be kept.",
        "no capital letter begins this sentence of nine words.",
    ):
        assert docs.prose(text) == []


def test_a_damaged_arrow_file_is_refused(tmp_path):
    """Its offsets may lead anywhere: reading them would end the process."""
    column = pa.array(["one", "two", "three"])
    offsets = np.frombuffer(column.buffers()[1], dtype=np.int32).copy()
    offsets[2] = 1 << 30
    wild = pa.StringArray.from_buffers(3, pa.py_buffer(offsets.tobytes()), column.buffers()[2])
    not_text = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 1], np.int32).tobytes()), pa.py_buffer(b"\xf4"))
    for i, texts in enumerate((wild, not_text)):
        folder = tmp_path / str(i)
        folder.mkdir()
        table = pa.table({"text": texts})
        with pa.OSFile(str(folder / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        with pytest.raises(UserError, match=r"column 'text' of .* is damaged"):
            corpus(folder)
