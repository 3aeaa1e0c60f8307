"""`repscope finetune` from the command line, on a toy in a folder."""

import json

import pytest

from repscope.cli import run
from repscope.models.checkpoints import CheckpointSet
from toy_chat import toy

QUICK = ["--steps", "2", "--keep", "1", "--batch", "4", "--lora", "2", "--method", "sft"]


def test_a_users_rows_are_learned_and_told(tmp_path, capsys):
    lm = toy()
    lm.model.save_pretrained(tmp_path / "toy")
    lm.tokenizer.save_pretrained(tmp_path / "toy")
    rows = [{"prompt": f"{a} {b}", "completion": "cat"} for a in "abcd" for b in ("sun", "sea", "red")] + [
        {"prompt": "a", "completion": ""}
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["finetune", str(tmp_path / "toy"), "--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "set"), *QUICK]
    assert run(words) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == str(tmp_path / "set")
    assert "1 of 13 rows" in said.err
    assert "nan" not in said.out
    assert "–" in said.out
    assert list(CheckpointSet.open(tmp_path / "set").table["step"]) == [0, 2]
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # NaN is no JSON
    assert found["checkpoints"][0]["loss"] is None
    assert found["facts"]["rows"] == 10
    assert [row["step"] for row in found["checkpoints"]] == [0, 2]
    assert "reward" not in found["checkpoints"][0], "rows without a reward have none"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "ppo"], "ppo"),
        (["--method", "grpo", "--batch", "6"], "--group is 4 and --batch 6"),
        (["--method", "sft", "--full", "--lora", "4"], "give one of them"),
        (["--method", "sft", "--beta", "0.1"], "--beta does not apply to sft"),
        (["--method", "sft", "--group", "4"], "--group does not apply to sft"),
        (["--method", "sft", "--task", "short-sentence", "--data", "rows.jsonl"], "--data and --task"),
        (["--method", "dpo", "--samples", "8", "--data", "rows.jsonl"], "--samples makes the pairs of a task"),
        (["--method", "sft", "--steps", "2", "--keep", "4"], "--keep is 4 and --steps 2"),
        (["--method", "sft", "--task", "short-sentenc"], "did you mean 'short-sentence'"),
        (["--method", "grpo", "--reward", "nothing_here:f"], "cannot be imported"),
        (["--method", "sft", "--data", "rows.jsonl"], "There is no table rows.jsonl"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["finetune", "--out", "set", *words]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rewards_that_fail_or_never_differ_are_told(tmp_path, capsys, monkeypatch):
    (tmp_path / "cli_rewards.py").write_text("def bad(p, a):\n    raise KeyError(a)\ndef flat(p, a):\n    return 0.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    lm = toy()
    lm.model.save_pretrained(tmp_path / "toy")
    lm.tokenizer.save_pretrained(tmp_path / "toy")
    rows = [{"prompt": f"{a} {b}"} for a in "abcd" for b in ("sun", "sea", "red")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["finetune", str(tmp_path / "toy"), "--data", str(tmp_path / "rows.jsonl"), "--method", "grpo", "--steps", "2"]
    words += ["--batch", "4", "--new-tokens", "6", "--reward"]
    assert run([*words, "cli_rewards:bad", "--out", str(tmp_path / "bad")]) == 2
    said = capsys.readouterr().err
    assert "The reward cli_rewards:bad failed on the prompt" in said
    assert "KeyError" in said
    assert "Traceback" not in said
    assert run([*words, "cli_rewards:flat", "--out", str(tmp_path / "flat")]) == 0
    assert "equal in all 2 groups, so nothing was learned" in capsys.readouterr().err
    assert list(CheckpointSet.open(tmp_path / "flat").table["step"]) == [0, 1, 2], "the default of --keep fits --steps"
