"""`repscope connect`, end to end: the folder, the numbers, and every mistake in a sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpointed import TEXTS, saved
from repscope.cli import run
from repscope.models.checkpoints import CheckpointSet
from repscope.models.loading.stacked_weights import stack
from repscope.studies.catalogue import study
from repscope.studies.run.folder import RunFolder
from repscope.studies.run.runner import load_record
from repscope.trace.barriers import HEIGHTS, height
from repscope.worlds.hans import classifier as small
from repscope.worlds.hans import fine_tuning

LABELS = [0, 1, 2, 1, 0, 2, 2]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("nets")
    saved(home, "llama", [0, 1])
    saved(home / "set", "bert", [0, 1, 2])
    (home / "lm.txt").write_text("\n".join(TEXTS))
    frame = pd.DataFrame({"text": TEXTS, "label": LABELS, "part": ["id"] * 4 + ["ood"] * 3, "second": TEXTS[::-1]})
    frame.to_csv(home / "cls.csv", index=False)
    frame.assign(label=5).to_csv(home / "beyond.csv", index=False)
    frame.drop(columns="label").to_csv(home / "unlabelled.csv", index=False)
    (home / "empty.csv").write_text("")
    return home


def answered(capsys, *words):
    assert run(["connect", *map(str, words), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_language_models(home, tmp_path, capsys):
    a, b = home / "llama-0", home / "llama-1"
    assert run(["connect", str(a), str(b), "--data", str(home / "lm.txt"), "--points", "5", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].endswith("report.html")
    assert any("From llama-0 to llama-1 the chord barrier of the loss is" in line for line in said)
    told = answered(capsys, a, b, "--data", home / "lm.txt", "--points", 5, "--out", tmp_path)
    assert told["page"] == said[-1], "the same question is the same run"
    assert [row["loss"] for row in told["rows"]] == ["loss", "error"]
    assert run(["runs", "--out", str(tmp_path), "--json"]) == 0
    assert [(r["study"], r["state"]) for r in json.loads(capsys.readouterr().out)] == [("connect", "done")]
    sql = "select value, lo, hi from results where metric = 'loss increase of loss' order by condition"
    assert run(["query", sql, "--out", str(tmp_path), "--json"]) == 0
    estimate, control = json.loads(capsys.readouterr().out)
    assert estimate["lo"] <= estimate["value"] <= estimate["hi"]
    assert control["value"] != estimate["value"]
    assert run(["show", "connect", "--out", str(tmp_path)]) == 0
    assert "larger endpoint barrier of error" in capsys.readouterr().out


def test_a_set_of_classifiers_has_splits_and_a_matrix(home, tmp_path, capsys):
    told = answered(capsys, home / "set", "--data", home / "cls.csv", "--split", "part", "--points", 4, "--out", tmp_path)
    assert {row["loss"] for row in told["rows"]} == {"loss", "error", "ood loss", "ood error"}
    assert len(told["answer"]) == 2
    found = load_record(study("connect"), RunFolder(Path(told["run"]))).results["connect"]
    curves = found.arrays["line ood loss"]
    assert curves.shape == (3 + 3, 4)
    for how in HEIGHTS:
        name = f"{how} of ood loss" if how == "convexity gap" else f"{how} barrier of ood loss"
        rows = found.select(metric=name)
        np.testing.assert_allclose(rows["value"], height(curves, how), atol=1e-9)
        assert rows["condition"].tolist() == ["estimate"] * 3 + ["random direction"] * 3
    own = found.select(metric="ood loss")
    np.testing.assert_allclose(own["value"], [curves[0, 0], curves[0, -1], curves[1, -1]])
    assert (own["n"] == 3).all()
    assert (own["lo"] < own["value"]).all()
    states = [load_file(home / "set" / f"bert-{i}" / "model.safetensors") for i in range(2)]
    apart = sum(float((states[1][k] - v).square().sum()) for k, v in states[0].items()) ** 0.5
    assert found.select(metric="distance")["value"].iloc[0] == pytest.approx(apart, rel=1e-5)
    page = (tmp_path / told["run"].split("/")[-1] / "report.html").read_text()
    assert "Between all runs" in page
    assert "random direction" in page


def test_pairs_of_texts_reach_the_network(home, tmp_path, capsys):
    words = (home / "set", "--data", home / "cls.csv", "--points", 3, "--controls", 0, "--out", tmp_path)
    alone, pairs = answered(capsys, *words), answered(capsys, *words, "--pair", "second")
    assert alone["run"] != pairs["run"]
    assert alone["rows"][0]["at one end"] != pairs["rows"][0]["at one end"]
    assert alone["rows"][0]["loss increase, random direction"] == "–"


def test_small_transformers_bring_their_data(tmp_path, capsys):
    world = fine_tuning.World()
    shape, state = world.shape(), stack(small.random_weights(fine_tuning.World().shape(), i) for i in range(3))
    CheckpointSet.written(tmp_path / "set", shape, pd.DataFrame({"run": ["a", "b", "c"]}), {0: state, 9: state})
    told = answered(capsys, tmp_path / "set", "--points", 4, "--controls", 1, "--out", tmp_path)
    assert [r["pair"] for r in told["rows"][::4]] == ["a – b", "a – c", "b – c"]
    found = load_record(study("connect"), RunFolder(Path(told["run"]))).results["connect"]
    expected = fine_tuning.evaluator(world, 0)(state)
    np.testing.assert_allclose(found.select(metric="ood error")["value"], expected["ood error"])
    assert run(["connect", str(tmp_path / "set"), "--data", "x.txt"]) == 2
    assert "omit --data" in capsys.readouterr().err


def test_a_killed_run_goes_on(home, tmp_path, capsys, monkeypatch):
    from repscope.trace import checkpoint_losses

    calls, made = [], checkpoint_losses.losses_by_example

    def counting(*given, stop=None):
        evaluate = made(*given)

        def counted(module):
            calls.append(1)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return evaluate(module)

        return counted

    words = ["connect", str(home / "llama-0"), str(home / "llama-1"), "--data", str(home / "lm.txt"), "--out", str(tmp_path)]
    monkeypatch.setattr("repscope.trace.checkpoint_losses.losses_by_example", lambda *given: counting(*given, stop=8))
    assert run(words) == 130
    assert run(["runs", "--out", str(tmp_path)]) == 0
    assert "not finished" in capsys.readouterr().out
    calls.clear()
    monkeypatch.setattr("repscope.trace.checkpoint_losses.losses_by_example", counting)
    assert run(words) == 0
    assert len(calls) == 3 + 8 + 8 - 7
    calls.clear()
    assert run(words) == 0
    assert not calls
    assert run([*words, "--fresh"]) == 0
    assert len(calls) == 19


def changed(home, name, **fields):
    """A copy of a checkpoint with other fields in its configuration."""
    folder = home / name
    shutil.copytree(home / "llama-1", folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def broken(home, name, change):
    folder = changed(home, name)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "No network was given; give two models"),
        (["llama-0"], "one network, and a path needs two"),
        (["llama-0", "llama-0", "--data", "lm.txt"], "given twice"),
        (["llama-0", "nowhere", "--data", "lm.txt"], "nowhere"),
        (["llama-0", "set/bert-0", "--data", "lm.txt"], "not networks of one kind"),
        (["llama-0", "llama-1"], "give --data FILE"),
        (["llama-0", "llama-1", "--data", "nothing.txt"], "There is no file"),
        (["llama-0", "llama-1", "--data", "empty.csv"], "is empty"),
        (["llama-0", "llama-1", "--data", "cls.csv", "--text", "sentence"], "There is no column of cls.csv 'sentence'"),
        (["llama-0", "llama-1", "--data", "cls.csv", "--label", "label"], "omit --label and --pair"),
        (["llama-0", "llama-1", "--data", "lm.txt", "--points", "2"], "--points 2: input should be greater than or equal to 3"),
        (["llama-0", "llama-1", "--data", "lm.txt", "--length", "1"], "predict nothing"),
        (["set", "--data", "unlabelled.csv"], "There is no column of unlabelled.csv 'label'"),
        (["set", "--data", "beyond.csv"], "label '5', and the classifier has 3 classes"),
        (["set", "--data", "lm.txt"], "--label needs a table"),
        (["set", "llama-0", "--data", "lm.txt"], "config.json"),
        (["llama-0/model.safetensors", "llama-1/model.safetensors", "--data", "lm.txt"], "no configuration"),
        (["llama-0", "theta", "--data", "lm.txt"], "rope_parameters"),
        (["llama-0", "nan", "--data", "lm.txt"], "not finite"),
        (["llama-0", "less", "--data", "lm.txt"], "not networks of one kind"),
        (["headless", "headless-too", "--data", "cls.csv"], "lacks weights of a BertForSequenceClassification"),
        (["bare", "bare-too", "--data", "lm.txt"], "has a tokenizer"),
    ],
)
def test_mistakes_are_one_sentence(home, tmp_path, capsys, monkeypatch, words, says):
    changed(home, "theta", rope_parameters={"rope_theta": 5.0, "rope_type": "default"})
    broken(home, "nan", lambda s: s["model.norm.weight"].fill_(float("nan")))
    broken(home, "less", lambda s: s.pop("model.norm.weight"))
    for name in ("bare", "bare-too"):
        for file in changed(home, name).glob("tokenizer*"):
            file.unlink()
    for i, name in enumerate(("headless", "headless-too")):
        shutil.copytree(home / "set" / f"bert-{i}", home / name, dirs_exist_ok=True)
        state = load_file(home / name / "model.safetensors")
        save_file({k: v for k, v in state.items() if "classifier" not in k}, home / name / "model.safetensors", {"format": "pt"})
    monkeypatch.chdir(home)
    assert run(["connect", *words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert says in error[-1]
    assert not [line for line in error if "Traceback" in line]


def test_a_tokenizer_that_reads_otherwise_is_told(home, tmp_path, capsys):
    folder = changed(home, "other")
    file = folder / "tokenizer.json"
    told = json.loads(file.read_text())
    told["model"]["vocab"] = {word: (i + 1) % 22 for word, i in told["model"]["vocab"].items()}
    file.write_text(json.dumps(told))
    assert run(["connect", str(home / "llama-0"), str(folder), "--data", str(home / "lm.txt"), "--out", str(tmp_path)]) == 2
    assert "tokenize the texts differently" in capsys.readouterr().err


def test_nan_in_a_small_transformer_is_refused(tmp_path, capsys):
    shape = fine_tuning.World().shape()
    state = stack(small.random_weights(shape, i) for i in range(2))
    state["head.bias"][1] = torch.nan
    CheckpointSet.written(tmp_path / "set", shape, pd.DataFrame({"run": ["a", "b"]}), {0: state})
    assert run(["connect", str(tmp_path / "set"), "--out", str(tmp_path)]) == 2
    assert "head.bias of b contains values that are not finite" in capsys.readouterr().err


def test_four_runs_have_clusters_and_what_they_predict(tmp_path, capsys):
    from repscope.worlds.hans.recipes import Training, train
    from repscope.worlds.hans.training import Schedule

    tuning = fine_tuning.FineTuning(Schedule(8, 4e-3), early_bias=4, batch=4)
    train(Training(runs=2, fork=2, world=fine_tuning.World(batch=8), tuning=tuning), tmp_path / "set")
    told = answered(capsys, tmp_path / "set", "--points", 4, "--out", tmp_path / "runs")
    result = load_record(study("connect"), RunFolder(Path(told["run"]))).results["connect"]
    side = result.side["clusters"]
    assert side["group"].tolist() == ["rule", "rule", "lexical overlap", "lexical overlap"]
    assert {"spectral, convexity gap", "spectral, Euclidean distance"} <= set(side.columns)
    assert len(result.select(metric="ARI")) <= 3
    assert len(result.select(metric="mantel p of ood error", item="Euclidean distance"))
    assert "Are there basins" in Path(told["page"]).read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--points", "61"], "--points 61: input should be less than or equal to 60"),
        (["--controls", "-1"], "--controls -1: input should be greater"),
        (["--examples", "0"], "--examples 0: input should be greater"),
    ],
)
def test_numbers_out_of_range_are_told(home, tmp_path, capsys, words, says):
    asked = ["connect", str(home / "llama-0"), str(home / "llama-1"), "--data", str(home / "lm.txt"), *words]
    assert run([*asked, "--out", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
