"""Runs that come from elsewhere: a hostile `run.json` is named and the others are listed; links are refused; names stay inside."""

import json
import os

import pytest

from repscope.cli import run
from repscope.errors import UserError
from repscope.results import Result, Row
from repscope.studies.run.folder import MARK, RunFolder
from repscope.studies.run.runner import load_record
from repscope.studies.verify import STUDY

HOSTILE = {
    "deep": "[" * 100_000,
    "digits": '{"seconds": ' + "9" * 5000 + "}",
    "list": "[1]",
    "null": "null",
    "seconds": '{"study": "lens", "seconds": "x"}',
    "infinite": '{"study": "lens", "seconds": 1e999}',
    "study": '{"study": {"a": 1}}',
    "options": '{"study": "lens", "options": null}',
    "given": '{"study": "lens", "given": [1]}',
    "steps": '{"study": "lens", "steps": {"a": 1}}',
    "surrogate": '{"study": "\\ud800"}',
    "control": '{"study": "\\u001b[2J", "model": "\\u001b]0;x\\u0007"}',
    "bytes": None,
    "empty": "",
}


@pytest.fixture
def out(tmp_path):
    for name, text in HOSTILE.items():
        folder = tmp_path / "runs" / f"lens-{name}"
        folder.mkdir(parents=True)
        (folder / MARK).write_bytes(os.urandom(200) + b"\xff" if text is None else text.encode())
    return tmp_path / "runs"


def test_runs_goes_on(out, capsys):
    assert run(["runs", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert all(f"lens-{name}" in said for name in HOSTILE)
    assert run(["runs", "--out", str(out), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(HOSTILE)


@pytest.mark.parametrize("name", HOSTILE)
def test_one_of_them_is_one_sentence(name, out, capsys):
    for words in (["show", f"lens-{name}"], ["report", f"lens-{name}"]):
        assert run([*words, "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "\x1b" not in said


def test_a_finished_run_with_other_facts_is_damaged(tmp_path):
    folder = RunFolder(tmp_path)
    facts = {"study": "verify", "model": "m", "given": {"nothing": 1}, "options": {}, "versions": {}, "command": "", "steps": {}}
    folder.write_facts(facts)
    with pytest.raises(UserError, match="is damaged"):
        load_record(STUDY, folder)
    folder.write_facts({k: v for k, v in facts.items() if k != "versions"})
    with pytest.raises(UserError, match="lacks 'versions'"):
        load_record(STUDY, folder)


def test_names_of_steps_stay_in_the_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    names = ["../../x", "/etc/x", "a/b", "a b", "a-b", "x" * 400, "é", "\ud800"]
    paths = {folder.step(name, f"{i:016x}") for i, name in enumerate(names)}
    assert len(paths) == len(names)
    assert all(path.parent == tmp_path / "run" / ".steps" and len(path.name) < 200 for path in paths)
    assert folder.step("x", "../../y").parent == tmp_path / "run" / ".steps"


def test_side_tables_have_any_name(tmp_path):
    frame = {name: Result.of([Row(value=1.0)]).table for name in ("../x", "a/b", "é %", "known-x")}
    kept = Result(Result.of([Row(value=1.0)]).table, side=frame).save(tmp_path / "step")
    assert set(Result.load(kept).side) == set(frame)
    assert not [p for p in tmp_path.iterdir() if p.name != "step"]


@pytest.mark.parametrize("name", ["artifacts", "results", ".steps"])
def test_a_linked_folder_is_refused_and_left_alone(name, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"), folder.locked({}):
        pass
    assert (tmp_path / "elsewhere" / "mine").read_text() == "mine"


@pytest.mark.parametrize("sql", ["", " ", ";", "select", "select 1/0", "-- nothing"])
def test_an_empty_query_is_one_sentence_or_an_answer(sql, tmp_path, capsys, tiny_runs):
    tiny_runs.copied("verify", tmp_path)
    code = run(["query", sql, "--out", str(tmp_path)])
    said = capsys.readouterr()
    assert code in (0, 2)
    assert code == 0 or said.err.count("\n") == 1, said.err
