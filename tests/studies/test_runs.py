"""What reads finished runs: rows that can be told apart, queries and nothing else, claims as text, damage in one sentence."""

import json
import shutil

import pytest

from repscope.cli import run
from repscope.errors import UserError
from repscope.results import Row, table_of
from repscope.studies.run.folder import RunFolder, list_runs
from repscope.studies.run.history import query, run_rows, run_summary


def write_run(out, name, rows, **facts):
    folder = out / name
    (folder / "results").mkdir(parents=True)
    table_of(rows).to_parquet(folder / "results" / "summary.parquet", index=False)
    (folder / "run.json").write_text(json.dumps({"study": "entities", "model": "m", "seconds": 1.0} | facts))
    (folder / "report.html").write_text("page")
    return RunFolder(folder)


AT = {"study": "entities", "model": "m", "item": "cities.x", "metric": "accuracy", "lo": 0.1, "hi": 0.3, "n": 9}


@pytest.fixture
def out(tmp_path):
    same = {"site": "chosen", "split": "entity"}
    rows = [
        Row(value=0.2, token="last", **same, **AT),
        Row(value=0.3, token="first", **same, **AT),
        Row(value=-0.0001, condition="bag of token embeddings", **same, **AT),
        Row(
            value=0.4,
            metric="gain",
            condition="over bag of token embeddings",
            **same,
            **{k: v for k, v in AT.items() if k != "metric"},
        ),
    ]
    write_run(tmp_path / "runs", "entities-m-1", rows)
    return tmp_path / "runs"


def test_show_prints_the_columns_that_tell_rows_apart_and_no_more(out, capsys):
    rows = run_summary(RunFolder(out / "entities-m-1"))
    assert list(rows[0]) == ["item", "metric", "condition", "split", "token", "value", "lo", "hi", "n", "unit"]
    keys = [tuple(r[c] for c in ("item", "metric", "condition", "split", "token")) for r in rows]
    assert len(set(keys)) == len(keys)
    assert str(rows[2]["value"]) == "0.0"
    assert run(["show", "entities", "--out", str(out)]) == 0
    assert "token" in capsys.readouterr().out


def test_show_of_numbers_that_all_have_a_block(tmp_path):
    rows = [Row(value=v, site=f"resid_post.{i}", layer=i, **AT) for i, v in enumerate((0.1, 0.2))]
    found = run_summary(write_run(tmp_path, "lens-1", rows))
    assert [r["site"] for r in found] == ["resid_post.0", "resid_post.1"]
    bare = run_summary(write_run(tmp_path, "bench-1", [Row(value=1.0, metric="m")]))
    assert bare[0]["lo"] is None
    json.dumps(bare, allow_nan=False)


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("copy results to '/tmp/x.csv'", "COPY"),
        ("attach '/tmp/x.db'", "ATTACH"),
        ("install httpfs", "a statement of the kind"),
        ("load json", "a statement of the kind"),
        ("create table x as select 1", "CREATE"),
        ("insert into results select * from results", "INSERT"),
        ("delete from results", "DELETE"),
        ("update results set value = 1", "UPDATE"),
        ("drop table results", "DROP"),
        ("pragma version", "PRAGMA"),
        ("set threads = 1", "SET"),
        ("call pragma_version()", "CALL"),
        ("export database '/tmp/x'", "EXPORT"),
        ("begin transaction", "TRANSACTION"),
        ("select 1; select 2", "contains 2"),
        ("select 1; drop table results", "contains 2"),
        ("", "contains none"),
        ("  ;", "contains none"),
        ("/* nothing */", "contains none"),
        ("selct 1", "syntax error"),
        ("select * from '/etc/passwd'", "DuckDB refuses"),
        ("select * from read_text('/etc/passwd')", "DuckDB refuses"),
        ("select * from nowhere", "DuckDB refuses"),
    ],
)
def test_what_is_no_query_is_refused(out, sql, says):
    with pytest.raises(UserError, match=says):
        query(sql, out)


@pytest.mark.parametrize(
    "sql",
    [
        "select count(*) as n from results",
        "with a as (select * from results) select count(*) as n from a",
        "values (4)",
        "from results limit 1",
        "select 1;",
        "-- a comment\nselect ';' as x",
        "SELECT 1 /* copy x to y */",
    ],
)
def test_queries_in_any_form_are_answered(out, sql):
    assert len(query(sql, out)) == 1


def test_json_of_a_query_holds_columns_of_one_name_and_missing_numbers(out, capsys):
    assert run(["query", "select value, value, null as nothing, lo from results limit 1", "--out", str(out), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert len(row) == 4
    assert row["nothing"] is None


def test_claims_are_text_with_whole_addresses(out, capsys):
    assert run(["claims", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Nanda, Rajamanoharan, Kramár & Shah, 2023, https://www.alignmentforum.org/posts/iGuwZTHWb6DFY3sKB\n" in said
    assert "SUPPORTED in entities-m-1" not in said.split("[")[0]
    for residue in ("Source(", "authors=", "&amp;", "<a", "[/"):
        assert residue not in said
    assert "[0.10, 0.30]" in said or "NOT TESTED" in said
    assert run(["claims", "--out", str(out), "--json"]) == 0
    assert all(isinstance(row["source"], str) for row in json.loads(capsys.readouterr().out))
    assert run(["claims", "--out", str(out / "nowhere")]) == 0
    assert "refuted by: " in capsys.readouterr().out


def test_intervals_in_brackets_are_printed_whole(tmp_path, capsys):
    where = {"site": "s", "split": "entity", "study": "entities", "model": "m"}
    rows = [
        Row(value=0.4, lo=0.3, hi=0.5, metric="gain", item="cities.continent", condition="over bag of token embeddings", **where)
    ]
    write_run(tmp_path, "entities-m-1", rows)
    assert run(["claims", "--out", str(tmp_path)]) == 0
    assert "cities.continent 0.40 [0.30, 0.50]" in capsys.readouterr().out


@pytest.mark.parametrize("facts", ["", "{", "[]", "null", '{"seconds": "x", "model": 3}', "\x00"])
def test_a_damaged_run_json_hides_no_run(out, capsys, facts):
    (out / "entities-m-1" / "run.json").write_text(facts)
    (row,) = run_rows(out)
    assert (row["run"], row["state"], row["seconds"]) == ("entities-m-1", "done", 0.0)
    assert run(["runs", "--out", str(out)]) == 0
    assert run(["runs", "--out", str(out), "--json"]) == 0
    assert run(["show", "entities", "--out", str(out)]) == 0


def test_foreign_folders_and_files_are_no_runs(out):
    (out / "notes").mkdir()
    (out / "notes" / "results").mkdir()
    (out / "readme.txt").write_text("x")
    (out / ".lock").touch()
    assert [r.path.name for r in list_runs(out)] == ["entities-m-1"]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all"])
@pytest.mark.parametrize("command", [["show", "entities"], ["query", "select 1"], ["claims"]])
def test_a_damaged_table_is_one_sentence(out, capsys, content, command):
    (out / "entities-m-1" / "results" / "summary.parquet").write_bytes(content)
    assert run([*command, "--out", str(out)]) == (0 if command == ["claims"] else 2)  # there is no other run to query
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "summary.parquet is damaged" in sentence
    assert "--fresh" in sentence


def test_a_run_without_results_says_so(out, capsys):
    shutil.rmtree(out / "entities-m-1" / "results")
    assert run(["show", "entities", "--out", str(out)]) == 2
    assert "not finished" in capsys.readouterr().err
