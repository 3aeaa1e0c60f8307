"""Training of recipes: written as a set, gone on with after a kill, matched on loss."""

import os

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.models.loading.stacked_weights import stack
from repscope.worlds.hans import classifier as small
from repscope.worlds.hans import fine_tuning, recipes
from repscope.worlds.hans.training import Schedule

WORLD = fine_tuning.World(width=16, batch=8, pretraining=Schedule(6, 3e-3, 2))
ASKED = recipes.Training(
    runs=2, inits=2, fork=4, keep=2, world=WORLD, tuning=fine_tuning.FineTuning(Schedule(10, 4e-3), early_bias=4, batch=4)
)


def test_a_recipe_is_written_as_a_set_and_kept(tmp_path):
    found = recipes.train(ASKED, tmp_path / "runs")
    assert len(found.runs) == 8
    assert sorted(found.table["step"].unique()) == [5, 10]
    assert set(found.table["recipe"]) == {"early-bias"}
    assert found.table["init"].nunique() == 2
    stamp = (tmp_path / "runs" / "checkpoints.csv").stat().st_mtime_ns
    assert len(recipes.train(ASKED, tmp_path / "runs")) == 16
    assert (tmp_path / "runs" / "checkpoints.csv").stat().st_mtime_ns == stamp
    assert not (tmp_path / "runs.training").exists()


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    whole = recipes.train(ASKED, tmp_path / "whole").select(step="last").stacked()
    descend, steps = fine_tuning.TrainingRun._train_step, []

    def killed(self):
        if len(steps) == 10:  # six of the pretraining's four and the descent's
            raise KeyboardInterrupt
        steps.append(self.step)
        descend(self)

    monkeypatch.setattr(fine_tuning.TrainingRun, "_train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        recipes.train(ASKED, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    monkeypatch.setattr(fine_tuning.TrainingRun, "_train_step", lambda self: (steps.append(self.step), descend(self)))
    steps.clear()
    again = recipes.train(ASKED, tmp_path / "again").select(step="last").stacked()
    assert len(steps) < 10  # not from the beginning
    assert all(torch.equal(value, whole[name]) for name, value in again.items())


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other runs or files"):
        recipes.train(ASKED, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"recipe": "early-bia"}, "did you mean 'early-bias'"),
        ({"runs": 0}, "at least 1"),
        ({"keep": 999}, "more than the 240 steps"),
    ],
)
def test_what_gives_no_runs_is_told(wrong, says):
    with pytest.raises(UserError, match=says):
        recipes.Training(**wrong)


def test_matching_picks_the_checkpoints_nearest_in_loss():
    shape = small.Shape(9, 6, width=8, heads=2)
    states = [stack(small.random_weights(shape, 10 * step + run) for run in range(4)) for step in range(3)]
    losses = np.array([[0.9, 0.8, 0.9, 0.9], [0.5, 0.6, 0.9, 0.8], [0.1, 0.1, 0.5, 0.6]])
    groups = np.array(["rule", "rule", "lexical overlap", "lexical overlap"])
    state, chosen = recipes.matched(states, losses, groups)
    assert chosen.tolist() == [1, 1, 2, 2]  # the target is the median of the slower group at the end, .55
    assert torch.equal(state["head.weight"][0], states[1]["head.weight"][0])
    assert torch.equal(state["head.weight"][3], states[2]["head.weight"][3])


@pytest.mark.parametrize("runs", [3, 5])
def test_weights_and_losses_do_not_depend_on_the_number_of_threads(runs):
    world, before, found = fine_tuning.World(), torch.get_num_threads(), []
    table, tuning = fine_tuning.run_plan(["rule"] * runs), fine_tuning.FineTuning(Schedule(4, 4e-3), early_bias=2)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            base = fine_tuning.pretrain(world, [0], [4])[4]
            state = fine_tuning.fine_tune(world, base, table, tuning)[4]
            losses = fine_tuning.evaluator(world, 0)(state)
            assert torch.get_num_threads() == threads
            found.append(state | {name: torch.from_numpy(values) for name, values in losses.items()})
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize("operation", range(1, 60, 4))
def test_killed_at_any_file_operation_it_resumes(operation, tmp_path, monkeypatch):
    """The set's folder and its recipe appear together, so that no moment leaves a folder that is nobody's."""
    whole = {p.name: p.read_bytes() for p in (recipes.train(ASKED, tmp_path / "whole").folder).rglob("*") if p.is_file()}
    count = [0]
    with monkeypatch.context() as patched:
        for name in ("replace", "mkdir", "unlink", "rmdir"):
            patched.setattr(os, name, _killing(getattr(os, name), count, operation))
        try:
            recipes.train(ASKED, tmp_path / "killed")
        except _KilledError:
            pass
        else:
            assert count[0] < operation
    found = recipes.train(ASKED, tmp_path / "killed")
    assert {p.name: p.read_bytes() for p in found.folder.rglob("*") if p.is_file()} == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed", "whole"]


class _KilledError(BaseException):
    """Nothing catches it, so what would clean up runs, and fails at its first operation too."""


def _killing(real, count, at):
    def operation(*given, **named):
        count[0] += 1
        if count[0] >= at:
            raise _KilledError
        return real(*given, **named)

    return operation


@pytest.mark.parametrize("text", ["", "{", "[]", '{"digest": 1}', "[" * 100_000, "\x00"])
def test_a_damaged_recipe_is_one_sentence(text, tmp_path):
    found = recipes.train(ASKED, tmp_path / "runs")
    (found.folder / recipes.RECIPE).write_text(text)
    with pytest.raises(UserError, match=r"recipe.json is damaged, so"):
        recipes.train(ASKED, tmp_path / "runs")


@pytest.mark.parametrize("damage", ["a network", "the digests", "a file is missing"])
def test_damaged_runs_are_trained_again_and_it_is_said(damage, tmp_path):
    found = recipes.train(ASKED, tmp_path / "runs")
    whole = {p.relative_to(found.folder): p.read_bytes() for p in found.folder.rglob("*") if p.is_file()}
    file = found.folder / ".digests.json" if damage == "the digests" else next(found.folder.glob("*/*.safetensors"))
    if damage == "a file is missing":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with pytest.warns(UserWarning, match="is damaged .* trained again"):
        again = recipes.train(ASKED, tmp_path / "runs")
    assert {p.relative_to(again.folder): p.read_bytes() for p in again.folder.rglob("*") if p.is_file()} == whole
    file.write_bytes(b"")
    (found.folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is damaged .* holds notes.txt"):
        recipes.train(ASKED, tmp_path / "runs")


@pytest.mark.parametrize("name", ["pretrained", "descent", "step-5"])
def test_a_damaged_half_trained_network_is_trained_again(name, tmp_path, monkeypatch):
    whole = recipes.train(ASKED, tmp_path / "whole").select(step="last").stacked()
    with monkeypatch.context() as patched:
        patched.setattr(recipes.CheckpointSet, "written", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            recipes.train(ASKED, tmp_path / "again")
    (file,) = (tmp_path / "again.training").rglob(f"{name}.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    again = recipes.train(ASKED, tmp_path / "again").select(step="last").stacked()
    assert all(torch.equal(value, whole[name]) for name, value in again.items())
