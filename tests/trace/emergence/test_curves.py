"""Curves over checkpoints: each as it answers alone, revisions, tasks, relations, pairs and heads; mistakes are told."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import repscope as rs
from checkpointed import KINDS, tokenizer
from repscope.cli import run as command
from repscope.data.minimal_pairs import MinimalPairs
from repscope.data.relations import Relation
from repscope.data.tasks import Task
from repscope.errors import UserError
from repscope.models.checkpoints import CheckpointSet
from repscope.read.pair_scores import score_pairs
from repscope.trace.emergence.curves import ProbeCurves, probe_curves
from repscope.trace.emergence.heads import chosen_heads, head_names, induction, repeated_tokens
from repscope.trace.emergence.probes import Probes, answers
from repscope.trace.emergence.series import opened, over_checkpoints, series
from repscope.trace.emergence.transitions import transition

ROWS = [
    ("places", "the cat sat on the", " mat", " it"),
    ("places", "a dog ran under the", " tree", " was"),
    ("words", "the dog saw the", " cat", ""),
    ("words", "it was very", " good bad", ""),
]
STEPS = (1, 2, 4, 8)
PAIRS = MinimalPairs("mine", ("the cat sat", "a dog ran"), ("the cat under", "a dog on"), ("verbs", "verbs"))


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
    for step, share in zip(STEPS, (0.0, 0.3, 0.7, 1.0)):
        model.load_state_dict({k: torch.lerp(start[k], end[k], share) for k in start})
        model.save_pretrained(folder / f"step-{step}")
        words.save_pretrained(folder / f"step-{step}")
    return folder


@pytest.fixture
def table(tmp_path):
    pd.DataFrame(ROWS, columns=["probe", "prompt", "answer", "wrong"]).to_csv(tmp_path / "probes.csv", index=False)
    return tmp_path / "probes.csv"


def by_hand(folder, prompt, answer):
    """Log-probability of an answer, and whether all of its tokens are the most likely ones."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    start, ids = len(words(prompt)["input_ids"]) - 1, words(prompt + answer)["input_ids"][:-1]  # the last one is [SEP]
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logs[i - 1, ids[i]]) for i in range(start, len(ids))), all(
        int(logs[i - 1].argmax()) == ids[i] for i in range(start, len(ids))
    )


def test_every_checkpoint_answers_as_alone(home, table):
    probes = Probes.read(table)
    found = probe_curves(CheckpointSet.open(home), probes, PAIRS, convention="minicons")
    assert found.steps.tolist() == list(STEPS)
    assert found.names == ("places", "words", "verbs")
    assert found.scores.shape == (1, 4, 6)
    others = probes.others()
    assert others[:2] == (" it", " was")
    assert others[2:] == (" good bad", " cat")
    for j, step in enumerate(STEPS):
        for i, (_, prompt, answer, wrong) in enumerate(ROWS):
            right, greedy = by_hand(home / f"step-{step}", prompt, answer)
            other, other_greedy = by_hand(home / f"step-{step}", prompt, others[i])
            assert found.scores[0, j, i] == pytest.approx(right, abs=1e-4)
            assert found.other_scores[0, j, i] == pytest.approx(other, abs=1e-4)
            assert found.hits[0, j, i] == (right > other if wrong else greedy)
            if not wrong:
                assert found.other_hits[0, j, i] == other_greedy
        alone = score_pairs(rs.load(home / f"step-{step}"), PAIRS, "minicons")
        np.testing.assert_allclose(found.scores[0, j, 4:], alone.good, atol=1e-4)
        np.testing.assert_array_equal(found.hits[0, j, 4:], alone.right())
    assert transition(found.curve("places"), draws=50).step.unit == "example"
    with pytest.raises(UserError, match="no probe"):
        found.curve("place")


def test_tasks_and_relations_never_ask_what_they_show():
    pairs = [(str(i), str(i + 1)) for i in range(30)]
    task = Probes.of_task(Task("next", tuple(pairs), ""), shots=3, most=5)
    asked = {p.rsplit("Q: ", 1)[1].split("\n")[0] for p in task.prompt}
    shown = {line.removeprefix("Q: ") for p in task.prompt for line in p.split("\n\n")[:-1] for line in line.split("\n")[:1]}
    assert len(task.prompt) == len(asked) == 5
    assert not asked & shown
    assert all(a == f" {int(p.rsplit('Q: ', 1)[1].split()[0]) + 1}" for p, a in zip(task.prompt, task.answer))
    relation = Probes.of_relation(Relation("after", ("{} comes before",), tuple(pairs)), shots=2, most=6)
    lines = [p.split("\n") for p in relation.prompt]
    assert all(len(one) == 3 for one in lines)
    assert not {one[-1].split()[0] for one in lines} & {s.split()[0] for one in lines for s in one[:-1]}
    assert Probes.joined([task, relation]).names == ("next", "after")
    with pytest.raises(UserError, match="Two of the probes are named"):
        Probes.joined([task, task])
    with pytest.raises(UserError, match="ask for 0 to"):
        Probes.of_task(Task("next", tuple(pairs), ""), shots=40)


def test_a_killed_series_goes_on(home, table, tmp_path):
    asked, probes = [], Probes.read(table)

    def measure(lm):
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answers(lm, probes)

    with pytest.raises(KeyboardInterrupt):
        over_checkpoints(CheckpointSet.open(home), measure, kept=tmp_path / "kept")
    found = over_checkpoints(CheckpointSet.open(home), measure, kept=tmp_path / "kept")
    assert len(asked) == 5
    whole = probe_curves(CheckpointSet.open(home), probes)
    np.testing.assert_array_equal(ProbeCurves.of(CheckpointSet.open(home), probes.name, found).scores, whole.scores)


def test_the_study_of_revisions_with_all_kinds_of_probes(home, table, tmp_path, capsys):
    pd.DataFrame({"sentence_good": PAIRS.good, "sentence_bad": PAIRS.bad}).to_csv(tmp_path / "verbs.csv", index=False)
    words = ["cat", "dog", "mat", "tree", "good", "bad", "sat", "ran", "on", "under", "the", "a", "it", "was", "and", "saw"]
    pairs = pd.DataFrame({"input": words, "output": words[1:] + words[:1]})
    pairs.to_csv(tmp_path / "after.csv", index=False)
    pairs.set_axis(["subject", "object"], axis=1).to_csv(tmp_path / "linked.csv", index=False)
    given = ["--checkpoints", f"{home}@" + ",".join(f"step-{s}" for s in STEPS), "--probes", str(table), "--heads", "--shots", "2"]
    given += [
        "--probe-tasks",
        str(tmp_path / "after.csv"),
        "--probe-relations",
        str(tmp_path / "linked.csv"),
        "--probe-pairs",
        str(tmp_path / "verbs.csv"),
        "--convention",
        "minicons",
    ]
    assert command(["study", "emergence", *given, "--draws", "50", "--out", str(tmp_path / "runs"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"]["reply"] in ("Yes", "No", "Partly", "Cannot tell")
    found = pd.read_parquet(next((tmp_path / "runs").rglob("table.parquet")))
    accuracy = found[found["metric"] == "accuracy"]
    assert set(accuracy["item"]) == {"places", "words", "after", "linked", "verbs", "repeated random tokens"}
    assert set(accuracy["split"]) == {f"step {s}" for s in STEPS}
    nats = found[found["metric"] == "log-probability"]
    assert set(nats[nats["condition"] == "another answer"]["item"]) == {"places", "words", "after", "linked", "verbs"}
    heads = found[found["metric"] == "induction score"]
    assert set(heads["item"]) == {"strongest head", "function-vector heads of after"}
    assert set(heads["condition"]) == {"estimate", "other tokens", "other heads"}
    assert len(found[(found["metric"] == "average indirect effect") & (found["condition"] == "estimate")]) == len(STEPS)
    page = next((tmp_path / "runs").rglob("report.html")).read_text()
    for text in ("Induction and function-vector heads", "average indirect effect", "Log-probabilities"):
        assert text in page


def test_induction_scores_are_those_of_the_attention_weights(home):
    import transformers

    lm = rs.load(home / "step-8")
    found, rows = induction(lm, sequences=6, length=7), repeated_tokens(lm, sequences=6, length=7)
    assert rows.shape == (6, 15)
    np.testing.assert_array_equal(rows[:, 1:8], rows[:, 8:])
    assert len(set(rows[0, 1:8])) == 7
    eager = transformers.AutoModelForCausalLM.from_pretrained(home / "step-8", attn_implementation="eager").eval()
    with torch.no_grad():
        out = eager(torch.from_numpy(rows), output_attentions=True)
    weights = torch.stack(out.attentions, 1).double().numpy()  # (sequence, layer, head, query, key)
    second = range(8, 14)
    own = np.stack([weights[..., q, q - 6] for q in second], -1)  # the token after the first copy of the same token
    others = np.stack([weights[..., q, [k for k in range(2, 8) if k != q - 6]].mean(-1) for q in second], -1)
    np.testing.assert_allclose(found["induction"], own.mean(-1).reshape(6, -1), atol=1e-5)
    np.testing.assert_allclose(found["other tokens"], others.mean(-1).reshape(6, -1), atol=1e-5)
    logs = out.logits.double().log_softmax(-1)
    for name, places in (("", range(9, 15)), ("other ", range(2, 8))):
        nats = np.stack([logs[range(6), p - 1, rows[:, p]].numpy() for p in places], 1)
        np.testing.assert_allclose(found[f"{name}scores"], nats.mean(1), atol=1e-4)
        hits = np.stack([logs[range(6), p - 1].argmax(-1).numpy() == rows[:, p] for p in places], 1)
        np.testing.assert_allclose(found[f"{name}hits"], hits.mean(1))
    assert head_names(found["layers"], found["places"]) == ("z.0.0", "z.0.1", "z.1.0", "z.1.1")


def test_heads_are_chosen_on_the_half_that_is_not_reported():
    rng = np.random.default_rng(0)
    values = 0.1 * rng.random((1, 3, 8, 5))
    values[0, -1, ::2, 3] += 1.0  # best on the choosing half
    values[0, -1, 1::2, 1] += 1.0  # best on the other one
    found = chosen_heads(values, list("abcde"), 1)
    assert found.heads == (("d",),)
    np.testing.assert_array_equal(found.values[0], values[0, :, 1::2, 3])
    np.testing.assert_allclose(found.control[0], values[0][:, 1::2][..., [0, 1, 2, 4]].mean(-1))
    with pytest.raises(UserError, match="more heads"):
        chosen_heads(values, list("abcde"), 5)


def test_series_are_ordered_and_complete(home):
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


def test_revisions_are_found_in_the_cache_of_the_hub(home, tmp_path, monkeypatch):
    """Its layout: refs name a commit, snapshots hold its files."""
    from huggingface_hub import constants

    cache = tmp_path / "models--lab--model"
    (cache / "refs").mkdir(parents=True)
    for step, commit in ((1, "a" * 40), (8, "b" * 40)):
        (cache / "refs" / f"step{step}").write_text(commit)
        shutil.copytree(home / f"step-{step}", cache / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = opened("lab/model@step1,step8")
    assert series(found)[1] == [1, 8]
    assert found.runs == ("lab/model",)
    with pytest.raises(UserError, match="step5"):
        opened("lab/model@step1,step5")


@pytest.mark.parametrize(
    ("revisions", "said"),
    [
        ("step-1,step-3", "has no revision 'step-3'; it holds step-1, step-2"),
        ("step-4,step-2", "not in the order of their steps"),
        ("step-2,step-2", "not in the order of their steps"),
        ("step-1", "at least two steps"),
        ("step-1,main", "has no step in its name"),
    ],
)
def test_mistakes_in_revisions_are_one_sentence(home, table, tmp_path, capsys, revisions, said):
    given = ["--checkpoints", f"{home}@{revisions}", "--probes", str(table), "--out", str(tmp_path / "runs")]
    assert command(["study", "emergence", *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_folder_that_is_not_there_and_one_checkpoint_are_told(home, table, tmp_path, capsys):
    shutil.copytree(home / "step-1", tmp_path / "one" / "step-1")
    for given, said in ((tmp_path / "one", "neither"), (tmp_path / "none", "revisions as MODEL@step1000,step2000")):
        words = ["--checkpoints", str(given), "--probes", str(table), "--out", str(tmp_path / "runs")]
        assert command(["study", "emergence", *words]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("broken", [2, 4])
def test_a_diverged_checkpoint_is_named(home, table, tmp_path, broken):
    for step in (1, 2, 4):
        shutil.copytree(home / f"step-{step}", tmp_path / f"step-{step}")
    model = KINDS["llama"]()
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / f"step-{broken}")
    with pytest.raises(UserError, match=f"at step {broken} has weights that are not numbers"):
        probe_curves(CheckpointSet.open(tmp_path), Probes.read(table))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns="answer"), "no column answer"),
        (lambda f: f.assign(wrong=f["answer"]), "has the answer as its wrong answer"),
        (lambda f: f.assign(prompt=""), "lacks a probe, prompt or answer"),
        (lambda f: f.assign(answer=f["answer"].str.strip()), "the answer 'mat' makes one word with the end of its prompt"),
        (lambda f: f.assign(wrong=f["wrong"].str.strip()), "the answer 'it' makes one word"),
        (lambda f: pd.concat([f, f[1:2]]), "is a row that was there before"),
        (lambda f: f.assign(wrong=[" it", "", "", ""]), "'places' of .* has wrong answers in some rows only"),
    ],
)
def test_mistakes_in_a_table_are_one_sentence(change, said, tmp_path):
    change(pd.DataFrame(ROWS, columns=["probe", "prompt", "answer", "wrong"])).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(UserError, match=said):
        Probes.read(tmp_path / "p.csv")


def test_words_that_a_tokenizer_does_not_know_are_refused(tmp_path):
    lm = rs.LanguageModel(KINDS["llama"]().eval(), tokenizer("llama"))
    known = Probes(("a",), ("the cat",), (" sat",), ("",))
    assert np.isfinite(answers(lm, known)["scores"]).all()
    with pytest.raises(UserError, match="no token for a word of the answer ' owl'"):
        answers(lm, replace(known, answer=(" owl",)))
