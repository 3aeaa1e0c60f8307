"""Curves over checkpoints: every checkpoint as it answers alone, planted growth is found, mistakes are told."""

import json

import pandas as pd
import pytest
import torch

from checkpointed import KINDS, tokenizer
from repscope.cli import run as command
from repscope.errors import UserError
from repscope.models.checkpoints import CheckpointSet
from repscope.trace.emergence.curves import Probes, probe_curves, series
from repscope.trace.emergence.transitions import transition

ROWS = [
    ("places", "the cat sat on the", " mat", " it"),
    ("places", "a dog ran under the", " tree", " was"),
    ("words", "the dog saw the", " cat", ""),
    ("words", "it was very", " good bad", ""),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Steps 1 to 8: from random weights towards weights that prefer the right answers, by their output bias."""
    folder = tmp_path_factory.mktemp("series")
    torch.manual_seed(0)
    model = KINDS["llama"]()
    end = {k: v.clone() for k, v in model.state_dict().items()}
    words = tokenizer("llama")
    wanted = [words(t)["input_ids"][1] for t in ("mat", "tree", "cat", "good")]
    end["model.embed_tokens.weight"][wanted] *= 30
    start = {k: v.clone() for k, v in model.state_dict().items()}
    for step, share in ((1, 0.0), (2, 0.3), (4, 0.7), (8, 1.0)):
        model.load_state_dict({k: torch.lerp(start[k], end[k], share) for k in start})
        model.save_pretrained(folder / f"step-{step}")
        words.save_pretrained(folder / f"step-{step}")
    pd.DataFrame(ROWS, columns=["probe", "prompt", "answer", "wrong"]).to_csv(folder / "probes.csv", index=False)
    return folder


def by_hand(folder, prompt, answer):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    start, ids = len(words(prompt)["input_ids"]) - 1, words(prompt + answer)["input_ids"][:-1]  # the last one is [SEP]
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logs[i - 1, ids[i]]) for i in range(start, len(ids)))


def test_every_checkpoint_answers_as_alone(home):
    found = probe_curves(CheckpointSet.open(home), Probes.read(home / "probes.csv"))
    assert found.steps.tolist() == [1, 2, 4, 8]
    assert found.scores.shape == (1, 4, 4)
    for j, step in enumerate((1, 2, 4, 8)):
        for i, (_, prompt, answer, wrong) in enumerate(ROWS):
            right = by_hand(home / f"step-{step}", prompt, answer)
            assert found.scores[0, j, i] == pytest.approx(right, abs=1e-4)
            if wrong:
                assert found.hits[0, j, i] == (right > by_hand(home / f"step-{step}", prompt, wrong))
    assert transition(found.curve("places"), draws=50).step.unit == "example"
    with pytest.raises(UserError, match="no probe"):
        found.curve("place")


def test_the_study_of_a_folder_of_steps(home, tmp_path, capsys):
    words = ["study", "emergence", "--checkpoints", str(home), "--probes", str(home / "probes.csv"), "--draws", "50"]
    assert command([*words, "--out", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"]["reply"] in ("Yes", "No", "Partly", "Cannot tell")
    table = pd.read_parquet(next(tmp_path.rglob("table.parquet")))
    assert set(table["item"]) == {"places", "words"}
    assert set(table[table["metric"] == "accuracy"]["split"]) == {f"step {s}" for s in (1, 2, 4, 8)}


def test_series_are_ordered_and_complete(home, tmp_path):
    paths = [home / f"step-{s}" for s in (8, 1, 4)]
    runs, steps, rows = series(CheckpointSet.of(paths))
    assert (len(runs), steps, rows) == (1, [1, 4, 8], [[1, 2, 0]])
    table = pd.DataFrame({"run": ["a", "a", "b", "b"], "step": [1, 2, 1, 4], "path": [f"step-{s}" for s in (1, 2, 1, 4)]})
    for held, said in (
        (table, "different steps"),
        (table.assign(step=[1, 1, 1, 4]), "twice"),
        (table[:1], "one checkpoint per run"),
    ):
        held.to_csv(home / "checkpoints.csv", index=False)
        try:
            with pytest.raises(UserError, match=said):
                series(CheckpointSet.open(home))
        finally:
            (home / "checkpoints.csv").unlink()


def test_a_diverged_checkpoint_is_named(home, tmp_path):
    import shutil

    for step in (1, 2):
        shutil.copytree(home / f"step-{step}", tmp_path / f"step-{step}")
    model = KINDS["llama"]()
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "step-2")
    with pytest.raises(UserError, match="at step 2 has scores that are not numbers"):
        probe_curves(CheckpointSet.open(tmp_path), Probes.read(home / "probes.csv"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns="answer"), "no column answer"),
        (lambda f: f.assign(wrong=f["answer"]), "has the answer as its wrong answer"),
        (lambda f: f.assign(prompt=""), "lacks a probe, prompt or answer"),
    ],
)
def test_mistakes_in_a_table_are_one_sentence(change, said, tmp_path):
    change(pd.DataFrame(ROWS, columns=["probe", "prompt", "answer", "wrong"])).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(UserError, match=said):
        Probes.read(tmp_path / "p.csv")
