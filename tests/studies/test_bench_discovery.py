"""`repscope bench discovery`: exit codes, the folder, the page, and one sentence for a user's mistake."""

import json
from pathlib import Path

import pytest

from repscope.bench import discovery
from repscope.bench.methods import BENCH_METHODS, BENCH_METRICS
from repscope.cli import run
from repscope.discovery.generators.comparison import DIFFUSION_ONLY, GAN_ONLY, METHODS, ORTHOGONAL
from repscope.studies.bench_discovery.settings import SETTINGS
from repscope.studies.catalogue import study
from repscope.studies.run.folder import RunFolder
from repscope.studies.run.runner import load_record

HERE = ["bench", "discovery", "--tiny", "--out"]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_end_to_end(tmp_path, capsys, setting):
    assert run([*HERE, str(tmp_path), "--setting", setting]) == 0
    said = capsys.readouterr().out
    page = Path(said.splitlines()[-1])
    assert page.name == "report.html"
    text = page.read_text()
    left_out = {"gan": DIFFUSION_ONLY, "digits": DIFFUSION_ONLY, "ddpm": GAN_ONLY}.get(setting)
    if left_out is not None:
        left_out = (*left_out, ORTHOGONAL)  # an untrained generator has no such directions
    planted = [method.name for method in BENCH_METHODS if method.given != "truth" and method.steps != 100]
    assert all(name in said for name in (planted if left_out is None else [name for name in METHODS if name not in left_out]))
    assert "L2 + contrastive" in text
    assert "the largest values and the controls" in text
    table = load_record(study("bench-discovery"), RunFolder(page.parent)).table
    assert set(table["metric"]) <= {*BENCH_METRICS, "planted"}
    assert {m for m, _ in SETTINGS[setting].drawn} <= set(table["metric"])
    assert run(["runs", "--out", str(tmp_path)]) == 0
    assert run(["show", page.parent.name, "--out", str(tmp_path)]) == 0
    assert "random" in capsys.readouterr().out


def test_json_is_one_object(tmp_path, capsys):
    assert run([*HERE, str(tmp_path), "--kinds", "exp", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["passed"] is True
    assert said["page"].endswith("report.html")
    assert said["rows"][0]["method"] == "random"


@pytest.mark.parametrize(("condition", "says"), [("random direction", "the seed leaks"), ("oracle", "must recover all")])
def test_a_violation_exits_with_one(tmp_path, capsys, monkeypatch, condition, says):
    """The random row told the truth; the oracle told something else."""
    method = next(m for m in BENCH_METHODS if m.condition == condition)
    given = "truth" if condition == "random direction" else "supervised"
    broken = discovery.BenchMethod(method.name, condition=condition, given=given)
    monkeypatch.setattr(discovery, "difference_of_means", lambda states, truth: truth.flip(1))
    monkeypatch.setattr(discovery.planted_mlp, "__kwdefaults__", {"methods": (broken,), "seed": 0, "steps": None, "n": 4})
    assert run([*HERE, str(tmp_path), "--kinds", "exp"]) == 1
    assert says in capsys.readouterr().out
    assert next(tmp_path.glob("bench-*/run.json")).read_text().count('"passed": false') == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--setting", "planted-mpl"], "did you mean 'planted-mlp'"),
        (["--kinds", "cubic"], "no kind of network"),
        (["--setting", "planted-mlp", "--model", "x"], "draws its own networks"),
        (["--setting", "lm", "--model", "x"], "--tiny brings its own model"),
        (["--seeds", "0"], "greater than or equal to 1"),
        (["--n", "0"], "greater than or equal to 1"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_two(tmp_path, capsys, arguments, says):
    assert run([*HERE, str(tmp_path), *arguments]) == 2
    said = capsys.readouterr().err.splitlines()
    assert says in said[-1]
    assert len([line for line in said if line.startswith("repscope:")]) == 1
