"""`repscope train`: a set of checkpoints from the command line."""

import json

import pytest

from repscope.cli import run
from repscope.models.checkpoints import CheckpointSet

QUICK = ["--runs", "2", "--steps", "6", "--early-bias", "3", "--fork", "4", "--batch", "4", "--keep", "2"]


def test_a_recipe_is_trained_and_told(tmp_path, capsys):
    out = tmp_path / "set"
    assert run(["train", "--out", str(out), *QUICK]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    assert len(CheckpointSet.open(out)) == 8
    assert run(["train", "--out", str(out), *QUICK, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoints"] == 8


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--recipe", "early-bia"], "did you mean 'early-bias'"),
        (["--fork", "9999"], "a fork at 9999"),
        (["--steps", "6", "--early-bias", "9"], "An early bias of 9 steps is longer than the 6"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(words, says, tmp_path, capsys):
    assert run(["train", "--out", str(tmp_path / "set"), *words]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
