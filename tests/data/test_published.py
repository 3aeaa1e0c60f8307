import numpy as np
import pandas as pd
import pytest

from repscope.data.published import SUMMARIES, Clusters, accuracies, clusters, feather_clusters, where
from repscope.errors import UserError

HEADER = "Run,MNLI dev acc.,Lexical (nonent),ln_subject/object_swap"
ROWS = ["Run 0,0.8456444,0.39,0.415", "Run 1,0.8436067,0.2992,0", "Run 12,0.8476821,1,1"]


def feather(path, rows=ROWS, header=HEADER, tail=True):
    """In the published file's own shape: a byte order mark, summaries under the runs, blank rows, and a carriage return or two."""
    width = header.count(",")
    below = [f"{name},{','.join(['0.5'] * width)}" for name in ("Minimum", "Maximum", "Mean", "Standard deviation")]
    lines = [header, *rows, *(below + ["," * width] * 3 if tail else [])]
    path.write_bytes("\r\n".join([*lines, ""]).encode("utf-8-sig"))
    return path


def test_the_published_shape(tmp_path):
    frame = accuracies(feather(tmp_path / "a.csv"))
    assert list(frame.columns) == ["run", *HEADER.split(",")[1:]]
    assert frame["run"].tolist() == [0, 1, 12]
    assert frame["run"].dtype == "int64"
    assert (frame.dtypes[1:] == "float64").all()
    assert frame.loc[0].tolist() == [0, 0.8456444, 0.39, 0.415]
    assert frame.index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_bare_run_numbers_in_every_format(tmp_path, suffix):
    frame, path = pd.DataFrame({"id": [0.9, 0.8], "run": [3, 1], "ood": [0.5, 1e-3]}), tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    pd.testing.assert_frame_equal(accuracies(path), frame[["run", "id", "ood"]])


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([*ROWS, "Run 1,0.8,0.2,0.1"], "names run 1 more than once"),
        ([*ROWS, "1,0.8,0.2,0.1"], "names run 1 more than once"),
        ([*ROWS, "Total,0.8,0.2,0.1"], "'Total' where a run should be"),
        ([*ROWS, ",0.8,0.2,0.1"], "'' where a run should be"),
        ([*ROWS, "Run -3,0.8,0.2,0.1"], "'Run -3' where a run should be"),
        ([*ROWS, "Run 1.5,0.8,0.2,0.1"], "'Run 1.5' where a run should be"),
        ([*ROWS, f"Run {'9' * 5000},0.8,0.2,0.1"], "where a run should be"),
        ([*ROWS, "Run ３,0.8,0.2,0.1"], "where a run should be"),
        ([*ROWS, "Run 3,high,0.2,0.1"], "Column 'MNLI dev acc.' of a.csv has 'high' for run 3"),
        ([*ROWS, "Run 3,0.8,,0.1"], r"Column 'Lexical \(nonent\)' of a.csv has nothing for run 3"),
        ([*ROWS, "Run 3,0.8,84%,0.1"], "'84%' in line 5"),
        ([*ROWS, "Run 3,0.8,nan,0.1"], "nothing for run 3"),
        ([*ROWS, "Run 3,0.8,inf,0.1"], "'inf' in line 5"),
        ([*ROWS, "Run 3,0.8,1_0,0.1"], "'1_0' for run 3"),
        ([*ROWS, "Run 3,0,8,0.2,0.1"], "5 fields"),
        ([], "no row of a run"),
    ],
)
def test_broken_rows(tmp_path, rows, says):
    with pytest.raises(UserError, match=says):
        accuracies(feather(tmp_path / "a.csv", rows))


@pytest.mark.parametrize(
    ("header", "rows", "says"),
    [
        ("Model,acc", ["Run 0,0.5"], "no column of a.csv 'run'"),
        ("Run,run", ["Run 0,0"], "the columns 'Run' and 'run'"),
        ("Run,acc,acc", ["Run 0,0.5,0.5"], "'acc' 2 times"),
        ("Run", ["Run 0"], "no column of scores"),
    ],
)
def test_broken_headers(tmp_path, header, rows, says):
    with pytest.raises(UserError, match=says):
        accuracies(feather(tmp_path / "a.csv", rows, header, tail=False))


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "noise.csv").write_bytes(bytes(range(128, 256)))
    for name in ("empty.csv", "noise.csv", "not-there.csv", "a.xlsx"):
        with pytest.raises(UserError):
            accuracies(tmp_path / name)
        with pytest.raises(UserError):
            clusters(tmp_path / name)
    with pytest.raises(UserError):
        clusters(tmp_path)


def test_the_twelve_runs_are_facts():
    held = feather_clusters()
    labels = np.array(held.of(range(100)))
    assert np.flatnonzero(labels == "smaller").tolist() == [15, 25, 26, 42, 44, 46, 56, 61, 63, 70, 73, 89]
    assert (labels != "smaller").sum() == (labels == "larger").sum() == 88
    assert "aNOnWhyMooS/connectivity" in held.source
    with pytest.raises(UserError, match="names runs 25, 26, 42, 44, 46 and 6 more, which the table of 20 runs lacks"):
        held.of(range(20))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "3\n7\n12\n"),
        ("a.txt", "3, 7, 12"),
        ("a.txt", "\ufeffRun 3\r\nrun 7\r\nRun 12\r\n\r\n"),
        ("a.txt", "'3', '7', '12'"),  # as that README writes them
        ("a", "3;7 12"),
        ("a.csv", "3,7,12\n"),
    ],
)
def test_a_list_of_one_clusters_runs(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    held = clusters(tmp_path / name)
    assert held.named == {3: "listed", 7: "listed", 12: "listed"}
    assert held.of([12, 1, 3, 7]) == ["listed", "others", "listed", "listed"]


def test_a_table_of_clusters(tmp_path):
    (tmp_path / "a.csv").write_text("Cluster,note,Run\nA,x,Run 1\nB,,2\nA,,3\n,,\n")
    held = clusters(tmp_path / "a.csv")
    assert held == Clusters({1: "A", 2: "B", 3: "A"}, "", "a.csv")
    assert held.of([3, 2, 1]) == ["A", "B", "A"]
    with pytest.raises(UserError, match="no cluster for run 4 of the table; add it"):
        held.of([1, 2, 3, 4])
    with pytest.raises(UserError, match="names run 2, which the table of 2 runs lacks"):
        held.of([1, 3])


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "run,group\n1,A\n", "no column of a.csv 'cluster'"),
        ("a.csv", "cluster,id\nA,1\n", "no column of a.csv 'run'"),
        ("a.csv", "run,cluster\n1,A\n1,B\n", "names run 1 more than once"),
        ("a.csv", "run,cluster\n1,A\n2,\n", "leaves the cluster of run 2 empty"),
        ("a.csv", "run,cluster\none,A\n", "'one' where a run should be"),
        ("a.txt", "3\nseven\n", "'seven' where a run should be"),
        ("a.txt", "3, 7, 3", "names run 3 more than once"),
        ("a.txt", " \n,,\n", "names no run"),
        ("a.txt", "3.5", "'3.5' where a run should be"),
    ],
)
def test_broken_clusters(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says):
        clusters(tmp_path / name)


def test_where_names_repository_and_licence():
    assert "tommccoy1/hans" in where()[0]
    assert "MIT" in where()[0]
    assert "connectivity" in where()[1]
    assert all(text.endswith(".") for text in where())
    assert "mean" in SUMMARIES
