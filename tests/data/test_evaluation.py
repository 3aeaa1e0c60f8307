"""Files of texts to evaluate on: every format reads alike, and what is wrong with one is a sentence."""

import json

import numpy as np
import pandas as pd
import pytest

from repscope.data.evaluation import read_texts, resolved
from repscope.data.tables import read_table
from repscope.errors import UserError

FRAME = pd.DataFrame(
    {
        "text": ["one, two", "three", "four\u2028five", " "],
        "other": ["a", "b", "c", "d"],
        "label": [0, 1, 2, 0],
        "part": ["ood", "id", "ood", "id"],
    }
)
WRITERS = {
    "csv": lambda path: FRAME.to_csv(path, index=False),
    "tsv": lambda path: FRAME.to_csv(path, index=False, sep="\t"),
    "parquet": FRAME.to_parquet,
    "jsonl": lambda path: FRAME.to_json(path, orient="records", lines=True, force_ascii=False),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_formats_read_alike(tmp_path, suffix):
    file = tmp_path / f"t.{suffix}"
    WRITERS[suffix](file)
    found = read_texts(file, pair="other", label="label", split="part")
    assert found.texts == ("one, two", "three", "four\u2028five")
    assert found.pairs == ("a", "b", "c")
    assert found.labels == ("0", "1", "2")
    assert found.notes == ("1 of 4 rows have an empty text or other or label or part, and were left out.",)
    assert found.names == ("id", "ood")
    assert [found.loss(s, "loss") for s in found.names] == ["loss", "ood loss"]
    assert [found.rows(s).tolist() for s in found.names] == [[1], [0, 2]]
    assert resolved(found, {0: "no", 1: "yes", 2: "maybe"}).tolist() == [0, 1, 2]
    assert read_texts(file, text="other").names == ("",)


def test_lines_of_a_text_file(tmp_path):
    (tmp_path / "t.txt").write_text("one\n\ntwo, three\n")
    found = read_texts(tmp_path / "t.txt")
    assert found.texts == ("one", "two, three")
    assert [found.loss(s, "error") for s in found.names] == ["error"]


def test_labels_by_name_or_number(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\na,yes\nb,no\n")
    found = read_texts(tmp_path / "t.csv", label="label")
    assert resolved(found, {0: "no", 1: "yes"}).tolist() == [1, 0]
    with pytest.raises(UserError, match="label 'yes', and the classifier has 2 classes: 0 LABEL_0"):
        resolved(found, {0: "LABEL_0", 1: "LABEL_1"})
    (tmp_path / "n.csv").write_text("text,label\na,1.0\nb,0\n")
    assert resolved(read_texts(tmp_path / "n.csv", label="label"), {0: "x", 1: "y"}).tolist() == [1, 0]


def test_drawn_rows_are_so_many_of_each_split(tmp_path):
    frame = pd.DataFrame({"text": [f"t{i}" for i in range(30)], "part": ["id", "ood", "ood"] * 10})
    frame.to_csv(tmp_path / "t.csv", index=False)
    found = read_texts(tmp_path / "t.csv", split="part")
    assert found.first(None) is found.first(40) is found
    drawn = found.first(4, seed=1)
    assert [len(drawn.rows(s)) for s in drawn.names] == [4, 4]
    assert drawn.texts == found.first(4, seed=1).texts != found.first(4, seed=2).texts
    assert "at most 4 of a split (seed 1)" in drawn.notes[-1]
    assert drawn.digest != found.digest
    assert np.all(np.diff([int(t[1:]) for t in drawn.texts]) > 0)


@pytest.mark.parametrize(
    ("name", "content", "options", "says"),
    [
        ("t.txt", None, {}, "There is no file"),
        ("t.csv", None, {}, "There is no table"),
        ("t.txt", "\n \n", {}, "is empty"),
        ("t.csv", "", {}, "is empty"),
        ("t.csv", "text,label\n", {}, "no rows"),
        ("t.csv", "text,label\n ,1\n", {}, "no row with text"),
        ("t.csv", "sentence,label\na,1\n", {}, "There is no column of t.csv 'text'; there are sentence, label"),
        ("t.csv", "text\na\n", {"label": "label"}, "There is no column of t.csv 'label'"),
        ("t.txt", "a\n", {"split": "part"}, "has no columns, only one text per line; --split"),
        ("t.xlsx", "PK", {}, "save the sheet as CSV"),
        ("t.jsonl", '{"text": "a"}\n[1]\n', {}, "no object in line 2"),
        ("t.jsonl", '{"text": "a"}\n{"text"\n', {}, "is not JSON in line 2"),
        ("t.jsonl", '{"text": ["a"]}\n', {}, "holds lists or objects"),
        ("t.jsonl", "\n", {}, "no rows"),
    ],
)
def test_mistakes_are_told(tmp_path, name, content, options, says):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=says):
        read_texts(tmp_path / name, **options)


def test_lines_of_json_are_a_table_of_text(tmp_path):
    rows = [{"a": "x", "n": 1}, {"a": None, "b": True, "n": 2.5}]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    assert read_table(tmp_path / "t.jsonl").frame.values.tolist() == [["x", "1", ""], ["", "2.5", "true"]]
    assert read_table(tmp_path / "t.jsonl", ["n"]).frame.columns.tolist() == ["n"]
