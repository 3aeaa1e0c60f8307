"""Tables as spreadsheets, data frames and benchmarks write them: read right with a note, or refused with line and column."""

import csv
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest

from repscope.data.columns import typed
from repscope.data.contrasts import contrast
from repscope.data.entities import entity_set, labelled_text
from repscope.data.evaluation import read_texts
from repscope.data.reading import reading
from repscope.data.relations import relation
from repscope.data.requests import requests
from repscope.data.tables import read_table
from repscope.errors import UserError


def column(path, cells, **how):
    """The column `value` of a table with these cells, one an entity, and its notes."""
    rows = "".join(f"City {i}\t{cell}\n" for i, cell in enumerate(cells))
    path.write_text(f"name\tvalue\n{rows}", encoding="utf-8")
    table = read_table(path, **how)
    found = table.typed("value")
    return found.kind, found.values.tolist(), [*table.notes, *found.notes]


# ---------------------------------------------------------------------------------------------------- quotation marks


def sentences(**changed):
    lines = [f"sentence number {i}\t{i % 2}" for i in range(40)]
    for line, text in changed.items():
        lines[int(line[1:])] = text
    return ["text\tlabel", *lines]


@pytest.mark.parametrize(
    ("changed", "texts"),
    [
        ({"l4": '"Why not?\t1', "l11": 'said she"\t0'}, ['"Why not?', 'said she"']),
        ({"l4": '"Why not?"\t1'}, ['"Why not?"']),  # marks around a whole field stay in the text
        ({"l4": '"Why not?", he asked.\t1'}, ['"Why not?", he asked.']),
        ({"l4": '"\t1', "l9": '""\t0'}, ['"', '""']),
        ({"l4": '5" pipe\t1', "l9": '"So," he said, "no"\t0'}, ['5" pipe', '"So," he said, "no"']),
        ({"l4": '"Yes, indeed."\t1', "l9": "No, not at all.\t0"}, ['"Yes, indeed."', "No, not at all."]),
    ],
)
def test_a_tsv_does_not_quote(tmp_path, changed, texts):
    path = tmp_path / "glue.tsv"
    path.write_text("\n".join(sentences(**changed)) + "\n")
    held = labelled_text(path, "text", ["label"])
    assert len(held) == 40
    assert set(texts) <= set(held.frame["name"])
    assert held.target("label").rows.size == 40
    whole = any(text[0] == text[-1] == '"' and len(text) > 1 for text in texts)
    assert any("are part of the text" in note for note in held.notes) == whole
    assert set(texts) <= set(read_texts(path, label="label").texts)


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_a_tsv_of_a_data_frame_is_read_as_it_was_written(tmp_path, quoting):
    frame = pd.DataFrame({"text": [f"text {i}" for i in range(30)], "label": [i % 2 for i in range(30)]})
    frame.loc[3, "text"] = 'He said "no".'
    frame.loc[5, "text"] = '"No," he said.'
    frame.loc[7, "text"] = "a\ttab"
    frame.loc[9, "text"] = "two\nlines"
    for kept in (frame, frame.drop(index=[7, 9])):
        kept.to_csv(tmp_path / "t.tsv", sep="\t", index=False, quoting=quoting)
        table = read_table(tmp_path / "t.tsv")
        assert table.frame["text"].tolist() == kept["text"].tolist()
        assert "enclosed in quotation marks" in table.notes[0]
    lines = [table.where(i) for i in (0, 3, 20)]
    assert lines == ["line 2", "line 5", "line 22"]


@pytest.mark.parametrize("marked", [{"l4": '"He said ""no""."\t1', "l9": '"Why?"\t0'}, {f"l{i}": f'"t {i}"\t0' for i in range(40)}])
def test_a_tsv_that_shows_neither_is_asked_about(tmp_path, marked):
    path = tmp_path / "t.tsv"
    path.write_text("\n".join(sentences(**marked)) + "\n")
    first = min(int(key[1:]) for key in marked) + 2
    with pytest.raises(UserError, match=rf"quotation mark in line {first}.*--no-quote.*--quote"):
        read_table(path)
    inside, outside = (read_table(path, quote=quote).frame["text"] for quote in (True, False))
    assert inside.tolist() == [text.strip('"').replace('""', '"') for text in outside]
    assert inside.tolist() != outside.tolist()


def test_a_mark_in_a_csv_that_takes_in_rows_is_asked_about(tmp_path):
    lines = [line.replace("\t", ",") for line in sentences(l4='"Why not?,1', l11='said she",0')]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"quotation mark in line 6 takes in the lines to 13.*--no-quote"):
        read_table(path)
    assert len(read_table(path, quote=False).frame) == 40
    assert len(read_table(path, quote=True).frame) == 33
    frame = pd.DataFrame({"text": ["one\ntwo, three\nfour", "a, b\nc", 'say "x"'], "label": ["a", "b", "a"]})
    frame.to_csv(path, index=False)
    assert read_table(path).frame["text"].tolist() == frame["text"].tolist()  # what a CSV is for
    path.write_text('text,label\nfine,0\n"never closed,1\nfine,0\n')
    with pytest.raises(UserError, match=r"not well-formed at line 3 .*--no-quote"):
        read_table(path)


def test_a_long_field_is_read(tmp_path):
    long = "word " * 60_000
    frame = pd.DataFrame({"text": [long.strip(), "short"], "label": ["a", "b"]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    before = csv.field_size_limit()
    for name in ("t.csv", "t.tsv"):
        assert read_table(tmp_path / name).frame["text"].tolist() == frame["text"].tolist()
    assert csv.field_size_limit() == before  # the user's own limit is left alone


# ------------------------------------------------------------------------------------------------------------ missing


@pytest.mark.parametrize(
    "mark",
    [
        "NA",
        "N/A",
        "n/a",
        "nan",
        "NaN",
        "null",
        "NULL",
        "None",
        "-",
        "?",
        "#N/A",
        "<NA>",
        "",
        " na ",
        "—",
        "unknown",
        ".",
        "#DIV/0!",
    ],
)
@pytest.mark.parametrize("values", [["0", "1"], ["0.0", "1.0"], ["1.5", "2.25"]])
def test_a_word_for_nothing_among_numbers_is_missing(tmp_path, mark, values):
    cells = [*values, mark] * 20
    kind, found, notes = column(tmp_path / "t.tsv", cells)
    assert kind == ("number" if "1.5" in values else "class")
    assert sum(pd.isna(found)) == 20
    assert set(pd.Series(found).dropna()) == ({1.5, 2.25} if kind == "number" else {"0", "1"})
    assert len(notes) == bool(mark)
    if mark:
        assert f"20 {mark.strip()!r}" in notes[0]
        assert "line 4" in notes[0]


def test_the_cases_of_missing_labels(tmp_path):
    for name, values in (("na.csv", ["0", "1", "NA"]), ("nan.csv", ["0.0", "1.0", "nan"])):
        path = tmp_path / name
        path.write_text("name,label\n" + "".join(f"City {i},{values[i % 3]}\n" for i in range(60)))
        target = entity_set(path).target("label")
        assert target.classes == ("0", "1")
        assert len(target.rows) == 40
        assert any("20 of 60 entities have no value" in note for note in target.notes)
        assert any("count as missing" in note for note in entity_set(path).notes)


def test_namibia_is_a_word_among_words_and_nan_is_not(tmp_path):
    kind, found, notes = column(tmp_path / "t.tsv", ["NO", "NA", "BR", "nan", "null", "N/A"])
    assert (kind, found) == ("class", ["NO", "NA", "BR", None, None, None])
    assert "1 'nan', 1 'null', 1 'N/A' (first in line 5) count as missing" in notes[0]
    assert "1 'NA' (first in line 3) count as words" in notes[1]
    kind, found, notes = column(tmp_path / "t.tsv", ["NO", "NA", "nan"], na="NA")
    assert found == ["NO", None, "nan"]
    assert "1 'NA'" in notes[0]
    assert column(tmp_path / "t.tsv", ["NO", "NA", "nan"], na="")[1:] == (["NO", "NA", "nan"], [])
    assert column(tmp_path / "t.tsv", ["1", "2", "99"] * 9, na=["99"])[1].count(None) == 9


@pytest.mark.parametrize("pair", [("True", "False"), ("yes", "no"), ("Y", "N"), ("negative", "positive")])
def test_a_word_for_nothing_beside_two_poles_is_missing(tmp_path, pair):
    kind, found, notes = column(tmp_path / "t.tsv", [*pair, "NA", "?"] * 9)
    assert (kind, set(found)) == ("class", {*pair, None})
    assert found.count(None) == 18
    assert "9 'NA', 9 '?' (first in line 4) among two labels count as missing" in notes[0]


def test_what_is_infinite_is_refused_with_its_line_and_can_be_missing(tmp_path):
    cells = [f"{i}.5" for i in range(30)]
    for word in ("inf", "-inf", "Infinity", "∞"):
        with pytest.raises(UserError, match=rf"'value' has '{word}' in line 32, which is no finite number.*--na"):
            column(tmp_path / "t.tsv", [*cells, word])
        assert np.isnan(column(tmp_path / "t.tsv", [*cells, word], na=word)[1][-1])


# ------------------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("cells", "values", "told"),
    [
        (["6,5", "7,0", "7,5", "8,0"], [6.5, 7.0, 7.5, 8.0], "decimal comma ('6,5' in line 2)"),
        (["0,123", "12,345"], [0.123, 12.345], "decimal comma"),
        (["1.234,56", "12,5", "1.000"], [1234.56, 12.5, 1000.0], "point between thousands ('1.234,56' in line 2)"),
        (["1,234.56", "12.5", "1,000"], [1234.56, 12.5, 1000.0], "comma between thousands"),
        (["1,234,567", "12,345", "0.5"], [1234567.0, 12345.0, 0.5], "comma between thousands"),
        (["1.234.567", "12.345", "0,5"], [1234567.0, 12345.0, 0.5], "point between thousands"),
        (["12,34,567", "1,00,000.5"], [1234567.0, 100000.5], "comma between thousands"),
        (["12 345,5", "1 000"], [12345.5, 1000.0], "space or apostrophe"),
        (["12\u00a0345.5", "1\u202f000"], [12345.5, 1000.0], "space or apostrophe"),
        (["12'345.5", "1’000"], [12345.5, 1000.0], "space or apostrophe"),
        (["45%", "12.5 %"], [45.0, 12.5], "percent ('45%' in line 2)"),
        (["\u22125.5", "\u20132.5", "+1"], [-5.5, -2.5, 1.0], ""),
        (["٣٫٥", "٤٫٢٥", "1.5"], [3.5, 4.25, 1.5], "digits of another script"),
        (["３．５", "４．２５"], [3.5, 4.25], "digits of another script"),
        (["३.५", "४"], [3.5, 4.0], "digits of another script"),
        (["1.5e3", "2E-2", "1,5e3"][:2], [1500.0, 0.02], ""),
        (["1,5e3", "2,5"], [1500.0, 2.5], "decimal comma"),
        (["1.234", "2.345"], [1.234, 2.345], "--decimal , reads it so"),
        (["1.234", "2.5"], [1.234, 2.5], ""),
        (["1.234", "12345"], [1.234, 12345.0], "--decimal , reads it so"),
    ],
)
def test_numbers_as_people_write_them(tmp_path, cells, values, told):
    kind, found, notes = column(tmp_path / "t.tsv", cells)
    assert kind == "number"
    assert found == values
    assert (told in " ".join(notes)) if told else notes == []
    with_gap = column(tmp_path / "t.tsv", [*cells, "NA"])
    assert with_gap[1][:-1] == values
    assert np.isnan(with_gap[1][-1])


@pytest.mark.parametrize(
    ("cells", "line", "comma", "point"),
    [
        (["12,345", "6,650", "950"], 2, [12.345, 6.65, 950], [12345, 6650, 950]),
        (["0.5", "6.25", "6,650"], 4, None, [0.5, 6.25, 6650]),
        (["950", "12.345", "6.650"], 3, [950, 12345, 6650], [950, 12.345, 6.65]),
        (["6,5", "1.234"], 3, [6.5, 1234], None),
        (["6,5", "7.5"], 3, None, None),
        (["1,234.5", "1.234,5"], 2, None, None),
        (["45%", "45"], 2, None, None),
    ],
)
def test_numbers_that_can_be_read_in_two_ways_are_refused_with_line_and_column(tmp_path, cells, line, comma, point):
    path = tmp_path / "t.tsv"
    with pytest.raises(UserError, match=rf"^Column 'value' has .*in line {line}\b"):
        column(path, cells)
    for decimal, values in ((",", comma), (".", point)):
        if values is None:
            with pytest.raises(UserError, match=r"^Column 'value' has .*in line"):
                column(path, cells, decimal=decimal)
        else:
            found = column(path, cells, decimal=decimal)[1]
            assert [float(v) for v in found] == values


def test_numbers_of_the_file_itself_are_never_guessed(tmp_path):
    values = [950, 12.345, 6.65, 1.234]
    pd.DataFrame({"name": list("abcd"), "value": values}).to_parquet(tmp_path / "t.parquet")
    rows = [{"name": n, "value": v} for n, v in zip("abcd", values)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "t.json").write_text(json.dumps(rows))
    for suffix in ("parquet", "jsonl", "json"):
        for how in ({}, {"decimal": ","}):
            found = read_table(tmp_path / f"t.{suffix}", **how).typed("value")
            assert (found.values.tolist(), found.notes) == (values, ())


def test_what_is_no_number(tmp_path):
    path = tmp_path / "t.tsv"
    for cells in ([f"1.2.{i}" for i in range(30)], [f"{i:03d}-4" for i in range(30)], [f"{i}_{i}" for i in range(30)]):
        kind, found, notes = column(path, cells)
        assert (kind, found, notes) == ("class", cells, [])
    kind, found, notes = column(path, [f"{i:03d}" for i in range(30)])  # "007" is a name
    assert (kind, found[7]) == ("class", "007")
    kind, found, notes = column(path, ["٠٠٧", "٠٠٨"])
    assert (kind, found) == ("class", ["007", "008"])
    assert "digits of another script" in notes[0]
    kind, found, notes = column(path, ["١", "٠", "1"])
    assert (kind, found) == ("class", ["1", "0", "1"])
    with pytest.raises(UserError, match=r"numbers with a unit \('0\.5 km' in line 2\)"):
        column(path, [f"{i}.5 km" for i in range(30)])
    assert column(path, ["5 mg", "10 mg"])[:2] == ("class", ["5 mg", "10 mg"])
    assert "holds dates" in column(path, [f"2020-01-{i + 1:02d}" for i in range(30)])[2][0]
    assert "words among numbers ('other' in line 4)" in column(path, ["1", "2", "other"])[2][0]


@pytest.mark.parametrize("bad", ["NaN", "inf", "6,650"])
def test_one_bad_cell_never_drops_a_column_in_silence(tmp_path, bad):
    lines = ["name,kind,size", *(f"n{i},{'ab'[i % 2]},{i}.5" for i in range(30)), f'last,a,"{bad}"']
    (tmp_path / "t.csv").write_text("\n".join(lines))
    found = entity_set(tmp_path / "t.csv")
    assert any("'size'" in note and bad in note for note in found.notes)
    assert ("size" in [a.name for a in found.attributes]) == (bad == "NaN")
    if bad != "NaN":
        with pytest.raises(UserError, match=rf"'size' has '{bad}' in line 32"):
            entity_set(tmp_path / "t.csv", attributes=["size"])
        how = {"na": "inf"} if bad == "inf" else {"decimal": "."}
        assert entity_set(tmp_path / "t.csv", attributes=["size"], **how).frame["size"].notna().sum() >= 30


STYLES = {  # separator of thousands, decimal mark
    "plain": ("", "."),
    "US": (",", "."),
    "German": (".", ","),
    "French": ("\u202f", ","),
    "Swiss": ("'", "."),
    "SI": (" ", ","),
}


@hypothesis.given(
    st.lists(st.floats(-1e7, 1e7), min_size=13, max_size=30, unique=True),
    st.integers(0, 4),
    st.sampled_from(sorted(STYLES)),
    st.booleans(),
)
def test_no_style_of_numbers_is_read_wrong(values, digits, style, trimmed):
    """Whatever the style: the numbers that were written, a refusal, or a note that says how else they could be read."""
    thousands, mark = STYLES[style]
    cells = [f"{value:,.{digits}f}" for value in values]
    if trimmed and digits:
        cells = [cell.rstrip("0").rstrip(".") for cell in cells]
    meant = [float(cell.replace(",", "")) for cell in cells]
    cells = [cell.replace(",", "_").replace(".", mark).replace("_", thousands) for cell in cells]
    for decimal in (None, mark):
        try:
            found = typed(pd.Series(cells, dtype=object), "c", lambda row: f"line {row + 2}", reading(decimal=decimal))
        except UserError as error:
            if decimal is None and "--decimal" in str(error):
                continue
            raise
        read = [np.nan if value is None else float(value) for value in found.values]
        assert read == meant or (decimal is None and style == "German" and any("--decimal , reads" in n for n in found.notes))


# ------------------------------------------------------------------------------------------------------------ columns


def test_the_index_of_a_data_frame_is_no_attribute(tmp_path):
    frame = pd.DataFrame({"name": [f"City {i}" for i in range(60)], "continent": sorted(["Asia", "Europe", "Africa"] * 20)})
    frame.to_csv(tmp_path / "a.csv")
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "b.parquet")
    pd.read_csv(tmp_path / "a.csv").to_csv(tmp_path / "c.csv")  # saved twice: '' and Unnamed: 0
    frame.reset_index().to_csv(tmp_path / "d.csv", index=False)
    frame.sample(frac=1, random_state=1).reset_index(names="idx").to_json(tmp_path / "e.jsonl", orient="records", lines=True)
    frame.to_csv(tmp_path / "f.tsv", sep="\t")
    frame.set_index("name").to_parquet(tmp_path / "g.parquet")  # an index with a name is a column
    frame.set_index("name").to_csv(tmp_path / "h.csv")
    frame.assign(tokens=[[1, 2]] * 60).reset_index().to_parquet(tmp_path / "i.parquet")
    for path in sorted(tmp_path.iterdir()):
        held = entity_set(path)
        assert [a.name for a in held.attributes] == ["continent"], path.name
        assert len(held.notes) == {"c": 2, "g": 0, "h": 0, "i": 2}.get(path.stem, 1), (path.name, held.notes)
        assert all("left out" in note for note in held.notes)
    assert entity_set(tmp_path / "d.csv", attributes=["index"]).attributes[0].kind == "number"  # asked for by name
    named = frame.assign(index=["a", "b", "c"] * 20, level_1=["x", "y"] * 30)
    named.to_csv(tmp_path / "z.csv", index=False)
    assert [a.name for a in entity_set(tmp_path / "z.csv").attributes] == ["continent", "index", "level_1"]


def test_semicolons_tabs_and_what_stands_before_the_header(tmp_path):
    path = tmp_path / "t.csv"
    for text, value, told in (
        ("name;value\nOslo;6,5\nRome;7,5\n", [6.5, 7.5], "separated by semicolons"),
        ("sep=;\nname;value\nOslo;6,5\nRome;7,5\n", [6.5, 7.5], "separated by semicolons"),
        ("name\tvalue\nOslo\t6.5\nRome\t7.5\n", [6.5, 7.5], "separated by tabs"),
        ("name|value\nOslo|6.5\nRome|7.5\n", [6.5, 7.5], "separated by vertical bars"),
        ('"name";"a, b";value\nOslo;x;6.5\nRome;y;7.5\n', [6.5, 7.5], "separated by semicolons"),
        ("# made by hand\n#\n\nname,value\nOslo,6.5\n\n   \nRome,7.5\n", [6.5, 7.5], "2 lines of comment"),
        ("\r\nname,value\r\nOslo,6.5\r\nRome,7.5\r\n", [6.5, 7.5], ""),
        ("name,value\rOslo,6.5\rRome,7.5\r", [6.5, 7.5], ""),
        ("name,value,\nOslo,6.5,\nRome,7.5,\n", [6.5, 7.5], "Column 3 of t.csv has no name"),
    ):
        path.write_bytes(text.encode())
        table = read_table(path)
        assert table.frame["name"].tolist() == ["Oslo", "Rome"]
        assert table.typed("value").values.tolist() == value
        assert [told in note for note in table.notes] == ([True] if told else [])
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        path.write_bytes("name,value\nÅrhus,1.5\n".encode(encoding))
        assert read_table(path).frame["name"].tolist() == ["Århus"]
    path.write_text("text\nfirst; still first\nsecond\n")
    assert read_table(path).frame["text"].tolist() == ["first; still first", "second"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", "city,country\nOslo,NO\nMünchen,DE\n".encode("latin-1"), "byte 0xfc does not decode, in line 3"),
        ("t.csv", "city,country\nOslo,NO\n".encode("utf-16-le"), "zero byte in line 1, as text in UTF-16"),
        ("t.csv", b"PK\x03\x04...", "save the sheet as CSV"),
        ("t.csv", b"\x1f\x8b...", "unpack it first"),
        ("t.csv.gz", b"\x1f\x8b...", "unpack it"),
        ("t.ods", b"PK\x03\x04...", "save the sheet as CSV"),
        ("t.tsv", b"city\tland\nOslo\tNO\n# note\nRome\tIT\n", "in line 3 and 2 column names; take out lines of comment"),
        ("t.csv", b"Oslo,NO,0.5\nRome,IT,1.5\n", "Its first line must name the columns"),
        ("t.csv", b",country\nOslo,NO\n", "Its column 1 has no name; give it one"),
        ("t.json", b'[{"city": 1, "city": 2}]', "'city' 2 times"),
        ("t.jsonl", b'{"city": "a"}\n{"city": 1, "city": 2}\n', "line 2"),
        ("t.json", b'{"city": ["Oslo"]}', "must be a list of objects"),
        ("t.jsonl", b'{"city": "a"}\n{"city": [1]}\n', "holds lists or objects in line 2"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_table(tmp_path / name, ["city"])
    assert says in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_workbook_is_refused_in_words_that_help(tmp_path):
    path = tmp_path / "t.xlsx"
    path.write_bytes(b"PK\x03\x04")
    for read in (entity_set, contrast, relation, read_texts, requests):
        with pytest.raises(UserError, match=r"t\.xlsx is a workbook.*save the sheet as CSV"):
            read(path)


def test_kinds_of_parquet_columns(tmp_path):
    frame = pd.DataFrame(
        {
            "name": pd.Categorical([f"n{i}" for i in range(20)]),
            "kind": pd.Categorical(["a", "b"] * 9 + ["a", None]),
            "size": [None, float("nan"), *np.arange(18) + 0.5],
            "flag": [True, False] * 10,
            "half": np.arange(20, dtype="float16") / 4,
            "words": ["x", None] * 10,
            "when": pd.date_range("2020-01-01", periods=20),
            "blob": [b"\x80"] * 20,
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    held = entity_set(tmp_path / "t.parquet")
    assert {a.name: a.kind for a in held.attributes} == {
        "kind": "class",
        "size": "number",
        "flag": "class",
        "half": "number",
        "words": "class",
        "when": "class",
    }
    assert held.frame["size"].isna().sum() == 2
    assert any("'blob'" in note and "left out" in note for note in held.notes)
    assert held.frame["words"].isna().sum() == 10


def test_mixed_values_in_json(tmp_path):
    rows = [{"name": f"n{i}", "value": [1, "1", 1.0, True, None][i % 5]} for i in range(30)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_table(tmp_path / "t.jsonl").typed("value")
    assert set(found.values) == {"1", "1.0", "true", None}
    assert "words among numbers" in found.notes[0]


# ------------------------------------------------------------------------------------------------- labels, other loaders


@pytest.mark.parametrize(
    ("no", "yes"),
    [
        ("0", "1"),
        ("0.0", "1.0"),
        ("-1", "1"),
        ("false", "true"),
        ("False", "True"),
        ("FALSE", "TRUE"),
        ("no", "yes"),
        ("No", "Yes"),
        ("N", "Y"),
        ("n", "y"),
        ("F", "T"),
        ("negative", "positive"),
        ("Negative", "Positive"),
        ("neg", "pos"),
        ("1", "2"),
        ("incorrect", "correct"),
        ("٠", "١"),
        ("non-entailment", "entailment"),
        ("not spam", "spam"),
        ("否", "是"),
        ("falsch", "wahr"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl", ".json"])
def test_the_positive_pole_does_not_hang_on_the_order_of_rows(tmp_path, no, yes, suffix):
    path = tmp_path / f"truth{suffix}"
    for labels in ([no, yes], [yes, no]):
        frame = pd.DataFrame({"text": [f"statement {label} {i}" for i in range(10) for label in labels], "label": labels * 10})
        if suffix == ".parquet":
            frame.to_parquet(path)
        elif suffix.startswith(".json"):
            frame.to_json(path, orient="records", lines=suffix == ".jsonl", force_ascii=False)
        else:
            frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
        found = contrast(path)
        assert all(f" {yes} " in text for text in found.yes)
        assert all(f" {no} " in text for text in found.no)
        assert contrast(path, positive=no).yes == found.no


@pytest.mark.parametrize("values", [[False, True], [0, 1], [0.0, 1.0], [-1, 1]])
def test_labels_of_parquet_and_json_have_their_pole(tmp_path, values):
    frame = pd.DataFrame({"text": [f"statement {i}" for i in range(40)], "label": values * 20})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    frame.to_csv(tmp_path / "t.csv", index=False)
    for path in tmp_path.iterdir():
        assert contrast(path).yes == tuple(frame["text"][1::2])


def test_a_label_without_a_value_is_left_out(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"t {i},{['0', '1', 'NA'][i % 3]}\n" for i in range(60)))
    found = contrast(tmp_path / "t.csv")
    assert (found.positive, len(found.yes), len(found.no)) == ("1", 20, 20)
    assert any("20 'NA'" in note for note in found.notes)
    assert any("20 of 60 rows have an empty text or label" in note for note in found.notes)
    texts = read_texts(tmp_path / "t.csv", label="label")
    assert set(texts.labels) == {"0", "1"}
    assert any("20 'NA'" in note for note in texts.notes)
    assert any("20 of 60 rows" in note for note in texts.notes)


def test_every_loader_takes_the_options_and_hands_on_the_notes(tmp_path):
    quoted = tmp_path / "t.tsv"
    quoted.write_text('text\tlabel\n"Why?"\ta\n' + "".join(f"t {i}\t{'ab'[i % 2]}\n" for i in range(30)))
    for read in (
        lambda **how: labelled_text(quoted, "text", ["label"], **how).frame["name"][0],
        lambda **how: contrast(quoted, **how).yes[0],
        lambda **how: read_texts(quoted, **how).texts[0],
        lambda **how: requests(quoted, **how)[0][0],
    ):
        assert (read(), read(quote=True)) == ('"Why?"', "Why?")
    for notes in (
        labelled_text(quoted, "text", ["label"]).notes,
        contrast(quoted).notes,
        read_texts(quoted).notes,
        requests(quoted)[2],
    ):
        assert any("--quote takes them off" in note for note in notes)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("subject;object\nNorway;Oslo\nItaly;nan\nPeru;none\n")
    found = relation(pairs, na=["none"])
    assert found.samples == (("Norway", "Oslo"), ("Italy", "nan"))
    assert any("semicolons" in note for note in found.notes)
    assert any("1 'none'" in note for note in found.notes)
    (tmp_path / "pairs.json").write_text(json.dumps([{"subject": "Norway", "object": "Oslo"}]))
    assert relation(tmp_path / "pairs.json").samples == (("Norway", "Oslo"),)
    with pytest.raises(UserError, match="decimal=';' is not how"):
        entity_set(pairs, decimal=";")
    with pytest.raises(UserError, match="quote='maybe'"):
        relation(pairs, quote="maybe")


def test_numbers_with_more_digits_than_a_float_holds_stay_apart(tmp_path):
    path = tmp_path / "ids.csv"
    path.write_text("name,uid\n" + "".join(f"N{i:02d}x,{100000000000000000 + i % 3}\n" for i in range(24)))
    held = entity_set(path)
    assert held.target("uid").classes == tuple(str(100000000000000000 + i) for i in range(3))
    assert any("more digits" in note for note in held.notes)
