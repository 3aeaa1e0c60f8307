"""The command line: exit codes, what goes to which stream, and one sentence for a user's mistake."""

import json
import subprocess
import sys

import pytest

from repscope.cli import run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    assert run(["study", "entities", "--tiny", "--out", str(out)]) == 0
    return out


def test_standard_output_ends_with_the_page(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "repscope", "study", "entities", "--tiny", "--entities", "countries", "--out", str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = done.stdout.splitlines()[-1]
    assert page.endswith("report.html")
    assert "Traceback" not in done.stderr


def test_json_is_one_object(runs, capsys):
    assert run(["study", "entities", "--tiny", "--out", str(runs), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["page"].endswith("report.html")
    assert said["answer"]


def test_a_plan_runs_nothing(tmp_path, capsys):
    assert run(["study", "entities", "--tiny", "--plan", "--out", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["left"]["tokens"] > 0
    assert not list(tmp_path.rglob("report.html"))
    assert run(["study", "entities", "--tiny", "--plan", "--out", str(tmp_path)]) == 0
    assert "left to do" in capsys.readouterr().out


def test_runs_show_and_query(runs, capsys):
    assert run(["runs", "--out", str(runs)]) == 0
    assert "entities-tiny" in capsys.readouterr().out
    assert run(["show", "entities-t", "--out", str(runs)]) == 0
    assert "over bag of tokens" in capsys.readouterr().out
    sql = "select distinct condition from results where metric = 'gain' order by condition"
    assert run(["query", sql, "--out", str(runs), "--json"]) == 0
    assert {"condition": "over bag of tokens"} in json.loads(capsys.readouterr().out)
    assert run(["claims", "--out", str(runs)]) == 0
    assert "undecided" in capsys.readouterr().out or True


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["study", "entites"], "entities"),
        (["study", "entities", "--modle", "x"], "--model"),
        (["study", "entities", "--shuffles", "many"], "shuffles"),
        (["study", "entities", "--data", "x.csv"], "--text COLUMN"),
        (["study", "entities", "--tiny", "--entities", "citis"], "did you mean 'cities'"),
        (["sites", "smolm2-135m-instruct-q4"], "did you mean 'smollm2-135m-instruct-q4'"),
        (["show", "entities-tny"], "did you mean 'entities-tiny"),
        (["query", "select nothing from nowhere"], "DuckDB refuses"),
        (["query", "select * from read_csv('/etc/passwd')"], "DuckDB refuses"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_two(runs, capsys, arguments, says):
    assert run([*arguments, "--out", str(runs)] if arguments[0] in ("study", "show", "query") else arguments) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1


def test_our_own_fault_is_seventy_and_an_interrupt_a_hundred_and_thirty(monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("bang")

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("repscope.models.sources.cached", broken)
    assert run(["models"]) == 70
    assert "fault of repscope" in capsys.readouterr().err
    monkeypatch.setattr("repscope.models.sources.cached", stopped)
    assert run(["models"]) == 130


def test_models_lists_what_can_be_had(capsys):
    assert run(["models"]) == 0
    assert "smollm2-135m-instruct-q4" in capsys.readouterr().out
