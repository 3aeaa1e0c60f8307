"""bayes with the user's hidden Markov models and with a language model: numbers by hand, pages, and mistakes in one sentence."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from repscope.cli import run as command
from repscope.conditions import ESTIMATE, over
from repscope.models.loading.stacked_weights import state_of
from repscope.results import select
from repscope.studies.bayes import names
from repscope.studies.bayes.given import GivenTask
from repscope.studies.bayes.task import BayesTask
from repscope.studies.catalogue import study
from repscope.studies.run.runner import Run
from repscope.trace.bayes import HiddenMarkovModel, pretraining
from repscope.worlds.small_lm import transformer, write_folder

WORDS = tuple(str(i) for i in range(12))
SHAPE = transformer.Shape(12, 24, 8)


def model_of(states, symbols, seed):
    rng = np.random.default_rng(seed)
    return {
        "start": rng.dirichlet(np.ones(states)),
        "transition": rng.dirichlet(np.full(states, 0.3), states),
        "emission": rng.dirichlet(np.full(symbols, 0.3), states),
    }


def as_json(models):
    return json.dumps([{name: np.asarray(a).tolist() for name, a in one.items()} for one in models])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of two models, one as a folder's only content, and a folder with a network of 12 symbols."""
    home = tmp_path_factory.mktemp("given")
    (home / "two.json").write_text(as_json([model_of(3, 6, 0), model_of(4, 6, 1)]))
    write_folder(SHAPE, transformer.initial(SHAPE, [3]), 0, home / "network")
    return home


def answered(out, **options):
    found = study("bayes")
    run = Run(found, found.options(tiny=True, **options), out=out)
    run.answer()
    return run


@pytest.fixture(scope="module")
def given(files, tmp_path_factory):
    return answered(tmp_path_factory.mktemp("runs"), hmm=str(files / "two.json"))


def forward(model, text):
    """p(text) and p(text, next symbol), symbol by symbol."""
    alpha = model.start
    for symbol in text:
        alpha = (alpha * model.emission[:, symbol]) @ model.transition
    return alpha.sum(), alpha @ model.emission


def test_distances_on_the_users_models_are_those_of_the_saved_weights_by_hand(given):
    task = GivenTask(given.setup.options)
    models = [HiddenMarkovModel(**model_of(3, 6, 0)), HiddenMarkovModel(**model_of(4, 6, 1))]
    tokens, concept = task.asked_documents
    state = state_of(given.results["train transformers"].arrays)
    q = (
        transformer.logits(transformer.Shape(6, 24, 8), state, torch.from_numpy(tokens).expand(2, -1, -1))
        .double()
        .softmax(-1)
        .numpy()
    )
    assert set(concept) == {0, 1}
    for n in (1, 8, 23):
        total, right, truth = 0.0, 0, 0.0
        for i, text in enumerate(tokens):
            before, joint = zip(*(forward(m, text[:n]) for m in models))
            p = sum(joint) / sum(before)
            total += sum((p * np.log(p / q[j, i, n - 1])).sum() for j in range(2)) / 2
            right += int(p.argmax() == joint[concept[i]].argmax())
            truth += before[concept[i]] / sum(before)
        item = names.item(names.GIVEN, 0, n)
        row = select(given.table, metric=names.KL, item=item, condition=ESTIMATE)
        assert row["value"].iloc[0] == pytest.approx(total / len(tokens), rel=1e-5)
        assert set(row["unit"]) == {"document"}
        exact = select(given.table, item=item, condition=names.MIXTURE)
        assert select(exact, metric=names.ACCURACY)["value"].iloc[0] == pytest.approx(right / len(tokens))
        assert select(exact, metric=names.TRUTH)["value"].iloc[0] == pytest.approx(truth / len(tokens))


def test_the_users_models_have_controls_a_table_and_a_page(given, tmp_path, capsys):
    rows = select(given.table, metric=names.ACCURACY, item=names.item(names.GIVEN, 0, 23))
    assert set(rows["condition"]) == {ESTIMATE, names.MIXTURE, names.UNTRAINED}
    assert set(select(given.table, metric=names.CHANGE)["split"]) == {"n = 1 to 23"}
    models = given.results["models"].side["models"]
    assert list(models["states"]) == [3, 4]
    assert list(models["nearest other"]) == ["1", "0"]
    assert (models["distance"] > 0).all()
    page = (given.folder / "report.html").read_text()
    assert "2 hidden Markov models of yours" in page
    assert "symbols seen" in page
    assert command(["report", str(given.folder)]) == 0
    capsys.readouterr()
    assert command(["study", "bayes", "--tiny", "--plan", "--hmm", given.options.hmm, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "documents transformers" in shown
    assert "LSTM" not in shown


def test_a_killed_run_on_the_users_models_goes_on(given, tmp_path, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(GivenTask, "documents", killed)
    with pytest.raises(KeyboardInterrupt):
        answered(tmp_path, hmm=given.options.hmm)
    monkeypatch.undo()
    again = answered(tmp_path, hmm=given.options.hmm)
    for name, result in given.results.items():
        np.testing.assert_array_equal(again.results[name].table["value"], result.table["value"])


@pytest.fixture(scope="module")
def language_model(files, tmp_path_factory):
    return answered(tmp_path_factory.mktemp("runs"), model=str(files / "network"), words=WORDS)


def test_a_language_model_on_a_ginc_world_by_hand(language_model):
    run = language_model
    task = BayesTask(run.setup.options)
    held = task.prompts(names.UNIFORM, 3, "asked")
    state = transformer.initial(SHAPE, [3])
    q = transformer.logits(SHAPE, state, torch.from_numpy(held.tokens)[None])[0].double().softmax(-1).numpy()
    p = pretraining(task.world(names.UNIFORM), held, names.FLOOR).answers
    k = held.examples - 1
    item, place = names.item(names.ASKED, 3, k), held.positions[k]
    counts = np.full((len(p), 12), 1 / 12)
    for i, text in enumerate(held.tokens):
        for a, b in pairwise(text[: place + 1]):
            counts[i, b] += a == text[place]
    counts /= counts.sum(-1, keepdims=True)
    own, by_counts = ((p[:, k] * np.log(np.maximum(p[:, k], 1e-12) / r)).sum(-1) for r in (q[:, place], counts))
    rows = select(run.table, metric=names.KL, item=item)
    for condition, value in ((ESTIMATE, own), (names.COUNTS, by_counts), (over(names.COUNTS), own - by_counts)):
        assert select(rows, condition=condition)["value"].iloc[0] == pytest.approx(value.mean(), rel=1e-5)
    assert names.RANDOM in set(rows["condition"])
    mass = select(run.table, metric=names.MASS)
    assert mass["value"].to_numpy() == pytest.approx(1), "the symbols are its whole vocabulary"


def test_the_page_of_a_language_model(language_model):
    page = (language_model.folder / "report.html").read_text()
    for said in ("symbol pair counts", "Mass on the symbols", "never saw these hidden Markov models", "The symbols are the tokens"):
        assert said in page
    facts = json.loads((language_model.folder / "run.json").read_text())
    assert facts["options"]["model"] == language_model.options.model
    assert facts["fingerprint"]


def test_a_language_model_on_the_users_models(files, tmp_path, capsys):
    words = ["study", "bayes", "--tiny", "--hmm", str(files / "two.json"), "--model", str(files / "network"), "--words", *WORDS[:6]]
    assert command([*words, "--json", "--out", str(tmp_path)]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert any("nats per token" in line for line in reply["answer"])
    assert reply["verdict"] is None
    assert command(["study", "bayes", "--tiny", "--model", str(files / "network"), "--plan", "--out", str(tmp_path)]) == 2


def permuted(model, order):
    return {
        "start": model["start"][order],
        "transition": model["transition"][order][:, order],
        "emission": model["emission"][order],
    }


def test_mistakes_with_models_are_one_sentence(files, tmp_path, capsys):
    one, order = model_of(3, 6, 0), np.array([2, 0, 1])
    (tmp_path / "twice.json").write_text(as_json([one, one]))
    (tmp_path / "permuted.json").write_text(as_json([model_of(3, 6, 5), one, permuted(one, order)]))
    (tmp_path / "sum.json").write_text(as_json([one | {"emission": one["emission"] * 2}]))
    (tmp_path / "stuck.json").write_text(as_json([one | {"transition": one["transition"] * np.array([1, 0, 1])[:, None]}]))
    (tmp_path / "symbols.json").write_text(as_json([one, model_of(3, 5, 0)]))
    single = {"start": [0.5, 0.5], "transition": [[0.5, 0.5], [0.2, 0.8]], "emission": [[1.0], [1.0]]}
    (tmp_path / "single.json").write_text(json.dumps(single))
    (tmp_path / "huge.json").write_text(as_json([one]).replace("[[", "[[1" + "0" * 400 + ", ", 1))
    (tmp_path / "text.json").write_text('[{"start": ["a"], "transition": [[1]], "emission": [[1]]}]')
    (tmp_path / "other.txt").write_text("0.5")
    np.savez(tmp_path / "pickled.npz", start=np.array([{}], dtype=object), transition=np.ones((1, 1)), emission=np.ones((1, 1)))
    np.savez(tmp_path / "strange.npz", weights=np.ones(3))
    two, network = str(files / "two.json"), str(files / "network")
    for given, said in (
        (["--hmm", str(tmp_path / "twice.json")], "Models 0 and 1 are the same"),
        (["--hmm", str(tmp_path / "permuted.json")], "Models 1 and 2 are the same"),
        (["--hmm", str(tmp_path / "sum.json")], "sum to 2; normalise them"),
        (["--hmm", str(tmp_path / "stuck.json")], "Every transition of state 1 of model 0 of stuck.json is impossible"),
        (["--hmm", str(tmp_path / "symbols.json")], "they must be the same"),
        (["--hmm", str(tmp_path / "single.json")], "have one symbol, so there is nothing to predict"),
        (["--hmm", str(tmp_path / "huge.json")], "not an array of numbers"),
        (["--hmm", str(tmp_path / "text.json")], "not an array of numbers"),
        (["--hmm", str(tmp_path / "other.txt")], "kind of file of hidden Markov models"),
        (["--hmm", str(tmp_path / "pickled.npz")], "cannot be read as arrays"),
        (["--hmm", str(tmp_path / "strange.npz")], "has an array 'weights'"),
        (["--hmm", str(files / "tow.json")], "There is no file of hidden Markov models"),
        (["--hmm", str(files)], "is a folder"),
        (["--hmm", two, "--symbols", "9"], "--symbols belong to the GINC world"),
        (["--model", network, "--networks", "2"], "--networks belong to networks trained here"),
        (["--words", "a"], "--words belong to a language model"),
        (["--model", network], "words of one token"),
        (["--model", network, "--words", *WORDS[:-1], "0"], "Symbols [0, 11] have one token"),
        (["--model", network, "--words", "0", "1"], "--words has 2 texts for 12 symbols"),
        (["--model", network, "--words", *WORDS[:-1], "1 2"], "is 2 tokens"),
        (["--model", network, "--words", *WORDS, "--length", "40"], "longer than the 24"),
        (["--model", str(tmp_path / "nowhere")], "nowhere"),
    ):
        assert command(["study", "bayes", "--tiny", *given, "--out", str(tmp_path / "runs")]) == 2, given
        error = capsys.readouterr().err
        assert said in error, (given, error)
        assert "Traceback" not in error
        assert not list((tmp_path / "runs").glob("bayes-*")), "nothing is left behind"
