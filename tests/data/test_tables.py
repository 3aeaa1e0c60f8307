import numpy as np
import pandas as pd
import pytest

from repscope.data.columns import typed as typed_column
from repscope.data.reading import reading
from repscope.data.tables import clean, read_table
from repscope.errors import UserError

ROWS = [("Oslo", "NO", "709037"), ("Windhoek", "NA", ""), ("São Paulo", "BR", "12400232")]
FRAME = pd.DataFrame(ROWS, columns=["city", "country", "people"])


def typed(cells, column, **how):
    found = typed_column(cells, column, lambda row: f"line {row + 2}", reading(**how))
    return found.kind, found.values


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_the_same_table_from_every_format(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        FRAME.to_parquet(path)
    else:
        FRAME.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    read = read_table(path, ["country", "people", "city"]).frame
    assert list(read.columns) == ["country", "people", "city"]
    assert read["country"].tolist() == ["NO", "NA", "BR"]  # Namibia is not a missing value
    assert read["people"].tolist() == ["709037", "", "12400232"]
    assert list(read_table(path).frame.columns) == ["city", "country", "people"]


def test_parquet_types_become_text(tmp_path):
    frame = pd.DataFrame(
        {
            "whole": pd.array([1, None], dtype="Int64"),
            "part": [0.5, np.nan],
            "flag": [True, False],
            "kind": pd.Categorical(["a", None]),
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet").frame
    assert read.to_dict("list") == {"whole": ["1", ""], "part": ["0.5", ""], "flag": ["true", "false"], "kind": ["a", ""]}


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = write(tmp_path / "t.csv", "city,country\nOslo,NO\n", "utf-8-sig")
    assert read_table(path, ["city"]).frame["city"].tolist() == ["Oslo"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.csv", b"", "is empty"),
        ("header.csv", b"city,country\n", "has a header and no rows"),
        ("long.csv", b"city,country\nOslo,NO\nSpringfield, Illinois,US\n", "3 fields in line 3 and 2 column names"),
        ("short.csv", b"city,country\nOslo\n", "1 fields in line 2"),
        ("latin.csv", "city,country\nMünchen,DE\n".encode("latin-1"), "not UTF-8 (byte 0xfc"),
        ("quote.csv", b'city,country\n"Oslo,NO\n', "not well-formed"),
        ("twice.csv", b"city,country,city\nOslo,NO,Oslo\n", "has the column 'city' 2 times"),
        ("typo.csv", b"cities,country\nOslo,NO\n", "did you mean 'cities'?"),
        ("table.xlsx", b"PK", "save the sheet as CSV"),
        ("table.pkl", b"\x80\x04", "save it as .csv or .tsv or .parquet"),
        ("broken.parquet", b"not parquet at all", "not a Parquet file"),
    ],
)
def test_each_unusable_file_gets_its_sentence(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_table(path, ["city"])
    assert says in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_missing_files_and_nested_columns(tmp_path):
    write(tmp_path / "cities.csv", "city\nOslo\n")
    with pytest.raises(UserError, match=r"did you mean 'cities\.csv'"):
        read_table(tmp_path / "citties.csv", ["city"])
    with pytest.raises(UserError, match="is a folder"):
        read_table(tmp_path, ["city"])
    with pytest.raises(UserError, match="There is no folder"):
        read_table(tmp_path / "nowhere" / "cities.csv", ["city"])
    pd.DataFrame({"city": [["Oslo"], ["Rome"]]}).to_parquet(tmp_path / "nested.parquet")
    with pytest.raises(UserError, match="not text or numbers; choose another"):
        read_table(tmp_path / "nested.parquet", ["city"])


def test_cleaning_counts_what_it_drops():
    frame = pd.DataFrame(
        {
            "city": ["Oslo", " Oslo ", "", "   ", "x" * 10_000, "Cafe\u0301", "Caf\u00e9", "York", "York"],
            "country": ["NO", "NO", "FR", "FR", "FR", "FR", "", "UK", "US"],
        }
    )
    kept, notes = clean(frame, "city", longest=200)
    assert kept["city"].tolist() == ["Oslo", "Caf\u00e9", "York"]
    assert kept["country"].tolist() == ["NO", "FR", ""]  # copies that disagree have no answer
    assert kept.index.tolist() == [0, 5, 7]
    assert notes[0] == "2 rows of 9 dropped for an empty 'city'."
    assert notes[1] == "1 row of 9 dropped for a 'city' of more than 200 characters."
    assert notes[2] == "3 rows of 9 dropped as copies of an earlier 'city'."
    assert notes[3] == "Conflicting values of 'country' for 1 copied 'city' (such as 'York': UK, US) count as missing."
    assert len(notes) == 4
    assert len(clean(frame, "city")[0]) == 4  # a text may be long


def test_an_order_of_rows_without_copies_is_left_alone():
    kept, notes = clean(FRAME, "city")
    pd.testing.assert_frame_equal(kept, FRAME, check_dtype=False)
    assert notes == ()


def test_nothing_left_is_an_error():
    with pytest.raises(UserError, match="no usable name among its 2 rows"):
        clean(pd.DataFrame({"city": ["", " "], "country": ["a", "b"]}), "city")


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([str(i) for i in range(13)], "number"),
        ([str(i % 12) for i in range(40)], "class"),
        ([f"{i % 3}.0" for i in range(40)], "class"),  # whole numbers that a missing value turned into floats
        (["0.5", "1.5", "2"], "number"),
        (["-1.5e3", "+2.25", ".5"], "number"),
        (["true", "false", "true"], "class"),
        ([f"{i:05d}" for i in range(20)], "class"),  # postcodes
        (["1", "2", "3", "other"], "class"),
        (["a", "b", "NA"], "class"),
    ],
)
def test_what_a_column_is(cells, kind):
    found, values = typed(pd.Series([*cells, ""], dtype=object), "c")
    assert found == kind
    assert values.isna().tolist() == [False] * len(cells) + [True]
    if kind == "number":
        assert values.dtype == np.float64
        assert values.iloc[:-1].tolist() == [float(c) for c in cells]


def test_whole_floats_are_named_as_whole_numbers():
    assert typed(pd.Series(["1.0", "2", "10.0"]), "c")[1].tolist() == ["1", "2", "10"]


def test_words_among_numbers_are_refused_with_a_row():
    cells = pd.Series([str(i) + ".5" for i in range(20)] + ["small", "large"])
    with pytest.raises(UserError) as error:
        typed(cells, "people")
    assert "'people' mixes 20 numbers ('0.5' in line 2) with 2 words ('small' in line 22)" in str(error.value)


def test_columns_without_a_usable_value():
    with pytest.raises(UserError, match="no value in any usable row"):
        typed(pd.Series(["", ""]), "people")
    with pytest.raises(UserError, match="too large to hold: 1e999"):
        typed(pd.Series(["1e999", "2.5"]), "people")
