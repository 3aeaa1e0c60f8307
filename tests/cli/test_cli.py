"""The command line: exit codes, what goes to which stream, and one sentence for a user's mistake."""

import json
import shutil
from pathlib import Path

import pytest

from repscope import models
from repscope.cli import run
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.verify.checks import CHECKS
from repscope.studies.entities import STUDY as ENTITIES
from repscope.studies.entities.options import EntitiesOptions
from repscope.studies.run.proof_cache import engine_digest, keep_proofs, restore_proofs
from repscope.studies.run.runner import Run
from repscope.studies.run.verification import cached_verification
from repscope.worlds.tiny import tiny


@pytest.fixture(scope="module")
def runs(tiny_runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    tiny_runs.copied("entities", out)
    assert run(["study", "entities", "--tiny", "--out", str(out)]) == 0
    return out


def test_standard_output_ends_with_the_page(tiny_runs):
    _, done = tiny_runs.in_a_process()
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
    assert "over bag of token embeddings" in capsys.readouterr().out
    sql = "select distinct condition from results where metric = 'gain' order by condition"
    assert run(["query", sql, "--out", str(runs), "--json"]) == 0
    assert {"condition": "over bag of token embeddings"} in json.loads(capsys.readouterr().out)
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

    monkeypatch.setattr("repscope.models.loading.sources.cached", broken)
    assert run(["models"]) == 70
    assert "fault of repscope" in capsys.readouterr().err
    monkeypatch.setattr("repscope.models.loading.sources.cached", stopped)
    assert run(["models"]) == 130


def test_models_lists_what_can_be_had(capsys):
    assert run(["models"]) == 0
    assert "smollm2-135m-instruct-q4" in capsys.readouterr().out


def mixed():
    """A tiny model with a block that adds to each row of a batch what the others hold: wrong where two prompts run together."""
    lm = tiny()
    lm.model.model.layers[1].register_forward_hook(lambda m, args, output: output + 0.01 * output.mean(0, keepdim=True))
    return lm


@pytest.mark.parametrize(("make", "code"), [(tiny, 0), (mixed, 1)])
def test_verify_prints_a_table_and_a_folder_and_fails_where_a_check_does(tmp_path, monkeypatch, capsys, make, code):
    monkeypatch.setattr("repscope.models.loading.sources.load", lambda *args, **kwargs: make())
    assert run(["verify", "tiny", "--out", str(tmp_path)]) == code
    said = capsys.readouterr().out
    folder = str(Path(said.splitlines()[-1]).parent)
    assert folder.startswith(str(tmp_path / "verify-tiny-"))
    assert "padded batch" in said
    assert ("failed: " in said) == bool(code)
    assert run(["verify", "tiny", "--out", str(tmp_path), "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["run"] == folder
    assert told["passed"] == (not code)
    assert len(told["checks"]) == len(CHECKS)
    assert run(["runs", "--out", str(tmp_path), "--json"]) == 0
    assert [(r["study"], r["state"]) for r in json.loads(capsys.readouterr().out)] == [("verify", "done")]
    assert run(["show", "verify", "--out", str(tmp_path)]) == 0
    assert "rows shifted by one" in capsys.readouterr().out
    sql = (
        "select error.item from results error join results limit_ on error.item = limit_.item where error.condition = 'estimate' "
        "and limit_.condition = 'tolerance' and not error.value <= limit_.value"
    )
    assert run(["query", sql, "--out", str(tmp_path), "--json"]) == 0
    beyond = {row["item"] for row in json.loads(capsys.readouterr().out)}
    assert bool(beyond) == bool(code)  # rows that mix run alone, and what cannot is told
    page = Path(folder, "report.html").read_text()
    assert ("No: " in page) == bool(code)


def test_a_study_holds_the_checks_of_its_network(runs, capsys):
    sql = "select item, value from results where step = 'verify' and study = 'entities' and condition = 'estimate'"
    assert run(["query", sql, "--out", str(runs), "--json"]) == 0
    rows = {row["item"]: row["value"] for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == len(CHECKS)
    assert max(rows.values()) <= 1e-5
    folder = next(p for p in runs.iterdir() if (p / "run.json").is_file())
    assert json.loads((folder / "run.json").read_text())["verified"]["passed"]
    page = (folder / "report.html").read_text()
    assert "Engine checked on this model" in page
    assert f"{len(CHECKS)} of {len(CHECKS)}, largest error" in page


def test_a_study_on_a_network_that_fails_says_so_first(tmp_path):
    made = Run(ENTITIES, EntitiesOptions(tiny=True, attribute=("continent",)), out=tmp_path, lm=mixed())
    page = made.answer().read_text()
    assert "The engine failed its check" in page
    assert "failed its check" in made.headline().lines[0]
    assert not json.loads((made.folder / "run.json").read_text())["verified"]["passed"]


def test_checks_are_kept_for_weights_that_pass_and_for_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path))
    first, broken = cached_verification(tiny()), mixed()
    assert first.passed
    assert not cached_verification(broken).passed, "its weights are those that passed, its hooks are not"

    def again(lm):
        raise UserError("checked again")

    monkeypatch.setattr("repscope.models.verify.checks.verify", again)
    assert cached_verification(tiny()) == first
    for changed in (tiny(1), broken, tiny().twin(3)):
        with pytest.raises(UserError, match="checked again"):
            cached_verification(changed)


def test_trials_that_passed_are_kept_for_the_same_model_and_for_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path))
    first = tiny()
    assert first.shares_prefix(8)
    first.proofs.found["another path", 0] = "it differs"
    first.proofs.refused("a path of long prompts", 0, lambda lengths: "")
    first.proofs.found["a path of long prompts", 1], first.proofs.wanted["a path of long prompts", 1] = "", 1e9
    keep_proofs(first)
    again = tiny()
    restore_proofs(again)
    assert {("shared prefix", 0), ("a path of long prompts", 0)} <= set(again.proofs.found)
    assert ("a path of long prompts", 1) not in again.proofs.found, "a second run would take another path than the first"
    assert set(again.proofs.found.values()) == {""}
    monkeypatch.setattr(LanguageModel, "_prefix_differs", lambda self, lengths: "tried again")
    assert again.shares_prefix(8)
    for changed in (tiny(1), mixed(), tiny().twin(3)):
        restore_proofs(changed)
        assert not changed.shares_prefix(8)
    (file,) = (tmp_path / "proved").iterdir()
    file.write_text("[[")
    damaged = tiny()
    restore_proofs(damaged)
    assert not damaged.shares_prefix(8)


@pytest.mark.parametrize("source", ["language.py", "engine/hooks.py", "loading/gguf.py", "verify/checks.py"])
def test_a_change_in_any_source_of_the_engine_makes_the_checks_again(tmp_path, monkeypatch, source):
    shutil.copytree(Path(models.__file__).parent, tmp_path / "models")
    monkeypatch.setattr(models, "__file__", str(tmp_path / "models" / "__init__.py"))
    engine_digest.cache_clear()
    before = engine_digest()
    (tmp_path / "models" / source).open("a").write("# touched")
    engine_digest.cache_clear()
    assert engine_digest() != before
    monkeypatch.undo()
    engine_digest.cache_clear()


@pytest.mark.parametrize(
    ("command", "arguments"),
    [("compare", "BASE TUNED"), ("connect", "NETWORKS..."), ("lens", "MODEL PROMPT"), ("verify", "[MODEL]")],
)
def test_help_names_the_arguments(command, arguments, capsys):
    assert run([command, "--help"]) == 0
    assert capsys.readouterr().out.lstrip().startswith(f"Usage: repscope {command} {arguments} [OPTIONS]")
