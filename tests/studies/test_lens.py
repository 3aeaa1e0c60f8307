"""`repscope lens`: the page and the terminal, resume, and the page drawn again without the model."""

import json
from pathlib import Path

import pytest

from repscope.cli import run
from repscope.studies.lens import STUDY, LensOptions
from repscope.studies.run.runner import Run

PROMPT = "The place called San Diego is"


def test_the_page_and_the_terminal(llama, tmp_path):
    made = Run(STUDY, LensOptions(prompt=PROMPT, every=2), out=tmp_path, lm=llama)
    assert PROMPT in made.answer().read_text()
    answer = made.headline()
    assert answer.rows[0]["block"] == "emb"
    assert any("San" in head for head in answer.rows[0])
    assert len(answer.rows) < llama.blocks + 1
    assert "next token is" in answer.lines[0]


def test_the_end_of_a_long_prompt_is_said_on_the_page(llama, tmp_path):
    made = Run(STUDY, LensOptions(prompt=PROMPT * 4, last=5), out=tmp_path, lm=llama)
    assert "the lens the last 5." in made.answer().read_text()


@pytest.fixture
def loaded(llama, monkeypatch):
    monkeypatch.setattr("repscope.models.loading.sources.load", lambda *args, **kwargs: llama)


def test_plan_json_resume_and_runs_work_as_for_any_study(loaded, tmp_path, capsys, monkeypatch):
    words = ["lens", "llama", PROMPT, "--out", str(tmp_path)]
    assert run([*words, "--plan"]) == 0
    assert "nothing was run" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert run([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert Path(told["page"]).is_file()
    monkeypatch.setattr("repscope.studies.lens.logit_lens", None)
    assert run(words) == 0, "a second run computes nothing"
    assert run(["runs", "--out", str(tmp_path), "--json"]) == 0
    assert [(r["study"], r["state"]) for r in json.loads(capsys.readouterr().out.splitlines()[-1])] == [("lens", "done")]
    assert run(["show", "lens", "--out", str(tmp_path)]) == 0
